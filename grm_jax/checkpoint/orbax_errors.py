"""Errors and messages of Orbax and TensorStore: as ours, or kept quiet."""

import contextlib
import functools
import logging as standard_logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from absl import logging

from grm_jax.io import atomic_io

# What TensorStore begins an error with, and how it ends one of the system's.
_STATUS = re.compile(r'[A-Z_]+: ')
_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'")
# Of the event loop that was closed, and of the interpreter that shuts down.
_LATE = (
  'Event loop is closed',
  'sys.meta_path is None, Python is likely shutting down',
)
_ORBAX = '/orbax/checkpoint/'


@contextlib.contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[None]:
  """As files.writing, for errors of TensorStore too, which are ValueErrors.

  Raises:
    UserError: in place of both.
  """
  try:
    with atomic_io.wrap_os_errors(directory):
      yield
  except ValueError as error:
    if not _STATUS.match(text := str(error)):
      raise
    code = _SYSTEM_ERROR.search(text)
    why = os.strerror(int(code[1])) if code else text[:300]
    raise atomic_io.cannot_write(directory, why) from error


def silence_log() -> None:
  """Drops what Orbax logs a save: some thirty lines, and what threads raise.

  Whoever waits for such a thread is told. Warnings pass, and other errors.
  """
  logging.get_absl_logger().addFilter(_passes)
  # Where several tasks of a save fail, asyncio tells of all but the first.
  standard_logging.getLogger('asyncio').addFilter(
    lambda record: _ORBAX not in record.getMessage()
  )


def _passes(record) -> bool:
  informs = record.levelno <= standard_logging.INFO
  return _ORBAX not in record.pathname or not (informs or record.exc_info)


@functools.cache
def silence_late_work() -> None:
  """Keeps what comes back after a failed read or write from printing.

  When one of them fails, Orbax closes the event loop of all, and TensorStore's
  threads print a traceback for each that ends later; some do so in the middle
  of our own message. Coroutines that waited are ended by the interpreter as it
  shuts down, when they can import nothing any more; some have not begun.
  """
  warnings.filterwarnings(
    'ignore', "coroutine 'async_serialize", category=RuntimeWarning
  )
  before = sys.unraisablehook

  def hook(what):
    if str(what.exc_value) not in _LATE:
      before(what)

  sys.unraisablehook = hook
