"""Reads and writes samples.jsonl: judged examples, to score without a model.

Each line is a JSON object with one query:

  {"example": {"id", "messages": [{role, content}], "responses", "best",
               "rewards", "reference", "principles", "tags"},
   "samples": [{"order", "text", "num_tokens", "finish", "scores", "meta",
               "shortened", "extraction_differs"}],
   "greedy": null or an object like those in "samples"}

`judgement.example.from_row` reads the example. The file is ASCII: UTF-8 cannot
encode an unpaired surrogate in a generation, but a JSON escape can. Meta scores
that are not finite are strings: "nan", "inf", "-inf".
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
from grm_jax.io import atomic_io, input_file
from grm_jax.judgement import example, judgement
from grm_jax.judgement.judgement import JudgedExample, Judgement

_FIELDS = tuple(x.name for x in dataclasses.fields(Judgement))
# A scalar reward model generates no text; its finish is empty.
_FINISH_REASONS = ('stop', 'length', 'string', '')
_NOT_FINITE = ('nan', 'inf', '-inf')


def write(path: str | os.PathLike[str], judged: Iterable[JudgedExample]) -> int:
  """Writes a line per query and returns the number of lines.

  Raises:
    UserError: the file cannot be written, or a reward or a score is not finite.
  """
  count = 0
  with atomic_io.atomic_write(path) as file:
    for judged_example in judged:
      file.write(to_line(judged_example).encode('ascii'))
      count += 1
  return count


def read(path: str | os.PathLike[str]) -> Iterator[JudgedExample]:
  """Yields the judged examples of a file that `write` wrote.

  Raises:
    UserError: the file cannot be read, or a line is invalid; the message names
      the file and the line.
  """
  input_file.check(path)
  try:
    with epath.Path(path).open('rb') as file:
      for number, line in enumerate(file, 1):
        yield _read_line(line, f'{path}:{number}', number)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error


def to_line(judged: JudgedExample) -> str:
  """Returns the line of a judged example, with a line feed."""
  row = {
    'example': example.to_row(judged.example),
    'samples': [_judgement_row(sample) for sample in judged.samples],
    'greedy': judged.greedy and _judgement_row(judged.greedy),
  }
  try:
    return json.dumps(row, allow_nan=False) + '\n'
  except ValueError as error:
    raise UserError(
      f'example {judged.example.id}: a reward or a score is not finite'
    ) from error


def from_row(row: Any, number: int) -> JudgedExample:
  """Returns the judged example of a parsed line.

  Args:
    row: JSON value of the line.
    number: number of the line, from 1.

  Raises:
    UserError: the row is invalid.
  """
  if not isinstance(row, dict):
    raise UserError('not a JSON object')
  missing = [x for x in ('example', 'samples', 'greedy') if x not in row]
  if missing:
    raise UserError(f'field {missing[0]!r} is missing')
  judging_example = example.from_row(row['example'], number)
  if not isinstance(row['samples'], list):
    raise UserError('samples must be a list')
  n = len(judging_example.responses)
  greedy = row['greedy']
  return JudgedExample(
    example=judging_example,
    samples=tuple(
      _parse_judgement(sample, n, f'sample {i}')
      for i, sample in enumerate(row['samples'])
    ),
    greedy=None if greedy is None else _parse_judgement(greedy, n, 'greedy'),
  )


def _judgement_row(x: Judgement) -> dict[str, Any]:
  row = judgement.to_row(x)
  if x.meta is not None and not math.isfinite(x.meta):
    row['meta'] = str(x.meta)
  return row


def _read_line(line: bytes, location: str, number: int) -> JudgedExample:
  try:
    return from_row(_parse_json(line), number)
  except UserError as error:
    raise UserError(f'{location}: {error}') from error


def _parse_json(line: bytes) -> Any:
  try:
    return json.loads(line.decode(), parse_constant=_reject_constant)
  except json.JSONDecodeError as error:
    raise UserError(
      f'not valid JSON: {error.msg} at character {error.pos}'
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(f'not valid UTF-8 at byte {error.start}') from error


def _reject_constant(name):
  raise UserError(f'{name} is not a finite number')


def _parse_judgement(row: Any, n: int, name: str) -> Judgement:
  error = _find_error(row, n)
  if error:
    raise UserError(f'{name}: {error}')
  parsed = judgement.from_row(row)
  if row['meta'] in _NOT_FINITE:
    return dataclasses.replace(parsed, meta=float(row['meta']))
  return parsed


def _find_error(row: Any, n: int) -> str | None:
  """Returns what is wrong with a judgement of n responses, or None."""
  if not isinstance(row, dict):
    return 'not a JSON object'
  missing = [field for field in _FIELDS if field not in row]
  if missing:
    return f'field {missing[0]!r} is missing'
  order, scores, meta = row['order'], row['scores'], row['meta']
  if not _are_ints(order) or sorted(order) != list(range(n)):
    return f'order {order!r} is not a permutation of 0 to {n - 1}'
  if not isinstance(row['text'], str):
    return f'text is {row["text"]!r}, not a string'
  if not _are_ints([row['num_tokens']]) or row['num_tokens'] < 0:
    return f'num_tokens is {row["num_tokens"]!r}, not a count'
  if row['finish'] not in _FINISH_REASONS:
    return f'finish {row["finish"]!r} is not one of {_FINISH_REASONS}'
  for flag in ('shortened', 'extraction_differs'):
    if type(row[flag]) is not bool:
      return f'{flag} is {row[flag]!r}, not true or false'
  if scores is not None and not _are_numbers(scores, n):
    return f'scores {scores!r} are not {n} numbers'
  if meta is not None and meta not in _NOT_FINITE and not _is_number(meta):
    return f'meta is {meta!r}, not a number'
  return None


def _are_ints(values: Any) -> bool:
  return isinstance(values, list) and all(type(x) is int for x in values)


def _are_numbers(values: Any, n: int) -> bool:
  is_list = isinstance(values, list) and len(values) == n
  return is_list and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
  # math.isfinite raises on integers that are too large for a float.
  return type(value) in (int, float) and abs(value) <= sys.float_info.max
