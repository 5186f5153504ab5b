"""Rejective fine-tuning (RFT): sample, filter, fine-tune on what is kept.

  examples -> unhinted samples -> hinted ones for those never right
           -> verdicts, rules -> kept.jsonl -> the stage sft

The three parts (config.phases) run together or alone, in WORKDIR:

  samples.jsonl   one line a generation, with scores and verdict
  samples.json    how they were drawn
  kept.jsonl      what is fine-tuned on
  filter.json     by which rules, and how many went which way
  model/, ...     what the stage sft writes

Sampling goes on where it was killed. The filter can be run again with other
rules without sampling. Rows of kept.jsonl are rendered without their hints.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from grm_jax.data import labelled_examples, tokenized_example
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import rejection_sampling, template
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterConfig
from grm_jax.sharding import distributed
from grm_jax.stages.rft import sample_files
from grm_jax.stages.rft import sampling as rft_sampling
from grm_jax.stages.sft import train as sft_train
from grm_jax.training import run as training_run

PARTS = ('sample', 'filter', 'train')
KEPT, FILTER = 'kept.jsonl', 'filter.json'


def run(config: ConfigDict, workdir: str) -> None:
  """Runs the parts of `config.phases`.

  Raises:
    UserError: a path, a row or a setting is wrong, or nothing is kept.
  """
  if not workdir:
    raise UserError('give --workdir=DIR, where samples and model are written')
  check(config, workdir)
  parts = _parts(config)
  rules, forms = FilterConfig(**config.filter), _forms(config)
  if 'sample' in parts or 'filter' in parts:
    found = labelled_examples.load(config.data, config.fail_on_bad_rows, forms)
    examples = {example.id: example for example in found}
    asked = {'data': _digest(map(examples_lib.to_row, examples.values()))}
    asked['data'] = f'{len(examples)} examples, {asked["data"]}'
    asked |= _prompts(config)
  if 'sample' in parts:
    rft_sampling.sample(config, workdir, examples, forms, asked)
  if 'filter' in parts:
    _filter(config, workdir, examples, forms, rules, asked)
    distributed.barrier('filter')
  if 'train' in parts:
    _train(config, workdir)


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks settings whose faults would show after hours, or never.

  Args:
    config: of this stage.
    workdir: where it writes.
    key: config key of `config`, for messages; 'config' is the whole.

  Raises:
    UserError: a setting is wrong.
  """
  parts = _parts(config)
  if 'train' in parts:
    sft_train.check(config.train, workdir, f'{key}.train')
  wrong = [x for x in parts if x not in PARTS]
  if wrong:
    raise UserError(
      f'{key}.parts has {wrong[0]!r}; it is of {", ".join(PARTS)}'
    )
  if config.samples and 'sample' in parts:
    raise UserError(
      f'{key}.samples is given, so that none are drawn; give '
      f'--{key}.parts=filter,train'
    )
  training_run.check_least(
    ('num_samples', config.num_samples, 1),
    ('num_hinted_samples', config.num_hinted_samples, 0),
    key=key,
  )
  for name, value in (
    ('temperature', config.temperature),
    ('hinted_temperature', config.hinted_temperature),
  ):
    if not 0 <= value < float('inf'):
      raise UserError(f'{key}.{name} is {value}; it must be 0 or more')
  read = tokenized_example.lengths(
    f'{key}.sampling.buckets', config.sampling.prompt_buckets
  )
  trained = tokenized_example.lengths(
    f'{key}.train.batch.buckets', config.train.batch.prompt_buckets
  )
  shortens = config.train.prompt.too_long == 'shorten'
  if shortens and not config.samples and max(read) != max(trained):
    raise UserError(
      f'{key}.sampling.buckets end at {max(read)} tokens and '
      f'{key}.train.batch.buckets at {max(trained)}: long prompts would be '
      'shortened in one way to sample and in another to fine-tune; let both '
      'end at the same'
    )


def _parts(config) -> list[str]:
  return [x.strip() for x in config.phases.split(',')]


def _forms(config) -> PromptFormat:
  p = config.train.prompt
  forms = PromptFormat(
    p.template, p.single, p.too_long, key='config.train.prompt'
  )
  forms.check()
  return forms


def _prompts(config) -> dict[str, str]:
  """The prompts' settings, with the content of the templates."""
  p = config.train.prompt
  names = {'template': p.template, 'single': p.single}
  found = {
    f'train.prompt.{key}': name
    and f'{name}, {_digest([template.load(name).source])}'
    for key, name in names.items()
  }
  return found | {'train.prompt.too_long': p.too_long}


def _digest(values: Iterable[Any]) -> str:
  found = hashlib.sha256()
  for value in values:
    found.update(json.dumps(value).encode() + b'\n')
  return found.hexdigest()[:12]


def _filter(config, workdir, examples, forms, rules, asked) -> None:
  """Writes KEPT and FILTER from SAMPLES or config.samples, and a table."""
  path = config.samples or rft_sampling.drawn(workdir, asked)
  by_example = sample_files.read(path, examples, config.fail_on_bad_rows)
  verdicts, kept = {}, {}
  for name, own in by_example.items():
    verdicts[name] = [
      rejection_sampling.verdict(sample, examples[name], forms)
      for sample in own
    ]
    kept[name] = rejection_sampling.keep(own, verdicts[name], rules)
  found = rejection_sampling.table(examples, by_example, verdicts, kept)
  lines = [
    json.dumps(row)
    for name, own in kept.items()
    for row in sample_files.kept_rows(examples[name], own)
  ]
  report = {
    'rules': dataclasses.asdict(rules),
    'samples': path,
    'asked': asked,
    'counts': found,
  }
  target = os.path.join(workdir, KEPT)
  if lines:
    atomic_io.write_lines(target, lines)
  elif not jax.process_index():
    atomic_io.remove(target)  # what other rules kept
  atomic_io.write_whole(
    os.path.join(workdir, FILTER), json.dumps(report, indent=2) + '\n'
  )
  print(_words(found))
  if not lines:
    raise UserError(
      f'{path}: the filter keeps no generation of any example; the table above '
      'says why. A judge that is hardly ever right needs a cold start (sft)'
    )
  print(f'{len(lines)} prompts -> {target}')


def _words(found: Mapping[str, Mapping[str, int]]) -> str:
  """The table, for a person."""
  columns = list(dict.fromkeys(key for row in found.values() for key in row))
  wide = max(map(len, columns))
  head = ' ' * wide + ''.join(f'{source:>16}' for source in found)
  lines = [head] + [
    f'{column:<{wide}}'
    + ''.join(f'{row.get(column, 0):>16}' for row in found.values())
    for column in columns
  ]
  return '\n'.join(lines)


def _train(config, workdir) -> None:
  """Fine-tunes on what was kept, by the stage sft."""
  path, cure = os.path.join(workdir, KEPT), 'run the filter first or again'
  cure += ' (--config.phases=filter,train)'
  if not atomic_io.exists(path):
    raise UserError(f'{path} is not there; {cure}')
  report = rft_sampling.read_json(os.path.join(workdir, FILTER), cure)
  rft_sampling.check_same(path, report['asked'], _prompts(config), cure)
  inner = config.train.copy_and_resolve_references()
  with inner.unlocked():
    inner.data.texts = f'judged:{path}'
    if not inner.checkpoint:
      inner.checkpoint = config.checkpoint
      inner.step = config.checkpoint_step
  sft_train.run(inner, workdir)
