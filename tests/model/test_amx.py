"""compute.amx: the same function, by products in the form AMX has.

That they are faster where a CPU has AMX is for a benchmark; XLA computes them
on every CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grm_jax.model import amx, head, int8
from grm_jax.model.compute import Compute
from tests.model import tiny

BF16 = jnp.bfloat16


def normal(*shape):
  rng = np.random.default_rng(shape)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(BF16)


def close(ours, expected, tolerance):
  ours, expected = (np.asarray(x, np.float32) for x in (ours, expected))
  assert ours.shape == expected.shape
  tiny.assert_close(ours, expected, tolerance)


# The smaller side is turned for the gradient: both come about, and rows,
# columns and sums of one.
@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize(
  'left, n',
  [
    ((33, 64), 300),
    ((33, 300), 64),
    ((2, 3, 4, 5, 64), 40),
    ((2, 3, 1, 1, 16), 40),
    ((1, 200), 1),
    ((7, 1), 9),
  ],
)
def test_product_and_gradients_are_those_of_float32(left, n, turned):
  batch = left[:2] if len(left) > 2 else ()
  sides = (n, left[-1]) if turned else (left[-1], n)
  given = normal(*left), normal(*batch, *sides)
  grad = normal(*left[:-1], n).astype(jnp.float32)

  def plain(left, right):
    right = jnp.swapaxes(right, -1, -2) if turned else right
    for _ in range(left.ndim - right.ndim):
      right = right[..., None, :, :] if batch else right
    return left @ right

  ours, back = jax.vjp(jax.jit(lambda *x: amx.product(*x, turned)), *given)
  assert ours.dtype == jnp.float32
  wide = [x.astype(jnp.float32) for x in given]
  expected, expected_back = jax.vjp(plain, *wide)
  close(ours, expected, 1e-5)
  for one, other in zip(back(grad), expected_back(grad), strict=True):
    assert one.dtype == BF16
    close(one, other, 4e-3)  # rounded once


@pytest.mark.parametrize(
  'letters, kernel',
  [
    ('PXD,DF->PXF', (12, 20)),
    ('PXD,DNH->PXNH', (12, 4, 5)),
    ('PXNH,NHD->PXD', (3, 4, 7)),
    ('PMD,VD->PMV', (9, 12)),
  ],
)
def test_kernels_of_every_form(letters, kernel):
  x = normal(2, 5, *((3, 4) if 'NH,' in letters else (12,)))
  kernel = normal(*kernel)
  ours = int8.contract(letters, x, kernel, amx=True)
  assert ours.dtype == BF16
  expected = jnp.einsum(
    letters, x.astype(jnp.float32), kernel.astype(jnp.float32)
  )
  close(ours, expected, 4e-3)


def dtypes_of_products(function, *args):
  """(operands and result) of every product, however deep."""
  return {
    tuple(v.aval.dtype.name for v in (*equation.invars, *equation.outvars))
    for equation in tiny.equations(function, *args)
    if equation.primitive.name == 'dot_general'
  }


def test_a_model_and_its_gradient_are_those_of_bfloat16():
  """And every product is one that XLA has matrix instructions for."""
  batch = tiny.batch([1, 5, 9], 12, [[10, 0], [6, 9], [2, 5]], 15)
  params = tiny.params(tiny.gemma())

  def loss(params, compute):
    model = tiny.gemma(compute=compute)
    logps, _ = head.generation_logps(model, params, batch)
    return jnp.sum(logps) / batch.generations.size

  def run(**compute):
    compute = Compute(**compute, remat='dots', query_block=8)
    return jax.value_and_grad(functools.partial(loss, compute=compute))

  fast = run(dtype='bfloat16', amx=True)
  kinds = dtypes_of_products(fast, params)
  assert kinds == {('bfloat16', 'bfloat16', 'float32')}
  ours, slow, exact = (
    jax.jit(f)(params) for f in (fast, run(dtype='bfloat16'), run())
  )
  assert abs(ours[0] - exact[0]) < 2e-3 * abs(exact[0])
  length = optax.tree.norm(exact[1])

  def apart(found):
    difference = jax.tree.map(jnp.subtract, found[1], exact[1])
    return float(optax.tree.norm(difference) / length)

  assert apart(ours) < 1.5 * apart(slow) < 0.1
