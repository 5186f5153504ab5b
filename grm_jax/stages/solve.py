"""Samples solutions of MATH problems, and checks their answers.

  problems -> N samples each -> is_correct by math-verify -> solutions.jsonl

The rows of solutions.jsonl are those of the source math:PATH, see
data/datasets/checked_math.py. Until the end, results are in a journal beside
it, in the order of the problems; an interrupted run resumes from it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import model_directory
from grm_jax.data import dataset_files
from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import math_answers
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, run_lock
from grm_jax.io import journal as journals
from grm_jax.io.journal import Journal
from grm_jax.judgement import temperature_range
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.preference_rows import SourceRow
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import settings as judge_settings
from grm_jax.model import compute_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling.decode_state import DecodeWeights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.sharding import distributed, mesh
from grm_jax.stages import input_identity, path_check, run_record
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training import run as training_run

SOLUTIONS, JOURNAL = 'solutions.jsonl', 'solutions.partial'
# Rules of configs/solve.py.
SETTINGS: settings.Rules = {
  'stage': settings.one_of('solve'),
  'checkpoint': settings.TEXT,
  'checkpoint_step': settings.STEP,
  'input': settings.TEXT,
  'fail_on_bad_rows': settings.BOOLEAN,
  'num_samples': settings.samples(1),
  'temperature': temperature_range.SETTING,
  'seed': settings.SEED,
  'instruction': settings.TEXT,
  'sampling': judge_settings.SAMPLING,
  'mesh': mesh.DECODE_SETTINGS,
  'compute': compute_config.JUDGE_SETTINGS,
}
UNUSED = compute_config.UNUSED

Problem = Mapping[str, Any]  # a row of the data set


def run(config: ConfigDict, workdir: str) -> None:
  """Writes SOLUTIONS.

  Args:
    config: from configs/solve.py.
    workdir: folder of the journal and of SOLUTIONS.

  Raises:
    UserError: a path, a row or a setting is wrong.
  """
  check(config, workdir)
  target = os.path.join(workdir, SOLUTIONS)
  journal_path = os.path.join(workdir, JOURNAL)

  def has_results() -> bool:
    """Returns whether there is something to continue."""
    return atomic_io.exists(target) or journals.has_rows(journal_path)

  with distributed.enter_on_all(run_lock.hold_workdir(workdir)):
    problems = distributed.run_on_all(lambda: _read(config))
    run_settings = run_record.begin(
      config,
      workdir,
      lambda: _identify(config, problems, (target, journal_path)),
      resumes=has_results(),
    )
    if distributed.broadcast_from_host0(atomic_io.exists(target)):
      training_run.print_on_host0(f'{target} has all results')
      return
    with run_record.discard_without_results(workdir, has_results):
      _solve(config, journal_path, problems, run_settings)
      if not jax.process_index():
        _write(target, journal_path, problems)


def check(config: ConfigDict, workdir: str) -> None:
  """Raises UserError if a setting is wrong."""
  settings.check(config, SETTINGS)
  if not workdir:
    raise UserError('--workdir is empty; set it to the folder of the solutions')
  for key in ('checkpoint', 'input'):
    if not config[key]:
      raise UserError(f'config.{key} is empty; set it, see configs/solve.py')
  compute_config.check_devices(config)


def _read(config: ConfigDict) -> list[Problem]:
  """Returns the problems whose published solution has an answer.

  Raises:
    UserError: there is none, or with config.fail_on_bad_rows a row is bad.
  """
  problems, num_skipped, errors = [], 0, []
  for item in dataset_files.adapt_rows(config.input, _problem):
    if isinstance(item, SkippedRow):
      num_skipped += 1
    elif not isinstance(item, ExampleError):
      problems.append(item)
    elif config.fail_on_bad_rows:
      raise UserError(item.reason)
    else:
      errors.append(item.reason)
      logging.warning('%s', item.reason)
  counts = (
    f'{len(problems)} problems; skipped: {num_skipped} without an answer in a '
    f'box, {len(errors)} bad rows'
  )
  if not problems:
    first = f'; the first: {errors[0]}' if errors else ''
    raise UserError(f'config.input={config.input} has {counts}{first}')
  training_run.print_on_host0(f'{config.input}: {counts}')
  return problems


def _problem(row: SourceRow) -> Iterator[Problem | SkippedRow]:
  row.text_field('problem')
  if math_answers.has_answer(row.text_field('solution')):
    yield row.fields
  else:
    yield SkippedRow('no answer in a box')


def _identify(
  config: ConfigDict, problems: Sequence[Problem], writes: Sequence[str]
) -> dict[str, str]:
  """Returns the identities of the inputs; checks that they stay as they are."""
  reads = {'input': config.input, 'checkpoint': config.checkpoint}
  path_check.check_distinct(reads, writes)
  checkpoint = (config.checkpoint, config.checkpoint_step)
  return {
    'input': input_identity.of_items(problems),
    'checkpoint': input_identity.of_checkpoint(*checkpoint),
  }


def _solve(
  config: ConfigDict,
  journal_path: str,
  problems: Sequence[Problem],
  run_settings: Mapping[str, Any],
) -> None:
  """Samples and checks the problems that are not in the journal yet."""
  is_host0 = not jax.process_index()
  journal = Journal(journal_path, run_settings) if is_host0 else None
  num_done = distributed.broadcast_from_host0(journal.count if journal else 0)
  remaining = problems[num_done:]
  results = _sample(config, remaining) if remaining else ()
  for problem, generations in zip(remaining, results, strict=True):
    if journal:
      answers = [_check_answer(x, problem) for x in generations]
      journal.append({'answers': answers})
  if journal:
    journal.close()
  distributed.barrier('solve')


def _sample(
  config: ConfigDict, problems: Sequence[Problem]
) -> Iterator[list[Generation]]:
  """Yields the generations of each problem, in the order of the problems.

  A problem with a rejected request has none.
  """
  engine, weights, tokenizer = _load(config)
  requests = (
    _request(config, tokenizer, number, problem)
    for number, problem in enumerate(problems)
  )
  total = len(problems) * config.num_samples
  generations: list[list[Generation]] = [[] for _ in problems]
  num_missing = [config.num_samples] * len(problems)
  next_number = 0
  for item in engine.run(weights, requests, progress='solving', total=total):
    number = int(item.request_id)
    if isinstance(item, RejectedRequest):
      logging.warning('%.60s: %s', problems[number]['problem'], item.reason)
      generations[number], num_missing[number] = [], 0
    elif num_missing[number]:  # no other sample was rejected
      generations[number].append(item)
      num_missing[number] -= 1
    while next_number < len(problems) and not num_missing[next_number]:
      yield sorted(generations[next_number], key=lambda x: x.sample)
      generations[next_number] = []
      next_number += 1


def _load(config: ConfigDict) -> tuple[Engine, DecodeWeights, Tokenizer]:
  options = judge_factory.sampling_options(config.sampling, config.checkpoint)
  int8 = options.pop('int8')
  step = model_directory.step_or_latest(config.checkpoint_step)
  model, tokenizer = model_directory.open_without_params(
    config.checkpoint,
    step,
    ComputeConfig(**config.compute),
    mesh.from_config(config, weights=config.sampling.weights),
  )
  weights = judge_factory.load_weights(
    config.checkpoint, step, model, int8, config.seed
  )
  engine = judge_factory.make_engine(model, tokenizer, **options)
  return engine, weights, tokenizer


def _request(
  config: ConfigDict, tokenizer: Tokenizer, number: int, problem: Problem
) -> Request:
  text = f'{problem["problem"]}\n\n{config.instruction}'
  return Request(
    id=str(number),
    prompt=chat_format.render_user(tokenizer, text),
    num_samples=config.num_samples,
    temperature=config.temperature,
    seed=config.seed,
    key=dataset_files.text_digest(problem['problem']),
  )


def _check_answer(generation: Generation, problem: Problem) -> dict[str, Any]:
  """Returns an answer of a row of SOLUTIONS."""
  assert generation.text is not None  # the engine has a detokenizer
  text, is_truncated = generation.text.strip(), generation.finish == 'length'
  is_correct = not is_truncated and math_answers.is_correct(
    text, problem['solution']
  )
  return {'text': text, 'is_correct': is_correct, 'truncated': is_truncated}


def _write(target: str, journal_path: str, problems: Sequence[Problem]) -> None:
  """Writes SOLUTIONS, removes the journal and prints the counts.

  Raises:
    UserError: no problem has an answer.
  """
  answers = [row['answers'] for row in journals.rows(journal_path)]
  rows = [
    {**problem, 'answers': x}
    for problem, x in zip(problems, answers, strict=True)
    if x
  ]
  if not rows:
    raise UserError(
      f'{journal_path}: no problem fits; raise config.sampling.prompt_buckets'
    )
  atomic_io.write_lines(target, map(json.dumps, rows))
  atomic_io.remove(journal_path)
  flags = [[x['is_correct'] for x in row['answers']] for row in rows]
  print(
    f'{sum(map(sum, flags))} of {sum(map(len, flags))} answers are right; '
    f'{sum(len({*x}) > 1 for x in flags)} of {len(rows)} problems have right '
    f'and wrong answers -> {target}'
  )
