"""Errors of Orbax and TensorStore, as ours: what could not be written."""

import contextlib
import os
import re
from collections.abc import Iterator

from grm_jax.parallel import files

# What TensorStore begins an error with, and how it ends one of the system's.
_STATUS = re.compile(r'[A-Z_]+: ')
_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'")


@contextlib.contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[None]:
  """As files.writing, for errors of TensorStore too, which are ValueErrors.

  Raises:
    ValueError: in place of both.
  """
  try:
    with files.writing(directory):
      yield
  except ValueError as error:
    if not _STATUS.match(text := str(error)):
      raise
    code = _SYSTEM_ERROR.search(text)
    why = os.strerror(int(code[1])) if code else text[:300]
    raise files.cannot_write(directory, why) from error
