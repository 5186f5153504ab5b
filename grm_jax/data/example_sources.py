"""Where judging examples come from, by a short name: `config.data`.

  practice, practice:COUNT  made-up problems (data/synthetic/), 4000 of them
  FILE.jsonl, FILE.json, FILE.parquet
                            rows of the user's own (judgement/example.py)
  jsonl:PATH                the same, of a file with any other suffix
  tfds:NAME:SPLIT           such rows in a TFDS data set (tfds.py)
  seqio:[MODULE/]NAME:SPLIT such rows of a seqio Task (seqio_source.py)
  gsm8k:PATH                model solutions of GSM8K, checked
  gsm8k_pairs:PATH          the same, two at a time
  math:PATH                 MATH problems with sampled answers, checked
  pandalm:PATH              PandaLM's human test set
  ultrafeedback:PATH  offsetbias:PATH  skywork:PATH  helpsteer2:PATH

A PATH of a published set is a .json, .jsonl or .parquet file, local or gs://,
and may have a `*` in the file's name; or a folder with one such file, or with
the one that was published under this name; or tfds:NAME:SPLIT. Published sets
are split by question into train, validation and held_out, 80, 10 and 10 of 100
(splits.py).

A file or data set of the user's own is whole in whatever split is asked for:
such files are usually one for each split. `FILE.jsonl#split` splits it by
question, too.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping

from absl import logging

from grm_jax.data import dataset_files, splits
from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import checked_math, preferences
from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError

_Made = JudgingExample | SkippedRow
_ADAPTERS: Mapping[
  str, Callable[[preference_rows.SourceRow], Iterable[_Made]]
] = {
  'gsm8k': checked_math.gsm8k,
  'gsm8k_pairs': checked_math.gsm8k_pairs,
  'math': checked_math.math,
  'pandalm': preferences.pandalm,
  'ultrafeedback': preferences.ultrafeedback,
  'offsetbias': preferences.offsetbias,
  'skywork': preferences.skywork,
  'helpsteer2': preferences.helpsteer2,
}
# In folders with other files beside it.
_PUBLISHED_AS = {
  'gsm8k': 'example_model_solutions.jsonl',
  'gsm8k_pairs': 'example_model_solutions.jsonl',
  'pandalm': 'testset-v1.json',
}
_BY_QUESTION = '#split'
_PRACTICE = 4000  # examples
_SHOWN = 5  # faults in the log


def read(
  spec: str, split: str = 'train'
) -> Iterator[JudgingExample | ExampleError]:
  """Examples of a source, one by one, and a fault for each row that is bad.

  Bad rows belong to no split: they are in all.

  Args:
    spec: see above.
    split: 'train', 'validation' or 'held_out'.

  Raises:
    UserError: there is no such source or split, or, once it is read, the
      file cannot be.
  """
  items = _open(spec, split)
  return (x for x in items if isinstance(x, JudgingExample | ExampleError))


def load(
  spec: str, split: str = 'train', strict: bool = False
) -> tuple[list[JudgingExample], list[ExampleError]]:
  """All examples of a source, and what is wrong with the other rows.

  The log names the first bad rows and counts what was dropped. Ids are
  unique: a repeated example is dropped, another one of the same id is bad.

  Args:
    spec: see above.
    split: 'train', 'validation' or 'held_out'.
    strict: whether the first bad row stops.

  Raises:
    UserError: what `read` raises; with `strict` a row; no example is left.
  """
  examples, faults = {}, []
  dropped = collections.Counter()
  for item in _open(spec, split):
    item = _once(item, examples, spec)
    if isinstance(item, SkippedRow):
      dropped[item.reason] += 1
    elif isinstance(item, JudgingExample):
      examples[item.id] = item
    elif strict:
      raise UserError(item.reason)
    else:
      faults.append(item)
  _report(f'{spec}, {split}', len(examples), faults, dropped)
  return list(examples.values()), faults


def _open(spec, split) -> Iterator[_Made | ExampleError]:
  """What the source holds; examples of other splits come as dropped."""
  splits.check(split)
  place, hashed, rest = spec.partition(_BY_QUESTION)
  prefix, _, path = place.partition(':')
  if prefix == 'practice' and not hashed:
    return _practice(spec, split)
  if prefix in _ADAPTERS and path and not rest:
    name = _PUBLISHED_AS.get(prefix, '')
    items = dataset_files.read(path, _ADAPTERS[prefix], name)
    return _only(map(_usable, items), split)
  own = _own_path(place)
  if own and not rest:
    items = dataset_files.located(own, dataset_files.examples(own))
    return _only(items, split) if hashed else items
  known = ', '.join(f'{name}:PATH' for name in ('jsonl', *_ADAPTERS))
  raise UserError(
    f'{spec!r} is no source; config.data is FILE.jsonl, FILE.json, '
    'FILE.parquet, practice, tfds:NAME:SPLIT, seqio:NAME:SPLIT or one of '
    f'{known}'
  )


def count_of(spec: str, default: int) -> int:
  """COUNT of NAME:COUNT; UserError where it is none.

  Args:
    spec: the source.
    default: without a COUNT.
  """
  name, _, count = spec.partition(':')
  if count and not (count.isdecimal() and int(count)):
    raise UserError(f'{spec!r}: {name}:COUNT has a whole number above 0')
  return int(count or default)


def _practice(spec, split):
  count = count_of(spec, _PRACTICE)
  # On demand: it takes seconds, and few runs need it.
  from grm_jax.data.synthetic import examples

  return examples.examples(split, count)


def _own_path(place):
  """The path or dataset name of the user's own rows; '' if it is none."""
  prefix, colon, path = place.partition(':')
  if prefix == 'jsonl':
    return path
  if dataset_files.is_dataset_name(place):
    return place
  is_path = not colon or path.startswith('//')  # such as gs://
  return place if is_path and place.endswith(row_reader.FORMATS) else ''


def _only(items, split):
  for item in items:
    other = isinstance(item, JudgingExample) and splits.of(item) != split
    yield SkippedRow('in another split') if other else item


def _usable(item):
  """Drops an example whose best response is also one of the others."""
  if isinstance(item, JudgingExample) and item.best is not None:
    best = item.responses[item.best]
    if item.responses.count(best) > 1:
      return SkippedRow('the best response is there twice')
  return item


def _once(item, examples, spec):
  if not isinstance(item, JudgingExample) or item.id not in examples:
    return item
  if item == examples[item.id]:
    return SkippedRow('the same as an earlier row')
  reason = f'{spec}: two different rows have the id {item.id!r}'
  return ExampleError(item.id, reason)


def _report(name, num, faults, dropped):
  """Logs what was found; raises if there is nothing."""
  reasons = '; '.join(f'{n} {reason}' for reason, n in dropped.items())
  if not num:
    raise UserError(_nothing(name, faults, reasons))
  for fault in faults[:_SHOWN]:
    logging.warning('%s', fault.reason)
  if faults:
    logging.warning('%s: bad rows left out: %d', name, len(faults))
  logging.info('%s: %d examples; dropped: %s', name, num, reasons or 'none')


def _nothing(name, faults, reasons):
  if not faults:
    found = f'dropped: {reasons}' if reasons else 'it has no rows'
    return f'{name}: there is no example; {found}'
  first = faults[0].reason
  if not reasons:
    return f'{name}: all {len(faults)} rows are bad; the first: {first}'
  return (
    f'{name}: there is no example; bad rows: {len(faults)}, the first: '
    f'{first}; dropped: {reasons}'
  )
