"""Every test runs on 8 virtual CPU devices, with implicit rank promotion off.

The environment is set before JAX is imported for the first time.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
_FLAG = '--xla_force_host_platform_device_count=8'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}'.strip()

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
