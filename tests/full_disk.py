"""A disk that is full, as far as one file can tell."""

import contextlib
import resource

WHY = 'File too large'  # what the system says instead of No space left


@contextlib.contextmanager
def files_up_to(size):
  """Within the block no file of this process, or of a child, grows further."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
