"""Simulates a full disk with a limit on the size of files."""

import contextlib
import resource

ERROR_TEXT = 'File too large'  # a full disk has 'No space left on device'


@contextlib.contextmanager
def limit_file_size(num_bytes):
  """Limits files written by this process and its children in the block."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
