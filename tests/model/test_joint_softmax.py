"""The joint softmax with and without a maximum; gradients of the logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import joint_softmax
from grm_jax.model.joint_softmax import MASKED


def random_logits(low, high):
  """Returns two parts, [3, 4, 9] and [3, 4, 5], in three ranges of values."""
  rng = np.random.default_rng(5)
  parts = []
  for count in (9, 5):
    part = rng.uniform(low, high, (3, 4, count))
    part[1] = rng.uniform(low, low + 2, (4, count))
    part[2] = rng.uniform(high - 2, high, (4, count))
    part[:, :, 1::3] = MASKED
    parts.append(part.astype(np.float32))
  parts[1][:, 0] = MASKED  # some rows have no key in the second part
  return parts


def normalized(parts, cap):
  weights, total = joint_softmax.joint_softmax(*parts, cap=cap)
  return [w / total for w in weights]


@pytest.mark.parametrize('cap', [50.0, 60.0])
def test_equals_softmax_with_and_without_a_maximum(cap):
  parts = random_logits(-cap, cap)
  logits = np.concatenate(parts, axis=-1).astype(np.float64)
  expected = np.exp(logits - logits.max(axis=-1, keepdims=True))
  expected /= expected.sum(axis=-1, keepdims=True)
  for used_cap in (cap, None):
    weights = np.concatenate(normalized(parts, used_cap), axis=-1)
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=1e-30)
    np.testing.assert_array_equal(weights[logits == MASKED], 0.0)


def test_gradients_without_a_maximum():
  parts = random_logits(-50.0, 50.0)
  out = np.random.default_rng(6).standard_normal((3, 4)).astype(np.float32)

  def loss(parts, cap):
    # Log-probabilities: subtracting a maximum does not change them.
    weights, total = joint_softmax.joint_softmax(*parts, cap=cap)
    first = jnp.log(weights[0][..., 0])
    return jnp.sum(out * (first - jnp.log(total[..., 0])))

  ours, expected = (jax.grad(loss)(parts, cap) for cap in (50.0, None))
  for x, expected_x in zip(ours, expected, strict=True):
    assert np.abs(expected_x).max() > 0.1
    np.testing.assert_allclose(x, expected_x, atol=2e-6)


@pytest.mark.parametrize(
  'cap, high, subtracts',
  [
    (30.0, 30.0, False),
    (50.0, 50.0, False),
    (100.0, 100.0, True),
    (None, 5e4, True),
  ],
)
def test_maximum_is_subtracted_where_exp_may_overflow(cap, high, subtracts):
  parts = random_logits(-high, high)
  weights, total = joint_softmax.joint_softmax(*parts, cap=cap)
  assert np.all(np.isfinite(total)) and np.all(np.array(total) > 0)
  largest = np.concatenate(weights, axis=-1).max(axis=-1)
  assert np.all(largest == 1.0) == subtracts
  run = functools.partial(joint_softmax.joint_softmax, cap=cap)
  assert ('reduce_max' in str(jax.make_jaxpr(run)(*parts))) == subtracts


SIZES = dict(P=2, K=3, R=4, G=5, Q=6, S=7, T=8, H=9)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'letters',
  ['PKGQH,PKSH->PKGQS', 'PKRGQH,PKSH->PKRGQS', 'PKRGQH,PKRTH->PKRGQT'],
)
def test_gradient_of_logits_equals_that_of_einsum(letters, dtype):
  rng = np.random.default_rng(7)
  inputs, out = letters.split('->')
  query, key, grad = (
    jnp.asarray(rng.standard_normal([SIZES[c] for c in x]), jnp.float32)
    for x in (*inputs.split(','), out)
  )
  primals = query.astype(dtype), key.astype(dtype)
  einsum = functools.partial(
    jnp.einsum, letters, preferred_element_type=jnp.float32
  )
  ours, vjp = jax.vjp(
    functools.partial(joint_softmax._logits, letters), *primals
  )
  expected, expected_vjp = jax.vjp(einsum, *primals)
  assert ours.dtype == jnp.float32
  np.testing.assert_array_equal(ours, expected)
  tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
  for x, expected_x in zip(vjp(grad), expected_vjp(grad), strict=True):
    assert (x.dtype, x.shape) == (dtype, expected_x.shape)
    np.testing.assert_allclose(
      np.asarray(x, np.float32),
      np.asarray(expected_x, np.float32),
      rtol=tolerance,
      atol=tolerance,
    )
