"""Environment of the tests: 8 virtual CPU devices and one compilation cache.

The environment is set before JAX is imported for the first time; processes
that tests start, and the workers of pytest-xdist, inherit it. Most of the
suite's time is compilation, so XLA optimizes little, and every process reads
and writes one cache of compiled programs.
"""

import atexit
import os
import shutil
import tempfile

from tests import processes

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} {processes.FAST_COMPILATION} '
  '--xla_force_host_platform_device_count=8'
)
# The controller of pytest-xdist creates it and its workers inherit it.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _cache = tempfile.mkdtemp(prefix='grm_jax_tests_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def environment():
  """Environment of processes that run main: one CPU device."""
  from tests import test_main

  return test_main.environment()
