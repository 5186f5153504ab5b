"""Attention over shared prompts: every prompt is computed once.

A row of a batch is a prompt followed by its R generations:

  | prompt: S tokens | generation 0: T | generation 1: T | ... |

The prompt is right-padded; its true length is known. Prompt token s has
position s. Token t of a generation has position length + t, whatever its place
in the row. A token attends to:

  prompt token s       prompt tokens 0..s
  generation token t   the true tokens of its prompt, and tokens 0..t of its
                       own generation; never another generation

On local layers only keys less than W positions back are visible, the token
itself included. A packed prompt holds several texts as segments; a token
attends to its own segment only.

Both parts are exact. A generation token needs one softmax over two sets of
keys, its prompt's and its own; `joint_softmax` computes it without
concatenating them, so prompt keys are never repeated R times.

Backends for the prompt part: `xla` here, or the `splash` kernel (splash.py).
The generation part is always `xla`: its window depends on the length of each
prompt, and the masks of splash are static.

Letters in shapes and einsums:
  P  prompts                  N  query heads
  S  prompt tokens            K  key/value heads
  R  generations per prompt   G  query heads per key/value head, N / K
  T  generation tokens        H  head dimension
  X  tokens of a row,         Q  queries of a block
     S + R * T
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.model import splash
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.joint_softmax import (
  MASKED,
  capped_logits,
  divide,
  joint_softmax,
  weighted_sum,
)
from grm_jax.sharding.rules import ShardingLayout


@struct.dataclass
class SequenceLayout:
  """Arrangement of the X = S + R * T tokens of each row.

  Attributes:
    prompt_lengths: int32 [P], true lengths.
    prompt_size: S.
    num_generations: R; 0 for prompts alone.
    generation_size: T.
    return_kv: whether attention returns its keys and values (prefill).
    segment_ids: int32 [P, S] for packed prompts, see Batch; None otherwise.
  """

  prompt_lengths: jax.Array
  prompt_size: int = struct.field(pytree_node=False)
  num_generations: int = struct.field(pytree_node=False, default=0)
  generation_size: int = struct.field(pytree_node=False, default=0)
  return_kv: bool = struct.field(pytree_node=False, default=False)
  segment_ids: jax.Array | None = None

  @classmethod
  def from_batch(cls, batch: Batch) -> 'SequenceLayout':
    """Returns the layout of the rows of a batch."""
    size = batch.prompts.shape[1]
    if batch.generations is None:
      return cls(batch.prompt_lengths, size, segment_ids=batch.segment_ids)
    _, r, t = batch.generations.shape
    return cls(batch.prompt_lengths, size, num_generations=r, generation_size=t)

  def positions(self) -> jax.Array:
    """Returns int32 [P, X] positions for the rotary embedding."""
    lengths = self.prompt_lengths[:, None]
    ones = jnp.ones_like(lengths)
    prompt = ones * jnp.arange(self.prompt_size)[None]  # [P, S]
    if self.segment_ids is not None:
      prompt -= _segment_starts(self.segment_ids)
    # Every generation continues its prompt: 0..T-1, R times, after the length.
    offsets = jnp.tile(jnp.arange(self.generation_size), self.num_generations)
    return jnp.concatenate([prompt, lengths + ones * offsets[None]], axis=1)

  def attend(
    self, query: jax.Array, key: jax.Array, value: jax.Array, **options: Any
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """Calls the function `attend`, whose arguments these are.

    Returns:
      (attention output, (key, value) if `return_kv` else None).
    """
    out = attend(query, key, value, self, **options)
    return out, (key, value) if self.return_kv else None


def _segment_starts(segment_ids: jax.Array) -> jax.Array:
  """Returns int32 [P, S], the index at which each token's segment begins."""
  index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
  is_first = segment_ids != jnp.roll(segment_ids, 1, axis=1)
  # Index 0 needs no special case: its start is 0 either way.
  return jax.lax.cummax(jnp.where(is_first, index, 0), axis=1)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  sequence: SequenceLayout,
  *,
  window: int | None,
  cap: float | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
) -> jax.Array:
  """Computes grouped-query attention for every token of every row.

  Args:
    query: [P, X, N, H], rotated and scaled.
    key: [P, X, K, H], rotated.
    value: [P, X, K, H].
    sequence: how the X tokens are arranged.
    window: W on local layers, None on global ones.
    cap: softcap of the attention logits, None for none.
    compute: backend and block sizes.
    layout: mesh and rules, for the splash backend.

  Returns:
    [P, X, N, H] in the dtype of `value`.
  """
  cut = sequence.prompt_size
  prompt_query, prompt_key, prompt_value = (
    x[:, :cut] for x in (query, key, value)
  )
  if compute.attention == 'splash':
    out = splash.attend(
      prompt_query,
      prompt_key,
      prompt_value,
      sequence.segment_ids,
      window=window,
      cap=cap,
      compute=compute,
      layout=layout,
    )
  else:
    out = _attend_prompt(
      prompt_query,
      prompt_key,
      prompt_value,
      sequence.segment_ids,
      window=window,
      cap=cap,
      query_block=compute.query_block,
    )
  if not sequence.num_generations:
    return out
  shape = (sequence.num_generations, sequence.generation_size)
  # [P, R * T, _, H] -> [P, R, T, _, H]
  own_query, own_key, own_value = (
    x[:, cut:].reshape(x.shape[0], *shape, *x.shape[2:])
    for x in (query, key, value)
  )
  generation_out = _attend_generations(
    own_query,
    own_key,
    own_value,
    prompt_key,
    prompt_value,
    sequence.prompt_lengths,
    window=window,
    cap=cap,
    query_block=compute.query_block,
  )
  # [P, R, T, N, H] -> [P, R * T, N, H]
  generation_out = generation_out.reshape(
    -1, shape[0] * shape[1], *out.shape[2:]
  )
  return jnp.concatenate([out, generation_out], axis=1)


