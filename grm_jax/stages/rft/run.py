"""Rejective fine-tuning (RFT): sample, filter, fine-tune on what is selected.

  examples -> unhinted samples -> hinted samples if no unhinted one is correct
           -> rejection sampling -> kept.jsonl -> the stage sft

config.phases selects the phases to run: sample, filter and train, or one at a
time; and select, the filter before RL. They write into WORKDIR:

  samples.jsonl   one row per generation, with its scores and outcome
  samples.json    the settings of sampling
  kept.jsonl      the generations to fine-tune on, in prompts without hints
  filter.json     the selection rules and the counts of all outcomes
  selected.jsonl  the examples that the judge does not always get right
  selection.json  the counts of the phase select
  model/, ...     written by the stage sft

Sampling resumes after an interruption. Filtering with other rules reuses the
samples.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from grm_jax import settings, unused_settings
from grm_jax.data import labelled_examples
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, run_lock
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import rejection_sampling, temperature_range
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterConfig
from grm_jax.judges import settings as judge_settings
from grm_jax.sharding import distributed
from grm_jax.stages import input_identity, path_check, run_record
from grm_jax.stages.rft import sample_files
from grm_jax.stages.rft import sampling as rft_sampling
from grm_jax.stages.sft import data as sft_data
from grm_jax.stages.sft import train as sft_train
from grm_jax.training import metric_writer
from grm_jax.training import run as training_run
from grm_jax.unused_settings import Unused

PHASES = ('sample', 'filter', 'train', 'select')
KEPT, FILTER = 'kept.jsonl', 'filter.json'
SELECTED, SELECTION = 'selected.jsonl', 'selection.json'
HINT = ('unsolved', 'all')
# Rules of configs/rft.py.
SETTINGS: settings.Rules = {
  'stage': settings.one_of('rft'),
  'phases': settings.some_of(*PHASES),
  'checkpoint': settings.TEXT,
  'checkpoint_step': settings.STEP,
  'data': settings.TEXT,
  'samples': settings.TEXT,
  'fail_on_bad_rows': settings.BOOLEAN,
  'num_samples': settings.samples(1),
  'temperature': temperature_range.SETTING,
  'num_hinted_samples': settings.samples(0),
  'hinted_temperature': temperature_range.SETTING,
  'hint': settings.one_of(*HINT),
  'hint_template': settings.TEXT,
  'hint_single_template': settings.TEXT,
  'response_order': judge_settings.RESPONSE_ORDER,
  'filter': {
    'reject': settings.BOOLEAN,
    'too_easy': settings.BOOLEAN,
    'unhinted': settings.BOOLEAN,
    'hinted': settings.BOOLEAN,
    'max_per_example': settings.integer(0, note='0: all'),
  },
  'sampling': judge_settings.SAMPLING,
  'train': sft_train.SETTINGS,
}
NO_HINTS = Unused(
  (
    *('hinted_temperature', 'filter.hinted', 'hint'),
    *rft_sampling.HINT_TEMPLATES,
  ),
  '{key}.num_hinted_samples is 0',
  lambda config: not config.num_hinted_samples and not config.get('samples'),
)
CRITIQUES = Unused(
  (
    *('num_hinted_samples', 'hinted_temperature', 'hint'),
    *('filter.reject', 'filter.too_easy', 'filter.hinted'),
    *rft_sampling.HINT_TEMPLATES,
  ),
  '{key}.train.prompt.reads is critique, and no critique is incorrect',
  lambda config: config.train.prompt.reads == 'critique',
)
UNUSED = (
  CRITIQUES,
  Unused(
    (
      *('num_samples', 'num_hinted_samples', 'temperature', 'sampling'),
      *('hinted_temperature', 'response_order', 'hint'),
      *rft_sampling.HINT_TEMPLATES,
    ),
    '{key}.phases has no sample',
    lambda config: 'sample' not in _phases(config),
  ),
  Unused(
    ('filter',),
    '{key}.phases has no filter',
    lambda config: 'filter' not in _phases(config),
  ),
  # Sampling uses the others: seed, mesh, compute and prompt.
  Unused(
    (
      *('train.data', 'train.steps', 'train.optimizer', 'train.evaluation'),
      *('train.save_every', 'train.max_to_keep', 'train.profile_steps'),
      'train.lora',
    ),
    '{key}.phases has no train',
    lambda config: 'train' not in _phases(config),
  ),
  NO_HINTS,
  *unused_settings.in_group('train', sft_train.UNUSED),
)


def run(config: ConfigDict, workdir: str) -> None:
  """Runs the phases in `config.phases`.

  Args:
    config: as configs/rft.py.
    workdir: folder of the samples and the model.

  Raises:
    UserError: a path, a row or a setting is wrong, or no generation is
      selected.
  """
  check(config, workdir)
  phases = _phases(config)
  with (
    distributed.enter_on_all(run_lock.hold_workdir(workdir)),
    training_run.no_leftovers(workdir),
  ):
    prompt_format = _prompt_format(config)
    examples, inputs = distributed.run_on_all(
      lambda: _read_inputs(config, workdir, phases, prompt_format)
    )
    resumes = training_run.has_checkpoint(_model_path(workdir))
    run_record.begin(
      config,
      workdir,
      lambda: inputs | _identify_initial_model(config, workdir, phases),
      resumes=resumes,
      needs_record=resumes,
      branch='train.',
    )
    _run_phases(config, workdir, phases, examples, inputs, prompt_format)


def _model_path(workdir: str) -> str:
  return os.path.join(workdir, training_run.MODEL)


def _read_inputs(
  config: ConfigDict,
  workdir: str,
  phases: Sequence[str],
  prompt_format: PromptFormat,
) -> tuple[dict[str, JudgingExample], dict[str, Any]]:
  """Returns the examples by id, and the identities of all inputs, by key."""
  path_check.check_distinct(
    {
      **{x: config[x] for x in ('data', 'samples', 'checkpoint')},
      **input_identity.template_names(config.train),
      'train.checkpoint': config.train.checkpoint,
      **{x: config[x] for x in rft_sampling.HINT_TEMPLATES},
      'train.data.general': config.train.data.general,
      'train.evaluation.data': config.train.evaluation.data,
    },
    [_model_path(workdir), *_files_of(workdir, phases)],
  )
  inputs = _prompt_settings(prompt_format)
  if phases == ['train']:
    _check_kept(workdir, prompt_format)
    return {}, inputs
  loaded = labelled_examples.load(
    config.data, config.fail_on_bad_rows, prompt_format
  )
  inputs['data'] = input_identity.of_items(loaded)
  if config.samples:
    inputs['samples'] = input_identity.of_file(config.samples)
  elif 'sample' not in phases:
    rft_sampling.samples_path(workdir, inputs)
  if 'sample' in phases:
    # A training run that has begun needs the initial checkpoint no longer.
    begun = ''
    if training_run.has_checkpoint(
      _model_path(workdir)
    ) and run_record.begun_identity(config, workdir, 'checkpoint'):
      begun = rft_sampling.read_settings(workdir).get('checkpoint', '')
    inputs['checkpoint'] = input_identity.of_checkpoint(
      config.checkpoint, config.checkpoint_step, begun
    )
  return {example.id: example for example in loaded}, inputs


def _identify_initial_model(
  config: ConfigDict, workdir: str, phases: Sequence[str]
) -> dict[str, str]:
  """Returns the identity of the model that the phase 'train' starts from."""
  resumes = training_run.has_checkpoint(_model_path(workdir))
  if 'train' not in phases:
    # The other phases leave the record of the training as it is.
    settings = run_record.read_settings(workdir) if resumes else {}
    return {'train.checkpoint': settings.get('train.checkpoint', '')}
  prefix = 'train.' if config.train.checkpoint else ''
  leaf = run_record.flatten(config)
  begun = ''
  if resumes:
    begun = run_record.begun_identity(
      config, workdir, f'{prefix}checkpoint', 'train.checkpoint'
    )
  identity = input_identity.of_checkpoint(
    leaf[f'{prefix}checkpoint'], leaf[f'{prefix}checkpoint_step'], begun
  )
  return {'train.checkpoint': identity}


def _files_of(workdir: str, phases: Sequence[str]) -> list[str]:
  """Returns the files that the phases write."""
  names = {
    'sample': (
      rft_sampling.SAMPLES,
      rft_sampling.SETTINGS,
      *rft_sampling.JOURNALS,
    ),
    'filter': (KEPT, FILTER),
    'select': (SELECTED, SELECTION),
    'train': (metric_writer.FILE,),
  }
  return [os.path.join(workdir, x) for phase in phases for x in names[phase]]


def _run_phases(
  config: ConfigDict,
  workdir: str,
  phases: Sequence[str],
  examples: Mapping[str, JudgingExample],
  inputs: Mapping[str, Any],
  prompt_format: PromptFormat,
) -> None:
  if 'sample' in phases:
    rft_sampling.sample(config, workdir, examples, inputs, prompt_format)
  if 'filter' in phases or 'select' in phases:
    path = config.samples or rft_sampling.samples_path(workdir, inputs)
    samples = sample_files.read(path, examples, config.fail_on_bad_rows)
    outcomes = {
      id: [
        rejection_sampling.outcome(x, examples[id], prompt_format)
        for x in example_samples
      ]
      for id, example_samples in samples.items()
    }
  if 'select' in phases:
    _write_selected(workdir, path, samples, outcomes, examples, inputs)
  if 'filter' in phases:
    filter_config = FilterConfig(**config.filter)
    rows, counts = _select(samples, outcomes, examples, filter_config)
    report = {
      'filter': dataclasses.asdict(filter_config),
      'samples': path,
      'inputs': inputs,
      'counts': counts,
    }
    _write_kept(workdir, rows, report)
    distributed.barrier('filter')
  if 'train' in phases:
    _train(config, workdir, prompt_format)


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks the settings before any expensive work.

  Args:
    config: as configs/rft.py.
    workdir: folder of the samples and the model.
    key: config key of `config` in error messages.

  Raises:
    UserError: a setting is wrong.
  """
  if not workdir:
    raise UserError(
      '--workdir is empty; set it to the folder of the samples and the model'
    )
  settings.check(config, SETTINGS, key)
  phases = _phases(config)
  if 'train' in phases:
    sft_train.check(config.train, workdir, f'{key}.train')
  if config.samples and 'sample' in phases:
    raise UserError(
      f'{key}.samples={config.samples} replaces sampling, but {key}.phases is '
      f'{config.phases}; set --{key}.phases=filter,train'
    )
  if 'sample' in phases and not config.checkpoint:
    raise UserError(
      f'{key}.checkpoint is empty; set it to the model directory of the stage '
      'sft'
    )
  _prompt_format(config, key)
  rft_sampling.identify_hints(config, key)
  _check_buckets(config, key)


