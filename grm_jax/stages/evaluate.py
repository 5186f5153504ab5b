"""Evaluates a judge on benchmarks, and writes a report.

The judge writes k samples and one greedy judgement of each query; the accuracy
at smaller k comes from subsets of the samples. <suite>.samples.jsonl stores the
judgements; the report can be written again from them, without a model. An
interrupted run resumes from its journals. config.from_outputs takes the samples
from a file of outputs of another judge instead.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import model_directory
from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.evaluation import (
  given_principles,
  judgement_io,
  published_outputs,
  report,
  scaling_curves,
)
from grm_jax.evaluation.suites import SUITES, rmb
from grm_jax.io import atomic_io, run_lock
from grm_jax.io import journal as journals
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import failure_report, resumable
from grm_jax.judges import settings as judge_settings
from grm_jax.judges.baselines.pairwise_rm import PairJudge
from grm_jax.judges.baselines.scalar_rm import ScalarJudge
from grm_jax.judges.factory import AnyJudge
from grm_jax.sharding import distributed
from grm_jax.stages import input_identity, path_check, run_record
from grm_jax.unused_settings import Unused

# Rules of configs/evaluate.py.
SETTINGS = judge_settings.JUDGE | {
  'stage': settings.one_of('evaluate'),
  'judge': settings.one_of(*judge_factory.JUDGES),
  'value_checkpoint': settings.TEXT,
  'suites': dict.fromkeys(SUITES, settings.TEXT),
  'rmb': {
    'ties': settings.one_of(*rmb.TIES),
    'lists': settings.one_of(*rmb.AS_LISTS),
  },
  'ppe': {'references': settings.BOOLEAN},
  'principles': settings.TEXT,
  'max_rows': settings.integer(0, note='0: all'),
  'from_outputs': settings.TEXT,
  'reuse_samples': settings.TEXT,
  'greedy': settings.BOOLEAN,
}
_MODEL_KEYS = ('checkpoint', 'meta_checkpoint', 'value_checkpoint')
# Leaves of the judge.
_JUDGE_KEYS = (
  *('judge', *_MODEL_KEYS, 'checkpoint_step', 'k', 'greedy'),
  *('temperature', 'response_order', 'prompt', 'sampling', 'mesh', 'compute'),
)
UNUSED = (
  Unused(
    (
      *(*_JUDGE_KEYS, 'suites', 'max_rows', 'from_outputs', 'rmb.lists'),
      *('ppe', 'principles'),
    ),
    '{key}.reuse_samples has the judgements of an earlier run',
    lambda config: bool(config.reuse_samples),
  ),
  Unused(
    (*_JUDGE_KEYS, 'ppe', 'principles'),
    '{key}.from_outputs has the samples of another judge',
    lambda config: bool(config.from_outputs) and not config.reuse_samples,
  ),
  Unused(
    ('rmb',),
    '{key}.suites.rmb is empty',
    lambda config: not config.suites.rmb and not config.reuse_samples,
  ),
  Unused(
    ('ppe',),
    '{key}.suites.ppe is empty',
    lambda config: not config.suites.ppe and not config.reuse_samples,
  ),
  Unused(
    ('ppe', 'principles'),
    '{key}.judge is a model with a scalar head that reads no template',
    lambda config: config.judge in judge_settings.WITHOUT_TEMPLATE,
  ),
  *judge_settings.UNUSED,
  judge_settings.GREEDY_UNUSED,
  judge_settings.VALUE_MODEL_UNUSED,
)
# Response orders that the published protocol of a suite prescribes.
RESPONSE_ORDERS = {'judgebench': 'fixed'}
# Suites that get the subset of a row from the name of its file or folder.
NEED_FILE_NAMES = ('llmbar', 'ppe', 'realmistake', 'hhh')
# Scores of suites that are not a mean over queries.
SCORE_NAMES = {'realmistake': 'ROC-AUC'}


def run(config: ConfigDict, workdir: str) -> None:
  """Judges the suites and writes the report into `workdir`.

  Args:
    config: as configs/evaluate.py.
    workdir: folder of the judgements and the report.

  Raises:
    UserError: a path, a row or a setting is wrong.
  """
  check(config, workdir)
  with distributed.enter_on_all(run_lock.hold_workdir(workdir)):
    if config.reuse_samples:
      judged = _read_samples(config.reuse_samples)
      if not run_record.read_settings(workdir):
        run_record.begin(config, workdir, dict, resumes=False)
    elif config.from_outputs:
      judged = _import_outputs(config, workdir)
    else:
      judged = _judge_suites(config, workdir)
    if not jax.process_index():
      _write_report(config, workdir, judged)


def _write_report(
  config: ConfigDict,
  workdir: str,
  judged: Mapping[str, Sequence[JudgedExample]],
) -> None:
  reports = {
    name: _report(config, name, examples) for name, examples in judged.items()
  }
  facts = _facts(config, judged)
  report.write_report(workdir, reports, facts, atomic_io.write_file)
  print(report.table(reports))
  if config.checkpoint == model_directory.RANDOM and _has_model(config):
    print('random weights: the results have no meaning')
  print(f'report -> {os.path.join(workdir, "report.html")}')
  for name, examples in judged.items():
    warning = _failure_warning(config, examples) if _has_model(config) else ''
    if warning:
      print(f'{name}: {warning}')


def _has_model(config: ConfigDict) -> bool:
  return not config.reuse_samples and not config.from_outputs


def _failure_warning(
  config: ConfigDict, judged: Sequence[JudgedExample]
) -> str:
  return failure_report.of_samples(
    config,
    (
      (sample.scores is None, sample.truncated)
      for x in judged
      for sample in (*x.samples, *([x.greedy] if x.greedy else []))
    ),
  )


def check(config: ConfigDict, workdir: str) -> None:
  """Raises UserError if a setting is wrong."""
  if not workdir:
    raise UserError('--workdir is empty; set it to the folder of the report')
  settings.check(config, SETTINGS)
  if config.reuse_samples:
    return
  if not any(config.suites.values()):
    raise UserError(
      'no suite has a path; set --config.suites.NAME=PATH for a NAME of '
      f'{", ".join(SUITES)}'
    )
  if config.from_outputs:
    return
  if not config.checkpoint:
    raise UserError(
      "config.checkpoint is empty; set it to a model directory or 'random'"
    )
  judge_factory.check(config)
  if not config.k and not config.greedy:
    raise UserError(
      f'config.k is {config.k} and config.greedy is false, so that nothing is '
      'judged; set one of them'
    )


def _read_samples(directory: str) -> dict[str, list[JudgedExample]]:
  """Returns the stored judgements of an earlier run, by suite."""
  paths = {name: _samples_path(directory, name) for name in SUITES}
  judged = {
    name: list(judgement_io.read(path))
    for name, path in paths.items()
    if atomic_io.exists(path)
  }
  if not judged:
    raise UserError(
      f'config.reuse_samples={directory} has no file SUITE.samples.jsonl; set '
      'it to the workdir of an earlier evaluation, with a SUITE of '
      f'{", ".join(SUITES)}'
    )
  return judged


def _samples_path(folder: str, suite: str) -> str:
  return os.path.join(folder, f'{suite}.samples.jsonl')


def _import_outputs(
  config: ConfigDict, workdir: str
) -> dict[str, list[JudgedExample]]:
  """Reads the outputs of another judge, and writes them as samples."""
  suites = distributed.run_on_all(lambda: _read_suites(config))
  judged = distributed.run_on_all(
    lambda: published_outputs.load(config.from_outputs, suites)
  )
  _begin(config, workdir, suites)
  if not jax.process_index():
    for name, examples in judged.items():
      judgement_io.write(_samples_path(workdir, name), examples)
  return judged


def _judge_suites(
  config: ConfigDict, workdir: str
) -> dict[str, list[JudgedExample]]:
  """Judges all suites that have a path."""
  # Reads all rows before the weights, to find a wrong path early.
  suites = distributed.run_on_all(lambda: _read_suites(config))
  if config.judge not in judge_settings.WITHOUT_TEMPLATE:
    _check_templates(config, suites)
  run_settings = _begin(config, workdir, suites)
  load_judge = functools.cache(
    lambda: judge_factory.from_config(
      config, judge_factory.make_judge_config(config)
    )
  )
  return {
    name: _judge_suite(
      config, workdir, load_judge, name, examples, run_settings
    )
    for name, examples in suites.items()
  }


def _read_suites(config: ConfigDict) -> dict[str, list[JudgingExample]]:
  """Returns the first config.max_rows examples of each suite."""
  options = {
    'rmb': {'lists': config.rmb.lists},
    'ppe': {'references': config.ppe.references},
  }
  suites = {
    name: SUITES[name].load(
      _resolve_source(name, path), **options.get(name, {})
    )[: config.max_rows or None]
    for name, path in config.suites.items()
    if path
  }
  return _give_principles(config, suites) if config.principles else suites


def _give_principles(
  config: ConfigDict, suites: Mapping[str, Sequence[JudgingExample]]
) -> dict[str, list[JudgingExample]]:
  """Returns the examples with the principles of config.principles."""
  principles = given_principles.read(config.principles)
  given = {
    name: given_principles.give(examples, principles)
    for name, examples in suites.items()
  }
  for name, examples in given.items():
    count = sum(bool(x.principles) for x in examples)
    logging.info('%s: %d of %d have principles', name, count, len(examples))
    if not count:
      raise UserError(
        f'config.principles={config.principles} has no principles of '
        f'suites.{name}; its rows need the ids of examples, such as '
        f'{examples[0].id!r}'
      )
  return given


def _check_templates(
  config: ConfigDict, suites: Mapping[str, Sequence[JudgingExample]]
) -> None:
  """Raises UserError if a template does not show what the config gives."""
  prompt_format = judge_factory.make_judge_config(config).prompt_format()
  given = {
    (len(x.responses), key, variable)
    for examples in suites.values()
    for x in examples
    for key, variable, text in (
      ('principles', 'principles', x.principles),
      ('ppe.references', 'reference', x.reference),
    )
    if text
  }
  for num_responses, key, variable in sorted(given):
    template = prompt_format.template_for(num_responses)
    if variable not in template.used_variables:
      raise UserError(
        f'config.{key} is set, but template {template.name} has no '
        f'{{{{ {variable} }}}}; use --config.prompt.template=critique'
      )


def _begin(
  config: ConfigDict,
  workdir: str,
  suites: Mapping[str, Sequence[JudgingExample]],
) -> dict[str, Any]:
  """Checks that this run fits WORKDIR; returns its settings and inputs."""
  return run_record.begin(
    config,
    workdir,
    functools.partial(_identify_inputs, config, workdir, suites),
    resumes=any(_has_judgements(workdir, name) for name in suites),
    needs_record=any(
      atomic_io.exists(_samples_path(workdir, name)) for name in suites
    ),
  )


def _identify_inputs(
  config: ConfigDict,
  workdir: str,
  suites: Mapping[str, Sequence[JudgingExample]],
) -> dict[str, str]:
  """Returns the identities of the inputs; checks that they stay as they are."""
  path_check.check_distinct(
    {
      **{f'suites.{name}': config.suites[name] for name in suites},
      **{x: config[x] for x in (*_MODEL_KEYS, 'principles', 'from_outputs')},
      **input_identity.template_names(config),
    },
    [
      *(x for name in suites for x in _files_of(workdir, name)),
      *(
        os.path.join(workdir, x)
        for x in (report.RESULTS, report.PAGE, run_record.RECORD)
      ),
    ],
  )
  identities = {
    **{f'suites.{k}': input_identity.of_items(v) for k, v in suites.items()},
    # The examples have the content.
    'principles': 'given' if config.principles else '',
  }
  if config.from_outputs:
    outputs = input_identity.of_source(config.from_outputs)
    return identities | {'from_outputs': outputs}
  return identities | input_identity.of_judge(config)


def _files_of(workdir: str, suite: str) -> list[str]:
  """Returns the samples of a suite, and the journals that come before them."""
  path = _samples_path(workdir, suite)
  return [path, f'{path}.partial', f'{path}.greedy']


def _has_judgements(workdir: str, suite: str) -> bool:
  samples, *journal_paths = _files_of(workdir, suite)
  return atomic_io.exists(samples) or any(map(journals.has_rows, journal_paths))


def _resolve_source(suite: str, path: str) -> str | preference_rows.RowTable:
  """Returns the path, or the rows of a TFDS or seqio name."""
  if not dataset_files.is_dataset_name(path):
    return path
  if suite in NEED_FILE_NAMES:
    raise UserError(
      f'config.suites.{suite}={path}: this suite gets the subset of a row from '
      'the names of files and folders; set the path of its files'
    )
  return dataset_files.row_table(path)


def _judge_suite(
  config: ConfigDict,
  workdir: str,
  load_judge: Callable[[], AnyJudge],
  suite: str,
  examples: Sequence[JudgingExample],
  run_settings: Mapping[str, Any],
) -> list[JudgedExample]:
  """Returns samples and a greedy judgement of each example; writes them.

  An earlier start of this run may have written them already.
  """
  path, samples_journal, greedy_journal = _files_of(workdir, suite)
  if atomic_io.exists(path):
    return _read_finished(path, examples)
  order = RESPONSE_ORDERS.get(suite, config.response_order)
  judge = judge_factory.with_order(load_judge(), order)
  # All samples of a scalar judge are equal, and equal to the greedy judgement.
  is_scalar = isinstance(judge, ScalarJudge | PairJudge)
  k = min(1, config.k) if is_scalar else config.k
  header = {**run_settings, 'suite': suite}
  progress = f'{suite}, {k} samples' if k else suite
  logging.info(
    '%s: %d queries with %d samples each: %d samples',
    suite,
    len(examples),
    k,
    len(examples) * k,
  )
  judged = resumable.judge_all(
    judge, examples, k, samples_journal, header, progress
  )
  is_greedy = not k and not is_scalar  # one greedy judgement, no sample
  greedy: list[JudgedExample] = []
  if is_greedy:
    greedy = judged
  elif config.greedy and not is_scalar:
    greedy = resumable.judge_all(
      judge, examples, 0, greedy_journal, header, suite
    )
  if jax.process_index():
    return judged  # only process 0 has all judgements, and reports them
  if greedy:
    judged = [
      JudgedExample(x.example, () if is_greedy else x.samples, y.samples[0])
      for x, y in zip(judged, greedy, strict=True)
    ]
  judgement_io.write(path, judged)
  for journal in (samples_journal, greedy_journal):
    atomic_io.remove(journal)
  return judged


def _read_finished(
  path: str, examples: Sequence[JudgingExample]
) -> list[JudgedExample]:
  """Returns the judgements of a suite that is complete."""
  judged = list(judgement_io.read(path))
  # The stored examples also have the principles that the judge wrote. The run
  # record compares the given ones.
  stored = given_principles.give(
    [x.example for x in judged], {x.id: x.principles for x in examples}
  )
  if stored != list(examples):
    raise UserError(
      f'{path} has other examples than its suite; delete it to judge them again'
    )
  return judged


def _report(
  config: ConfigDict, suite: str, judged: Sequence[JudgedExample]
) -> report.SuiteReport:
  module = SUITES[suite]
  if suite in SCORE_NAMES:
    interval = functools.partial(module.interval, seed=config.seed)
    estimate = scaling_curves.mean_of_scores(module.score, interval)
  else:
    options = {'rmb': {'ties': config.rmb.ties}}.get(suite, {})
    terms = functools.partial(module.terms, **options)
    estimate = scaling_curves.mean_of_terms(terms, config.seed)
  return report.suite_report(
    suite,
    judged,
    scaling_curves.suite_curves(judged, estimate, config.seed),
    SCORE_NAMES.get(suite, 'accuracy'),
    config.seed,
  )


def _facts(
  config: ConfigDict, judged: Mapping[str, Sequence[JudgedExample]]
) -> dict[str, str]:
  """Returns the settings at the top of the report."""
  if not _has_model(config):
    source = 'samples' if config.reuse_samples else 'outputs'
    return {
      source: config.reuse_samples or config.from_outputs,
      **_missing_outputs(judged),
    }
  return {
    'judge': config.judge,
    'checkpoint': config.checkpoint,
    'meta RM': config.meta_checkpoint or 'none',
    'template': str(judge_factory.make_judge_config(config).template),
    'given principles': config.principles or 'none',
    'references in PPE': 'yes' if config.ppe.references else 'no',
    'samples per query': str(config.k),
    'temperature': str(config.temperature),
    'response order': config.response_order,
    'seed': str(config.seed),
  }


def _missing_outputs(
  judged: Mapping[str, Sequence[JudgedExample]],
) -> dict[str, str]:
  """Returns the share of examples without outputs, of suites with any."""
  counts = {k: published_outputs.count_missing(v) for k, v in judged.items()}
  return {
    f'{name}: examples without outputs, counted as parse failures': (
      f'{count:,} of {len(judged[name]):,} ({count / len(judged[name]):.1%})'
    )
    for name, count in counts.items()
    if count
  }
