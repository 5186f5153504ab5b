"""Computation settings: dtypes, remat, attention backend, block sizes."""

import dataclasses

import jax
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.errors import UserError
from grm_jax.sharding import mesh
from grm_jax.unused_settings import Unused

# Name of what the splash kernel saves for its backward pass.
ATTENTION_OUTPUT = 'attention_output'
# Name of the outputs of attention and MLP, before their norms.
SUBLAYER_OUTPUT = 'sublayer_output'
_save_names = jax.checkpoint_policies.save_only_these_names
_SAVE_ATTENTION = _save_names(ATTENTION_OUTPUT)


def _with_attention(policy):
  """Returns a policy that also saves the output of attention."""
  return jax.checkpoint_policies.save_from_both_policies(
    policy, _SAVE_ATTENTION
  )


# Values of a layer pair that the backward pass saves, most memory first.
# Without remat ('none') it also saves the gathered kernels of all layers, which
# only small models can afford.
REMAT = {
  'none': None,
  'dots': _with_attention(jax.checkpoint_policies.dots_saveable),
  'dots_no_batch': _with_attention(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
  'sublayers': _save_names(ATTENTION_OUTPUT, SUBLAYER_OUTPUT),
  'attention': _SAVE_ATTENTION,
  'nothing_saveable': jax.checkpoint_policies.nothing_saveable,
}
ATTENTION = ('xla', 'splash')
DTYPES = ('float32', 'bfloat16')
# Rules of config.compute. Each stage has some of these leaves.
SETTINGS = {
  'dtype': settings.one_of(*DTYPES),
  'param_dtype': settings.one_of(*DTYPES),
  'remat': settings.one_of(*REMAT),
  'attention': settings.one_of(*ATTENTION),
  'query_block': settings.integer(1),
  'splash_block': settings.integer(1),
  'head_chunk': settings.integer(1),
  'scoped_vmem_kib': settings.integer(0),
  'interpret': settings.BOOLEAN,
}
TRAINING_SETTINGS = {
  x: SETTINGS[x] for x in ('dtype', 'remat', 'attention', 'scoped_vmem_kib')
}
JUDGE_SETTINGS = {
  x: SETTINGS[x]
  for x in ('dtype', 'attention', 'query_block', 'splash_block', 'head_chunk')
}
# Leaves of judging without effect, see unused_settings.py.
UNUSED = (
  Unused(
    ('compute.splash_block',),
    '{key}.compute.attention is xla',
    lambda config: config.compute.attention == 'xla',
  ),
)


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """`config.compute`: settings that do not change the function computed.

  Attributes:
    dtype: of activations, and of kernels while a layer uses them.
    param_dtype: of parameters at rest.
    remat: what the backward pass saves of a layer pair; a key of REMAT.
    attention: 'xla' on any device, or 'splash', a TPU kernel.
    query_block: most queries whose attention logits exist at once (xla).
    splash_block: largest side of a tile of the splash kernel; a multiple of
      128.
    head_chunk: most tokens whose logits over the vocabulary exist at once.
    scoped_vmem_kib: on-chip memory of a TPU that a fusion of a training program
      may use, in KiB; 0 for libtpu's default. More makes large products faster
      and compilation slower. Decoding would become slower: it needs the memory
      to prefetch weights.
    interpret: whether to interpret splash instead of compiling it, for tests
      without a TPU.
  """

  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'xla'
  query_block: int = 512
  splash_block: int = 512
  head_chunk: int = 4096
  scoped_vmem_kib: int = 0
  interpret: bool = False

  def __post_init__(self):
    settings.check_values(dataclasses.asdict(self), SETTINGS, 'config.compute')


def check_devices(
  config: ConfigDict, key: str = 'config', is_local: bool = False
) -> None:
  """Checks that the devices fit `config.mesh` and `config.compute`.

  Args:
    config: has `mesh` and `compute`.
    key: config key of `config`, for messages.
    is_local: whether a mesh has the devices of one process only.

  Raises:
    UserError: they do not fit.
  """
  devices = jax.local_devices() if is_local else jax.devices()
  generates = config.mesh.get('decode_tensor', 0)
  try:
    mesh.from_config(config, devices, 'resident' if generates else None)
  except UserError as error:
    message = str(error).replace('config.mesh', f'{key}.mesh')
    raise UserError(message) from None
  platform = devices[0].platform
  check_platform(config.compute.attention, platform, key)
  _check_vmem(config.compute.get('scoped_vmem_kib', 0), platform, key)


def compiler_options(
  compute: ComputeConfig, platform: str
) -> dict[str, str] | None:
  """Returns the options of XLA for a training program; None for none.

  Args:
    compute: `scoped_vmem_kib`.
    platform: of the devices that it compiles for.

  Raises:
    UserError: an option of another platform.
  """
  _check_vmem(compute.scoped_vmem_kib, platform, 'config')
  if not compute.scoped_vmem_kib:
    return None
  return {'xla_tpu_scoped_vmem_limit_kib': str(compute.scoped_vmem_kib)}


def _check_vmem(scoped_vmem_kib: int, platform: str, key: str) -> None:
  if scoped_vmem_kib and platform != 'tpu':
    raise UserError(
      f'{key}.compute.scoped_vmem_kib is {scoped_vmem_kib}, a setting for TPU, '
      f'and the devices are {platform}; set {key}.compute.scoped_vmem_kib=0'
    )


def check_platform(attention: str, platform: str, key: str = 'config') -> None:
  """Raises UserError for a kernel that the platform does not run."""
  if attention == 'splash' and platform != 'tpu':
    raise UserError(
      f'{key}.compute.attention is splash, a kernel for TPU, and the devices '
      f'are {platform}; set {key}.compute.attention=xla'
    )
