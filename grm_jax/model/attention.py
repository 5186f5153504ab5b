"""Attention over one prompt and many generations, by one joint softmax.

The tokens of a row are a prompt of S places (right-padded, true length known)
followed by R generations of T places. Prompt tokens are an ordinary causal
sequence. Token t of a generation stands at position length + t; it attends to
its whole prompt and to its own generation's tokens up to itself, never to a
sibling. Local layers see W keys, the token itself included, by true position.
Packed prompts hold several texts, which do not see each other either.

Two backends compute the prompt part: `xla` here and `splash` in splash.py.
The generation part is always `xla`: its window moves with each prompt's
length, which splash's static masks cannot express.

Letters: P prompts, S prompt places, R generations, T generation places,
Q queries of a block, N query heads, K key/value heads, G query heads per
key/value head, H head dim.
"""

from collections.abc import Callable

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
  """Where the X = S + R * T tokens of each row stand.

  Attributes:
    prompt_lengths: int32 [P].
    prompt_size: S.
    num_generations: R, 0 when there are only prompts.
    generation_size: T.
    keep: whether layers return their keys and values (a prefill).
    segments: int32 [P, S] of packed prompts, see Batch; None otherwise.
  """

  prompt_lengths: jax.Array
  prompt_size: int = struct.field(pytree_node=False)
  num_generations: int = struct.field(pytree_node=False, default=0)
  generation_size: int = struct.field(pytree_node=False, default=0)
  keep: bool = struct.field(pytree_node=False, default=False)
  segments: jax.Array | None = None

  def positions(self) -> jax.Array:
    """int32 [P, X]: s for prompt tokens, length + t for generation tokens."""
    lengths = self.prompt_lengths[:, None]
    ones = jnp.ones_like(lengths)
    prompt = ones * jnp.arange(self.prompt_size)[None]
    if self.segments is not None:
      prompt -= _starts(self.segments)
    own = jnp.tile(jnp.arange(self.generation_size), self.num_generations)
    return jnp.concatenate([prompt, lengths + ones * own[None]], axis=1)

  def attend(self, query, key, value, **how):
    """(attention of all tokens, (key, value) if `keep`); see `attend`."""
    out = attend(query, key, value, self, **how)
    return out, (key, value) if self.keep else None


def rows_of(batch: Batch) -> SequenceLayout:
  """The Rows of a batch."""
  size = batch.prompts.shape[1]
  if batch.generations is None:
    return SequenceLayout(batch.prompt_lengths, size, segments=batch.segments)
  return SequenceLayout(
    batch.prompt_lengths, size, *batch.generations.shape[1:]
  )


def _starts(segments: jax.Array) -> jax.Array:
  """int32 [P, S]: where the segment of each place begins."""
  places = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
  new = segments != jnp.roll(segments, 1, axis=1)
  return jax.lax.cummax(jnp.where(new, places, 0), axis=1)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rows: SequenceLayout,
  *,
  window: int | None,
  cap: float | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
) -> jax.Array:
  """Attention of every token of every row.

  Args:
    query: [P, X, N, H], rotated and scaled.
    key, value: [P, X, K, H], keys rotated.
    rows: where the X tokens stand.
    window: W on local layers, None on global ones.
    cap: softcap of the attention logits, None for none.
    compute: backend and block sizes.
    layout: the mesh, for the splash backend.

  Returns:
    [P, X, N, H].
  """
  cut = rows.prompt_size
  prompt = [x[:, :cut] for x in (query, key, value)]
  how = dict(window=window, cap=cap, compute=compute)
  if compute.attention == 'splash':
    out = splash.attend(*prompt, rows.segments, **how, layout=layout)
  else:
    out = attend_prompt(*prompt, rows.segments, **how)
  if not rows.num_generations:
    return out
  shape = (rows.num_generations, rows.generation_size)
  own = [
    x[:, cut:].reshape(x.shape[0], *shape, *x.shape[2:])
    for x in (query, key, value)
  ]
  generated = attend_generations(
    *own,
    prompt[1],
    prompt[2],
    rows.prompt_lengths,
    **how,
  )
  generated = generated.reshape(-1, shape[0] * shape[1], *out.shape[2:])
  return jnp.concatenate([out, generated], axis=1)


def attend_prompt(query, key, value, segments, *, window, cap, compute):
  """Causal attention of [P, S, N, H] queries; memory one query block's.

  On local layers a block multiplies only the keys that it can see.
  """
  length = key.shape[1]
  heads_first = [jnp.moveaxis(x, 2, 1) for x in (key, value)]  # [P, K, S, H]
  if segments is not None:
    # The last block may reach over the end; a slice must not be moved for it.
    segments = jnp.pad(segments, ((0, 0), (0, compute.query_block)))

  def block(queries, start):
    count = queries.shape[1]
    reach = length if window is None else min(length, count + window - 1)
    first = jnp.clip(start + count - reach, 0, length - reach)
    keys, values = (
      jax.lax.dynamic_slice_in_dim(x, first, reach, axis=2) for x in heads_first
    )
    queries = jnp.moveaxis(queries, 1, 3)
    here = start + jnp.arange(count)
    there = first + jnp.arange(reach)
    mask = causal_window_mask(here[:, None], there[None, :], window)[None]
    if segments is not None:
      ours, theirs = (
        jax.lax.dynamic_slice_in_dim(segments, at, size, axis=1)
        for at, size in ((start, count), (first, reach))
      )
      mask &= ours[:, :, None] == theirs[:, None, :]
    logits = capped_logits('PKGQH,PKSH->PKGQS', queries, keys, cap)
    logits = jnp.where(mask[:, None, None], logits, MASKED)
    (weights,), total = joint_softmax(logits, cap=cap)
    out = weighted_sum('PKGQS,PKSH->PKGQH', weights, values)
    return jnp.moveaxis(divide(out, total), 3, 1).astype(value.dtype)

  grouped = _group(query, key.shape[2])
  out = _by_blocks(block, grouped, 1, compute.query_block)
  return out.reshape(query.shape)


