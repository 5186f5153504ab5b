"""Simulates a full disk with a limit on the size of files."""

import contextlib
import resource

import jax

ERROR_TEXT = 'File too large'  # a full disk has 'No space left on device'


@contextlib.contextmanager
def limit_file_size(num_bytes):
  """Limits files written by this process and its children in the block.

  JAX writes nothing into its compilation cache in the block: a truncated entry
  would stay there for the other tests.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    jax.config.update('jax_enable_compilation_cache', cached)
