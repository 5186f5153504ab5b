"""Every test runs on 8 virtual CPU devices, with implicit rank promotion off.

The environment is set before JAX is imported for the first time; children of
tests inherit it. Compilation is most of the suite's time, so LLVM does little.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """Of children that run main: one device, compiling nothing twice."""
  from tests import test_main

  return test_main.environment(tmp_path_factory.mktemp('cache'))
