"""Rejective fine-tuning (RFT): sample, filter, fine-tune on what is kept.

  examples -> unhinted samples -> hinted ones for those never right
           -> verdicts, rules -> kept.jsonl -> the stage sft

The three parts (config.parts) run together or alone, in WORKDIR:

  samples.jsonl   one line a generation, with scores and verdict
  kept.jsonl      what is fine-tuned on; filter.json: how many went which way
  model/, ...     what the stage sft writes

Sampling goes on where it was killed. The filter can be run again with other
rules without sampling. Rows of kept.jsonl are rendered without their hints.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import jsonl, sources
from grm_jax.judging import example as examples_lib
from grm_jax.judging import judgement, outcome, rejection
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.forms import Forms
from grm_jax.judging.judgement import Fault
from grm_jax.judging.rejection import Rules, Sample
from grm_jax.model.compute import Compute
from grm_jax.parallel import files, mesh, start
from grm_jax.parallel import journal as journals
from grm_jax.parallel.journal import Journal
from grm_jax.stages import load_judge, sft
from grm_jax.stages.judge import Judge, Settings

PARTS = ('sample', 'filter', 'train')
SAMPLES, KEPT, FILTER = 'samples.jsonl', 'kept.jsonl', 'filter.json'
_SHOWN = 5  # bad rows in the log


def run(config: ConfigDict, workdir: str) -> None:
  """Runs the parts of `config.parts`.

  Raises:
    ValueError: a path, a row or a setting is wrong, or nothing is kept.
  """
  if not workdir:
    raise ValueError('give --workdir=DIR, where samples and model are written')
  parts = [x.strip() for x in config.parts.split(',')]
  wrong = [x for x in parts if x not in PARTS]
  if wrong:
    raise ValueError(
      f'config.parts has {wrong[0]!r}; it is of {", ".join(PARTS)}'
    )
  rules, forms = Rules(**config.filter), _forms(config)
  found, _ = sources.load(config.data, 'train', config.strict)
  examples = {example.id: example for example in found if _told(example)}
  if not examples:
    raise ValueError(
      f'{config.data}: no example says what is right; RFT needs the best '
      'response, or the label of a single one'
    )
  if 'sample' in parts:
    _sample(config, workdir, examples, forms)
  if 'filter' in parts:
    _filter(config, workdir, examples, forms, rules)
    start.wait_for_all('filter')
  if 'train' in parts:
    _train(config, workdir)


def _forms(config) -> Forms:
  p = config.train.prompt
  forms = Forms(p.template, p.single, p.too_long)
  forms.check()
  return forms


def _told(example: JudgingExample) -> bool:
  """Whether it is known what is right."""
  if len(example.responses) > 1:
    return example.best is not None
  return example.rewards is not None


def _sample(config, workdir, examples, forms) -> None:
  """Draws all samples, each pass through a journal; writes SAMPLES."""
  target = os.path.join(workdir, SAMPLES)
  if files.exists(target):
    logging.info('%s is there: nothing is sampled again', target)
    return
  judges = _judges(config)
  everything = list(examples.values())
  first = _pass(config, workdir, judges, False, everything)
  never = [examples[name] for name, own in first.items() if not _right(own)]
  logging.info('%d of %d examples were never right', len(never), len(first))
  second = {}
  if config.num_hinted and never:
    second = _pass(config, workdir, judges, True, never)
  lines = (
    json.dumps(row)
    for name, example in examples.items()
    for hinted, own in ((False, first), (True, second))
    for row in _rows(example, own.get(name, ()), hinted, forms)
  )
  files.write_lines(target, lines)
  start.wait_for_all('samples')
  for hinted in (False, True):
    if not jax.process_index():
      files.remove(_journal_path(workdir, hinted))
  print(f'samples -> {target}')


def _judges(config):
  """hinted -> Judge, made when it is first asked for; one engine for both."""
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
  p, s = config.train.prompt, config.sampling
  settings = Settings(
    template=p.template,
    single=p.single,
    too_long=p.too_long,
    order=config.order,
    temperature=config.temperature,
    seed=config.train.seed,
  )
  layouts = (
    mesh.from_config(config.train, decoding=True),
    mesh.from_config(config.train),
  )
  step = None if config.step < 0 else config.step
  compute = Compute(**config.train.compute)
  return load_judge.load(
    config.checkpoint, step, '', settings, compute, layouts, **s
  )


def _journal_path(workdir, hinted):
  name = 'hinted' if hinted else 'unhinted'
  return os.path.join(workdir, f'{name}.partial')


def _pass(
  config, workdir, judges, hinted: bool, examples: Sequence[JudgingExample]
) -> dict[str, list[dict]]:
  """Judgements as rows by example id; those in the journal are not redrawn."""
  k = config.num_hinted if hinted else config.num_samples
  path, first = _journal_path(workdir, hinted), not jax.process_index()
  journal = Journal(path, _header(config, k, len(examples))) if first else None
  done = start.from_first(journal.count if journal else 0)
  if done < len(examples):
    items = judges(hinted).judge(
      examples[done:],
      k,
      progress='hinted' if hinted else 'unhinted',
      total=len(examples) - done,
    )
  else:
    items = ()
  for example, item in zip(examples[done:], items, strict=True):
    if isinstance(item, Fault):
      logging.warning('%s: %s', item.id, item.reason)
      row = {'id': example.id, 'samples': []}
    else:
      own = [judgement.to_row(sample) for sample in item.samples]
      own = [x | {'right': _is_right(x, example)} for x in own]
      row = {'id': example.id, 'samples': own}
    if journal:
      journal.append(row)
  if journal:
    journal.close()
  start.wait_for_all(path)
  return {row['id']: row['samples'] for row in journals.rows(path)}


def _header(config, k, count):
  """What tells a journal of this run from others."""
  return {
    'checkpoint': config.checkpoint,
    'step': config.step,
    'data': config.data,
    'examples': count,
    'samples': k,
    'order': config.order,
    'temperature': config.temperature,
    'hinted_temperature': config.hinted_temperature,
    'seed': config.train.seed,
    'size': config.sampling.size,
    **config.train.prompt,
  }


def _is_right(row, example) -> bool:
  cut = row['finish'] == 'length'
  return not cut and outcome.is_correct(row['scores'], example)


def _right(rows) -> bool:
  return any(row['right'] for row in rows)


def _rows(example, own, hinted, forms):
  """Lines of SAMPLES."""
  for number, x in enumerate(own):
    sample = Sample(
      example.id, tuple(x['order']), x['text'], hinted, x['finish'] == 'length'
    )
    yield {
      'id': example.id,
      'hinted': hinted,
      'sample': number,
      'order': x['order'],
      'text': x['text'],
      'truncated': sample.truncated,
      'num_tokens': x['num_tokens'],
      'scores': x['scores'],
      'verdict': rejection.verdict(sample, example, forms),
    }


def _filter(config, workdir, examples, forms, rules) -> None:
  """Writes KEPT and FILTER from SAMPLES or config.samples, and a table."""
  path = config.samples or os.path.join(workdir, SAMPLES)
  by_example = _read(path, examples, config.strict)
  verdicts, kept = {}, {}
  for name, own in by_example.items():
    verdicts[name] = [
      rejection.verdict(sample, examples[name], forms) for sample in own
    ]
    kept[name] = rejection.keep(own, verdicts[name], rules)
  found = rejection.table(examples, by_example, verdicts, kept)
  lines = [
    json.dumps(row)
    for name, own in kept.items()
    for row in _kept_rows(examples[name], own)
  ]
  report = {
    'rules': dataclasses.asdict(rules),
    'samples': path,
    'counts': found,
  }
  files.write_whole(
    os.path.join(workdir, FILTER), json.dumps(report, indent=2) + '\n'
  )
  print(_words(found))
  if not lines:
    raise ValueError(
      f'{path}: the filter keeps no generation of any example; the table above '
      'says why. A judge that is hardly ever right needs a cold start (sft)'
    )
  files.write_lines(os.path.join(workdir, KEPT), lines)
  print(f'{len(lines)} prompts -> {os.path.join(workdir, KEPT)}')


def _read(
  path: str, examples: Mapping[str, JudgingExample], strict: bool
) -> dict[str, list[Sample]]:
  """Samples by example; rows that are wrong are named and left out."""
  found, faults = {}, []
  for number, row in jsonl.values(path):
    try:
      sample = _of_row(row, examples)
    except ValueError as error:
      if strict:
        raise ValueError(f'{path}:{number}: {error}') from error
      faults.append(f'{path}:{number}: {error}')
      continue
    found.setdefault(sample.example, []).append(sample)
  for fault in faults[:_SHOWN]:
    logging.warning('%s', fault)
  if faults:
    logging.warning('%s: bad rows left out: %d', path, len(faults))
  if not found:
    raise ValueError(f'{path} has no samples of these examples')
  return found


def _of_row(row, examples) -> Sample:
  """A sample of ours or of any other model: {id, text[, hinted, order]}."""
  if isinstance(row, Fault):
    raise ValueError(row.reason)
  if not isinstance(row, dict):
    raise ValueError('the row is not a JSON object')
  name, text = row.get('id'), row.get('text')
  if name not in examples:
    raise ValueError(f'config.data has no example {name!r}')
  if not isinstance(text, str):
    raise ValueError('text must be a text')
  n = len(examples[name].responses)
  order = row.get('order', list(range(n)))
  whole = isinstance(order, list) and all(type(x) is int for x in order)
  if not whole or sorted(order) != list(range(n)):
    raise ValueError(f'order {order!r} is no permutation of {n} responses')
  flags = [row.get(key, False) for key in ('hinted', 'truncated')]
  if not all(isinstance(flag, bool) for flag in flags):
    raise ValueError('hinted and truncated must be true or false')
  return Sample(name, tuple(order), text, *flags)


def _kept_rows(example, samples: Sequence[Sample]):
  """One row for each order: a prompt, and all that was written after it."""
  by_order = {}
  for sample in samples:
    by_order.setdefault(sample.order, []).append(sample.text)
  for order, generations in by_order.items():
    row = examples_lib.to_row(example)
    name = f'{example.id} {",".join(map(str, order))}'
    # All that is known of the example, which its prompt shows or does not by
    # the template alone; that it was hinted is not among it.
    yield row | {'id': name, 'order': order, 'generations': generations}


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
  inner = config.train.copy_and_resolve_references()
  with inner.unlocked():
    inner.data.texts = f'judged:{os.path.join(workdir, KEPT)}'
    if not inner.checkpoint:
      inner.checkpoint = config.checkpoint
      inner.step = config.step
  sft.run(inner, workdir)
