"""Reads rows of data files; a bad row becomes an ExampleError.

The suffix of a file decides its format (io/row_reader.py). tfds:NAME:SPLIT and
seqio:NAME:SPLIT are accepted wherever a path is, and hf:OWNER/NAME wherever the
path of a published dataset is.

An adapter (data/datasets/) is a function that maps a row of a published
dataset to any number of examples. It raises `row.error(...)` for a wrong row,
and yields a SkippedRow for a correct row that does not yield an example.
"""

import dataclasses
import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from grm_jax.data import hub_source, seqio_source, tfds_source
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, row_reader
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.preference_rows import RowTable, SourceRow

T = TypeVar('T')
_ROW_ID = re.compile('row [0-9]+')  # see judgement.example.id_of_row


@dataclasses.dataclass(frozen=True)
class SkippedRow:
  """Stands for a correct row that does not yield an example."""

  reason: str


def adapt_rows(
  path: str,
  adapter: Callable[[SourceRow], Iterable[T]],
  published_name: str = '',
) -> Iterator[T | ExampleError]:
  """Yields what an adapter makes of each row, and an error per bad row.

  Args:
    path: a .json, .jsonl or .parquet file, local or gs://; a `*` in its name
      stands for several files, read in the order of their names. A folder
      stands for the one such file in it. Or tfds:NAME:SPLIT,
      seqio:NAME:SPLIT or hf:OWNER/NAME (hub_source.py).
    adapter: see the module docstring.
    published_name: name of the file to take from a folder with several files.

  Raises:
    UserError: a file cannot be read or does not have the format of its suffix,
      or a folder does not determine the file.
  """
  for file in _resolve(path, published_name):
    for number, value in numbered_rows(file):
      yield from _adapt(file, number, value, adapter)


def _adapt(
  file: str,
  number: int,
  value: Any,
  adapter: Callable[[SourceRow], Iterable[T]],
) -> Sequence[T | ExampleError]:
  row = SourceRow(file, number, value)
  try:
    if isinstance(value, ExampleError):
      raise row.error(value.reason)
    if not isinstance(value, dict):
      raise row.error('the row is not an object')
    return list(adapter(row))
  except UserError as error:
    return [ExampleError(f'row {number}', str(error))]


def list_files(path: str) -> list[str]:
  """Returns the data files that a path stands for, in the order of names.

  A folder stands for its data files (not a license, for example), a name with
  `*` for the files that match it. Any other path stands for itself, whether or
  not the file exists.
  """
  if path.startswith(hub_source.PREFIX):
    path = hub_source.local_path(path)
  root = epath.Path(path)
  with atomic_io.wrap_read_errors(path):
    if '*' in root.name:
      if not root.parent.is_dir():
        return []
      # glob() would hide that the folder cannot be read.
      files = root.parent.iterdir()
      return sorted(str(x) for x in files if fnmatch.fnmatch(x.name, root.name))
    if not root.is_dir():
      return [path]
    files = (x for x in root.iterdir() if x.suffix in row_reader.FORMATS)
    return sorted(str(x) for x in files)


def _resolve(path: str, published_name: str) -> list[str]:
  if is_dataset_name(path):
    return [path]
  files = list_files(path)
  if epath.Path(path).is_dir():
    return [_only_file(path, files, published_name)]
  if not files:
    raise UserError(f'{path}: no file matches; correct the path')
  return files


def _only_file(folder: str, files: Sequence[str], published_name: str) -> str:
  names = [epath.Path(file).name for file in files]
  if published_name in names:
    return files[names.index(published_name)]
  if len(files) != 1:
    content = f'several data files ({", ".join(names)})' if files else 'no file'
    raise UserError(
      f'{folder}: the folder has {content} of type '
      f'{", ".join(row_reader.FORMATS)}; name one file, or several as '
      'FOLDER/*.json'
    )
  return files[0]


def is_dataset_name(path: str) -> bool:
  """Returns whether `path` is tfds:NAME:SPLIT or seqio:NAME:SPLIT."""
  return path.startswith((tfds_source.PREFIX, seqio_source.PREFIX))


