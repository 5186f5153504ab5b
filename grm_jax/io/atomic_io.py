"""Files of a run: each is written by one process, whole or not at all.

JAX is imported only to ask which process this is, so that reports can be
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


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """A file to write that appears under its name when the block ends well.

  An exception in the block leaves what was there before.

  Args:
    path: local or gs://; a file there is replaced, folders are made.

  Raises:
    UserError: path cannot be written.
  """
  path = epath.Path(path)
  local = os.fspath(path)
  # A device such as /dev/null would be replaced as easily as a file. In a
  # bucket there are none.
  if os.path.exists(local) and not os.path.isfile(local):
    raise UserError(f'cannot write {path}: it is no file; choose another path')
  # In the same folder: renaming is atomic only inside a file system.
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  with wrap_os_errors(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with temporary.open('wb') as file:
        yield file
      temporary.replace(path)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise


@contextlib.contextmanager
def wrap_os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Says which path it was that the block could not write.

  Raises:
    UserError: in place of an OSError.
  """
  try:
    yield
  except OSError as error:
    raise cannot_write(path, error.strerror or error) from error


def cannot_write(path: str | os.PathLike[str], why: Any) -> UserError:
  """The error that says so, and what to do."""
  return UserError(
    f'cannot write {path}: {why}; make room, or choose a path that you may '
    'write to'
  )


def write_file(path: str | os.PathLike[str], data: bytes | str) -> None:
  """Writes a file that no reader, and no crash, can see half of.

  Args:
    path: see `whole`. With several processes all may call and the first one
      writes.
    data: the content; a str is written as UTF-8.

  Raises:
    UserError: path cannot be written.
  """
  if _is_first():
    with atomic_write(path) as file:
      file.write(data.encode() if isinstance(data, str) else data)


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> int:
  """`write_file` of lines, one in memory at a time; returns their number."""
  if not _is_first():
    return sum(1 for _ in lines)
  count = 0
  with atomic_write(path) as file:
    for line in lines:
      file.write(f'{line}\n'.encode())
      count += 1
  return count


def copy(
  source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> None:
  """A file as another one, whole or not at all; either may be gs://.

  One process calls. UserError: the target cannot be written.
  """
  with epath.Path(source).open('rb') as old, atomic_write(target) as new:
    shutil.copyfileobj(old, new, 1 << 24)


def exists(path: str | os.PathLike[str]) -> bool:
  """Whether there is such a file, local or gs://."""
  return epath.Path(path).exists()


def list_files(folder: str | os.PathLike[str], *patterns: str) -> list[str]:
  """Paths of files in a folder, local or gs://, by patterns such as '*.txt'."""
  there = epath.Path(folder)
  if not there.is_dir():
    return []
  names = sorted(x.name for x in there.iterdir())
  return [
    os.path.join(folder, name)
    for name in names
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
  ]


def remove(path: str | os.PathLike[str]) -> None:
  """Removes a file if it is there; one process calls."""
  with contextlib.suppress(FileNotFoundError):
    epath.Path(path).unlink()


def _is_first():
  import jax

  return jax.process_index() == 0
