"""Caches for decoding: one per prompt, and one per sampled row.

A prompt has R rows, one per generation that is sampled from it. In each layer
the keys and values are in three caches:

  prompt    of the prompt, once, read by all R rows
  earlier   of the row's tokens from earlier calls of `decode`; only read
  recent    of the row's tokens from this call; each step appends to it

Why two caches per row: rows start and end independently, so their lengths
differ. Within one call, though, all rows append at the same index (the step),
so a step writes one slice. At the end of a call `append_recent` moves
`recent` into `earlier`, at a different index per row. In `earlier`, index =
token number.

Prompt caches of local layers are rings of min(S, W) slots: prompt token s is in
slot s mod W, so the ring holds the last W tokens. Global layers keep all S.

Each row's sums add the same numbers in the same order, whenever the row began
and whatever other rows do. In programs of the same shapes its logits are
therefore bit-identical.

Memory layouts follow the einsums: heads come before tokens. Prompt keys have
tokens last, because a step would otherwise transpose them. Row caches merge P
and R into B, because XLA's CPU backend would otherwise copy them in every step
if P is 1.

Letters in shapes and einsums:
  P  prompts                  S  prompt tokens, or slots of the ring
  R  rows of a prompt         T  tokens of the earlier cache
  B  rows of all prompts,     C  steps of a call, tokens of the recent cache
     P * R                    K, G, N, H  heads, as in attention.py
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.model.joint_softmax import MASKED, capped_logits, weighted_sum
from grm_jax.model.row_mask import causal_window_mask
from grm_jax.sharding.rules import ShardingLayout

# Logical axes of prompt values [P, K, S, H] and of row caches [B, K, T, H]. The
# dimension B is split as P is, which keeps the rows of a prompt together.
KV_AXES = ('prompts', 'kv_heads', 'tokens', 'head_dim')
# Logical axes of prompt keys [P, K, H, S].
PROMPT_KEY_AXES = ('prompts', 'kv_heads', 'head_dim', 'tokens')


@struct.dataclass
class PromptCache:
  """One layer's keys and values of the prompts.

  Attributes:
    key: [P, K, H, S].
    value: [P, K, S, H].
  """

  key: jax.Array
  value: jax.Array


@struct.dataclass
class GenerationCache:
  """One layer's keys and values of the rows' own tokens.

  Attributes:
    key: [B, K, T, H] (earlier calls) or [B, K, C, H] (this call).
    value: the same shape.
  """

  key: jax.Array
  value: jax.Array


@struct.dataclass
class DecodeContext:
  """One decode step of all rows; a layer uses it in place of SequenceLayout.

  Attributes:
    prompt_lengths: int32 [P].
    num_earlier: int32 [P, R], tokens of each row in the earlier cache.
    step: int32 scalar below C: the step within this call, and the index at
      which this step writes to the recent cache.
    prompt: this layer's prompt cache.
    earlier: this layer's cache of earlier calls.
    recent: this layer's cache of this call.
  """

  prompt_lengths: jax.Array
  num_earlier: jax.Array
  step: jax.Array
  prompt: PromptCache
  earlier: GenerationCache
  recent: GenerationCache

  def positions(self) -> jax.Array:
    """Returns int32 [P, R], the position of each row's current token."""
    return self.prompt_lengths[:, None] + self.num_earlier + self.step

  @jax.named_scope('decode_attention')
  def attend(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    window: int | None,
    cap: float | None,
    layout: ShardingLayout,
    **unused,
  ) -> tuple[jax.Array, GenerationCache]:
    """Attends from one token per row to its prompt and its own tokens.

    The softmax is exact, over the three caches together.

    Args:
      query: [P, R, N, H], rotated and scaled.
      key: [P, R, K, H], rotated.
      value: [P, R, K, H].
      window: W on local layers, None on global ones.
      cap: softcap of the attention logits, None for none.
      layout: mesh and rules.
      **unused: block sizes and backends, which one query per row does not need.

    Returns:
      (attention output [P, R, N, H], the recent cache with this token).
    """
    del unused
    p, r, n, h = query.shape
    k = key.shape[2]
    recent = GenerationCache(
      _write_token(self.recent.key, key, self.step, layout),
      _write_token(self.recent.value, value, self.step, layout),
    )
    query = query.reshape(p, r, k, n // k, h)  # [P, R, K, G, H]
    mask = self._prompt_mask(window)[:, None, :, None, :]  # [P, 1, R, 1, S]
    part = _attend_part(
      ('PKRGH,PKHS->PKRGS', 'PKRGS,PKSH->PKRGH'),
      jnp.swapaxes(query, 1, 2),
      self.prompt,
      mask,
      cap,
    )
    parts = [[jnp.swapaxes(x, 1, 2) for x in part]]  # [P, R, K, G, _]
    query = query.reshape(p * r, k, n // k, h)  # [B, K, G, H]
    for cache, mask in (
      (self.earlier, self._earlier_mask(window)),
      (recent, self._recent_mask(window)),
    ):
      part = _attend_part(
        ('BKGH,BKTH->BKGT', 'BKGT,BKTH->BKGH'),
        query,
        cache,
        mask.reshape(-1, 1, 1, mask.shape[-1]),  # [B or 1, 1, 1, T]
        cap,
      )
      parts.append([x.reshape(p, r, *x.shape[1:]) for x in part])
    out = _merge_parts(parts)  # [P, R, K, G, H]
    return out.astype(value.dtype).reshape(p, r, n, h), recent

  def _prompt_mask(self, window):
    """Returns bool [P, R, S]: visible slots of the prompt cache."""
    num_slots = self.prompt.value.shape[2]
    if window is None:
      slot_positions = jnp.arange(num_slots)[None]
    else:
      slot_positions = _ring_positions(self.prompt_lengths, num_slots, window)
    return _visible_slots(
      self.positions(), slot_positions, self.prompt_lengths, window
    )

  def _earlier_mask(self, window):
    """Returns bool [P, R, T]: visible tokens of the earlier cache."""
    index = jnp.arange(self.earlier.key.shape[2])[None, None]
    num_earlier = self.num_earlier[:, :, None]
    # Past num_earlier a cache holds what the row's predecessor left.
    return (index < num_earlier) & causal_window_mask(
      num_earlier + self.step, index, window
    )

  def _recent_mask(self, window):
    """Returns bool [1, 1, C]: visible tokens of the recent cache."""
    index = jnp.arange(self.recent.key.shape[2])[None, None]
    # Relative to the start of this call, so it is the same for all rows.
    return causal_window_mask(self.step, index, window)


@jax.named_scope('make_prompt_cache')
def make_prompt_cache(
  key: jax.Array,
  value: jax.Array,
  lengths: jax.Array,
  window: int | None,
  layout: ShardingLayout,
) -> PromptCache:
  """Makes a layer's prompt cache from the keys and values of a prefill.

  Args:
    key: [P, S, K, H].
    value: [P, S, K, H].
    lengths: int [P], true lengths.
    window: W of a local layer, None for a global one.
    layout: mesh and rules.
  """
  if window is not None and key.shape[1] > window:
    # Fill the ring: for each slot, the prompt token that belongs there. A slot
    # without a token (prompts shorter than W) gets token 0, which is hidden by
    # _visible_slots.
    source = jnp.maximum(_ring_positions(lengths, window, window), 0)
    source = source[:, :, None, None]  # [P, W, 1, 1]
    key, value = (jnp.take_along_axis(x, source, axis=1) for x in (key, value))
  return PromptCache(
    layout.constrain(jnp.transpose(key, (0, 2, 3, 1)), PROMPT_KEY_AXES),
    layout.constrain(jnp.swapaxes(value, 1, 2), KV_AXES),
  )


def slice_cache(cache: GenerationCache, length: int) -> GenerationCache:
  """Returns the first `length` tokens of a cache, [B, K, length, H]."""
  return jax.tree.map(lambda x: x[:, :, :length], cache)


@jax.named_scope('append_recent')
def append_recent(
  earlier: Sequence[GenerationCache],
  recent: Sequence[GenerationCache],
  num_earlier: jax.Array,
  layout: ShardingLayout,
) -> tuple[GenerationCache, ...]:
  """Copies the tokens of a call into the caches of earlier calls.

  Each row has its own destination, so the direct way is a scatter, which is
  slow on TPU. Instead the loop goes over blocks of C tokens and updates a block
  in all rows at once, keeping the old content of rows that do not write there.
  Only blocks that some row writes to are visited: a single one if all rows
  began together, and at most T / C.

  Args:
    earlier: one per layer, [B, K, T, H], T a multiple of C.
    recent: one per layer, [B, K, C, H].
    num_earlier: int [B], multiples of C: the index at which each row's tokens
      are written. A row at T or beyond has ended; its tokens are not needed.
    layout: mesh and rules.

  Returns:
    The updated caches of earlier calls, one per layer.
  """
  block_size = recent[0].key.shape[2]
  num_blocks = earlier[0].key.shape[2] // block_size
  target = num_earlier // block_size  # [B]
  used = jnp.any(target[:, None] == jnp.arange(num_blocks)[None], axis=0)
  order = jnp.argsort(~used)  # used blocks first

  def update_block(i, caches):
    """Writes block order[i] of all layers, [B, K, C, H] of [B, K, T, H]."""
    block = order[i]
    start = block * block_size
    writes_here = (target == block)[:, None, None, None]  # [B, 1, 1, 1]

    def update(cache, new):
      """Writes `new` [B, K, C, H] in the rows with writes_here."""
      old = jax.lax.dynamic_slice_in_dim(cache, start, block_size, axis=2)
      return layout.constrain(
        jax.lax.dynamic_update_slice_in_dim(
          cache, jnp.where(writes_here, new, old), start, axis=2
        ),
        KV_AXES,
      )

    return jax.tree.map(update, caches, tuple(recent))

  return jax.lax.fori_loop(0, jnp.sum(used), update_block, tuple(earlier))


def _visible_slots(
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


def _ring_positions(lengths, num_slots, window):
  """Returns int32 [P, num_slots]: the prompt position that each slot holds.

  Slot i holds the largest position s < length with s mod W = i. There is none
  if the prompt has at most i tokens; the result is then negative.
  """
  slot = jnp.arange(num_slots)[None]
  return slot + window * ((lengths[:, None] - 1 - slot) // window)


def _attend_part(letters, query, cache, mask, cap):
  """Attends to one cache, without normalizing.

  Args:
    letters: einsums of the logits and of the weighted values.
    query: [..., G, H].
    cache: has `key` and `value`.
    mask: bool, broadcastable against the logits.
    cap: softcap or None.

  Returns:
    (largest logit [..., 1], sum of weights [..., 1], weighted values [..., H]).
  """
  logits_letters, value_letters = letters
  logits = capped_logits(logits_letters, query, cache.key, cap)
  logits = jnp.where(mask, logits, MASKED)
  maximum = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - maximum)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return maximum, total, weighted_sum(value_letters, weights, cache.value)


def _merge_parts(parts):
  """Merges softmax parts from `_attend_part` into the normalized output.

  Each part is rescaled from its own maximum to the joint one. A part without a
  visible key has maximum MASKED, so its scale is 0.
  """
  maximum = functools.reduce(jnp.maximum, [part[0] for part in parts])
  scales = [jnp.exp(part[0] - maximum) for part in parts]
  total, out = (
    sum(part[i] * scale for part, scale in zip(parts, scales, strict=True))
    for i in (1, 2)
  )
  return out / total


def _write_token(cache, x, index, layout):
  """Writes one token per row, [P, R, K, H], at `index` of [B, K, C, H]."""
  x = x.reshape(-1, 1, *x.shape[2:]).swapaxes(1, 2).astype(cache.dtype)
  cache = jax.lax.dynamic_update_slice_in_dim(cache, x, index, axis=2)
  return layout.constrain(cache, KV_AXES)
