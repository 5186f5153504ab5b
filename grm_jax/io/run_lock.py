"""A lock that keeps two runs from writing the same files.

The lock of a local path is a file that the operating system locks: it is
released when the process ends, however it ends. A bucket has no such locks.
There the holder rewrites the file every few seconds, and a file that does not
change for a while is stale.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io

WORKDIR_LOCK = '.lock'  # name of the lock file of a workdir
REFRESH_S = 15.0
STALE_S = 60.0
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold_workdir(workdir: str) -> Iterator[None]:
  """Holds the lock of a workdir; see `hold`."""
  with hold(os.path.join(workdir, WORKDIR_LOCK), workdir):
    yield


@contextlib.contextmanager
def hold(path: str, target: str) -> Iterator[None]:
  """Holds a lock in process 0 of this run, until the block ends.

  Args:
    path: lock file, local or gs://; missing folders are made.
    target: what the lock protects, for messages.

  Raises:
    UserError: another run holds the lock, or the file cannot be written.
  """
  import jax

  if jax.process_index():
    yield
    return
  with (
    _hold_object(path, target) if '://' in path else _hold_file(path, target)
  ):
    yield


@contextlib.contextmanager
def _hold_file(path: str, target: str) -> Iterator[None]:
  folder = os.path.dirname(path) or '.'
  is_new = not os.path.isdir(folder)
  with atomic_io.wrap_os_errors(target):
    os.makedirs(folder, exist_ok=True)
    descriptor = _lock_file(path, target)
  try:
    with atomic_io.wrap_os_errors(target):
      os.pwrite(descriptor, _holder().encode(), 0)
    yield
  finally:
    # Before the lock is released, so that nobody locks a deleted file only.
    with contextlib.suppress(OSError):
      os.unlink(path)
    os.close(descriptor)
    if is_new:
      with contextlib.suppress(OSError):  # not empty
        os.rmdir(folder)


def _lock_file(path: str, target: str) -> int:
  """Returns the descriptor of the file, locked."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = os.pread(descriptor, 1000, 0).decode(errors='replace')
      os.close(descriptor)
      raise _in_use(target, path, holder) from None
    except OSError as error:
      if error.errno not in _NOT_SUPPORTED:
        os.close(descriptor)
        raise
      logging.warning(
        '%s: the file system has no locks; two runs at once are not noticed',
        path,
      )
      return descriptor
    if _is_same_file(descriptor, path):
      stale = os.pread(descriptor, 1000, 0).decode(errors='replace')
      if stale:
        logging.info('%s: left by a run that has ended: %s', path, stale)
        os.ftruncate(descriptor, 0)
      return descriptor
    os.close(descriptor)  # its holder deleted it in the meantime


def _is_same_file(descriptor: int, path: str) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def _hold_object(path: str, target: str) -> Iterator[None]:
  _wait_until_stale(path, target)
  stop = threading.Event()

  def refresh():
    while not stop.wait(REFRESH_S):
      with contextlib.suppress(Exception):  # the next attempt may succeed
        epath.Path(path).write_text(_holder())

  atomic_io.write_file(path, _holder())
  thread = threading.Thread(target=refresh, name='run lock', daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
    with contextlib.suppress(OSError):
      atomic_io.remove(path)


def _wait_until_stale(path: str, target: str) -> None:
  """Returns if there is no lock, or if nobody refreshes it.

  Raises:
    UserError: another run refreshes the lock.
  """
  holder = _read_object(path)
  if not holder or _has_ended(holder):
    return
  logging.info('%s exists; waiting %.0f s to see if it is stale', path, STALE_S)
  deadline = time.monotonic() + STALE_S
  while time.monotonic() < deadline:
    time.sleep(min(1.0, STALE_S / 10))
    if _read_object(path) not in ('', holder):
      raise _in_use(target, path, holder)


def _read_object(path: str) -> str:
  try:
    return epath.Path(path).read_text()
  except FileNotFoundError:
    return ''


def _has_ended(holder: str) -> bool:
  """Returns whether the holder was a process here that has ended."""
  try:
    fields = json.loads(holder)
    if fields['host'] != socket.gethostname():
      return False
    os.kill(fields['pid'], 0)
  except ProcessLookupError:
    return True
  except (ValueError, KeyError, TypeError, OSError):
    return False
  return False


def _holder() -> str:
  """Returns the content of a lock file; `refreshed` makes each one differ."""
  return json.dumps(
    {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'time': time.strftime('%Y-%m-%d %H:%M:%S %Z'),
      'refreshed': time.time(),
    }
  )


def _in_use(target: str, path: str, holder: str) -> UserError:
  try:
    fields = json.loads(holder)
    user = f'process {fields["pid"]} on {fields["host"]} since {fields["time"]}'
  except (ValueError, KeyError, TypeError):
    user = 'another process'
  return UserError(
    f'{target} is in use by {user} ({path}); wait until that run ends, stop '
    'it, or choose another --workdir'
  )
