"""Sampling for the stage rft: unhinted, then hinted for what was never right.

Each pass goes through a journal, so that a run that was killed goes on. How
samples were drawn is written beside them, so that a run of other settings does
not take them for its own.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.io import journal as journals
from grm_jax.io.journal import Journal
from grm_jax.judgement import judgement, rejection_sampling
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import factory as judge_factory
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import distributed, mesh
from grm_jax.stages.rft import sample_files

SAMPLES, DRAWN = 'samples.jsonl', 'samples.json'


def sample(
  config: ConfigDict,
  workdir: str,
  examples: Mapping[str, JudgingExample],
  forms: PromptFormat,
  asked: Mapping[str, Any],
) -> None:
  """Writes SAMPLES and DRAWN, or leaves them if they are of these settings.

  Args:
    config: as configs/rft.py.
    workdir: where to write, and keep the journals.
    examples: by id.
    forms: how they are asked.
    asked: what tells these examples and prompts from others, by config key.

  Raises:
    UserError: SAMPLES or a journal is of other settings; the checkpoint
      cannot be loaded; with `config.fail_on_bad_rows` an example that cannot be asked.
  """
  settings = json.loads(json.dumps({**asked, **_drawing(config)}))
  target = os.path.join(workdir, SAMPLES)
  if atomic_io.exists(target):
    cure = (
      'filter what was drawn with --config.phases=filter,train, or choose '
      f'another --workdir, or delete {target} to sample again'
    )
    header = os.path.join(workdir, DRAWN)
    check_same(target, read_json(header, cure), settings, cure)
    logging.info('%s is there: nothing is sampled again', target)
    _remove_journals(workdir)  # of a run that was killed when it had ended
    return
  judges = _judges(config)
  everything = list(examples.values())
  first = _pass(config, workdir, judges, False, everything, settings)
  never = [
    examples[name]
    for name, own in first.items()
    if own and not _right(examples[name], own, forms)
  ]
  logging.info('%d of %d examples were never right', len(never), len(first))
  second = {}
  if config.num_hinted_samples and never:
    second = _pass(config, workdir, judges, True, never, settings)
  lines = (
    json.dumps(row)
    for name, example in examples.items()
    for hinted, own in ((False, first), (True, second))
    for row in _rows(example, own.get(name, ()), hinted, forms)
  )
  # Before the samples: where they are, it is known how they were drawn.
  atomic_io.write_whole(
    os.path.join(workdir, DRAWN), json.dumps(settings, indent=2) + '\n'
  )
  atomic_io.write_lines(target, lines)
  distributed.barrier('samples')
  _remove_journals(workdir)
  print(f'samples -> {target}')


def _judges(config):
  """Hinted -> Judge, made when it is first asked for; one engine for both."""
  made: dict[bool, Judge] = {}

  def judge(hinted: bool) -> Judge:
    if not made:
      made[False] = _load(config)
    plain = made[False]
    if hinted and True not in made:
      settings = dataclasses.replace(
        plain.settings, hint=True, temperature=config.hinted_temperature
      )
      made[True] = Judge(plain.engine, plain.tokenizer, settings)
    return made[hinted]

  return judge


def _load(config) -> Judge:
  p, sampling = config.train.prompt, config.sampling.to_dict()
  settings = JudgeConfig(
    template=p.template,
    single=p.single,
    too_long=p.too_long,
    order=config.response_order,
    temperature=config.temperature,
    seed=config.train.seed,
  )
  layouts = (
    mesh.from_config(config.train, weights=sampling.pop('weights')),
    mesh.from_config(config.train),
  )
  step = model_directory.step_of(config.checkpoint_step)
  compute = ComputeConfig(**config.train.compute)
  return judge_factory.load(
    config.checkpoint, step, '', settings, compute, layouts, **sampling
  )


def _journal_path(workdir, hinted):
  name = 'hinted' if hinted else 'unhinted'
  return os.path.join(workdir, f'{name}.partial')


def _remove_journals(workdir):
  for hinted in (False, True):
    if not jax.process_index():
      atomic_io.remove(_journal_path(workdir, hinted))


def _pass(
  config,
  workdir,
  judges,
  hinted: bool,
  examples: Sequence[JudgingExample],
  settings: Mapping[str, Any],
) -> dict[str, list[dict]]:
  """Judgements as rows by example id; those in the journal are not redrawn."""
  k = config.num_hinted_samples if hinted else config.num_samples
  path, first = _journal_path(workdir, hinted), not jax.process_index()
  if not distributed.broadcast_from_host0(int(atomic_io.exists(path))):
    # A mistake in loading must leave no journal, which would bind the next run.
    judges(hinted)
  journal = Journal(path, settings) if first else None
  done = distributed.broadcast_from_host0(journal.count if journal else 0)
  items = ()
  if done < len(examples):
    items = judges(hinted).judge(
      examples[done:],
      k,
      progress='hinted' if hinted else 'unhinted',
      total=len(examples) - done,
    )
  for example, item in zip(examples[done:], items, strict=True):
    own = []
    if not isinstance(item, ExampleError):
      own = [judgement.to_row(sample) for sample in item.samples]
    elif config.fail_on_bad_rows:
      raise UserError(f'{config.data}: {item.id}: {item.reason}')
    else:
      logging.warning('%s: %s', item.id, item.reason)
    if journal:
      journal.append({'id': example.id, 'samples': own})
  if journal:
    journal.close()
  distributed.barrier(path)
  return {row['id']: row['samples'] for row in journals.rows(path)}


def _right(example, own, forms) -> bool:
  """Whether one of these unhinted judgements is right."""
  samples = (sample_files.sample_of(x, example.id, False) for x in own)
  return any(
    rejection_sampling.verdict(x, example, forms) == 'correct' for x in samples
  )


def _rows(example, own, hinted, forms):
  """Lines of SAMPLES."""
  for number, x in enumerate(own):
    sample = sample_files.sample_of(x, example.id, hinted)
    yield {
      'id': example.id,
      'hinted': hinted,
      'sample': number,
      'order': x['order'],
      'text': x['text'],
      'truncated': sample.truncated,
      'num_tokens': x['num_tokens'],
      'scores': x['scores'],
      'verdict': rejection_sampling.verdict(sample, example, forms),
    }


def drawn(workdir: str, asked: Mapping[str, Any]) -> str:
  """The path of SAMPLES, which are of these examples and prompts."""
  path = os.path.join(workdir, SAMPLES)
  if not atomic_io.exists(path):
    raise UserError(
      f'{path} is not there; sample first (--config.phases=sample,filter), or '
      'give --config.samples=FILE'
    )
  cure = (
    f'to filter them all the same give --config.samples={path} '
    '--config.phases=filter,train'
  )
  header = read_json(os.path.join(workdir, DRAWN), cure)
  check_same(path, header, asked, cure)
  return path


def check_same(
  path: str, found: Mapping[str, Any], wanted: Mapping[str, Any], cure: str
) -> None:
  """UserError naming the first setting that was another one then."""
  for key, value in wanted.items():
    if found.get(key) != value:
      raise UserError(
        f'{path} was made with config.{key}={found.get(key)!r}, this run has '
        f'{value!r}; {cure}'
      )


def read_json(path: str, cure: str) -> dict[str, Any]:
  """The content of a file that an earlier part wrote."""
  if not atomic_io.exists(path):
    raise UserError(f'{path} is not there; {cure}')
  return json.loads(epath.Path(path).read_text())


def _drawing(config) -> dict[str, Any]:
  """What samples depend on, beside examples and prompts."""
  return {
    'checkpoint': config.checkpoint,
    'step': config.checkpoint_step,
    'num_samples': config.num_samples,
    'num_hinted': config.num_hinted_samples,
    'order': config.response_order,
    'temperature': config.temperature,
    'hinted_temperature': config.hinted_temperature,
    'train.seed': config.train.seed,
    'sampling.max_new_tokens': config.sampling.max_new_tokens,
    'sampling.int8': config.sampling.int8,
    'sampling.prompt_buckets': max(config.sampling.prompt_buckets),
  }
