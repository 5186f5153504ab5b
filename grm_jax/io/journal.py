"""A file of rows that is appended to and survives a kill at any time.

The first line is a header with the settings and inputs of the run, every other
line is a row:

  CHECKSUM JSON

A checksum covers its line and all lines before it, so that a line that was
changed, removed, doubled or moved is found. A run that is started again with
the same header continues after the last intact line. Another header is an
error, so that the results of two runs are never mixed; in a file without rows
it is replaced.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from absl import logging
from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io, json_record
from grm_jax.io.gcs_mirror import GcsMirror

_CHECKSUM_DIGITS = 16
# What a kill in the first write, or a crash of the machine, can leave.
_UNFINISHED_HEADER = re.compile(rb'\0*|[0-9a-f]{0,16}|[0-9a-f]{16} [^\n]*')


@dataclasses.dataclass(frozen=True)
class _Line:
  """An intact line.

  Attributes:
    end: offset in the file of the byte after it.
    checksum: its checksum.
    value: its JSON value.
  """

  end: int
  checksum: str
  value: Any


class Journal:
  """An append-only file of JSON rows; use it as a context manager.

  Attributes:
    path: the file, local or gs://.
    header: settings and inputs of the run, JSON values by config key.
    count: number of rows, without the header.
  """

  def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
    """Creates the file, or continues an existing one.

    Args:
      path: local, or gs:// (see gcs_mirror.py); missing folders are made.
      header: JSON values that identify the run.

    Raises:
      UserError: the file has rows of another run, is not a journal, or cannot
        be written.
    """
    self.path, self.header = path, json.loads(json.dumps(header))
    self.count, self._checksum = -1, ''
    with atomic_io.wrap_os_errors(path):
      self._mirror = GcsMirror(path)
      self._mirror.path.touch()
      with self._mirror.path.open('r+b') as file:
        file.truncate(self._read_intact_lines(file))
      self._file = self._mirror.path.open('ab')
    if self.count < 0:
      self.append(self.header)

  def _read_intact_lines(self, file: BinaryIO) -> int:
    """Counts the lines to keep and returns their length in bytes."""
    last, different = None, ''
    for last in _intact_lines(file):
      if self.count < 0:
        different = json_record.differences(last.value, self.header)
      elif different:
        raise UserError(
          f'{self.path} was written with other settings: {different}; use the '
          'old settings to continue, or delete the file to start again'
        )
      self.count, self._checksum = self.count + 1, last.checksum
    length = file.seek(0, os.SEEK_END)
    if last is None:
      self._check_replaceable(file)
      return 0
    if last.end < length:
      self._warn_of_damage(file, last.end)
    if different:  # there are no rows
      self.count, self._checksum = -1, ''
      return 0
    return last.end

  def _check_replaceable(self, file: BinaryIO) -> None:
    """Raises UserError if the file is not the beginning of a journal."""
    file.seek(0)
    if not _UNFINISHED_HEADER.fullmatch(file.read()):
      raise UserError(
        f'{self.path} exists and is not a journal; choose another output '
        'path, or delete the file'
      )

  def _warn_of_damage(self, file: BinaryIO, end: int) -> None:
    """Warns about damage, but not about a row that a kill has cut off."""
    file.seek(end)
    if b'\n' in file.read():
      logging.warning(
        '%s: line %d is damaged; the %d rows before it are kept, the others '
        'are computed again',
        self.path,
        self.count + 2,
        self.count,
      )

  def append(self, row: Mapping[str, Any]) -> None:
    """Appends a row; it is in the local file when this returns.

    Args:
      row: JSON values.

    Raises:
      UserError: the file cannot be written; earlier rows stay in it.
    """
    data = json.dumps(row, ensure_ascii=True).encode()
    checksum = _chained_checksum(self._checksum, data)
    with atomic_io.wrap_os_errors(self.path):
      self._file.write(b'%s %s\n' % (checksum.encode(), data))
      self._file.flush()
    self._mirror.upload_if_due()
    self.count, self._checksum = self.count + 1, checksum

  def rows(self) -> Iterator[dict[str, Any]]:
    """Yields all rows, without the header; see the function `rows`."""
    return rows(self._mirror.path)

  def close(self) -> None:
    """Closes the file; a gs:// target is complete afterwards."""
    if not self._file.closed:
      with atomic_io.wrap_os_errors(self.path):
        self._file.close()
      self._mirror.close()

  def delete(self) -> None:
    """Closes and removes the file."""
    self.close()
    atomic_io.remove(self.path)

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
  """Yields the rows of a complete journal, without the header.

  Raises:
    UserError: a line is damaged.
  """
  with epath.Path(path).open('rb') as file:
    number, end = 0, 0
    for number, line in enumerate(_intact_lines(file), 1):
      end = line.end
      if number > 1:
        yield line.value
    if end != file.seek(0, os.SEEK_END):
      raise UserError(
        f'{path}, line {number + 1} is damaged; start the run again, which '
        'computes this row and the later ones again'
      )


def has_rows(path: str | os.PathLike[str]) -> bool:
  """Returns whether a journal exists and has an intact row."""
  try:
    with epath.Path(path).open('rb') as file:
      return len(list(itertools.islice(_intact_lines(file), 2))) == 2
  except FileNotFoundError:
    return False


def _intact_lines(file: BinaryIO) -> Iterator[_Line]:
  """Yields the lines up to the first one that is damaged or incomplete."""
  checksum, end = '', 0
  for line in file:
    stored, _, data = line.removesuffix(b'\n').partition(b' ')
    checksum = _chained_checksum(checksum, data)
    if not line.endswith(b'\n') or stored != checksum.encode():
      return
    end += len(line)
    yield _Line(end, checksum, json.loads(data))


def _chained_checksum(previous: str, data: bytes) -> str:
  digest = hashlib.sha256(previous.encode() + data).hexdigest()
  return digest[:_CHECKSUM_DIGITS]