def attend_generations(
  query,
  key,
  value,
  prompt_key,
  prompt_value,
  prompt_lengths,
  *,
  window,
  cap,
  compute,
):
  """Generation tokens over their prompt and their own earlier tokens.

  Args:
    query: [P, R, T, N, H]; key, value: [P, R, T, K, H].
    prompt_key, prompt_value: [P, S, K, H].
    prompt_lengths: int [P].
    window, cap, compute: as in `attend`.

  Returns:
    [P, R, T, N, H].
  """
  prompt_places = jnp.arange(prompt_key.shape[1])[None]
  own_places = jnp.arange(key.shape[2])
  p_key, p_value = (jnp.moveaxis(x, 2, 1) for x in (prompt_key, prompt_value))
  o_key, o_value = (jnp.moveaxis(x, 3, 1) for x in (key, value))

  def block(queries, start):
    here = start + jnp.arange(queries.shape[2])
    seen = prompt_mask(
      prompt_lengths[:, None] + here[None],
      prompt_places,
      prompt_lengths,
      window,
    )
    queries = jnp.transpose(queries, (0, 3, 1, 4, 2, 5))
    of_prompt = capped_logits('PKRGQH,PKSH->PKRGQS', queries, p_key, cap)
    of_prompt = jnp.where(seen[:, None, None, None], of_prompt, MASKED)
    mask = causal_window_mask(here[:, None], own_places[None, :], window)
    of_own = capped_logits('PKRGQH,PKRTH->PKRGQT', queries, o_key, cap)
    of_own = jnp.where(mask[None, None, None, None], of_own, MASKED)
    (w_prompt, w_own), total = joint_softmax(of_prompt, of_own, cap=cap)
    out = weighted_sum('PKRGQS,PKSH->PKRGQH', w_prompt, p_value)
    out += weighted_sum('PKRGQT,PKRTH->PKRGQH', w_own, o_value)
    out = jnp.transpose(divide(out, total), (0, 2, 4, 1, 3, 5))
    return out.astype(value.dtype)

  grouped = _group(query, key.shape[3])
  size = max(1, compute.query_block // query.shape[1])
  return _by_blocks(block, grouped, 2, size).reshape(query.shape)


def causal_window_mask(
  query_places: jax.Array, key_places: jax.Array, window: int | None
) -> jax.Array:
  """Causal, and inside the window of W keys including the query itself."""
  mask = key_places <= query_places
  if window is not None:
    mask &= query_places - key_places < window
  return mask


def prompt_mask(
  query_places: jax.Array,
  prompt_places: jax.Array,
  lengths: jax.Array,
  window: int | None,
) -> jax.Array:
  """Which places of its prompt each own token sees.

  Args:
    query_places: int [P, Q] positions of the own tokens.
    prompt_places: int [P, S] positions of the keys; negative for none.
    lengths: int [P] true lengths of the prompts.
    window: W on local layers, None on global ones.

  Returns:
    bool [P, Q, S].
  """
  real = (prompt_places >= 0) & (prompt_places < lengths[:, None])
  queries, keys = query_places[:, :, None], prompt_places[:, None, :]
  return real[:, None] & causal_window_mask(queries, keys, window)


def _group(query, num_kv_heads):
  """[..., N, H] -> [..., K, G, H]."""
  *front, n, h = query.shape
  return query.reshape(*front, num_kv_heads, n // num_kv_heads, h)


def _by_blocks(
  block: Callable[[jax.Array, jax.Array], jax.Array],
  query: jax.Array,
  axis: int,
  size: int,
) -> jax.Array:
  """block(queries, start) over blocks of `axis`, one block in memory at once.

  The backward pass recomputes a block's logits instead of keeping them.
  """
  length = query.shape[axis]
  if length <= size:
    return block(query, jnp.int32(0))
  count = -(-length // size)
  size = -(-length // count)  # even blocks: hardly any padding
  pads = [(0, 0)] * query.ndim
  pads[axis] = (0, count * size - length)
  query = jnp.pad(query, pads)
  split = (*query.shape[:axis], count, size, *query.shape[axis + 1 :])
  blocks = jnp.moveaxis(query.reshape(split), axis, 0)
  starts = jnp.arange(count, dtype=jnp.int32) * size
  body = jax.checkpoint(block, prevent_cse=False)
  out = jax.lax.map(lambda args: body(*args), (blocks, starts))
  out = jnp.moveaxis(out, 0, axis)
  out = out.reshape(*out.shape[:axis], count * size, *out.shape[axis + 2 :])
  return jax.lax.slice_in_dim(out, 0, length, axis=axis)
