"""The prompt part of attention by splash, JAX's Pallas kernel for TPU.

Splash has the softcap, the window and a backward pass, and skips the tiles
that its static mask leaves empty. It wants queries scaled beforehand, heads
in front, and tiles of a multiple of 128. It knows nothing of meshes, so it
runs inside shard_map: prompts over data and fsdp, heads over tensor.
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
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding.rules import ShardingLayout

_LANES = 128


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segments: jax.Array | None = None,
  *,
  window: int | None,
  cap: float | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
) -> jax.Array:
  """Causal attention of prompts; the same function as the xla backend.

  Args:
    query: [P, S, N, H], scaled.
    key, value: [P, S, K, H].
    segments: int32 [P, S] of packed prompts, see Batch; None otherwise.
    window: W keys including the token itself, or None for all.
    cap: softcap of the logits, or None.
    compute: `splash_block` and `interpret`.
    layout: the mesh and the rules.

  Returns:
    [P, S, N, H].

  Raises:
    UserError: S is not a multiple of the tile, or the tile not of 128; or
      the mesh is no TPU's.
  """
  platform = layout.mesh.devices.flat[0].platform
  if platform != 'tpu' and not compute.interpret:
    raise UserError(
      f'splash is a TPU kernel and the mesh has {platform} devices; set '
      '--config.compute.attention=xla'
    )
  block = _block(query.shape[1], compute.splash_block)
  q_names = ('prompts', 'heads', 'tokens', 'head_dim')
  kv_names = ('prompts', 'kv_heads', 'tokens', 'head_dim')
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  q_spec = layout.spec(q_names, query.shape)
  kv_spec = layout.spec(kv_names, key.shape)
  local = functools.partial(
    _on_one_device,
    window=window,
    cap=cap,
    block=block,
    interpret=compute.interpret,
  )
  out = jax.shard_map(
    local,
    mesh=layout.mesh,
    in_specs=(q_spec, kv_spec, kv_spec, layout.spec(('prompts', 'tokens'))),
    out_specs=q_spec,
    # Pallas calls do not say over which axes their results vary.
    check_vma=False,
  )(query, key, value, segments)
  return jnp.swapaxes(out, 1, 2)


def tiles(size: int, block: int, window: int | None) -> int:
  """How many tiles of a head the kernel computes: those not all masked.

  Args:
    size: S, places of the prompt.
    block: places of a side of a tile, `Compute.splash_block`.
    window: W on local layers, None on global ones.
  """
  block = _block(size, block)
  count = size // block
  # The least distance in a tile j tiles off the diagonal: (j - 1) block + 1.
  reach = count if window is None else (window + block - 2) // block
  return sum(min(i, reach) + 1 for i in range(count))


def _block(size, block):
  block = min(block, size)
  if block % _LANES or size % block:
    raise UserError(
      f'prompts have {size} places and config.compute.splash_block is '
      f'{block}: places must be a multiple of the block, the block of {_LANES}'
    )
  return block


def _on_one_device(
  query, key, value, segments, *, window, cap, block, interpret
):
  """Query [P, N, S, H], key and value [P, K, S, H], as one device has them."""
  shape = (query.shape[2], query.shape[2])
  if window is None:
    mask = masks.CausalMask(shape)
  else:
    # The left side counts keys before the token, so W - 1 for W with itself.
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
  if segments is not None:
    segments = kernel.SegmentIds(q=segments, kv=segments)
  return jax.vmap(attention)(query, key, value, segments)
