"""Attention of whole rows with splash, JAX's Pallas kernel for TPU.

Splash supports softcap, segments and gradients, takes a static mask and skips
tiles that the mask leaves empty: a tile of one generation against a sibling
costs nothing. It expects scaled queries, heads before tokens, and tiles of a
multiple of 128. It does not know about meshes, so it runs inside shard_map:
prompts are split over data and fsdp, heads over tensor.

The kernel is the one for a single key/value head, mapped over prompts and
key/value heads. The kernel for several key/value heads would run its backward
pass on one of the two cores of a v4 or v5p chip: only mapped dimensions of its
grid are marked as parallel.

Letters in shapes: those of attention.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from grm_jax.errors import UserError
from grm_jax.model import compute_config, row_mask
from grm_jax.model.compute_config import ATTENTION_OUTPUT, ComputeConfig
from grm_jax.model.row_mask import RowMask
from grm_jax.sharding.rules import ShardingLayout

# Tiles are multiples of the number of lanes of a TPU's vector registers.
_LANES = 128
# Work of a tile that does not depend on its area, such as the steps of the grid
# and the transfers, in elements of a tile; see SplashCycles in chip_specs.py.
_TILE_OVERHEAD = 50_000


@jax.named_scope('attention')
def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array | None,
  mask: RowMask,
  *,
  cap: float | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
) -> jax.Array:
  """Computes attention of rows, as the xla backend does.

  Args:
    query: [P, X, N, H], scaled.
    key: [P, X, K, H].
    value: [P, X, K, H].
    segment_ids: int32 [P, X]; a token attends to its own segment only. None
      for one segment.
    mask: who sees whom inside of a segment.
    cap: softcap of the logits, or None.
    compute: `splash_block` and `interpret`.
    layout: mesh and rules.

  Returns:
    [P, X, N, H].

  Raises:
    UserError: the devices are not TPUs, or the tile is not a multiple of 128.
  """
  if not compute.interpret:
    compute_config.check_platform(compute.attention, layout.platform)
  size = query.shape[1]
  block = tile_size(mask, size, compute.splash_block)
  # No token sees the padding, because it comes later.
  padding = -size % block
  # [P, X, N, H] -> [P, N, X, H]
  query, key, value = (
    jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
    for x in (query, key, value)
  )
  if segment_ids is not None:
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
  query_axes = ('prompts', 'heads', 'tokens', 'head_dim')
  kv_axes = ('prompts', 'kv_heads', 'tokens', 'head_dim')
  query_spec = layout.spec(query_axes, query.shape)
  kv_spec = layout.spec(kv_axes, key.shape)
  ids_spec = layout.spec(('prompts', 'tokens'))
  attend_shard = functools.partial(
    _attend_shard, mask=mask, cap=cap, block=block, interpret=compute.interpret
  )
  out = jax.shard_map(
    attend_shard,
    mesh=layout.mesh,
    in_specs=(query_spec, kv_spec, kv_spec, ids_spec),
    out_specs=query_spec,
    # Pallas calls do not state over which mesh axes their results vary.
    check_vma=False,
  )(query, key, value, segment_ids)
  return jnp.swapaxes(out, 1, 2)[:, :size]


def tile_size(mask: RowMask, size: int, largest: int) -> int:
  """Returns the side of the tiles that take the least time together.

  Large tiles use the matrix unit better; small ones follow the mask and the
  borders between generations more closely.

  Args:
    mask: mask of the row.
    size: X, tokens of the row.
    largest: `ComputeConfig.splash_block`.

  Raises:
    UserError: `largest` is not a multiple of 128.
  """
  if largest % _LANES:
    raise UserError(
      f'config.compute.splash_block is {largest}; it must be a multiple of '
      f'{_LANES}'
    )
  sizes = range(_LANES, min(largest, size + -size % _LANES) + 1, _LANES)
  return min(
    reversed(sizes),
    key=lambda x: num_tiles(mask, size, x) * (x * x + _TILE_OVERHEAD),
  )


def num_tiles(mask: RowMask, size: int, block: int) -> int:
  """Returns the number of tiles per head that the kernel computes.

  The kernel skips tiles without a visible key. The cost model uses this.

  Args:
    mask: mask of the row.
    size: X, tokens of the row, without the padding to whole tiles.
    block: the side of a tile, a multiple of 128.
  """
  # Small tiles are grouped to large ones: `visible_tiles` is cached.
  padded = size + -size % block
  visible = row_mask.visible_tiles(mask, padded, _LANES)
  ratio = block // _LANES
  count = padded // block
  return int(visible.reshape(count, ratio, count, ratio).any(axis=(1, 3)).sum())


class _KernelMask(masks.Mask):
  """A RowMask in the form in which splash takes a mask.

  Splash stores the distinct tiles that are partly visible and loads them. Its
  other kind of mask is computed inside of the kernel, in every tile: for rows
  with generations that would take 15 to 30 % more cycles.
  """

  def __init__(self, mask: RowMask, size: int):
    self._mask = mask
    self._size = size

  @property
  def shape(self) -> tuple[int, int]:
    """(X, X)."""
    return self._size, self._size

  def __getitem__(self, slices: tuple[slice, slice]) -> np.ndarray:
    """Returns a part of the mask, bool [queries, keys]."""
    query, key = (np.arange(*x.indices(self._size)) for x in slices)
    return self._mask(query[:, None], key[None])

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _KernelMask) and (
      (self._mask, self._size) == (other._mask, other._size)
    )

  def __hash__(self) -> int:
    return hash((self._mask, self._size))


def _attend_shard(
  query, key, value, segment_ids, *, mask, cap, block, interpret
):
  """Attends on one device: query [P, N, X, H], key and value [P, K, X, H]."""
  p, n, size, h = query.shape
  k = key.shape[1]
  attention = kernel.make_splash_mqa(
    masks.MultiHeadMask([_KernelMask(mask, size)] * (n // k)),
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
    # With this name, remat can save the output and the sums of the softmax, so
    # that the backward pass need not run the forward kernel again.
    residual_checkpoint_name=ATTENTION_OUTPUT,
    interpret=interpret,
  )
  if segment_ids is not None:
    segment_ids = kernel.SegmentIds(q=segment_ids, kv=segment_ids)
  over_heads = jax.vmap(attention, in_axes=(0, 0, 0, None))
  grouped = query.reshape(p, k, n // k, size, h)  # [P, K, G, X, H]
  return jax.vmap(over_heads)(grouped, key, value, segment_ids).reshape(
    query.shape
  )
