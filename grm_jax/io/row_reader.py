"""Reads rows from JSON, JSON Lines and Parquet files, local or gs://.

The suffix of a file names its format:

  .json     one array of rows, one object per line, or one object in all
  .jsonl    one JSON value per line; blank lines are skipped
  .parquet  needs pyarrow, which is imported when such a file is read

A file with another format than its suffix names is refused. So are pipes and
devices, because files are read more than once (io/input_file.py).

Rows are numbered from 1. In a file with one value per line the row number is
the line number. Lines and Parquet rows are read a few at a time, so memory does
not grow with the file; an array or one object of many lines is read as a whole.
"""

import codecs
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import input_file

FORMATS = ('.json', '.jsonl', '.parquet')
_PARQUET_BATCH = 256  # rows
_NUM_SNIFFED_BYTES = 4096
_JSON_REQUIREMENT = (
  'a .json file must be one array of rows, one object per line, or one object'
)
# First bytes of other formats, and what a user can do.
_NOT_JSON = {
  b'PAR1': 'its content is Parquet; rename it to .parquet',
  b'\x1f\x8b': 'its content is compressed; decompress it with gunzip',
  b'PK\x03\x04': 'its content is a zip archive; extract the file from it',
}


@dataclasses.dataclass(frozen=True)
class UnreadableRow:
  """Placeholder for a line that is not JSON; the lines after it are read.

  Attributes:
    reason: what is wrong with the line.
  """

  reason: str


def read_rows(path: str, fallback: str = '') -> Iterator[tuple[int, Any]]:
  """Yields (number, JSON value or UnreadableRow) of every row.

  Args:
    path: a file, local or gs://.
    fallback: the format of a file whose suffix is not one of FORMATS; ''
      makes such a suffix an error.

  Raises:
    UserError: the file cannot be read or does not have the format that its
      suffix names.
  """
  with _reading(path):
    match _format(path, fallback):
      case '.json':
        yield from _read_json(path)
      case '.jsonl':
        yield from _read_json_lines(path)
      case '.parquet':
        yield from _read_parquet(path)


def count_rows(path: str, fallback: str = '') -> int:
  """Returns the number of rows that `read_rows` yields for this file.

  Lines are counted without parsing them; for Parquet only the footer is read.

  Args:
    path: see `read_rows`.
    fallback: see `read_rows`.

  Raises:
    UserError: see `read_rows`.
  """
  with _reading(path):
    match _format(path, fallback):
      case '.json':
        return sum(1 for _ in _read_json(path))
      case '.jsonl':
        return sum(1 for _ in _nonblank_lines(path))
      case _:
        with epath.Path(path).open('rb') as stream:
          return _open_parquet(path, stream).metadata.num_rows


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
  """Converts errors while opening or reading the file to a UserError."""
  input_file.check(path)
  try:
    yield
  except OSError as error:
    reason = error.strerror or _first_line(error)
    raise UserError(f'cannot read {path}: {reason}') from error
  except ImportError as error:  # gs:// needs a package that is not installed
    raise UserError(f'cannot read {path}: {error}') from error


def _format(path: str, fallback: str) -> str:
  file = epath.Path(path)
  if file.suffix in FORMATS:
    return file.suffix
  if fallback:
    return fallback
  if not file.exists():
    raise FileNotFoundError('No such file or directory')
  if file.is_dir():
    raise IsADirectoryError('Is a directory')
  raise UserError(
    f'cannot read {path}: its suffix must be one of {", ".join(FORMATS)}'
  )


def _read_json(path: str) -> Iterator[tuple[int, Any]]:
  """Yields the rows of an array, or objects if it begins with one."""
  file = epath.Path(path)
  with file.open('rb') as stream:
    beginning = stream.read(_NUM_SNIFFED_BYTES)
  _check_beginning(path, beginning)
  beginning = beginning.removeprefix(codecs.BOM_UTF8).lstrip()
  if beginning.startswith(b'{'):
    yield from _read_objects(path)
    return
  try:
    rows = _load(file)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON: {_reason(error)}') from error
  if not isinstance(rows, list):
    raise UserError(f'{path}: {_JSON_REQUIREMENT}')
  yield from enumerate(rows, 1)