@jax.named_scope('prompt_attention')
def _attend_prompt(query, key, value, segment_ids, *, window, cap, query_block):
  """Causal attention of prompts; holds the logits of one query block.

  On local layers a block multiplies only the keys that it can see.

  Args:
    query: [P, S, N, H].
    key: [P, S, K, H].
    value: [P, S, K, H].
    segment_ids: int32 [P, S] or None.
    window: W or None.
    cap: softcap or None.
    query_block: most queries per block.

  Returns:
    [P, S, N, H].
  """
  length = key.shape[1]
  # Heads before tokens: the order in which the einsums below read them.
  keys, values = (jnp.moveaxis(x, 2, 1) for x in (key, value))  # [P, K, S, H]
  if segment_ids is not None:
    # dynamic_slice clamps a slice that ends past the array, which would shift
    # the ids of the last block against its queries. Padding prevents that.
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, query_block)))

  def block(block_query, start):
    """Attends from block_query [P, Q, K, G, H], whose first index is start."""
    count = block_query.shape[1]
    # `num_keys` consecutive keys that include all keys the block can see: its
    # first query sees W - 1 keys before itself. Clipping keeps the slice
    # inside the array; the mask hides keys it adds.
    num_keys = length if window is None else min(length, count + window - 1)
    first = jnp.clip(start + count - num_keys, 0, length - num_keys)
    block_keys, block_values = (
      jax.lax.dynamic_slice_in_dim(x, first, num_keys, axis=2)
      for x in (keys, values)
    )
    block_query = jnp.moveaxis(block_query, 1, 3)  # [P, K, G, Q, H]
    query_index = start + jnp.arange(count)
    key_index = first + jnp.arange(num_keys)
    mask = causal_window_mask(query_index[:, None], key_index[None, :], window)[
      None
    ]  # [1, Q, S']
    if segment_ids is not None:
      query_ids, key_ids = (
        jax.lax.dynamic_slice_in_dim(segment_ids, at, size, axis=1)
        for at, size in ((start, count), (first, num_keys))
      )
      mask &= query_ids[:, :, None] == key_ids[:, None, :]  # [P, Q, S']
    logits = capped_logits('PKGQH,PKSH->PKGQS', block_query, block_keys, cap)
    logits = jnp.where(mask[:, None, None], logits, MASKED)
    (weights,), total = joint_softmax(logits, cap=cap)
    out = weighted_sum('PKGQS,PKSH->PKGQH', weights, block_values)
    # [P, K, G, Q, H] -> [P, Q, K, G, H]
    return jnp.moveaxis(divide(out, total), 3, 1).astype(value.dtype)

  grouped = _group_heads(query, key.shape[2])
  return _map_query_blocks(block, grouped, 1, query_block).reshape(query.shape)


