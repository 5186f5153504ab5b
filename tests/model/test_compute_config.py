"""Compute refuses what no config should ask for, naming the key."""

import jax.numpy as jnp
import pytest

from grm_jax.errors import UserError
from grm_jax.model import splash
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh


@pytest.mark.parametrize(
  'wrong, message',
  [
    (
      {'remat': 'some'},
      "config.compute.remat is 'some'; it can be none, dots, dots_no_batch, "
      'nothing_saveable',
    ),
    (
      {'attention': 'flash'},
      "config.compute.attention is 'flash'; it can be xla, splash",
    ),
    (
      {'dtype': 'float16'},
      "config.compute.dtype is 'float16'; it can be float32, bfloat16",
    ),
    (
      {'param_dtype': 'int8'},
      "config.compute.param_dtype is 'int8'; it can be float32, bfloat16",
    ),
    ({'query_block': 0}, 'config.compute.query_block is 0; it must be pos'),
    ({'head_chunk': -1}, 'config.compute.head_chunk is -1; it must be pos'),
  ],
)
def test_wrong_values(wrong, message):
  with pytest.raises(UserError) as caught:
    ComputeConfig(**wrong)
  assert str(caught.value).startswith(message)


def test_splash_off_tpu_says_what_to_set():
  x = jnp.zeros((1, 128, 2, 128))
  with pytest.raises(UserError, match='cpu devices; set --config.*=xla'):
    splash.attend(
      x,
      x,
      x,
      window=None,
      cap=None,
      compute=ComputeConfig(attention='splash'),
      layout=mesh.one_device(),
    )