def _read_objects(path: str) -> Iterator[tuple[int, Any]]:
  """Yields the object of each line, or the one object of all lines."""
  rows = _read_json_lines(path)
  number, row = next(rows)
  if not isinstance(row, UnreadableRow):
    yield number, row
    yield from rows
    return
  try:
    whole = _load(epath.Path(path))
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{path}: {_JSON_REQUIREMENT}; row {number}: {row.reason}'
    ) from error
  yield 1, whole


def _load(file: epath.Path) -> Any:
  # json.loads detects the encoding and the byte order mark of bytes.
  return json.loads(file.read_bytes())


def _read_json_lines(path: str) -> Iterator[tuple[int, Any]]:
  for number, line in _nonblank_lines(path):
    try:
      row = json.loads(line.rstrip())
    except (ValueError, RecursionError) as error:
      row = UnreadableRow(f'not JSON: {_reason(error)}')
    yield number, row


def _nonblank_lines(path: str) -> Iterator[tuple[int, bytes]]:
  # Iterating over bytes splits at \n only. Texts can contain U+2028 unescaped.
  with epath.Path(path).open('rb') as stream:
    _check_is_json_lines(path, stream.read(_NUM_SNIFFED_BYTES))
    stream.seek(0)
    for number, line in enumerate(stream, 1):
      if line.strip():
        yield number, line


def _check_beginning(path: str, beginning: bytes) -> None:
  """Raises UserError if the first bytes of a file are not those of JSON."""
  for magic, problem in _NOT_JSON.items():
    if beginning.startswith(magic):
      raise UserError(f'{path}: {problem}')


def _check_is_json_lines(path: str, beginning: bytes) -> None:
  """Raises UserError if a file begins as another format, or as an array."""
  _check_beginning(path, beginning)
  lines = beginning.removeprefix(codecs.BOM_UTF8).split(b'\n')
  lines = [line.strip() for line in lines if line.strip()]
  if not lines or not lines[0].startswith(b'['):
    return
  # A line can be an array: a bad row among others. An array that is the whole
  # file, or that ends on a later line, is another format.
  if len(lines) == 1 or not (_is_json(lines[0]) or _is_json(lines[1])):
    raise UserError(f'{path}: its content is a JSON array; rename it to .json')


def _is_json(text: bytes) -> bool:
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def _read_parquet(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  number = 0
  with epath.Path(path).open('rb') as stream:
    file = _open_parquet(path, stream)
    import pyarrow

    try:
      for batch in file.iter_batches(_PARQUET_BATCH):
        # Parquet stores a JSON object as a struct or as a map.
        for row in batch.to_pylist(maps_as_pydicts='strict'):
          number += 1
          yield number, row
    except (pyarrow.ArrowException, KeyError) as error:
      raise UserError(
        f'{path}, after row {number}: damaged Parquet: {_first_line(error)}'
      ) from error


def _open_parquet(path: str, stream: Any) -> Any:
  """Returns the pyarrow.parquet.ParquetFile of an open file."""
  try:
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      f"{path}: Parquet needs pyarrow; run pip install 'pyarrow>=18,<27'"
    ) from error
  try:
    return pyarrow.parquet.ParquetFile(stream)
  except pyarrow.ArrowInvalid as error:
    raise UserError(
      f'{path}: its content is not Parquet; if it is JSON, rename it to .json '
      'or .jsonl'
    ) from error


def _reason(error: Exception) -> str:
  """Returns the reason of json.loads, with the position in the text."""
  if isinstance(error, json.JSONDecodeError):
    line = f'line {error.lineno}, ' if error.lineno > 1 else ''
    return f'{error.msg} at {line}column {error.colno}'
  if isinstance(error, UnicodeDecodeError):
    return f'not {error.encoding.upper()} at byte {error.start}'
  return str(error)


def _first_line(error: Exception) -> str:
  lines = str(error).splitlines() or [type(error).__name__]
  return lines[0]
