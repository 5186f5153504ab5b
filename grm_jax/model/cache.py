"""Caches for decoding: a prompt's keys and values once, each row its own.

A layer's prompt cache holds what its decode steps can still see: all S places
on global layers, the last min(S, W) places of each prompt on local ones. Each
of the R rows of a prompt adds only its own T places.

Heads stand before places ([P, K, S, H], [P, R, K, T, H]), the order in which
attention multiplies them, so that a step copies nothing.

Letters: P prompts, R rows of a prompt, S prompt places, T own places, K
key/value heads, G query heads per key/value head, N query heads, H head dim.
"""

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.model.attention import (
  MASKED,
  capped_logits,
  joint_softmax,
  weighted_sum,
)


@struct.dataclass
class PromptCache:
  """One layer's view of the prompts.

  Attributes:
    key, value: [P, K, S', H].
    places: int32 [P, S'], the position of each; negative or past the prompt's
      length where there is none.
  """

  key: jax.Array
  value: jax.Array
  places: jax.Array


@struct.dataclass
class OwnCache:
  """One layer's keys and values of the rows themselves, [P, R, K, T, H]."""

  key: jax.Array
  value: jax.Array


@struct.dataclass
class Step:
  """Decoding one token of each row: takes the place of Rows in a layer.

  Attributes:
    lengths: int32 [P], of the prompts.
    index: int32 [], how many own tokens came before this one.
    prompt: this layer's prompt cache.
    own: this layer's own cache; place `index` is written by the step.
  """

  lengths: jax.Array
  index: jax.Array
  prompt: PromptCache
  own: OwnCache

  def positions(self) -> jax.Array:
    """int32 [P, R]."""
    shape = self.own.key.shape[:2]
    return jnp.broadcast_to((self.lengths + self.index)[:, None], shape)

  def attend(self, query, key, value, *, window, cap, **unused):
    """[P, R, N, H] of [P, R, N, H] queries, and the own cache with this token.

    Exact joint softmax over the prompt's places and the row's own.
    """
    del unused  # block sizes and backends: one query needs neither
    own = OwnCache(
      _write(self.own.key, key, self.index),
      _write(self.own.value, value, self.index),
    )
    p, r, n, h = query.shape
    k = key.shape[2]
    query = query.reshape(p, r, k, n // k, h)
    of_prompt = capped_logits('PRKGH,PKSH->PRKGS', query, self.prompt.key, cap)
    seen = self._visible_prompt(window)[:, None, None, None, :]
    of_prompt = jnp.where(seen, of_prompt, MASKED)
    of_own = capped_logits('PRKGH,PRKTH->PRKGT', query, own.key, cap)
    seen = self._visible_own(window)[None, None, None, None, :]
    of_own = jnp.where(seen, of_own, MASKED)
    (w_prompt, w_own), total = joint_softmax(of_prompt, of_own)
    out = weighted_sum('PRKGS,PKSH->PRKGH', w_prompt, self.prompt.value)
    out += weighted_sum('PRKGT,PRKTH->PRKGH', w_own, own.value)
    return (out / total).astype(value.dtype).reshape(p, r, n, h), own

  def _visible_prompt(self, window):
    """bool [P, S']."""
    places, lengths = self.prompt.places, self.lengths[:, None]
    mask = (places >= 0) & (places < lengths)
    if window is not None:
      mask &= lengths + self.index - places < window
    return mask

  def _visible_own(self, window):
    """bool [T]."""
    age = self.index - jnp.arange(self.own.key.shape[3])
    mask = age >= 0
    return mask if window is None else mask & (age < window)


def prompt_cache(
  key: jax.Array, value: jax.Array, lengths: jax.Array, window: int | None
) -> PromptCache:
  """A layer's prompt cache from what its prefill computed.

  Args:
    key, value: [P, S, K, H].
    lengths: int [P].
    window: W of a local layer, None for a global one.
  """
  p, s = key.shape[:2]
  if window is None or s <= window:
    places = jnp.broadcast_to(jnp.arange(s)[None], (p, s))
    kept = (key, value)
  else:
    # The first own token sees W - 1 prompt places, later ones fewer.
    places = lengths[:, None] - window + jnp.arange(window)[None]
    index = jnp.maximum(places, 0)[:, :, None, None]
    kept = tuple(jnp.take_along_axis(x, index, axis=1) for x in (key, value))
  key, value = (jnp.swapaxes(x, 1, 2) for x in kept)
  return PromptCache(key, value, places)


def empty_own(like: PromptCache, rows: int, size: int) -> OwnCache:
  """An own cache of R rows and T places, beside a prompt cache."""
  p, k, _, h = like.key.shape
  shape = (p, rows, k, size, h)
  # Two arrays, not one twice: they are donated.
  return OwnCache(
    jnp.zeros(shape, like.key.dtype), jnp.zeros(shape, like.key.dtype)
  )


def _write(cache, x, index):
  """Puts [P, R, K, H] at place `index` of [P, R, K, T, H]."""
  return jax.lax.dynamic_update_slice_in_dim(
    cache, x[:, :, :, None, :].astype(cache.dtype), index, axis=3
  )
