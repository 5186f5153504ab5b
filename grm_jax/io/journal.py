"""A file of JSON lines that is appended to and survives a kill at any time.

The first line is a header with the settings of the run. A run that is started
again with the same header continues after the last complete line. Another
header is an error, so that the results of two runs are never mixed.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.io.gcs_mirror import GcsMirror


class Journal:
  """An append-only file of JSON lines; use it as a context manager.

  Attributes:
    path: the file, local or gs://.
    header: settings of the run, as JSON values.
    count: number of rows, without the header.
  """

  def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
    """Creates the file, or continues an existing one.

    Args:
      path: local, or gs:// (see gcs_mirror.py); missing folders are made.
      header: JSON values that identify the run.

    Raises:
      UserError: the file belongs to another run, or cannot be written.
    """
    self.path, self.header = path, dict(header)
    with atomic_io.wrap_os_errors(path):
      self._mirror = GcsMirror(path)
      self._mirror.path.touch()
      num_lines = self._count_complete_lines()
      self._file = self._mirror.path.open('ab')
    self.count = num_lines - 1
    if not num_lines:
      self.append(self.header)

  def _count_complete_lines(self) -> int:
    """Returns the number of lines; removes an incomplete last line."""
    count, end = 0, 0
    with self._mirror.path.open('r+b') as file:
      for line in file:
        if not line.endswith(b'\n'):  # the process was killed while it wrote
          break
        if not count:
          self._check_header(line)
        count, end = count + 1, end + len(line)
      file.truncate(end)
    return count

  def _check_header(self, line: bytes) -> None:
    try:
      stored = json.loads(line)
    except ValueError:
      stored = None
    expected = json.loads(json.dumps(self.header))
    if stored == expected:
      return
    if not isinstance(stored, dict):
      raise UserError(
        f'{self.path} exists and is not a journal; choose another output path'
      )
    keys = sorted({*stored, *expected})
    key = next(k for k in keys if stored.get(k) != expected.get(k))
    raise UserError(
      f'{self.path} was written with {key}={stored.get(key)!r}, but this run '
      f'has {expected.get(key)!r}; use the old value to continue, or delete '
      'the file'
    )

  def append(self, row: Mapping[str, Any]) -> None:
    """Appends a row; it is in the local file when this returns.

    Args:
      row: JSON values.

    Raises:
      UserError: the file cannot be written; earlier rows stay in it.
    """
    data = json.dumps(row, ensure_ascii=True).encode() + b'\n'
    with atomic_io.wrap_os_errors(self.path):
      self._file.write(data)
      self._file.flush()
    self._mirror.upload_if_due()
    self.count += 1

  def rows(self) -> Iterator[dict[str, Any]]:
    """Yields all rows, without the header."""
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
  """Yields the rows of a closed journal, without the header."""
  with epath.Path(path).open('rb') as file:
    next(file, None)
    yield from map(json.loads, file)
