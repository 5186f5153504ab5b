"""Rows of data files, one by one: a bad row is a fault, not the end.

A file is read by its suffix (io/row_reader.py); tfds:NAME:SPLIT and
seqio:NAME:SPLIT stand for a file wherever a path does.

What a row of a published set makes is up to an adapter (grm_jax/data/adapters),
a function from a row to any number of examples, which raises `row.fault(...)`
for a mistake of the file and yields `Dropped` for a row that is right and still
of no use.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from grm_jax.data import seqio_source, tfds_source
from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class SkippedRow:
  """What a row makes that gives no example though nothing is wrong with it."""

  reason: str


def read(
  path: str,
  make: Callable[[preference_rows.SourceRow], Iterable[T]],
  name: str = '',
) -> Iterator[T | ExampleError]:
  """What the rows of a file make, and a fault for each that is wrong.

  Args:
    path: a .json, .jsonl or .parquet file, local or gs://; a `*` in its name
      stands for several files, read in order of their names. A folder is the
      one such file in it. Or tfds:NAME:SPLIT or seqio:NAME:SPLIT.
    make: an adapter.
    name: of the file to take from a folder that has several, as the set is
      published.

  Raises:
    UserError: a file cannot be read, or is not of its format at all; which
      file of a folder is meant is not clear.
  """
  for file in _files(path, name):
    for number, value in values(file):
      yield from _made(preference_rows.SourceRow(file, number, value), make)


def _made(row, make):
  try:
    if isinstance(row.fields, ExampleError):
      raise row.fault(row.fields.reason)
    if not isinstance(row.fields, dict):
      raise row.fault('the row is not an object')
    return list(make(row))
  except UserError as error:
    return [ExampleError(f'row {row.number}', str(error))]


def files(path: str) -> list[str]:
  """Data files that a path may stand for, in order of their names.

  Those of a folder (its licence and the like are none), those that a `*` in
  the name matches; any other path stands for itself, be there a file or not.
  """
  root = epath.Path(path)
  if '*' in root.name:
    return sorted(str(file) for file in root.parent.glob(root.name))
  if not root.is_dir():
    return [path]
  known = (x for x in root.iterdir() if x.suffix in row_reader.FORMATS)
  return sorted(str(x) for x in known)


def _files(path, name):
  if is_dataset_name(path):
    return [path]
  found = files(path)
  if epath.Path(path).is_dir():
    return [_the_one(path, found, name)]
  if not found:
    raise UserError(f'{path}: no file has such a name')
  return found


def _the_one(folder, found, name):
  names = [epath.Path(file).name for file in found]
  if name in names:
    return found[names.index(name)]
  if len(found) != 1:
    several = f'several data files ({", ".join(names)})' if found else 'no file'
    raise UserError(
      f'{folder}: a folder with {several}; name one of '
      f'{", ".join(row_reader.FORMATS)}, or several as FOLDER/*.json'
    )
  return found[0]


def is_dataset_name(path: str) -> bool:
  """Whether this is tfds:NAME:SPLIT or seqio:NAME:SPLIT rather than a path."""
  return path.startswith((tfds_source.PREFIX, seqio_source.PREFIX))


def values(
  path: str, fallback: str = ''
) -> Iterator[tuple[int, Any | ExampleError]]:
  """(number from 1, JSON value or fault) of every row.

  Args:
    path: a .json, .jsonl or .parquet file, or tfds:NAME:SPLIT or
      seqio:NAME:SPLIT.
    fallback: the format of a file with another suffix, see
      `row_reader.read_rows`.

  Raises:
    UserError: it cannot be read, or is none of these.
  """
  if path.startswith(tfds_source.PREFIX):
    return tfds_source.values(path)
  if path.startswith(seqio_source.PREFIX):
    return seqio_source.values(path)
  return _values_of_file(path, fallback)


def _values_of_file(path, fallback):
  for number, value in row_reader.read_rows(path, fallback):
    if isinstance(value, row_reader.UnreadableRow):
      value = ExampleError(f'line {number}', value.reason)
    yield number, value


def convert(
  path: str, make: Callable[[Any, int], T], fallback: str = ''
) -> Iterator[tuple[int, T | ExampleError]]:
  """(number from 1, what `make` returns or a fault) of every row.

  Args:
    path: see `values`.
    make: a function of a JSON value and its number; for a bad one it raises
      UserError.
    fallback: see `values`.

  Raises:
    UserError: what `values` raises.
  """
  return _convert(values(path, fallback), make, is_dataset_name(path))


def _convert(numbered, make, all_rows_have_all_fields):
  for number, value in numbered:
    if isinstance(value, ExampleError):
      yield number, value
      continue
    try:
      if all_rows_have_all_fields:
        value = tfds_source.native(value)
      yield number, make(value, number)
    except UserError as error:
      name = value.get('id', number) if isinstance(value, dict) else number
      yield number, ExampleError(str(name), str(error))


def examples(path: str) -> Iterator[tuple[int, JudgingExample | ExampleError]]:
  """(number from 1, example or fault) of the rows of a user's own data.

  Args:
    path: of rows that `judging.example.from_row` takes, see `values`; a file
      with another suffix is JSON Lines.

  Raises:
    UserError: what `values` raises.
  """
  return convert(path, examples_lib.from_row, fallback='.jsonl')


def located(
  path: str, numbered: Iterable[tuple[int, T | ExampleError]]
) -> Iterator[T | ExampleError]:
  """The items without their numbers; faults name the path and the row."""
  for number, item in numbered:
    if isinstance(item, ExampleError):
      item = ExampleError(item.id, f'{path}, row {number}: {item.reason}')
    yield item


def table(name: str) -> preference_rows.RowTable:
  """The rows of tfds:NAME:SPLIT or seqio:NAME:SPLIT, for a suite.

  Reading a bad row raises UserError.

  Raises:
    UserError: what `values` raises.
  """
  return preference_rows.RowTable(name, _fields(name, values(name)))


def _fields(name, numbered):
  for number, value in numbered:
    if isinstance(value, ExampleError):
      raise UserError(f'{name}, row {number}: {value.reason}')
    yield value


def digest(*texts: str) -> str:
  """16 letters that stand for these texts, for ids that outlive edits.

  Row numbers would shift when a row is deleted, and samples kept by id would
  then belong to other examples.
  """
  # JSON escapes what UTF-8 cannot hold, and marks where each text ends.
  return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