@jax.named_scope('generation_attention')
def _attend_generations(
  query,
  key,
  value,
  prompt_key,
  prompt_value,
  prompt_lengths,
  *,
  window,
  cap,
  query_block,
):
  """Attention of generation tokens to their prompt and their own generation.

  Args:
    query: [P, R, T, N, H].
    key: [P, R, T, K, H].
    value: [P, R, T, K, H].
    prompt_key: [P, S, K, H].
    prompt_value: [P, S, K, H].
    prompt_lengths: int [P].
    window: W or None.
    cap: softcap or None.
    query_block: most queries per block, over all R generations of a prompt.

  Returns:
    [P, R, T, N, H].
  """
  prompt_index = jnp.arange(prompt_key.shape[1])[None]
  own_index = jnp.arange(key.shape[2])
  # [P, S, K, H] -> [P, K, S, H]
  prompt_key, prompt_value = (
    jnp.moveaxis(x, 2, 1) for x in (prompt_key, prompt_value)
  )
  # [P, R, T, K, H] -> [P, K, R, T, H]
  own_key, own_value = (jnp.moveaxis(x, 3, 1) for x in (key, value))

  def block(block_query, start):
    """Attends from block_query [P, R, Q, K, G, H]; token `start` is first."""
    query_index = start + jnp.arange(block_query.shape[2])
    # The mask over the prompt differs between prompts, because the window
    # moves with the prompt's length, but not between generations: [P, Q, S].
    visible = prompt_mask(
      prompt_lengths[:, None] + query_index[None],
      prompt_index,
      prompt_lengths,
      window,
    )
    # [P, R, Q, K, G, H] -> [P, K, R, G, Q, H]
    block_query = jnp.transpose(block_query, (0, 3, 1, 4, 2, 5))
    prompt_logits = capped_logits(
      'PKRGQH,PKSH->PKRGQS', block_query, prompt_key, cap
    )
    prompt_logits = jnp.where(
      visible[:, None, None, None], prompt_logits, MASKED
    )
    # Inside a generation the prompt's length cancels out: [Q, T].
    mask = causal_window_mask(query_index[:, None], own_index[None, :], window)
    own_logits = capped_logits(
      'PKRGQH,PKRTH->PKRGQT', block_query, own_key, cap
    )
    own_logits = jnp.where(mask[None, None, None, None], own_logits, MASKED)
    (prompt_weights, own_weights), total = joint_softmax(
      prompt_logits, own_logits, cap=cap
    )
    out = weighted_sum('PKRGQS,PKSH->PKRGQH', prompt_weights, prompt_value)
    out += weighted_sum('PKRGQT,PKRTH->PKRGQH', own_weights, own_value)
    # [P, K, R, G, Q, H] -> [P, R, Q, K, G, H]
    out = jnp.transpose(divide(out, total), (0, 2, 4, 1, 3, 5))
    return out.astype(value.dtype)

  grouped = _group_heads(query, key.shape[3])
  tokens_per_block = max(1, query_block // query.shape[1])
  out = _map_query_blocks(block, grouped, 2, tokens_per_block)
  return out.reshape(query.shape)


def causal_window_mask(
  query_positions: jax.Array, key_positions: jax.Array, window: int | None
) -> jax.Array:
  """Returns a bool mask: keys not after the query and inside its window.

  Args:
    query_positions: int, broadcastable against `key_positions`. Positions or
      indices, as long as both count from the same point.
    key_positions: int.
    window: W, the number of visible keys including the query's own; or None.
  """
  mask = key_positions <= query_positions
  if window is not None:
    mask &= query_positions - key_positions < window
  return mask


def prompt_mask(
  query_positions: jax.Array,
  prompt_positions: jax.Array,
  lengths: jax.Array,
  window: int | None,
) -> jax.Array:
  """Returns which prompt keys each generation token attends to.

  Args:
    query_positions: int [P, Q], positions of generation tokens.
    prompt_positions: int [1 or P, S], positions of the keys; negative marks
      an empty slot of a ring cache.
    lengths: int [P], true lengths of the prompts; later keys are padding.
    window: W on local layers, None on global ones.

  Returns:
    bool [P, Q, S].
  """
  real = (prompt_positions >= 0) & (prompt_positions < lengths[:, None])
  queries = query_positions[:, :, None]
  keys = prompt_positions[:, None, :]
  return real[:, None] & causal_window_mask(queries, keys, window)


def _group_heads(query, num_kv_heads):
  """Splits [..., N, H] into [..., K, G, H]."""
  *leading, num_heads, head_dim = query.shape
  return query.reshape(
    *leading, num_kv_heads, num_heads // num_kv_heads, head_dim
  )


def _map_query_blocks(
  block: Callable[[jax.Array, jax.Array], jax.Array],
  query: jax.Array,
  axis: int,
  block_size: int,
) -> jax.Array:
  """Applies block(queries, start) to blocks of `axis`, one after the other.

  The logits of one block exist at a time. The backward pass recomputes them
  (jax.checkpoint), so they are not saved either.

  Args:
    block: maps queries and the index of the first one to outputs of the same
      shape.
    query: any shape; `axis` is the token dimension.
    axis: the dimension to split.
    block_size: most tokens of a block.

  Returns:
    The outputs, in the shape of `query`.
  """
  length = query.shape[axis]
  if length <= block_size:
    return block(query, jnp.int32(0))
  num_blocks = -(-length // block_size)
  # Blocks of equal size: the padding is less than one token per block.
  block_size = -(-length // num_blocks)
  padding = [(0, 0)] * query.ndim
  padding[axis] = (0, num_blocks * block_size - length)
  query = jnp.pad(query, padding)
  before, after = query.shape[:axis], query.shape[axis + 1 :]
  blocks = query.reshape(*before, num_blocks, block_size, *after)
  blocks = jnp.moveaxis(blocks, axis, 0)
  starts = jnp.arange(num_blocks, dtype=jnp.int32) * block_size
  # prevent_cse is not needed inside the loop that lax.map makes.
  body = jax.checkpoint(block, prevent_cse=False)
  out = jax.lax.map(lambda args: body(*args), (blocks, starts))
  out = jnp.moveaxis(out, 0, axis)
  before, after = out.shape[:axis], out.shape[axis + 2 :]
  out = out.reshape(*before, num_blocks * block_size, *after)
  return jax.lax.slice_in_dim(out, 0, length, axis=axis)
