"""The joint softmax with and without its maximum, and gradients of logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import joint_softmax
from grm_jax.model.joint_softmax import MASKED


def logits_of(low, high):
  """Two parts [3, 4, 9] and [3, 4, 5], rows by rows in three ranges."""
  rng = np.random.default_rng(5)
  parts = []
  for count in (9, 5):
    part = rng.uniform(low, high, (3, 4, count))
    part[1] = rng.uniform(low, low + 2, (4, count))
    part[2] = rng.uniform(high - 2, high, (4, count))
    part[:, :, 1::3] = MASKED
    parts.append(part.astype(np.float32))
  parts[1][:, 0] = MASKED  # a whole part of some rows
  return parts


def shares(parts, cap):
  weights, total = joint_softmax.joint_softmax(*parts, cap=cap)
  return [w / total for w in weights]


@pytest.mark.parametrize('cap', [50.0, 60.0])
def test_no_maximum_is_needed_below_a_softcap(cap):
  parts = logits_of(-cap, cap)
  whole = np.concatenate(parts, axis=-1).astype(np.float64)
  expected = np.exp(whole - whole.max(axis=-1, keepdims=True))
  expected /= expected.sum(axis=-1, keepdims=True)
  for how in (cap, None):
    found = np.concatenate(shares(parts, how), axis=-1)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-30)
    np.testing.assert_array_equal(found[whole == MASKED], 0.0)


def test_gradients_without_a_maximum():
  parts = logits_of(-50.0, 50.0)
  out = np.random.default_rng(6).standard_normal((3, 4)).astype(np.float32)

  def loss(parts, cap):
    # Of the logarithms, which no maximum changes but by a constant.
    weights, total = joint_softmax.joint_softmax(*parts, cap=cap)
    first = jnp.log(weights[0][..., 0])
    return jnp.sum(out * (first - jnp.log(total[..., 0])))

  ours, expected = (jax.grad(loss)(parts, cap) for cap in (50.0, None))
  for one, other in zip(ours, expected, strict=True):
    assert np.abs(other).max() > 0.1
    np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize(
  'cap, high, subtracts',
  [
    (30.0, 30.0, False),
    (50.0, 50.0, False),
    (100.0, 100.0, True),
    (None, 5e4, True),
  ],
)
def test_the_largest_is_subtracted_where_exp_may_overflow(cap, high, subtracts):
  parts = logits_of(-high, high)
  weights, total = joint_softmax.joint_softmax(*parts, cap=cap)
  assert np.all(np.isfinite(total)) and np.all(np.array(total) > 0)
  tops = np.concatenate(weights, axis=-1).max(axis=-1)
  assert np.all(tops == 1.0) == subtracts
  run = functools.partial(joint_softmax.joint_softmax, cap=cap)
  assert ('reduce_max' in str(jax.make_jaxpr(run)(*parts))) == subtracts


SIZES = dict(P=2, K=3, R=4, G=5, Q=6, S=7, T=8, H=9)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'letters',
  ['PKGQH,PKSH->PKGQS', 'PKRGQH,PKSH->PKRGQS', 'PKRGQH,PKRTH->PKRGQT'],
)
def test_the_gradient_of_logits_is_that_of_einsum(letters, dtype):
  rng = np.random.default_rng(7)
  inputs, out = letters.split('->')
  query, key, grad = (
    jnp.asarray(rng.standard_normal([SIZES[c] for c in x]), jnp.float32)
    for x in (*inputs.split(','), out)
  )
  given = query.astype(dtype), key.astype(dtype)
  einsum = functools.partial(
    jnp.einsum, letters, preferred_element_type=jnp.float32
  )
  ours, back = jax.vjp(
    functools.partial(joint_softmax._logits, letters), *given
  )
  expected, expected_back = jax.vjp(einsum, *given)
  assert ours.dtype == jnp.float32
  np.testing.assert_array_equal(ours, expected)
  tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
  for one, other in zip(back(grad), expected_back(grad), strict=True):
    assert (one.dtype, one.shape) == (dtype, other.shape)
    one, other = (np.asarray(x, np.float32) for x in (one, other))
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
