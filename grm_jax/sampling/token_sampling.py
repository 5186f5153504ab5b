"""Samples tokens: temperature, truncation, and the log-probabilities of both.

All parameters are arrays, so changing them compiles nothing. The random number
of a row at a step is a function of (seed, request key, sample number, step),
whatever the batch: the first three make the row's key (see request.py), the
step is folded in here.

Letters: B rows, V vocabulary rows.
"""

import dataclasses

import jax
import jax.numpy as jnp

from grm_jax.errors import UserError
from grm_jax.judgement import temperature_range

_MASKED = -1e30  # the logit of a token that cannot be sampled
# Bound of the logits of all other tokens after the temperature. It is far above
# those of any model, and keeps infinities out.
_MAX_LOGIT = 1e29
_BLOCK_SIZE = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """Sampling parameters, one value per row; all [B] or all [P, R].

  Attributes:
    temperature: float32; below temperature_range.MIN is greedy.
    top_k: int32; keeps the k most likely tokens (and ties with the last); 0 is
      off.
    top_p: float32; keeps the fewest tokens whose probability reaches p; 1 is
      off.
    min_p: float32; keeps tokens at least min_p times as likely as the most
      likely one; 0 is off.
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array


def invalid_reason(
  temperature: float, top_k: int, top_p: float, min_p: float
) -> str | None:
  """Returns which parameter is invalid and why, or None."""
  try:
    temperature_range.check('temperature', temperature)
  except UserError as error:
    return str(error)
  for name, value, is_valid, allowed in (
    ('top_k', top_k, 0 <= top_k < 2**31, '0 (off) or more'),
    ('top_p', top_p, 0 < top_p <= 1, 'above 0 and at most 1 (off)'),
    ('min_p', min_p, 0 <= min_p <= 1, '0 (off) to 1'),
  ):
    if not is_valid:
      return f'{name} is {value}; set it to {allowed}'
  return None


def truncate(logits: jax.Array, params: SamplingParams) -> jax.Array:
  """Returns the logits of the distribution that tokens are sampled from.

  Temperature comes first, then top-k, then top-p on the tokens that are left,
  then min-p. Greedy rows keep their most likely tokens only. No temperature
  gives a dead token a chance, or makes a log-probability infinite.

  Args:
    logits: float32 [B, V]; dead and forbidden entries at -1e30 or below.
    params: parameters of shape [B].

  Returns:
    float32 [B, V], -1e30 where a token cannot be sampled.
  """
  greedy = _is_greedy(params)[:, None]
  highest = jnp.max(logits, axis=-1, keepdims=True)
  scaled = logits / jnp.where(greedy, 1.0, params.temperature[:, None])
  scaled = jnp.clip(scaled, -_MAX_LOGIT, _MAX_LOGIT)
  is_dead = (logits <= _MASKED) | greedy & (logits < highest)
  scaled = jnp.where(is_dead, _MASKED, scaled)
  # Top-k and top-p cost about as much as a layer, so skip them if no row uses
  # them.
  is_used = jnp.any((params.top_k > 0) | (params.top_p < 1))
  scaled = jax.lax.cond(
    is_used, _top_k_top_p, lambda x, params: x, scaled, params
  )
  highest = jnp.max(scaled, axis=-1, keepdims=True)
  min_logit = highest + jnp.log(params.min_p)[:, None]
  return jnp.where(scaled < min_logit, _MASKED, scaled)


def _is_greedy(params: SamplingParams) -> jax.Array:
  return params.temperature < temperature_range.MIN


def _top_k_top_p(logits: jax.Array, params: SamplingParams) -> jax.Array:
  """Applies top-k, then top-p to the tokens that top-k keeps."""
  keys = _ordered_bits(logits)
  k = jnp.where(params.top_k > 0, params.top_k, logits.shape[-1])
  is_kept = keys >= _bisect_threshold(
    keys, jnp.ones_like(logits), k.astype(jnp.float32)
  )
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.where(is_kept, weights, 0.0)
  # The fewest most likely tokens whose share of the kept weight reaches p.
  target = params.top_p * jnp.sum(weights, axis=-1)
  nucleus = keys >= _bisect_threshold(keys, weights, target)
  # top_p = 1 must keep every token, whatever the rounding of the sums.
  is_kept &= nucleus | (params.top_p >= 1)[:, None]
  return jnp.where(is_kept, logits, _MASKED)


def _ordered_bits(x: jax.Array) -> jax.Array:
  """Returns uint32 that compare as the float32 do.

  Positive floats are ordered as their bits. Setting the sign bit puts them
  above the negative ones, whose order is reversed by inverting all bits.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  is_negative = bits >> 31 == 1
  return jnp.where(is_negative, ~bits, bits | jnp.uint32(1 << 31))


