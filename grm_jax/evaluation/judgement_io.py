"""samples.jsonl: judged examples on disk, to score again without a model.

One JSON object a line, one line a query:

  {"example": {"id", "messages": [{role, content}], "responses", "best",
               "rewards", "reference", "principles", "tags"},
   "samples": [{"order", "text", "num_tokens", "finish", "scores", "meta"}],
   "greedy": null or one more of those}

The example is what `judging.example.from_row` reads. Only ASCII is written:
a lone surrogate in a generation survives as its escape, where UTF-8 has none.
A meta score that JSON has no number for is a text: "nan", "inf", "-inf".
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.judgement import example, judgement
from grm_jax.judgement.judgement import JudgedExample, Judgement

_FIELDS = tuple(x.name for x in dataclasses.fields(Judgement))
# Nothing is written, and nothing finishes, by a scalar reward model.
_FINISHES = ('stop', 'length', 'string', '')
_NOT_FINITE = ('nan', 'inf', '-inf')


def write(path: str | os.PathLike[str], judged: Iterable[JudgedExample]) -> int:
  """Writes one line per query as they come, and returns how many.

  Raises:
    UserError: path cannot be written, or a reward or a score is not
      finite.
  """
  count = 0
  with atomic_io.atomic_write(path) as file:
    for one in judged:
      file.write(line(one).encode('ascii'))
      count += 1
  return count


def read(path: str | os.PathLike[str]) -> Iterator[JudgedExample]:
  """The judged examples of a file by `write`, one at a time.

  Raises:
    UserError: the file cannot be read, or a line is damaged; the message
      has file and line.
  """
  try:
    with epath.Path(path).open('rb') as file:
      for number, text in enumerate(file, 1):
        yield _read_line(text, f'{path}:{number}', number)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error


def line(judged: JudgedExample) -> str:
  """One line of the file, with its end."""
  row = {
    'example': example.to_row(judged.example),
    'samples': [_judgement_row(sample) for sample in judged.samples],
    'greedy': judged.greedy and _judgement_row(judged.greedy),
  }
  try:
    return json.dumps(row, allow_nan=False) + '\n'
  except ValueError as error:
    raise UserError(
      f'example {judged.example.id}: a reward or a score is no finite number'
    ) from error


def of_row(row: Any, number: int) -> JudgedExample:
  """The judged example of a line's JSON value.

  Args:
    number: the line's.

  Raises:
    UserError: says what is wrong with it.
  """
  if not isinstance(row, dict):
    raise UserError('not a JSON object')
  lacking = [x for x in ('example', 'samples', 'greedy') if x not in row]
  if lacking:
    raise UserError(f'there is no {lacking[0]}')
  one = example.from_row(row['example'], number)
  if not isinstance(row['samples'], list):
    raise UserError('samples must be a list')
  n = len(one.responses)
  greedy = row['greedy']
  return JudgedExample(
    example=one,
    samples=tuple(
      _judgement(sample, n, f'sample {i}')
      for i, sample in enumerate(row['samples'])
    ),
    greedy=None if greedy is None else _judgement(greedy, n, 'greedy'),
  )


def _judgement_row(one: Judgement) -> dict[str, Any]:
  row = judgement.to_row(one)
  if one.meta is not None and not math.isfinite(one.meta):
    row['meta'] = str(one.meta)
  return row


def _read_line(text: bytes, where: str, number: int) -> JudgedExample:
  try:
    return of_row(_parse(text), number)
  except UserError as error:
    raise UserError(f'{where}: {error}') from error


def _parse(text: bytes) -> Any:
  try:
    return json.loads(text.decode(), parse_constant=_refuse)
  except json.JSONDecodeError as error:
    raise UserError(f'not JSON: {error.msg} at {error.pos}') from error
  except UnicodeDecodeError as error:
    raise UserError(f'not UTF-8 at byte {error.start}') from error


def _refuse(name):
  raise UserError(f'{name} is not a finite number')


def _judgement(row: Any, n: int, name: str) -> Judgement:
  fault = _fault(row, n)
  if fault:
    raise UserError(f'{name}: {fault}')
  one = judgement.from_row(row)
  if row['meta'] in _NOT_FINITE:
    return dataclasses.replace(one, meta=float(row['meta']))
  return one


def _fault(row: Any, n: int) -> str | None:
  if not isinstance(row, dict):
    return 'not a JSON object'
  lacking = [field for field in _FIELDS if field not in row]
  if lacking:
    return f'there is no {lacking[0]}'
  order, scores, meta = row['order'], row['scores'], row['meta']
  if not _ints(order) or sorted(order) != list(range(n)):
    return f'order {order!r} is no permutation of the {n} responses'
  if not isinstance(row['text'], str):
    return 'text must be a text'
  if not _ints([row['num_tokens']]) or row['num_tokens'] < 0:
    return f'num_tokens is {row["num_tokens"]!r}'
  if row['finish'] not in _FINISHES:
    return f'finish {row["finish"]!r} is none of {_FINISHES}'
  if scores is not None and not _numbers(scores, n):
    return f'scores {scores!r} are not {n} numbers'
  if meta is not None and meta not in _NOT_FINITE and not _number(meta):
    return f'meta is {meta!r}'
  return None


def _ints(values: Any) -> bool:
  return isinstance(values, list) and all(type(x) is int for x in values)


def _numbers(values: Any, n: int) -> bool:
  good = isinstance(values, list) and all(map(_number, values))
  return good and len(values) == n


def _number(value: Any) -> bool:
  # Not math.isfinite: it fails on integers that are too large for a float.
  return type(value) in (int, float) and abs(value) <= sys.float_info.max
