"""Errors and log messages of Orbax and TensorStore.

Errors of a save become a UserError; messages that do not help are dropped.
"""

import contextlib
import errno
import functools
import logging as standard_logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from absl import logging

from grm_jax.io import atomic_io
from grm_jax.sharding import distributed

# TensorStore errors begin with a status code. Those of the operating system
# end with its error code.
_STATUS = re.compile(r'[A-Z_]+: ')
_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'")
# Codes that do not depend on the content of a file.
_NOT_READ = (
  'PERMISSION_DENIED',
  'UNAUTHENTICATED',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
  'RESOURCE_EXHAUSTED',
)
# Exceptions of threads that outlive their event loop or the interpreter.
_LATE_ERRORS = (
  'Event loop is closed',
  'sys.meta_path is None, Python is likely shutting down',
)
_ORBAX = '/orbax/checkpoint/'


@contextlib.contextmanager
def wrap_save_errors(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Turns errors of the operating system and TensorStore into UserErrors.

  Extends atomic_io.wrap_os_errors: TensorStore raises ValueError for a full
  disk or a missing permission.

  Raises:
    UserError: in place of both.
  """
  try:
    with atomic_io.wrap_os_errors(directory):
      yield
  except ValueError as error:
    # A collective of the save fails with a ValueError, too.
    if not _STATUS.match(text := str(error)) or distributed.is_lost_peer(error):
      raise
    code = _SYSTEM_ERROR.search(text)
    reason = os.strerror(int(code[1])) if code else text[:300]
    raise atomic_io.cannot_write(directory, reason) from error


def reading_failure(error: BaseException | None) -> str:
  """Returns why a file could not be read; '' if it was read or is missing.

  Damage can be found only in what was read, so that the two errors need
  different remedies.
  """
  if isinstance(error, FileNotFoundError):
    return ''
  if isinstance(error, OSError):
    return error.strerror or str(error)
  code = _SYSTEM_ERROR.search(text := str(error))
  if code and int(code[1]) != errno.ENOENT:
    return os.strerror(int(code[1]))
  return text[:300] if text.startswith(_NOT_READ) else ''


def silence_log() -> None:
  """Drops the INFO lines and logged exceptions of Orbax.

  A save logs about thirty lines. Exceptions of its threads are raised in the
  caller that waits for them, so the log need not repeat them. Warnings and
  errors without an exception pass.
  """
  logging.get_absl_logger().addFilter(_keep_record)
  # When several tasks of a save fail, asyncio logs all but the first.
  standard_logging.getLogger('asyncio').addFilter(_keep_asyncio_record)


def _keep_record(record: standard_logging.LogRecord) -> bool:
  is_info = record.levelno <= standard_logging.INFO
  return _ORBAX not in record.pathname or not (is_info or record.exc_info)


def _keep_asyncio_record(record: standard_logging.LogRecord) -> bool:
  error = record.exc_info[1] if record.exc_info else None
  return _ORBAX not in record.getMessage() and not (
    isinstance(error, ValueError) and _STATUS.match(str(error))
  )


@functools.cache
def silence_late_errors() -> None:
  """Drops tracebacks that background threads print after a failed save.

  When one read or write fails, Orbax closes the shared event loop. The
  TensorStore threads that finish later then print a traceback each, some in
  the middle of the error message. Coroutines that never ran are destroyed
  while the interpreter shuts down and cannot import anything.
  """
  warnings.filterwarnings(
    'ignore', "coroutine 'async_serialize", category=RuntimeWarning
  )
  previous_hook = sys.unraisablehook

  def hook(unraisable):
    """Drops the known late errors; passes others to the previous hook."""
    if str(unraisable.exc_value) not in _LATE_ERRORS:
      previous_hook(unraisable)

  sys.unraisablehook = hook
