"""Attention over shared prompts: every prompt is computed once.

A row of a batch is a prompt followed by its R generations:

  | prompt: S tokens | generation 0: T | generation 1: T | ... |

A token attends to:

  prompt token s       prompt tokens 0..s
  generation token t   the true tokens of its prompt, and tokens 0..t of its
                       own generation; never another generation

On local layers only tokens less than W positions back are visible, the token
itself included. row_mask.py defines this for all backends, on the indices of a
row: the prompt of a row with generations is right-aligned in its S places, so
that a distance in the row is a distance in the text. Its padding is a segment
of its own, and so is each text of a packed prompt: a token attends to its own
segment only.

Backends: `splash`, one call of a TPU kernel for the whole row (splash.py), and
`xla`, the reference. The latter never multiplies a generation with a sibling,
and a softmax over two sets of keys, those of the prompt and those of the
generation, needs no copy of the prompt's keys per generation (joint_softmax).

Letters in shapes and einsums:
  P  prompts                  N  query heads
  S  prompt tokens            K  key/value heads
  R  generations per prompt   G  query heads per key/value head, N / K
  T  generation tokens        H  head dimension
  X  tokens of a row,         Q  queries of a block
     S + R * T
"""

import functools
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
from grm_jax.model.row_mask import RowMask
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

  def row_tokens(self, batch: Batch) -> jax.Array:
    """Returns int32 [P, X], the tokens of each row of the batch.

    Batches pad prompts on the right. In rows with generations the padding is on
    the left (see row_mask.py); prompts alone stay as they are.
    """
    prompts = batch.prompts
    if batch.generations is None:
      return prompts
    index = jnp.arange(self.prompt_size)[None] + self.prompt_lengths[:, None]
    # Modulo S: the last place gets token length - 1, the first ones padding.
    aligned = jnp.take_along_axis(prompts, index % self.prompt_size, axis=1)
    generations = batch.generations.reshape(len(prompts), -1)  # [P, R * T]
    return jnp.concatenate([aligned, generations], axis=1)

  def positions(self) -> jax.Array:
    """Returns int32 [P, X] positions for the rotary embedding.

    Padding on the left has position 0.
    """
    lengths = self.prompt_lengths[:, None]
    ones = jnp.ones_like(lengths)
    prompt = ones * jnp.arange(self.prompt_size)[None]  # [P, S]
    if self.segment_ids is not None:
      prompt -= _segment_starts(self.segment_ids)
    if not self.num_generations:
      return prompt
    prompt = jnp.maximum(prompt - (self.prompt_size - lengths), 0)
    # Every generation continues its prompt: 0..T-1, R times, after the length.
    offsets = jnp.tile(jnp.arange(self.generation_size), self.num_generations)
    return jnp.concatenate([prompt, lengths + ones * offsets[None]], axis=1)

  def prompt_segments(self) -> jax.Array | None:
    """Returns int32 [P, S]: texts, or true tokens (1) and padding (0).

    None if there is one segment. Prompts alone need none for their padding: it
    comes after the true tokens, which do not see it.
    """
    if not self.num_generations:
      return self.segment_ids
    first = self.prompt_size - self.prompt_lengths[:, None]
    return (jnp.arange(self.prompt_size)[None] >= first).astype(jnp.int32)

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
  mask = RowMask(sequence.prompt_size, sequence.generation_size, window)
  segments = sequence.prompt_segments()
  if compute.attention == 'xla':
    return _attend_xla(
      query,
      key,
      value,
      segments,
      mask,
      cap=cap,
      query_block=compute.query_block,
    )
  if segments is not None:
    # Generations are in the segment of true prompt tokens.
    padding = ((0, 0), (0, query.shape[1] - sequence.prompt_size))
    segments = jnp.pad(segments, padding, constant_values=1)  # [P, X]
  return splash.attend(
    query, key, value, segments, mask, cap=cap, compute=compute, layout=layout
  )


@struct.dataclass
class _Keys:
  """Consecutive keys of a row that a block of queries may see.

  Attributes:
    key: [P, K, S, H], seen by all generations; or [P, K, R, T, H], the keys of
      each generation.
    value: as `key`.
    first: index in the row of the first key; of generation 0 for generations.
    segment_ids: int32 [P, S]; None if all queries are in the segment of all
      keys.
  """

  key: jax.Array
  value: jax.Array
  first: jax.Array | int
  segment_ids: jax.Array | None = None

  def near(self, start: jax.Array, count: int, window: int | None) -> '_Keys':
    """Returns consecutive keys with all that queries start.. can see.

    Args:
      start: index in the row of the first of `count` queries.
      count: number of queries.
      window: W or None.
    """
    size = self.key.shape[-2]
    # The first query sees W - 1 keys before itself.
    num_keys = size if window is None else min(size, count + window - 1)
    if num_keys == size:
      return self
    # Clipping keeps the slice inside of the array; the mask hides what it adds.
    offset = jnp.clip(start + count - num_keys - self.first, 0, size - num_keys)

    def cut(x, axis):
      """Returns `num_keys` elements of x from `offset` on."""
      return jax.lax.dynamic_slice_in_dim(x, offset, num_keys, axis)

    ids = self.segment_ids
    return _Keys(
      cut(self.key, -2),
      cut(self.value, -2),
      self.first + offset,
      None if ids is None else cut(ids, 1),
    )


