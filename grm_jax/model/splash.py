"""Prompt attention with splash, JAX's Pallas kernel for TPU.

Splash supports softcap, window and gradients, and skips tiles that its static
mask leaves empty. It expects scaled queries, heads before tokens, and tiles of
a multiple of 128. It does not know about meshes, so it runs inside shard_map:
prompts are split over data and fsdp, heads over tensor.

Letters in shapes: those of attention.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from grm_jax.errors import UserError
from grm_jax.model import compute_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding.rules import ShardingLayout

# Tiles are multiples of the number of lanes of a TPU's vector registers.
_LANES = 128


@jax.named_scope('prompt_attention')
def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array | None = None,
  *,
  window: int | None,
  cap: float | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
) -> jax.Array:
  """Computes causal attention of prompts, as the xla backend does.

  Args:
    query: [P, S, N, H], scaled.
    key: [P, S, K, H].
    value: [P, S, K, H].
    segment_ids: int32 [P, S] for packed prompts, see Batch; None otherwise.
    window: W, the visible keys including the token itself; None for all.
    cap: softcap of the logits, or None.
    compute: `splash_block` and `interpret`.
    layout: mesh and rules.

  Returns:
    [P, S, N, H].

  Raises:
    UserError: the devices are not TPUs, S is not a multiple of the tile, or the
      tile is not a multiple of 128.
  """
  platform = layout.mesh.devices.flat[0].platform
  if not compute.interpret:
    compute_config.check_platform(compute.attention, platform)
  block = _checked_block(query.shape[1], compute.splash_block)
  query_axes = ('prompts', 'heads', 'tokens', 'head_dim')
  kv_axes = ('prompts', 'kv_heads', 'tokens', 'head_dim')
  # [P, S, N, H] -> [P, N, S, H]
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  query_spec = layout.spec(query_axes, query.shape)
  kv_spec = layout.spec(kv_axes, key.shape)
  ids_spec = layout.spec(('prompts', 'tokens'))
  attend_shard = functools.partial(
    _attend_shard,
    window=window,
    cap=cap,
    block=block,
    interpret=compute.interpret,
  )
  out = jax.shard_map(
    attend_shard,
    mesh=layout.mesh,
    in_specs=(query_spec, kv_spec, kv_spec, ids_spec),
    out_specs=query_spec,
    # Pallas calls do not state over which mesh axes their results vary.
    check_vma=False,
  )(query, key, value, segment_ids)
  return jnp.swapaxes(out, 1, 2)


def num_tiles(size: int, block: int, window: int | None) -> int:
  """Returns the number of tiles per head that the kernel computes.

  The kernel skips tiles without a visible key. The cost model uses this.

  Args:
    size: S, prompt tokens.
    block: the side of a tile, `ComputeConfig.splash_block`.
    window: W on local layers, None on global ones.
  """
  block = _checked_block(size, block)
  count = size // block
  # A tile j tiles left of the diagonal holds key distances from
  # (j - 1) * block + 1 on. It is visible while that is below W, which gives
  # j <= (W + block - 2) // block.
  reach = count if window is None else (window + block - 2) // block
  return sum(min(i, reach) + 1 for i in range(count))


def _checked_block(size, block):
  """Returns the side of a tile, or raises UserError if it does not fit."""
  block = min(block, size)
  if block % _LANES or size % block:
    raise UserError(
      f'prompts are padded to {size} tokens and config.compute.splash_block is '
      f'{block}; the prompt size must be a multiple of the block, and the '
      f'block a multiple of {_LANES}'
    )
  return block


def _attend_shard(
  query, key, value, segment_ids, *, window, cap, block, interpret
):
  """Attends on one device: query [P, N, S, H], key and value [P, K, S, H]."""
  shape = (query.shape[2], query.shape[2])
  if window is None:
    mask = masks.CausalMask(shape)
  else:
    # Splash counts the keys to the left without the token itself: W - 1.
    mask = masks.LocalMask(shape, (window - 1, 0), 0)
  attention = kernel.make_splash_mha(
    masks.MultiHeadMask([mask] * query.shape[1]),
    block_sizes=kernel.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    attn_logits_soft_cap=cap,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  if segment_ids is not None:
    segment_ids = kernel.SegmentIds(q=segment_ids, kv=segment_ids)
  return jax.vmap(attention)(query, key, value, segment_ids)
