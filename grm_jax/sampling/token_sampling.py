"""Choosing a token: temperature and truncation, and the log-probs of both.

All settings are arrays, so changing them compiles nothing. A row's draw at a
step is a function of (seed, request, sample, step) only, whatever the batch:
the first three make the row's key (request.py), the step is folded in here.

Letters: B rows, V vocabulary rows.
"""

import dataclasses

import jax
import jax.numpy as jnp

_NEVER = -1e30
_BLOCK = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingParams:
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


def fault(
  temperature: float, top_k: int, top_p: float, min_p: float
) -> str | None:
  """What is wrong with these settings, if anything."""
  for name, value, good, legal in (
    ('temperature', temperature, 0 <= temperature < float('inf'), '0 or more'),
    ('top_k', top_k, 0 <= top_k < 2**31, '0 (off) or more'),
    ('top_p', top_p, 0 < top_p <= 1, 'above 0, at most 1 (off)'),
    ('min_p', min_p, 0 <= min_p <= 1, '0 (off) to 1'),
  ):
    if not good:
      return f'{name} is {value}; it must be {legal}'
  return None


def truncate(logits: jax.Array, how: SamplingParams) -> jax.Array:
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
  # Costs about as much as a layer: only when asked for.
  cut = jnp.any((how.top_k > 0) | (how.top_p < 1))
  warm = jax.lax.cond(cut, _top_k_top_p, lambda x, how: x, warm, how)
  floor = jnp.max(warm, axis=-1, keepdims=True) + jnp.log(how.min_p)[:, None]
  return jnp.where(warm < floor, _NEVER, warm)


def _top_k_top_p(logits, how):
  """Applies top-k, then top-p to what top-k has left."""
  keys = _ordered(logits)
  k = jnp.where(how.top_k > 0, how.top_k, logits.shape[-1])
  kept = keys >= _bisect_threshold(
    keys, jnp.ones_like(logits), k.astype(jnp.float32)
  )
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.where(kept, weights, 0.0)
  # The fewest of the likeliest tokens whose share reaches p.
  goal = how.top_p * jnp.sum(weights, axis=-1)
  nucleus = keys >= _bisect_threshold(keys, weights, goal)
  kept &= nucleus | (how.top_p >= 1)[:, None]
  return jnp.where(kept, logits, _NEVER)


def _ordered(x):
  """uint32 that are ordered as the float32 are."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  negative = bits >> 31 == 1
  return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _bisect_threshold(keys, weights, goal):
  """The largest key such that the weights at it and above reach the goal.

  Found bit by bit: 32 sums over the vocabulary. Sorting it would take longer,
  on a CPU as on a TPU, where a vocabulary split over devices would also have
  to be gathered first.

  Args:
    keys: uint32 [B, V].
    weights: float32 [B, V].
    goal: float32 [B].

  Returns:
    uint32 [B, 1]; 0 where all weights together do not reach the goal.
  """

  def body(i, least):
    higher = least | jnp.uint32(1) << (31 - i).astype(jnp.uint32)
    total = jnp.sum(jnp.where(keys >= higher, weights, 0.0), axis=-1)
    return jnp.where((total >= goal)[:, None], higher, least)

  none = jnp.zeros((keys.shape[0], 1), jnp.uint32)
  return jax.lax.fori_loop(0, 32, body, none)


def sample_token(
  logits: jax.Array,
  how: SamplingParams,
  keys: jax.Array,
  forbidden: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws a token for each row.

  Args:
    logits: float32 [B, V] of the model; dead entries at -1e30.
    how: settings of shape [B].
    keys: [B] random keys, see `step_keys`.
    forbidden: bool [V], tokens that are never drawn; None for none.

  Returns:
    (tokens int32, sampling_logps, model_logps float32), each [B]: the token, its
    log-probability under the distribution drawn from, and under the model. To
    forbid is to truncate: the model's own is of all tokens, as in training.
  """
  allowed = logits
  if forbidden is not None:
    allowed = jnp.where(forbidden[None], _NEVER, logits)
  warm = truncate(allowed, how)
  uniform = jax.vmap(jax.random.uniform)(keys)
  # Greedy ties go to the first token, as argmax does.
  uniform = jnp.where(how.temperature == 0, 0.0, uniform)
  top = jnp.max(warm, axis=-1, keepdims=True)
  tokens = _inverse_cdf(jnp.exp(warm - top), uniform)
  drawn, model = _logp(warm, tokens), _logp(logits, tokens)
  return tokens, jnp.where(how.temperature == 0, 0.0, drawn), model


def step_keys(rows: jax.Array, lengths: jax.Array) -> jax.Array:
  """A key for each row's next token, from nothing but who the row is.

  Args:
    rows: uint32 [B, 2], see request.row_key.
    lengths: int [B], tokens the row has drawn before.

  Returns:
    [B] keys.
  """
  # Named, so that a changed jax_default_prng_impl draws the same tokens.
  keys = jax.random.wrap_key_data(rows, impl='threefry2x32')
  return jax.vmap(jax.random.fold_in)(keys, lengths)


def _inverse_cdf(weights, uniform):
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
