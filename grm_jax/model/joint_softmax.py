"""The softmax of attention over several sets of keys, and products around it.

Letters: those of attention.py.
"""

import functools

import jax
import jax.numpy as jnp

from grm_jax.model.layers import softcap

MASKED = -1e30
# exp of this, summed over millions of keys, is far from float32's largest
# number 3e38, and exp of its negative from the smallest 1e-38.
_NO_OVERFLOW = 60.0


def capped_logits(
  letters: str, query: jax.Array, key: jax.Array, cap: float | None
) -> jax.Array:
  """float32 attention logits by the einsum `letters`, softcapped."""
  return softcap(_logits(letters, query, key), cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(letters, query, key):
  """The einsum, with a gradient that leaves the logits where they are.

  The keys' gradient sums over queries. Autodiff makes the logits' gradient
  the left operand of that product, and XLA's CPU backend first turns a left
  operand whose last dimension is not the one summed over. As the right
  operand it is multiplied as it is.
  """
  return jnp.einsum(letters, query, key, preferred_element_type=jnp.float32)


def _logits_forward(letters, query, key):
  return _logits(letters, query, key), (query, key)


def _logits_backward(letters, kept, grad):
  query, key = kept
  inputs, out = letters.split('->')
  of_query, of_key = inputs.split(',')
  to_query = jnp.einsum(f'{out},{of_key}->{of_query}', grad, key)
  # einsum would choose the order of the operands itself.
  both = [c for c in of_key if c in of_query and c in out]
  summed = [c for c in out if c not in of_key]
  to_key = jax.lax.dot_general(
    query.astype(grad.dtype),
    grad,
    (
      ([of_query.index(c) for c in summed], [out.index(c) for c in summed]),
      ([of_query.index(c) for c in both], [out.index(c) for c in both]),
    ),
  )
  made = [*both, *(c for c in of_query if c not in out)]
  made += [c for c in out if c in of_key and c not in both]
  to_key = jnp.transpose(to_key, [made.index(c) for c in of_key])
  return to_query.astype(query.dtype), to_key.astype(key.dtype)


_logits.defvjp(_logits_forward, _logits_backward)


def weighted_sum(
  letters: str, weights: jax.Array, value: jax.Array
) -> jax.Array:
  """Sums in float32 of values in their own dtype."""
  weights = weights.astype(value.dtype)
  return jnp.einsum(letters, weights, value, preferred_element_type=jnp.float32)


def joint_softmax(
  *parts: jax.Array, cap: float | None
) -> tuple[list[jax.Array], jax.Array]:
  """Unnormalised weights of each part and their joint sum [..., 1].

  Args:
    *parts: float32 logits; MASKED weighs nothing, and some place must not be.
    cap: that they were softcapped by, if they were. Where exp(cap) is far from
      overflow the largest logit need not be known: half the time of training
      a small model on CPU was spent in looking for it.
  """
  top = 0.0
  if cap is None or cap > _NO_OVERFLOW:
    tops = [jnp.max(p, axis=-1, keepdims=True) for p in parts]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
  weights = [jnp.exp(p - top) for p in parts]
  total = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
  return weights, total


@jax.custom_vjp
def divide(sums: jax.Array, total: jax.Array) -> jax.Array:
  """Sums [..., H] / total [..., 1], for totals as large as exp(60).

  Autodiff would divide by the square of the total, which overflows. Padding of
  a block may see nothing: its total is 0, and 0 is what comes of it.
  """
  return _divide_forward(sums, total)[0]


def _divide_forward(sums, total):
  total = jnp.where(total == 0.0, 1.0, total)
  out = sums / total
  return out, (out, total)


def _divide_backward(kept, grad):
  out, total = kept
  to_total = -jnp.sum(grad * out, axis=-1, keepdims=True) / total
  return grad / total, to_total


divide.defvjp(_divide_forward, _divide_backward)
