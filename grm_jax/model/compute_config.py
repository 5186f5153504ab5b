"""Computation settings: dtypes, remat, attention backend, block sizes."""

import dataclasses

import jax

from grm_jax import settings

# Values of a layer pair that the backward pass saves, most memory first.
# Without remat ('none') it also saves the gathered kernels of all layers, which
# only small models can afford.
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_saveable,
  'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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
  'interpret': settings.BOOLEAN,
}
TRAINING_SETTINGS = {x: SETTINGS[x] for x in ('dtype', 'remat', 'attention')}
JUDGE_SETTINGS = {
  x: SETTINGS[x]
  for x in ('dtype', 'attention', 'query_block', 'splash_block', 'head_chunk')
}


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """`config.compute`: settings that do not change the function computed.

  Attributes:
    dtype: of activations, and of kernels while a layer uses them.
    param_dtype: of parameters at rest.
    remat: what the backward pass saves of a layer pair; a key of REMAT.
    attention: 'xla' on any device, or 'splash', a TPU kernel for prompts.
    query_block: most queries whose attention logits exist at once (xla).
    splash_block: side of a tile of the splash kernel; a multiple of 128.
    head_chunk: most tokens whose logits over the vocabulary exist at once.
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
  interpret: bool = False

  def __post_init__(self):
    settings.check_values(dataclasses.asdict(self), SETTINGS, 'config.compute')
