"""Samples generations for RFT: unhinted first, then with hints.

Each of the two passes has a journal, so that an interrupted run resumes. The
settings of sampling are stored beside the samples, so that a run with other
settings does not use them by mistake.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, json_record
from grm_jax.io import journal as journals
from grm_jax.io.journal import Journal
from grm_jax.judgement import correctness, template
from grm_jax.judgement import judgement as judgements
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import (
  ExampleError,
  JudgedExample,
  Judgement,
)
from grm_jax.judgement.prompt_builder import Hint
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import factory as judge_factory
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import distributed, mesh
from grm_jax.stages import input_identity, run_record

SAMPLES, SETTINGS = 'samples.jsonl', 'samples.json'
# Leaves of the config -> section that the template is.
HINT_TEMPLATES = {
  'hint_template': 'hint',
  'hint_single_template': 'hint_single',
}
JOURNALS = ('unhinted.partial', 'hinted.partial')
# The config leaves that samples depend on, besides examples and prompts.
_SAMPLING_KEYS = (
  'num_samples',
  'num_hinted_samples',
  'response_order',
  'temperature',
  'hinted_temperature',
  'hint',
  'train.seed',
  'sampling.max_new_tokens',
  'sampling.int8',
)


def sample(
  config: ConfigDict,
  workdir: str,
  examples: Mapping[str, JudgingExample],
  inputs: Mapping[str, Any],
  prompt_format: PromptFormat,
) -> None:
  """Writes SAMPLES and SETTINGS, unless SAMPLES has these settings already.

  Args:
    config: as configs/rft.py.
    workdir: folder of the samples and the journals.
    examples: labelled examples by id.
    inputs: descriptions of the examples and prompts, by config key.
    prompt_format: format of the prompts.

  Raises:
    UserError: SAMPLES or a journal has other settings, the checkpoint cannot
      be loaded, or with `config.fail_on_bad_rows` an example cannot be judged.
  """
  settings = json.loads(json.dumps({**inputs, **_sampling_settings(config)}))
  target = os.path.join(workdir, SAMPLES)
  if atomic_io.exists(target):
    _check_existing(workdir, settings)
    logging.info('%s exists and has these settings; skip sampling', target)
    _remove_journals(workdir)  # left by a kill after SAMPLES was written
    return
  load_unhinted = functools.cache(lambda: _load_judge(config, prompt_format))
  load_hinted = functools.cache(lambda: _with_hint(load_unhinted(), config))
  unhinted = _sample_pass(
    config,
    _journal_path(workdir, hinted=False),
    load_unhinted,
    config.num_samples,
    list(examples.values()),
    settings,
  )
  # An example that cannot be judged has no samples, with or without a hint.
  judged = [examples[id] for id, samples in unhinted.items() if samples]
  to_hint = judged
  if prompt_format.reads == 'critique':
    to_hint = []  # no critique is incorrect
  elif config.hint != 'all':
    to_hint = [x for x in judged if not _any_correct(x, unhinted[x.id])]
    logging.info(
      '%d of %d examples have no correct unhinted sample',
      *(len(to_hint), len(unhinted)),
    )
  hinted = {}
  if config.num_hinted_samples and to_hint:
    hinted = _sample_pass(
      config,
      _journal_path(workdir, hinted=True),
      load_hinted,
      config.num_hinted_samples,
      to_hint,
      settings,
    )
  rows = (
    row
    for id, example in examples.items()
    for is_hinted, samples in ((False, unhinted), (True, hinted))
    for row in _sample_rows(example, samples.get(id, ()), is_hinted)
  )
  # SETTINGS come first: wherever SAMPLES exist, their settings are known.
  atomic_io.write_file(
    os.path.join(workdir, SETTINGS), json.dumps(settings, indent=2) + '\n'
  )
  atomic_io.write_lines(target, map(json.dumps, rows))
  distributed.barrier('samples')
  _remove_journals(workdir)
  print(f'samples -> {target}')


def _sampling_settings(config: ConfigDict) -> dict[str, Any]:
  keys = (*_SAMPLING_KEYS, 'sampling.prompt_buckets')
  return run_record.leaves(config, *keys) | identify_hints(config)


def identify_hints(config: ConfigDict, key: str = 'config') -> dict[str, str]:
  """Returns the templates of hints with digests of their text, by leaf.

  Raises:
    UserError: one of them is invalid.
  """
  identities = {}
  for leaf, section in HINT_TEMPLATES.items():
    hint = template.load_hint(config[leaf], section, f'{key}.{leaf}')
    identities[leaf] = f'{config[leaf]}, {input_identity.digest(hint.source)}'
  return identities


def _check_existing(workdir: str, settings: Mapping[str, Any]) -> None:
  target = os.path.join(workdir, SAMPLES)
  remedy = (
    'filter these samples with --config.phases=filter,train, or set another '
    f'--workdir, or delete {target} to sample again'
  )
  stored = read_json(os.path.join(workdir, SETTINGS), remedy)
  check_same(target, stored, settings, remedy)


def _load_judge(config: ConfigDict, prompt_format: PromptFormat) -> Judge:
  """Returns the judge that samples without hints."""
  judge_config = JudgeConfig.from_prompt_format(
    prompt_format,
    order=config.response_order,
    temperature=config.temperature,
    seed=config.train.seed,
  )
  layouts = (
    mesh.from_config(config.train, weights=config.sampling.weights),
    mesh.from_config(config.train),
  )
  return judge_factory.load(
    config.checkpoint,
    model_directory.step_or_latest(config.checkpoint_step),
    '',
    judge_config,
    ComputeConfig(**config.train.compute),
    layouts,
    **judge_factory.sampling_options(config.sampling, config.checkpoint),
  )


def _with_hint(judge: Judge, config: ConfigDict) -> Judge:
  """Returns a judge with hints that shares the engine and the weights."""
  judge_config = dataclasses.replace(
    judge.config,
    hint=Hint(config.hint_template, config.hint_single_template),
    temperature=config.hinted_temperature,
  )
  return Judge(judge.engine, judge.weights, judge.tokenizer, judge_config)


def _journal_path(workdir: str, hinted: bool) -> str:
  return os.path.join(workdir, JOURNALS[hinted])


def _remove_journals(workdir: str) -> None:
  if not jax.process_index():
    for hinted in (False, True):
      atomic_io.remove(_journal_path(workdir, hinted))


def _sample_pass(
  config: ConfigDict,
  journal_path: str,
  load_judge: Callable[[], Judge],
  num_samples: int,
  examples: Sequence[JudgingExample],
  settings: Mapping[str, Any],
) -> dict[str, list[Judgement]]:
  """Samples the examples that are not in the journal yet.

  Returns:
    example id -> judgements; an empty list if the example cannot be judged.
  """
  is_host0 = not jax.process_index()
  journal = Journal(journal_path, settings) if is_host0 else None
  num_done = distributed.broadcast_from_host0(journal.count if journal else 0)
  remaining = examples[num_done:]
  results: Iterable[JudgedExample | ExampleError] = ()
  if remaining:
    name, _ = os.path.splitext(os.path.basename(journal_path))
    results = load_judge().judge(
      remaining, num_samples, progress=name, total=len(remaining)
    )
  for example, result in zip(remaining, results, strict=True):
    rows = []
    if isinstance(result, JudgedExample):
      rows = [judgements.to_row(x) for x in result.samples]
    elif config.fail_on_bad_rows:
      raise UserError(f'{config.data}: {result.id}: {result.reason}')
    else:
      logging.warning('%s: %s', result.id, result.reason)
    if journal:
      journal.append({'id': example.id, 'samples': rows})
  if journal:
    journal.close()
  distributed.barrier(journal_path)
  return {
    row['id']: [judgements.from_row(x) for x in row['samples']]
    for row in journals.rows(journal_path)
  }


def _any_correct(example: JudgingExample, samples: Iterable[Judgement]) -> bool:
  return any(correctness.outcome(example, x) == 'correct' for x in samples)


def _sample_rows(
  example: JudgingExample, samples: Iterable[Judgement], hinted: bool
) -> Iterator[dict[str, Any]]:
  """Yields the rows of SAMPLES of an example."""
  for number, sample in enumerate(samples):
    yield {
      'id': example.id,
      'hinted': hinted,
      'sample': number,
      'order': sample.order,
      'text': sample.text,
      'truncated': sample.truncated,
      'num_tokens': sample.num_tokens,
      'scores': sample.scores,
      'outcome': correctness.outcome(example, sample),
    }


def samples_path(workdir: str, inputs: Mapping[str, Any]) -> str:
  """Returns the path of SAMPLES.

  Raises:
    UserError: there are none, or they have other examples or prompts than
      `inputs` describes.
  """
  path = os.path.join(workdir, SAMPLES)
  if not atomic_io.exists(path):
    raise UserError(
      f'{path} does not exist; sample first (--config.phases=sample,filter), '
      'or set --config.samples=FILE'
    )
  remedy = (
    f'to filter these samples anyway, set --config.samples={path} '
    '--config.phases=filter,train'
  )
  stored = read_json(os.path.join(workdir, SETTINGS), remedy)
  check_same(path, stored, inputs, remedy)
  return path


def check_same(
  path: str, stored: Mapping[str, Any], current: Mapping[str, Any], remedy: str
) -> None:
  """Raises UserError if current settings have other stored values.

  Args:
    path: file with the stored settings, for the message.
    stored: settings by config key; may have more keys than `current`.
    current: settings of this run.
    remedy: what the user can do, for the message.
  """
  different = json_record.differences(
    {key: stored.get(key) for key in current}, current
  )
  if different:
    raise UserError(
      f'{path} was written with other settings: {different}; {remedy}'
    )


def read_settings(workdir: str) -> dict[str, Any]:
  """Returns the settings of SAMPLES; {} if there are none."""
  return json_record.read(os.path.join(workdir, SETTINGS)) or {}


def read_json(path: str, remedy: str) -> dict[str, Any]:
  """Returns the content of a file that an earlier phase wrote.

  Raises:
    UserError: it does not exist or is damaged; the message ends with `remedy`.
  """
  content = json_record.read(path, remedy=remedy)
  if content is None:
    raise UserError(f'{path} does not exist; {remedy}')
  return content
