"""ComputeConfig rejects invalid values and names the config key."""

import jax.numpy as jnp
import pytest

from grm_jax.errors import UserError
from grm_jax.model import compute_config, splash
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.row_mask import RowMask
from grm_jax.sharding import mesh
from tests.messages import naming, setting


@pytest.mark.parametrize(
  'fields, allowed',
  [
    (
      {'remat': 'some'},
      [
        'none',
        'dots',
        'dots_no_batch',
        'sublayers',
        'attention',
        'nothing_saveable',
      ],
    ),
    ({'attention': 'flash'}, ['xla', 'splash']),
    ({'dtype': 'float16'}, ['float32', 'bfloat16']),
    ({'param_dtype': 'int8'}, ['float32', 'bfloat16']),
    ({'query_block': 0}, []),
    ({'head_chunk': -1}, []),
  ],
)
def test_invalid_values_are_rejected(fields, allowed):
  ((name, value),) = fields.items()
  words = *setting(f'compute.{name}', value), *allowed
  with pytest.raises(UserError, match=naming(*words)):
    ComputeConfig(**fields)


def test_compiler_options():
  compute = ComputeConfig(scoped_vmem_kib=81920)
  assert compute_config.compiler_options(compute, 'tpu') == {
    'xla_tpu_scoped_vmem_limit_kib': '81920'
  }
  assert compute_config.compiler_options(ComputeConfig(), 'tpu') is None
  assert compute_config.compiler_options(ComputeConfig(), 'cpu') is None
  words = 'cpu', *setting('compute.scoped_vmem_kib', 81920)
  with pytest.raises(UserError, match=naming(*words)):
    compute_config.compiler_options(compute, 'cpu')


def test_splash_needs_a_tpu():
  x = jnp.zeros((1, 128, 2, 128))
  with pytest.raises(
    UserError, match=naming('cpu', *setting('compute.attention', 'xla'))
  ):
    splash.attend(
      *(x, x, x),
      None,
      RowMask(128),
      cap=None,
      compute=ComputeConfig(attention='splash'),
      layout=mesh.one_device(),
    )