def _attend_xla(query, key, value, segment_ids, mask, *, cap, query_block):
  """Attends from prompts to prompts, and from generations to both.

  Args:
    query: [P, X, N, H].
    key: [P, X, K, H].
    value: [P, X, K, H].
    segment_ids: int32 [P, S] or None, see SequenceLayout.prompt_segments.
    mask: RowMask.
    cap: softcap or None.
    query_block: most queries per block, over all generations of a prompt.

  Returns:
    [P, X, N, H].
  """
  cut, t = mask.prompt_size, mask.generation_size
  p, x, k = query.shape[0], query.shape[1], key.shape[2]
  grouped = query.reshape(p, x, k, -1, query.shape[-1])  # [P, X, K, G, H]
  attend_from = functools.partial(
    _attend_from, mask=mask, cap=cap, query_block=query_block
  )
  # Heads before tokens: the order in which the einsums read them.
  prompt = _Keys(
    *(jnp.swapaxes(x[:, :cut], 1, 2) for x in (key, value)), 0, segment_ids
  )
  out = attend_from(grouped[:, None, :cut], segment_ids, 0, prompt)[:, 0]
  if t:
    # [P, R * T, ...] -> [P, R, T, ...]
    own_query, own_key, own_value = (
      x[:, cut:].reshape(p, -1, t, *x.shape[2:]) for x in (grouped, key, value)
    )
    # [P, R, T, K, H] -> [P, K, R, T, H]
    own = _Keys(*(jnp.moveaxis(x, 3, 1) for x in (own_key, own_value)), cut)
    own_out = attend_from(own_query, None, cut, prompt, own)
    own_out = own_out.reshape(p, -1, *own_out.shape[3:])
    out = jnp.concatenate([out, own_out], axis=1)
  return out.reshape(query.shape)


@jax.named_scope('attention')
def _attend_from(
  query, segment_ids, start, shared, own=None, *, mask, cap, query_block
):
  """Attends from consecutive queries; holds the logits of one block of them.

  All R generations have the mask of generation 0: a generation and its prompt
  are arranged like a row with a single generation.

  Args:
    query: [P, R, Q, K, G, H]; Q consecutive tokens, of R generations at once.
    segment_ids: int32 [P, Q] of the queries; None if all are in segment 1.
    start: index in the row of the first query (of generation 0).
    shared: _Keys of the prompt.
    own: _Keys of the generations, or None.
    mask: RowMask.
    cap: softcap or None.
    query_block: most queries per block.

  Returns:
    [P, R, Q, K, G, H] in the dtype of the values.
  """
  if segment_ids is not None:
    # dynamic_slice clamps a slice that ends past the array, which would shift
    # the ids of the last block against its queries. Padding prevents that.
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, query_block)))

  def block(block_query, offset):
    """Attends from block_query [P, R, Q, K, G, H]; token `offset` is first."""
    count = block_query.shape[2]
    index = start + offset + jnp.arange(count)
    query_ids = jnp.ones((1, count), jnp.int32)
    if segment_ids is not None:
      query_ids = jax.lax.dynamic_slice_in_dim(segment_ids, offset, count, 1)
    # [P, R, Q, K, G, H] -> [P, K, R, G, Q, H]
    block_query = jnp.transpose(block_query, (0, 3, 1, 4, 2, 5))
    logits, values = [], []
    for keys, letters in ((shared, 'PKSH'), (own, 'PKRSH')):
      if keys is None:
        continue
      near = keys.near(start + offset, count, mask.window)
      key_index = near.first + jnp.arange(near.key.shape[-2])
      visible = mask(index[:, None], key_index[None])[None]  # [1, Q, S]
      if near.segment_ids is not None:
        visible &= query_ids[:, :, None] == near.segment_ids[:, None]
      part = capped_logits(
        f'PKRGQH,{letters}->PKRGQS', block_query, near.key, cap
      )
      logits.append(jnp.where(visible[:, None, None, None], part, MASKED))
      values.append((f'PKRGQS,{letters}->PKRGQH', near.value))
    weights, total = joint_softmax(*logits, cap=cap)
    out = sum(
      weighted_sum(letters, x, value)
      for x, (letters, value) in zip(weights, values, strict=True)
    )
    # [P, K, R, G, Q, H] -> [P, R, Q, K, G, H]
    out = jnp.transpose(divide(out, total), (0, 2, 4, 1, 3, 5))
    return out.astype(shared.value.dtype)

  tokens_per_block = max(1, query_block // query.shape[1])
  return _map_query_blocks(block, query, 2, tokens_per_block)


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