def _check_buckets(config: ConfigDict, key: str) -> None:
  """Raises UserError if sampling and training shorten prompts differently."""
  longest = max(config.sampling.prompt_buckets)
  train_longest = max(config.train.batch.prompt_buckets)
  shortens = config.train.prompt.too_long == 'shorten'
  if shortens and not config.samples and longest != train_longest:
    raise UserError(
      f'{key}.sampling.prompt_buckets end at {longest} tokens but '
      f'{key}.train.batch.prompt_buckets at {train_longest}, which would '
      'shorten long prompts to two lengths; set both to the same last length'
    )


def _phases(config: ConfigDict) -> list[str]:
  return [phase.strip() for phase in config.phases.split(',')]


def _prompt_format(config: ConfigDict, key: str = 'config') -> PromptFormat:
  return training_run.prompt_format(
    config.train.prompt, config.checkpoint, f'{key}.train.prompt'
  )


def _prompt_settings(prompt_format: PromptFormat) -> dict[str, Any]:
  """Returns prompt settings with digests of the templates, by config key."""
  key = 'train.prompt'
  return {
    f'{key}.reads': prompt_format.reads,
    f'{key}.too_long': prompt_format.too_long,
    f'{key}.truncated': prompt_format.truncated,
    f'{key}.score_range': list(prompt_format.score_range),
    f'{key}.single_score_range': list(prompt_format.single_score_range),
    f'{key}.template': input_identity.of_template(
      prompt_format.template, f'config.{key}.template'
    ),
    f'{key}.single': input_identity.of_template(
      prompt_format.single, f'config.{key}.single'
    ),
  }


