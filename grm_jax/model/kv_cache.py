"""Caches for decoding: a prompt's keys and values once, each row its own.

A layer's prompt cache holds what its decode steps can still see: all S places
on global layers; on local ones a ring of min(S, W) places, where place s of
the prompt is kept at s mod W. Each of the R rows of a prompt adds its own
tokens, in two parts: what it drew in earlier calls of decode, token t at place
t, which a call only reads; and what it draws in this one, where all rows write
the same place at the same step, so that a step writes one slice. The end of a
call puts the second part into the first (`keep`).

So a row's sums add the same numbers in the same order whenever it began and
whatever the other rows do, and in programs of the same shapes its logits are
the same to the last bit.

Heads stand before places, the order in which attention multiplies them; the
prompts' keys have their places last, or a step would turn them; and own caches
have one dimension for all rows, or XLA's CPU backend would copy them whole at
every step of a single prompt.

Letters: P prompts, R rows of a prompt, B = P * R rows, S prompt places, T own
places, C steps of a call, K key/value heads, G query heads per key/value head,
N query heads, H head dim.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.model.attention import causal_window_mask, prompt_mask
from grm_jax.model.joint_softmax import MASKED, capped_logits, weighted_sum
from grm_jax.sharding.rules import ShardingLayout

# Of values and of own keys, whose rows are split as prompts are.
AXES = ('prompts', 'kv_heads', 'tokens', 'head_dim')
# Of prompt keys: this way round they are multiplied as they lie.
KEY_AXES = ('prompts', 'kv_heads', 'head_dim', 'tokens')


@struct.dataclass
class PromptCache:
  """One layer's keys [P, K, H, S'] and values [P, K, S', H] of the prompts."""

  key: jax.Array
  value: jax.Array


@struct.dataclass
class GenerationCache:
  """One layer's keys and values of the rows themselves.

  [B, K, T, H] of those of earlier calls, [B, K, C, H] of those of this one.
  """

  key: jax.Array
  value: jax.Array


@struct.dataclass
class DecodeContext:
  """Decoding one token of each row: takes the place of Rows in a layer.

  Attributes:
    lengths: int32 [P], of the prompts.
    before: int32 [P, R], how many tokens each row drew in earlier calls.
    step: int32 [], of this call, below C; and where in `recent` it writes.
    prompt: this layer's prompt cache.
    own: this layer's cache of earlier calls.
    recent: this layer's cache of this call.
  """

  lengths: jax.Array
  before: jax.Array
  step: jax.Array
  prompt: PromptCache
  own: GenerationCache
  recent: GenerationCache

  def positions(self) -> jax.Array:
    """int32 [P, R]."""
    return self.lengths[:, None] + self.before + self.step

  def attend(self, query, key, value, *, window, cap, layout, **unused):
    """[P, R, N, H] of [P, R, N, H] queries, and `recent` with this token.

    The exact softmax over the prompt's places and the row's own together.
    """
    del unused  # block sizes and backends: one query needs neither
    p, r, n, h = query.shape
    k = key.shape[2]
    recent = GenerationCache(
      _write(self.recent.key, key, self.step, layout),
      _write(self.recent.value, value, self.step, layout),
    )
    query = query.reshape(p, r, k, n // k, h)
    letters = 'PKRGH,PKHS->PKRGS', 'PKRGS,PKSH->PKRGH'
    seen = self._visible_prompt(window)[:, None, :, None, :]
    part = _attend_part(
      letters, jnp.swapaxes(query, 1, 2), self.prompt, seen, cap
    )
    parts = [[jnp.swapaxes(x, 1, 2) for x in part]]
    letters = 'BKGH,BKTH->BKGT', 'BKGT,BKTH->BKGH'
    query = query.reshape(p * r, k, n // k, h)
    for cache, seen in (
      (self.own, self._visible_own(window)),
      (recent, self._visible_recent(window)),
    ):
      seen = seen.reshape(-1, 1, 1, seen.shape[-1])
      part = _attend_part(letters, query, cache, seen, cap)
      parts.append([x.reshape(p, r, *x.shape[1:]) for x in part])
    out = _merge(parts)
    return out.astype(value.dtype).reshape(p, r, n, h), recent

  def _visible_prompt(self, window):
    """Bool [P, R, S']."""
    size = self.prompt.value.shape[2]
    if window is None:
      places = jnp.arange(size)[None]
    else:
      places = _ring_places(self.lengths, size, window)
    return prompt_mask(self.positions(), places, self.lengths, window)

  def _visible_own(self, window):
    """Bool [P, R, T]."""
    places = jnp.arange(self.own.key.shape[2])[None, None]
    before = self.before[:, :, None]
    return (places < before) & causal_window_mask(
      before + self.step, places, window
    )

  def _visible_recent(self, window):
    """Bool [1, 1, C]."""
    places = jnp.arange(self.recent.key.shape[2])[None, None]
    return causal_window_mask(self.step, places, window)


def prompt_cache(
  key: jax.Array,
  value: jax.Array,
  lengths: jax.Array,
  window: int | None,
  layout: ShardingLayout,
) -> PromptCache:
  """A layer's prompt cache from what its prefill computed.

  Args:
    key, value: [P, S, K, H].
    lengths: int [P].
    window: W of a local layer, None for a global one.
    layout: the mesh and its rules.
  """
  kept = (key, value)
  if window is not None and key.shape[1] > window:
    places = jnp.maximum(_ring_places(lengths, window, window), 0)
    places = places[:, :, None, None]
    kept = tuple(jnp.take_along_axis(x, places, axis=1) for x in kept)
  key, value = kept
  return PromptCache(
    layout.constrain(jnp.transpose(key, (0, 2, 3, 1)), KEY_AXES),
    layout.constrain(jnp.swapaxes(value, 1, 2), AXES),
  )


def slice_cache(own: GenerationCache, reach: int) -> GenerationCache:
  """The first `reach` places, [B, K, reach, H]."""
  return jax.tree.map(lambda x: x[:, :, :reach], own)


def append_recent(
  own: Sequence[GenerationCache],
  recent: Sequence[GenerationCache],
  before: jax.Array,
  layout: ShardingLayout,
) -> tuple[GenerationCache, ...]:
  """Caches of earlier calls with what this one has added, one per layer.

  C places of all rows at a time, those that some row has come to: one write
  where rows began together, at most as much as the caches hold. To write each
  row's places by themselves would be a scatter, which is slow on TPU.

  Args:
    own: [B, K, T, H] with T a multiple of C.
    recent: [B, K, C, H].
    before: int [B], multiples of C: where each row's part goes. A row whose
      part would lie past T has ended, and what it leaves is of no use.
    layout: the mesh and its rules.
  """
  c = recent[0].key.shape[2]
  blocks = before // c
  every = jnp.arange(own[0].key.shape[2] // c)
  used = jnp.any(blocks[:, None] == every[None], axis=0)
  order = jnp.argsort(~used)  # those that are used come first

  def put(i, caches):
    block = order[i]
    here = (blocks == block)[:, None, None, None]

    def one(old, new):
      there = jax.lax.dynamic_slice_in_dim(old, block * c, c, axis=2)
      return layout.constrain(
        jax.lax.dynamic_update_slice_in_dim(
          old, jnp.where(here, new, there), block * c, axis=2
        ),
        AXES,
      )

    return jax.tree.map(one, caches, tuple(recent))

  return jax.lax.fori_loop(0, jnp.sum(used), put, tuple(own))


def _ring_places(lengths, size, window):
  """int32 [P, size]: the latest place of each prompt kept at each index.

  Negative where there is none.
  """
  index = jnp.arange(size)[None]
  return index + window * ((lengths[:, None] - 1 - index) // window)


def _attend_part(letters, query, cache, seen, cap):
  """(largest logit, sum of weights, weighted values) of one set of keys."""
  of_logits, of_values = letters
  logits = capped_logits(of_logits, query, cache.key, cap)
  logits = jnp.where(seen, logits, MASKED)
  top = jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return top, total, weighted_sum(of_values, weights, cache.value)


def _merge(parts):
  """The softmax over several sets of keys from those over each of them.

  A set without a visible key has MASKED for its top and so gets no weight.
  """
  top = functools.reduce(jnp.maximum, [part[0] for part in parts])
  scales = [jnp.exp(part[0] - top) for part in parts]
  total, out = (
    sum(part[i] * scale for part, scale in zip(parts, scales, strict=True))
    for i in (1, 2)
  )
  return out / total


def _write(cache, x, place, layout):
  """Puts [P, R, K, H] at `place` of [B, K, T, H]."""
  x = x.reshape(-1, 1, *x.shape[2:]).swapaxes(1, 2).astype(cache.dtype)
  cache = jax.lax.dynamic_update_slice_in_dim(cache, x, place, axis=2)
  return layout.constrain(cache, AXES)
