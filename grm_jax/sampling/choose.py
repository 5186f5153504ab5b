"""Choosing a token: temperature and truncation, and the log-probs of both.

All settings are arrays, so changing them compiles nothing. A row's draw at a
step is a function of (seed, request, sample, step) only, whatever the batch.

Letters: B rows, V vocabulary rows.
"""

import dataclasses

import jax
import jax.numpy as jnp

_NEVER = -1e30
_BLOCK = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
  """How to draw, one value per row; [B] or [P, R].

  Attributes:
    temperature: float32; 0 is greedy.
    top_k: int32; only the k likeliest tokens (and ties with the last); 0 is
      off.
    top_p: float32; the fewest tokens whose probability reaches p; 1 is off.
    min_p: float32; only tokens at least min_p times as likely as the
      likeliest; 0 is off.
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array


def settings(
  shape: tuple[int, ...],
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Settings:
  """The same settings for every row.

  Raises:
    ValueError: a value outside its range.
  """
  for name, value, good in (
    ('temperature', temperature, temperature >= 0),
    ('top_k', top_k, top_k >= 0),
    ('top_p', top_p, 0 < top_p <= 1),
    ('min_p', min_p, 0 <= min_p <= 1),
  ):
    if not good:
      raise ValueError(f'{name} is {value}, outside its range')
  return Settings(
    jnp.full(shape, temperature, jnp.float32),
    jnp.full(shape, top_k, jnp.int32),
    jnp.full(shape, top_p, jnp.float32),
    jnp.full(shape, min_p, jnp.float32),
  )


def truncate(logits: jax.Array, how: Settings) -> jax.Array:
  """Logits of the distribution that is drawn from.

  Temperature first, then top-k, then top-p on what is left, then min-p. Rows
  of temperature 0 keep their likeliest tokens only.

  Args:
    logits: float32 [B, V]; dead and forbidden entries at -1e30 or below.
    how: settings of shape [B].

  Returns:
    float32 [B, V], -1e30 where a token cannot be drawn.
  """
  greedy = (how.temperature == 0)[:, None]
  top = jnp.max(logits, axis=-1, keepdims=True)
  warm = logits / jnp.where(greedy, 1.0, how.temperature[:, None])
  warm = jnp.where(greedy & (logits < top), _NEVER, warm)
  # Sorting the vocabulary costs more than a decode step: only when asked for.
  cut = jnp.any((how.top_k > 0) | (how.top_p < 1))
  warm = jax.lax.cond(cut, _cut, lambda x, how: x, warm, how)
  floor = jnp.max(warm, axis=-1, keepdims=True) + jnp.log(how.min_p)[:, None]
  return jnp.where(warm < floor, _NEVER, warm)


def _cut(logits, how):
  """Applies top-k and top-p through the sorted logits."""
  size = logits.shape[-1]
  ordered = jnp.sort(logits, axis=-1, descending=True)
  k = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, size), size)
  last = jnp.take_along_axis(ordered, k[:, None] - 1, axis=-1)
  ordered = jnp.where(ordered < last, _NEVER, ordered)
  probability = jax.nn.softmax(ordered, axis=-1)
  # A token stays while those before it have not reached p; the first always.
  before = jnp.cumsum(probability, axis=-1) - probability
  stays = before < how.top_p[:, None]
  stays |= (how.top_p >= 1)[:, None]
  lowest = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < jnp.maximum(lowest, last), _NEVER, logits)


def choose(
  logits: jax.Array, how: Settings, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws a token for each row.

  Args:
    logits: float32 [B, V] of the model; -1e30 for what must never be drawn.
    how: settings of shape [B].
    keys: [B] random keys, see `row_keys`.

  Returns:
    (tokens int32, drawn_logps, model_logps float32), each [B]: the token, its
    log-probability under the distribution drawn from, and under the model.
  """
  warm = truncate(logits, how)
  uniform = jax.vmap(jax.random.uniform)(keys)
  # Greedy ties go to the first token, as argmax does.
  uniform = jnp.where(how.temperature == 0, 0.0, uniform)
  top = jnp.max(warm, axis=-1, keepdims=True)
  tokens = _pick(jnp.exp(warm - top), uniform)
  drawn, model = _logp(warm, tokens), _logp(logits, tokens)
  return tokens, jnp.where(how.temperature == 0, 0.0, drawn), model


def row_keys(
  seed: jax.Array, requests: jax.Array, samples: jax.Array, step: jax.Array
) -> jax.Array:
  """A key for each row at a step, from nothing but who the row is.

  Args:
    seed: int [].
    requests: int [B], the request's number.
    samples: int [B], which sample of the request.
    step: int [], tokens drawn before.

  Returns:
    [B] keys.
  """
  base = jax.random.key(seed)

  def one(request, sample):
    key = jax.random.fold_in(jax.random.fold_in(base, request), sample)
    return jax.random.fold_in(key, step)

  return jax.vmap(one)(requests, samples)


def _pick(weights, uniform):
  """The outcome at `uniform` of the way through the weights.

  One random number a row instead of one a token: drawing Gumbel noise for the
  whole vocabulary would cost as much as a layer. Two levels of sums, of 256
  weights and of blocks, keep float32 exact enough and outcomes of weight zero
  out of reach.
  """
  rows, size = weights.shape
  weights = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK)))
  weights = weights.reshape(rows, -1, _BLOCK)
  ends = jnp.cumsum(jnp.sum(weights, axis=-1), axis=-1)
  goal = uniform * ends[:, -1]
  block = _first_above(ends, goal)
  inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
  start = jnp.where(
    block > 0,
    jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0],
    0.0,
  )
  place = _first_above(jnp.cumsum(inside, axis=-1), goal - start)
  return block * _BLOCK + place


def _first_above(ends, goal):
  """int32 [B]: the first place whose running sum exceeds the goal.

  Rounding may put the goal at the very end: then the last place that adds
  anything.
  """
  first = jnp.sum(ends <= goal[:, None], axis=-1)
  last = jnp.sum(ends < ends[:, -1:], axis=-1)
  return jnp.minimum(first, last).astype(jnp.int32)


def _logp(logits, tokens):
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)