def numbered_rows(
  path: str, fallback: str = ''
) -> Iterator[tuple[int, Any | ExampleError]]:
  """Yields (number from 1, JSON value or error) of every row.

  Args:
    path: a .json, .jsonl or .parquet file, tfds:NAME:SPLIT or
      seqio:NAME:SPLIT.
    fallback: format of a file with another suffix, see row_reader.read_rows.

  Raises:
    UserError: the path cannot be read or is none of these.
  """
  if path.startswith(tfds_source.PREFIX):
    return tfds_source.numbered_rows(path)
  if path.startswith(seqio_source.PREFIX):
    return seqio_source.numbered_rows(path)
  return _file_rows(path, fallback)


def _file_rows(
  path: str, fallback: str
) -> Iterator[tuple[int, Any | ExampleError]]:
  for number, value in row_reader.read_rows(path, fallback):
    if isinstance(value, row_reader.UnreadableRow):
      value = ExampleError(f'line {number}', value.reason)
    yield number, value


def convert_rows(
  path: str, convert: Callable[[Any, int], T], fallback: str = ''
) -> Iterator[tuple[int, T | ExampleError]]:
  """Yields (number from 1, converted row or error) of every row.

  Args:
    path: see `numbered_rows`.
    convert: function of a JSON value and its number; raises UserError for a
      bad value.
    fallback: see `numbered_rows`.

  Raises:
    UserError: as `numbered_rows`.
  """
  # Not a generator function: the path is checked at once.
  rows = numbered_rows(path, fallback)
  return _convert(rows, convert, is_dataset_name(path))


def _convert(
  rows: Iterable[tuple[int, Any]],
  convert: Callable[[Any, int], T],
  is_dataset: bool,
) -> Iterator[tuple[int, T | ExampleError]]:
  for number, value in rows:
    if isinstance(value, ExampleError):
      yield number, value
      continue
    try:
      fields = tfds_source.drop_unset_fields(value) if is_dataset else value
      _check_id(fields, number)
      yield number, convert(fields, number)
    except UserError as error:
      yield number, ExampleError(_name(value, number), str(error))


def _name(row: Any, number: int) -> str | int:
  id = row.get('id') if isinstance(row, dict) else None
  if id is None:
    return f'row {number}'
  return id if type(id) is int else str(id)


def _check_id(row: Any, number: int) -> None:
  """Raises UserError if a row states the id of another row without one."""
  id = row.get('id') if isinstance(row, dict) else None
  if isinstance(id, str) and id != f'row {number}' and _ROW_ID.fullmatch(id):
    raise UserError(
      f'row {number} has the id {id!r}, which is the name of another row '
      'without an id; use another id'
    )


def read_examples(
  path: str,
) -> Iterator[tuple[int, JudgingExample | ExampleError]]:
  """Yields (number from 1, example or error) of the rows of a user's data.

  Args:
    path: rows that judgement.example.from_row accepts, see `numbered_rows`; a
      file with another suffix is JSON Lines.

  Raises:
    UserError: as `numbered_rows`.
  """
  return convert_rows(path, examples_lib.from_row, fallback='.jsonl')


def with_row_location(
  path: str, numbered: Iterable[tuple[int, T | ExampleError]]
) -> Iterator[T | ExampleError]:
  """Yields items without their numbers; errors name the path and the row."""
  for number, item in numbered:
    if isinstance(item, ExampleError):
      yield ExampleError(item.id, f'{path}, row {number}: {item.reason}')
    else:
      yield item


def row_table(name: str) -> RowTable:
  """Returns the rows of tfds:NAME:SPLIT or seqio:NAME:SPLIT, for a suite.

  Reading a bad row raises UserError.

  Raises:
    UserError: as `numbered_rows`.
  """
  return RowTable(name, _fields(name, numbered_rows(name)))


def _fields(
  name: str, rows: Iterable[tuple[int, Any]]
) -> Iterator[Mapping[str, Any]]:
  for number, value in rows:
    if isinstance(value, ExampleError):
      raise UserError(f'{name}, row {number}: {value.reason}')
    yield value


def text_digest(*texts: str) -> str:
  """Returns 16 hex digits that identify these texts, for ids.

  Row numbers are not stable ids: they shift when a row is deleted, and samples
  stored under an id would then belong to another example.
  """
  # JSON escapes what UTF-8 cannot encode, and separates the texts.
  return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
