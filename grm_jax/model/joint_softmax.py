"""The attention softmax over several sets of keys, and the einsums around it.

A generation token attends to its prompt and to its own generation. The
softmax over both is

  out = (sum_s exp(l_s) v_s + sum_t exp(l_t) v_t) / (sum_s exp(l_s) + ...)

so each set of keys contributes unnormalized weights and a sum, and the division
comes last. Letters: those of attention.py.
"""

import functools

import jax
import jax.numpy as jnp

from grm_jax.model.layers import softcap

# The logit of a masked key. Finite, so that a row with only masked keys has
# finite gradients; exp of it is exactly 0.
MASKED = -1e30
# Logits up to this size need no maximum subtracted before exp: exp(60) = 1e26,
# so a sum over millions of keys is far below float32's largest number, 3e38,
# and exp(-60) is far above the smallest, 1e-38.
_MAX_SAFE_LOGIT = 60.0


def capped_logits(
  letters: str, query: jax.Array, key: jax.Array, cap: float | None
) -> jax.Array:
  """Returns softcapped float32 attention logits.

  Args:
    letters: einsum of query and key.
    query: scaled queries.
    key: keys.
    cap: softcap, or None.
  """
  return softcap(_logits(letters, query, key), cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(letters, query, key):
  """An einsum whose key gradient does not transpose the logits' gradient.

  The gradient of the keys contracts over queries. Autodiff would make the
  logits' gradient the left operand of that product. XLA's CPU backend
  transposes a left operand whose contracted dimension is not the last one, and
  here it is by far the largest array. As the right operand it is used in place.
  """
  return jnp.einsum(letters, query, key, preferred_element_type=jnp.float32)


def _logits_forward(letters, query, key):
  return _logits(letters, query, key), (query, key)


def _logits_backward(letters, residuals, grad):
  query, key = residuals
  inputs, out = letters.split('->')
  query_letters, key_letters = inputs.split(',')
  query_grad = jnp.einsum(f'{out},{key_letters}->{query_letters}', grad, key)
  # dot_general, because jnp.einsum may swap the operands.
  batch = [c for c in key_letters if c in query_letters and c in out]
  contracted = [c for c in out if c not in key_letters]
  key_grad = jax.lax.dot_general(
    query.astype(grad.dtype),
    grad,
    (
      (
        [query_letters.index(c) for c in contracted],
        [out.index(c) for c in contracted],
      ),
      (
        [query_letters.index(c) for c in batch],
        [out.index(c) for c in batch],
      ),
    ),
  )
  # dot_general returns batch, then free query, then free gradient dimensions.
  result = [*batch, *(c for c in query_letters if c not in out)]
  result += [c for c in out if c in key_letters and c not in batch]
  key_grad = jnp.transpose(key_grad, [result.index(c) for c in key_letters])
  return query_grad.astype(query.dtype), key_grad.astype(key.dtype)


_logits.defvjp(_logits_forward, _logits_backward)


def weighted_sum(
  letters: str, weights: jax.Array, value: jax.Array
) -> jax.Array:
  """Returns the weighted sum of values, accumulated in float32.

  Args:
    letters: einsum of weights and value.
    weights: unnormalized float32 weights; cast to the dtype of `value`.
    value: values.
  """
  weights = weights.astype(value.dtype)
  return jnp.einsum(letters, weights, value, preferred_element_type=jnp.float32)


def joint_softmax(
  *logits: jax.Array, cap: float | None
) -> tuple[list[jax.Array], jax.Array]:
  """Computes one softmax over the last dimensions of several arrays.

  Args:
    *logits: float32 [..., keys], one array per set of keys; MASKED for masked
      keys. At least one key of each row must not be masked.
    cap: the softcap of the logits, if any. It bounds them; if exp(cap) is far
      from overflow, the maximum is not subtracted. On CPU, finding the maximum
      took half the time of training a small model.

  Returns:
    (weights, total): unnormalized weights of each set, and their sum over all
    sets [..., 1].
  """
  maximum: jax.Array | float = 0.0
  if cap is None or cap > _MAX_SAFE_LOGIT:
    maxima = [jnp.max(x, axis=-1, keepdims=True) for x in logits]
    maximum = jax.lax.stop_gradient(functools.reduce(jnp.maximum, maxima))
  weights = [jnp.exp(x - maximum) for x in logits]
  sums = [jnp.sum(w, axis=-1, keepdims=True) for w in weights]
  return weights, functools.reduce(jnp.add, sums)


@jax.custom_vjp
def divide(sums: jax.Array, total: jax.Array) -> jax.Array:
  """Returns sums / total, with a gradient for totals as large as exp(60).

  Autodiff would divide by the square of the total, which overflows float32.

  Args:
    sums: float32 [..., H], sums of weighted values.
    total: float32 [..., 1], sums of weights. It is 0 for the padding of a query
      block that sees no key; the result is 0 there.
  """
  return _divide_forward(sums, total)[0]


def _divide_forward(sums, total):
  total = jnp.where(total == 0.0, 1.0, total)
  out = sums / total
  return out, (out, total)


def _divide_backward(residuals, grad):
  out, total = residuals
  total_grad = -jnp.sum(grad * out, axis=-1, keepdims=True) / total
  return grad / total, total_grad


divide.defvjp(_divide_forward, _divide_backward)
