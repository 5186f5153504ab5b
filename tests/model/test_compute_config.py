"""Compute refuses what no config should ask for, naming the key."""

import jax.numpy as jnp
import pytest

from grm_jax.errors import UserError
from grm_jax.model import splash
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh
from tests.messages import naming, setting


@pytest.mark.parametrize(
  'wrong, allowed',
  [
    (
      {'remat': 'some'},
      ['none', 'dots', 'dots_no_batch', 'nothing_saveable'],
    ),
    ({'attention': 'flash'}, ['xla', 'splash']),
    ({'dtype': 'float16'}, ['float32', 'bfloat16']),
    ({'param_dtype': 'int8'}, ['float32', 'bfloat16']),
    ({'query_block': 0}, []),
    ({'head_chunk': -1}, []),
  ],
)
def test_wrong_values(wrong, allowed):
  ((name, value),) = wrong.items()
  words = *setting(f'compute.{name}', value), *allowed
  with pytest.raises(UserError, match=naming(*words)):
    ComputeConfig(**wrong)


def test_splash_off_tpu_says_what_to_set():
  x = jnp.zeros((1, 128, 2, 128))
  with pytest.raises(
    UserError, match=naming('cpu', *setting('compute.attention', 'xla'))
  ):
    splash.attend(
      x,
      x,
      x,
      window=None,
      cap=None,
      compute=ComputeConfig(attention='splash'),
      layout=mesh.one_device(),
    )
