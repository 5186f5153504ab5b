"""Environment of the tests: 8 virtual CPU devices and one compilation cache.

The environment is set before JAX is imported for the first time; processes
that tests start, and the workers of pytest-xdist, inherit it. Every process
reads and writes one cache of compiled programs. Most of the suite's time is
compilation, so XLA optimizes little, and uses the older emitters of fusions,
which compile in 60 % of the time of the newer ones.
"""

import atexit
import collections
import gc
import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_use_fusion_emitters=false',
  ]
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


@pytest.fixture(scope='module', autouse=True)
def exempt_older_modules_from_garbage_collection():
  """Compiled programs of other modules make a collection take 0.5 seconds."""
  gc.freeze()


@pytest.fixture(scope='session')
def environment():
  """Environment of processes that run main: one CPU device."""
  from tests import test_main

  return test_main.environment()


def pytest_collection_modifyitems(items):
  """Refuses tests with equal ids: pytest-xdist would run only one of them."""
  counts = collections.Counter(item.nodeid for item in items)
  repeated = [id for id, count in counts.items() if count > 1]
  if repeated:
    raise pytest.UsageError(f'tests with equal ids: {repeated}')
