"""Atomic file writes, local or gs://.

A reader sees either the old file or the complete new one, even after a crash.
JAX is imported only to find out which process this is, so that reports can be
written without it.
"""

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from etils import epath

from grm_jax.errors import UserError

PathLike = str | os.PathLike[str]

_COPY_CHUNK_BYTES = 1 << 24


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
  """Opens a file for writing that replaces `path` when the block succeeds.

  If the block raises an exception, an existing file stays as it is.

  Args:
    path: local or gs://; missing folders are made.

  Raises:
    UserError: the path cannot be written.
  """
  target = epath.Path(path)
  local = os.fspath(target)
  # Renaming would replace a device such as /dev/null by a file. A gs:// path
  # never exists locally.
  if os.path.exists(local) and not os.path.isfile(local):
    raise UserError(
      f'cannot write {path}: it is not a regular file; choose another path'
    )
  # In the same folder, because renaming is atomic only within a file system.
  temporary = target.with_name(f'{target.name}.{os.getpid()}.tmp')
  with wrap_os_errors(path):
    try:
      target.parent.mkdir(parents=True, exist_ok=True)
      with temporary.open('wb') as file:
        yield file
      temporary.replace(target)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise


@contextlib.contextmanager
def wrap_os_errors(path: PathLike) -> Iterator[None]:
  """Converts an OSError in the block to a UserError that names the path.

  Args:
    path: the path that the block writes.

  Raises:
    UserError: the block raised an OSError.
  """
  try:
    yield
  except OSError as error:
    raise cannot_write(path, error.strerror or error) from error


@contextlib.contextmanager
def wrap_read_errors(path: PathLike) -> Iterator[None]:
  """Converts an OSError in the block to a UserError that names the path.

  Args:
    path: the path that the block reads.

  Raises:
    UserError: the block raised an OSError.
  """
  try:
    yield
  except OSError as error:
    raise cannot_read(path, error.strerror or error) from error


def cannot_read(path: PathLike, reason: Any) -> UserError:
  """Returns the error for a path that cannot be read."""
  return UserError(
    f'cannot read {path}: {reason}; correct the path, or make it readable for '
    'this user'
  )


def cannot_write(path: PathLike, reason: Any) -> UserError:
  """Returns the error for a path that cannot be written."""
  return UserError(
    f'cannot write {path}: {reason}; free some space, or choose a path that '
    'you can write to'
  )


def write_file(path: PathLike, data: bytes | str) -> None:
  """Writes a file atomically.

  Every process may call this; only process 0 writes.

  Args:
    path: local or gs://, see `atomic_write`.
    data: the content; a str is encoded as UTF-8.

  Raises:
    UserError: the path cannot be written.
  """
  if _is_process_0():
    with atomic_write(path) as file:
      file.write(data.encode() if isinstance(data, str) else data)


def write_lines(path: PathLike, lines: Iterable[str]) -> int:
  """Writes lines atomically, with one line in memory at a time.

  Every process may call this; only process 0 writes.

  Args:
    path: local or gs://, see `atomic_write`.
    lines: texts without their line breaks.

  Returns:
    The number of lines.

  Raises:
    UserError: the path cannot be written.
  """
  if not _is_process_0():
    return sum(1 for _ in lines)
  count = 0
  with atomic_write(path) as file:
    for line in lines:
      file.write(f'{line}\n'.encode())
      count += 1
  return count


def copy(source: PathLike, target: PathLike) -> None:
  """Copies a file atomically; only one process may call this.

  Args:
    source: local or gs://.
    target: local or gs://.

  Raises:
    UserError: the target cannot be written.
  """
  with (
    epath.Path(source).open('rb') as input_file,
    atomic_write(target) as output_file,
  ):
    shutil.copyfileobj(input_file, output_file, _COPY_CHUNK_BYTES)


def exists(path: PathLike) -> bool:
  """Returns whether a path exists, local or gs://."""
  return epath.Path(path).exists()


def list_files(folder: PathLike, *patterns: str) -> list[str]:
  """Returns the paths in a folder whose names match any of the patterns.

  Args:
    folder: local or gs://; a missing folder has no files.
    *patterns: shell patterns such as '*.txt'.
  """
  directory = epath.Path(folder)
  with wrap_read_errors(folder):
    if not directory.is_dir():
      return []
    names = sorted(x.name for x in directory.iterdir())
  return [
    os.path.join(folder, name)
    for name in names
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
  ]


def remove(path: PathLike) -> None:
  """Removes a file if it exists; only one process may call this."""
  with contextlib.suppress(FileNotFoundError):
    epath.Path(path).unlink()


def _is_process_0() -> bool:
  import jax

  return jax.process_index() == 0