def _bisect_threshold(
  keys: jax.Array, weights: jax.Array, target: jax.Array
) -> jax.Array:
  """Returns the largest key for which the weights at or above reach a target.

  It finds the key bit by bit, with 32 sums over the vocabulary. Sorting takes
  longer on CPU and on TPU, and would have to gather a vocabulary that is
  sharded over devices.

  Args:
    keys: uint32 [B, V].
    weights: float32 [B, V].
    target: float32 [B].

  Returns:
    uint32 [B, 1]; 0 if all weights together do not reach the target.
  """

  def body_fn(i, threshold):
    """Sets bit 31 - i of threshold [B, 1] if the target is still reached."""
    higher = threshold | jnp.uint32(1) << (31 - i).astype(jnp.uint32)
    total = jnp.sum(jnp.where(keys >= higher, weights, 0.0), axis=-1)  # [B]
    return jnp.where((total >= target)[:, None], higher, threshold)

  zero = jnp.zeros((keys.shape[0], 1), jnp.uint32)
  return jax.lax.fori_loop(0, 32, body_fn, zero)


def sample_token(
  logits: jax.Array,
  params: SamplingParams,
  keys: jax.Array,
  forbidden: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Samples one token per row.

  Forbidding tokens is a truncation: it changes the sampling distribution, but
  `model_logps` are over all tokens, as in training.

  Args:
    logits: float32 [B, V] of the model; dead entries at -1e30.
    params: parameters of shape [B].
    keys: [B] random keys, see `step_keys`.
    forbidden: bool [V], tokens that are never sampled; None for none.

  Returns:
    tokens: int32 [B].
    sampling_logps: float32 [B], log-probabilities under the distribution that
      the tokens were sampled from; 0 for greedy rows.
    model_logps: float32 [B], log-probabilities under the model.
  """
  allowed = logits
  if forbidden is not None:
    allowed = jnp.where(forbidden[None], _MASKED, logits)
  truncated = truncate(allowed, params)
  uniform = jax.vmap(jax.random.uniform)(keys)
  # Greedy rows take the first of equally likely tokens, as argmax does.
  greedy = _is_greedy(params)
  uniform = jnp.where(greedy, 0.0, uniform)
  highest = jnp.max(truncated, axis=-1, keepdims=True)
  tokens = _inverse_cdf(jnp.exp(truncated - highest), uniform)
  sampling_logps = jnp.where(greedy, 0.0, _token_logp(truncated, tokens))
  return tokens, sampling_logps, _token_logp(logits, tokens)


def step_keys(row_keys: jax.Array, lengths: jax.Array) -> jax.Array:
  """Returns a random key for the next token of each row.

  Args:
    row_keys: uint32 [B, 2], see request.row_key.
    lengths: int [B], tokens that the row has.

  Returns:
    [B] keys.
  """
  # The explicit implementation keeps samples the same when a user changes
  # jax_default_prng_impl.
  keys = jax.random.wrap_key_data(row_keys, impl='threefry2x32')
  return jax.vmap(jax.random.fold_in)(keys, lengths)


def _inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns the index at which the running sum of weights passes `uniform`.

  It needs one random number per row; Gumbel noise for the whole vocabulary
  would cost about as much as a layer. Two levels of sums, over blocks of 256
  weights and inside a block, keep float32 accurate and never select an index of
  weight zero.

  Args:
    weights: float32 [B, V], not normalized.
    uniform: float32 [B] in [0, 1).

  Returns:
    int32 [B].
  """
  num_rows, size = weights.shape
  weights = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK_SIZE)))
  weights = weights.reshape(num_rows, -1, _BLOCK_SIZE)  # [B, blocks, 256]
  block_ends = jnp.cumsum(jnp.sum(weights, axis=-1), axis=-1)  # [B, blocks]
  target = uniform * block_ends[:, -1]
  block = _first_above(block_ends, target)  # [B]
  block_weights = jnp.take_along_axis(weights, block[:, None, None], axis=1)
  previous = jnp.maximum(block - 1, 0)[:, None]
  block_start = jnp.where(
    block > 0, jnp.take_along_axis(block_ends, previous, 1)[:, 0], 0.0
  )
  ends = jnp.cumsum(block_weights[:, 0], axis=-1)  # [B, 256]
  index = _first_above(ends, target - block_start)
  return block * _BLOCK_SIZE + index


def _first_above(ends: jax.Array, target: jax.Array) -> jax.Array:
  """Returns the first index whose running sum exceeds the target, int32 [B].

  If rounding puts the target at the very end, it returns the last index that
  adds to the sum.
  """
  first = jnp.sum(ends <= target[:, None], axis=-1)
  last = jnp.sum(ends < ends[:, -1:], axis=-1)
  return jnp.minimum(first, last).astype(jnp.int32)


def _token_logp(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns the log-probability of one token per row, float32 [B]."""
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)
