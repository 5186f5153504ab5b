"""A file that grows line by line and survives being killed at any moment.

The first line says what run it is of. A run that is started again with the
same first line goes on after the last whole line; one with another first line
is refused, so that two runs are never mixed in one file.
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
  """JSON lines, appended one by one; use as a context manager."""

  def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
    """Opens it, or goes on with what is there.

    Args:
      path: a local file, or gs://, see mirror.py; folders are made.
      header: JSON values that tell this run from others.

    Raises:
      UserError: the file is of another run, or cannot be written.
    """
    self.path, self.header = path, dict(header)
    with atomic_io.wrap_os_errors(path):
      self._mirror = GcsMirror(path)
      self._mirror.path.touch()
      self.count = self._count_and_cut()
      self._file = self._mirror.path.open('ab')
    if self.count < 0:
      self.append(self.header)

  def _count_and_cut(self) -> int:
    """Whole lines after the header; -1 without one. Cuts off half a line."""
    count, end = -1, 0
    with self._mirror.path.open('r+b') as file:
      for line in file:
        if not line.endswith(b'\n'):
          break
        if count < 0:
          self._check(line)
        count, end = count + 1, end + len(line)
      file.truncate(end)
    return count

  def _check(self, line: bytes) -> None:
    try:
      found = json.loads(line)
    except ValueError:
      found = None
    wanted = json.loads(json.dumps(self.header))
    if found == wanted:
      return
    if not isinstance(found, dict):
      raise UserError(
        f'{self.path} is no journal of ours; choose another output'
      )
    keys = sorted({*found, *wanted})
    key = next(k for k in keys if found.get(k) != wanted.get(k))
    raise UserError(
      f'{self.path} was begun with {key}={found.get(key)!r}, this run has '
      f'{wanted.get(key)!r}; go on with the old settings, or delete the file'
    )

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds a row, which is in a local file before this returns.

    Raises:
      UserError: it cannot be written; rows before it stay.
    """
    data = json.dumps(row, ensure_ascii=True).encode() + b'\n'
    with atomic_io.wrap_os_errors(self.path):
      self._file.write(data)
      self._file.flush()
    self._mirror.upload_if_due()
    self.count += 1

  def rows(self) -> Iterator[dict[str, Any]]:
    """All rows, the header left out."""
    return rows(self._mirror.path)

  def close(self) -> None:
    """Closes it; a bucket has all of it then."""
    if not self._file.closed:
      with atomic_io.wrap_os_errors(self.path):
        self._file.close()
      self._mirror.close()

  def delete(self) -> None:
    """Closes it and removes the file."""
    self.close()
    atomic_io.remove(self.path)

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
  """The rows of a journal that nobody has open, the header left out."""
  with epath.Path(path).open('rb') as file:
    next(file, None)
    yield from map(json.loads, file)
