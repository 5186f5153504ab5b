"""Evaluates a judge on benchmarks, and reports it.

Every suite is judged once, with k samples of each query and one greedy
judgement; accuracy at smaller k comes from subsets of those samples. What was
judged is kept in <suite>.samples.jsonl, from which the report can be written
again without a model. A run that was killed goes on from its journals.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io, report, scaling_curves
from grm_jax.evaluation.suites import SUITES
from grm_jax.io import atomic_io
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import resumable
from grm_jax.judges.baselines.pairwise_rm import PairJudge
from grm_jax.judges.baselines.scalar_rm import ScalarJudge

# Orders that a suite's published protocol prescribes.
ORDERS = {'judgebench': 'fixed'}
# Suites that read off the names of files or folders what a row is of.
BY_FILE = ('llmbar', 'ppe', 'realmistake')
# Suites whose score is no mean over queries.
MEASURES = {'realmistake': 'ROC-AUC'}


def run(config: ConfigDict, workdir: str) -> None:
  """Judges and reports, into `workdir`.

  Raises:
    UserError: a path, a row or a setting is wrong.
  """
  if not workdir:
    raise UserError('give --workdir=DIR, where the report is written')
  if config.reuse_samples:
    judged = _read_samples(config.reuse_samples)
  else:
    judged = _judge_suites(config, workdir)
  if jax.process_index():
    return
  reports = {name: _report(name, found) for name, found in judged.items()}
  report.write_report(workdir, reports, _facts(config), atomic_io.write_whole)
  print(report.table(reports))
  if config.checkpoint == model_directory.RANDOM and not config.reuse_samples:
    print('random weights: this shows only that everything runs')
  print(f'report -> {os.path.join(workdir, "report.html")}')


def _facts(config) -> dict[str, str]:
  """What the report says at its top."""
  if config.reuse_samples:
    return {'samples': config.reuse_samples}
  return {
    'judge': config.judge,
    'checkpoint': config.checkpoint,
    'meta RM': config.meta_checkpoint or 'none',
    'template': judge_factory.settings_of(config).template,
    'samples of a query': str(config.k),
    'temperature': str(config.temperature),
    'order': config.response_order,
    'seed': str(config.seed),
  }


def _read_samples(directory: str) -> dict[str, list[JudgedExample]]:
  paths = {
    name: os.path.join(directory, f'{name}.samples.jsonl') for name in SUITES
  }
  found = {
    name: list(judgement_io.read(path))
    for name, path in paths.items()
    if atomic_io.exists(path)
  }
  if not found:
    raise UserError(
      f'config.reuse_samples={directory} has no <suite>.samples.jsonl of '
      f'{", ".join(SUITES)}'
    )
  return found


def _judge_suites(config, workdir: str) -> dict[str, list[JudgedExample]]:
  """Rows first: a wrong path should not wait for weights."""
  suites = {
    name: SUITES[name].load(_place(name, path))
    for name, path in config.suites.items()
    if path
  }
  if not suites:
    raise UserError(
      'no suite has a path; give --config.suites.NAME=PATH, NAME one of '
      f'{", ".join(SUITES)}'
    )
  if config.k < 1 and not config.greedy:
    raise UserError('config.k is 0 and config.greedy false: nothing to judge')
  judge = judge_factory.from_config(config, judge_factory.settings_of(config))
  out = {}
  for name, examples in suites.items():
    if config.max_rows:
      examples = examples[: config.max_rows]
    out[name] = _judge_suite(config, workdir, judge, name, examples)
  return out


def _place(name: str, path: str) -> str | preference_rows.RowTable:
  """What a suite loads: a path, or the rows of a TFDS or seqio name."""
  if not dataset_files.is_dataset_name(path):
    return path
  if name in BY_FILE:
    raise UserError(
      f'config.suites.{name}={path}: this suite reads what a row is of off '
      'the names of files and folders; give the path of its files'
    )
  return dataset_files.table(path)


def _judge_suite(
  config, workdir, judge, name, examples: Sequence[JudgingExample]
) -> list[JudgedExample]:
  """K samples of each example, and a greedy judgement of each."""
  order = ORDERS.get(name, config.response_order)
  judge = judge_factory.with_order(judge, order)
  # A scalar judge says the same every time.
  scalar = isinstance(judge, ScalarJudge | PairJudge)
  k = min(1, config.k) if scalar else config.k
  path = os.path.join(workdir, f'{name}.samples.jsonl')
  header = _header(config, name, order, len(examples))
  drawn = resumable.judge_all(
    judge,
    examples,
    k,
    f'{path}.partial',
    header,
    f'{name}, {k} samples' if k else name,
  )
  greedy = None
  if config.greedy and not scalar:
    greedy = resumable.judge_all(
      judge, examples, 0, f'{path}.greedy', header, name
    )
  found = [
    JudgedExample(x.example, x.samples, y and y.samples[0])
    for x, y in zip(drawn, greedy or [None] * len(drawn), strict=True)
  ]
  if not jax.process_index():
    judgement_io.write(path, found)
    for journal in (f'{path}.partial', f'{path}.greedy'):
      atomic_io.remove(journal)
  return found


def _header(config, name, order, count):
  """What tells a journal of this run from others."""
  settings = dataclasses.asdict(judge_factory.settings_of(config))
  return settings | {
    'suite': name,
    'path': config.suites[name],
    'rows': count,
    'order': order,
    'judge': config.judge,
    'checkpoint': config.checkpoint,
    'step': config.checkpoint_step,
    'meta_checkpoint': config.meta_checkpoint,
    'k': config.k,
    'size': config.sampling.max_new_tokens,
    'int8': config.sampling.int8,
  }


def _report(name: str, judged: Sequence[JudgedExample]) -> report.SuiteReport:
  suite = SUITES[name]
  if name in MEASURES:
    estimate = scaling_curves.mean_of_scores(suite.score, suite.interval)
  else:
    estimate = scaling_curves.mean_of_terms(suite.terms)
  return report.suite_report(
    name,
    judged,
    scaling_curves.suite_curves(judged, estimate),
    suite.score,
    suite.interval,
    MEASURES.get(name, 'accuracy'),
  )