def _select(
  samples: Mapping[str, list[rejection_sampling.FilterSample]],
  outcomes: Mapping[str, list[str]],
  examples: Mapping[str, JudgingExample],
  filter_config: FilterConfig,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
  """Returns the rows of KEPT, and the counts of outcomes by source."""
  selected = {
    id: rejection_sampling.select(example_samples, outcomes[id], filter_config)
    for id, example_samples in samples.items()
  }
  rows = [
    row
    for id, example_samples in selected.items()
    for row in sample_files.kept_rows(examples[id], example_samples)
  ]
  counts = rejection_sampling.count_by_source(
    examples, samples, outcomes, selected
  )
  return rows, counts


def _write_selected(
  workdir: str,
  path: str,
  samples: Mapping[str, list[rejection_sampling.FilterSample]],
  outcomes: Mapping[str, list[str]],
  examples: Mapping[str, JudgingExample],
  inputs: Mapping[str, Any],
) -> None:
  """Writes SELECTED and SELECTION, and prints the counts.

  Selected are the examples that the judge does not get right each time; also
  those without samples, which it could not judge.

  Raises:
    UserError: no example is selected.
  """
  unhinted = {
    id: [
      outcome
      for x, outcome in zip(example_samples, outcomes[id], strict=True)
      if not x.hinted
    ]
    for id, example_samples in samples.items()
  }
  selected = [
    x
    for x in examples.values()
    if not rejection_sampling.is_too_easy(unhinted.get(x.id, ()))
  ]
  counts = rejection_sampling.count_correct(examples, unhinted)
  print(_count_table(counts))
  if not selected:
    raise UserError(
      f'{path}: the judge gets all {len(examples)} examples right each time; '
      'give other data or a smaller judge'
    )
  target = os.path.join(workdir, SELECTED)
  rows = (json.dumps(examples_lib.to_row(x)) for x in selected)
  report = {'samples': path, 'inputs': inputs, 'counts': counts}
  atomic_io.write_lines(target, rows)
  atomic_io.write_file(
    os.path.join(workdir, SELECTION), json.dumps(report, indent=2) + '\n'
  )
  distributed.barrier('select')
  print(f'{len(selected)} of {len(examples)} examples -> {target}')


def _write_kept(
  workdir: str, rows: list[dict[str, Any]], report: Mapping[str, Any]
) -> None:
  """Writes KEPT and FILTER, and prints the counts.

  Raises:
    UserError: there are no rows.
  """
  target = os.path.join(workdir, KEPT)
  if rows:
    atomic_io.write_lines(target, map(json.dumps, rows))
  elif not jax.process_index():
    # An older file was selected by other rules; do not train on it.
    atomic_io.remove(target)
  atomic_io.write_file(
    os.path.join(workdir, FILTER), json.dumps(report, indent=2) + '\n'
  )
  print(_count_table(report['counts']))
  if not rows:
    raise UserError(
      f'{report["samples"]}: the filter selects no generation; see the counts '
      'above. A judge that is almost never correct needs SFT first (stage sft)'
    )
  print(f'{len(rows)} prompts -> {target}')


def _count_table(counts: Mapping[str, Mapping[str, int]]) -> str:
  """Returns a text table with a column per source."""
  names = list(dict.fromkeys(name for row in counts.values() for name in row))
  width = max(map(len, names))
  lines = [' ' * width + ''.join(f'{source:>16}' for source in counts)]
  for name in names:
    cells = (f'{row.get(name, 0):>16}' for row in counts.values())
    lines.append(f'{name:<{width}}' + ''.join(cells))
  return '\n'.join(lines)


def _check_kept(workdir: str, prompt_format: PromptFormat) -> str:
  """Returns the path of KEPT; UserError without it or with other prompts."""
  path = os.path.join(workdir, KEPT)
  remedy = 'run the filter (--config.phases=filter,train)'
  if not atomic_io.exists(path):
    raise UserError(f'{path} does not exist; {remedy}')
  report = rft_sampling.read_json(os.path.join(workdir, FILTER), remedy)
  rft_sampling.check_same(
    path, report['inputs'], _prompt_settings(prompt_format), remedy
  )
  return path


def _train(
  config: ConfigDict, workdir: str, prompt_format: PromptFormat
) -> None:
  """Runs the stage sft on KEPT, by default from the sampling model."""
  path = _check_kept(workdir, prompt_format)
  train_config = config.train.copy_and_resolve_references()
  with train_config.unlocked():
    train_config.data.texts = f'judged:{path}'
    if not train_config.checkpoint:
      train_config.checkpoint = config.checkpoint
      train_config.checkpoint_step = config.checkpoint_step
  sft_train.train(
    train_config, workdir, *sft_data.read(train_config), prompt_format
  )
