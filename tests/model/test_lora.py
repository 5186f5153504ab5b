"""Adapters: the arithmetic, gradients, and shardings of adapted weights.

Adapted kernels are compared with plain kernels W + scale * A B, gradients with
finite differences and with those of full training, eight devices with one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import init as model_init
from grm_jax.model import logprobs, lora, quantization
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.lora import AdapterConfig, LoraWeight
from grm_jax.sampling import decode_weights
from grm_jax.sharding import mesh, rules
from grm_jax.training import train_step
from tests.model import tiny
from tests.model.test_quantization import KERNELS

BATCH = tiny.batch([1, 9, 4, 12], 12, [[7, 0], [3, 5], [1, 2], [6, 4]], 7)
ADAPTER = AdapterConfig(
  rank=3,
  alpha=6.0,
  targets=lora.TARGETS,
  base_dtype='float32',
  base='random',
  base_step=None,
  base_digest='seed 0',
)


def model_with(layout=None, scalar=False, compute=None, **changes):
  adapter = dataclasses.replace(ADAPTER, **changes)
  return tiny.gemma(layout, scalar, compute).clone(adapter=adapter)


def random_tree(abstract, seed, scale=0.25):
  rng = np.random.default_rng(seed)

  def leaf(x):
    values = scale * rng.standard_normal(x.shape)
    return jax.device_put(values.astype(x.dtype), x.sharding)

  return jax.tree.map(leaf, abstract)


def frozen_of(model, seed=0):
  """Returns random frozen parameters in the dtype of the base."""
  params = tiny.params(model.clone(adapter=None, scalar=False), seed)
  if model.adapter.base_dtype == 'int8':
    shardings = jax.tree.map(
      lambda x: x.sharding, model_init.abstract_frozen(model)
    )
    params = jax.tree.map(lambda x: x.astype('bfloat16'), params)
    return lora.quantize_base(params, shardings)
  return jax.tree.map(lambda x: x.astype(model.adapter.base_dtype), params)


def adapted(model, seed=0):
  """Returns (frozen, trained) random parameters."""
  trained = random_tree(model_init.abstract_trained(model), seed + 1)
  return frozen_of(model, seed), trained


def plain(model, frozen, trained):
  """Returns the parameters with all weights as arrays W + scale * A B."""

  def leaf(path, x):
    name = path[-1].key
    if isinstance(x, LoraWeight):
      base = leaf(path, x.base)
      # A and B are matrices if the dimensions around the rank are merged.
      a = np.asarray(x.a, np.float64)
      b = np.asarray(x.b, np.float64)
      change = np.stack(
        [np.tensordot(y, z, 1) for y, z in zip(a, b, strict=True)]
      )
      return (base + 2.0 * change).astype(np.float32)  # alpha / rank
    if isinstance(x, quantization.QuantizedWeight):
      dims = quantization.CONTRACTING_DIMS[name]
      return np.asarray(x.values) * np.expand_dims(np.asarray(x.scale), dims)
    return np.asarray(x, np.float32)

  whole = lora.attach(model.adapter, frozen, trained)
  return jax.tree_util.tree_map_with_path(leaf, whole, is_leaf=lora.is_weight)


def logps(model, params):
  return jax.jit(functools.partial(logprobs.generation_logps, model))(
    params, BATCH
  )[0]


@pytest.mark.parametrize('int8', [False, True])
@pytest.mark.parametrize('name', lora.TARGETS)
def test_a_product_is_that_of_the_sum(name, int8):
  shape, _, x_shape, letters = KERNELS[name]
  rng = np.random.default_rng(0)
  x, kernel, a, b = (
    jnp.asarray(rng.standard_normal(s), jnp.float32)
    for s in (x_shape, shape, *lora.factors(name, shape, 2))
  )
  base = quantization.quantize_kernel(name, kernel) if int8 else kernel
  weight = LoraWeight(base, a, b, 0.5)
  assert weight.shape == shape
  merged = lora.merge(name, weight, 'float32')
  wide = quantization.dequantize(name, base) if int8 else kernel
  expected = wide + 0.5 * np.tensordot(a, b, 1)
  np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    lora.einsum(letters, x, weight),
    np.einsum(letters, x, expected),
    rtol=1e-4,
    atol=1e-5,
  )


def test_the_dimensions_of_factors():
  assert lora.factors('query', ('D', 'N', 'H'), 'r') == (
    ('D', 'r'),
    ('r', 'N', 'H'),
  )
  assert lora.factors('out', ('L', 'N', 'H', 'D'), 'r') == (
    ('L', 'N', 'H', 'r'),
    ('L', 'r', 'D'),
  )
  assert lora.factors('down', ('L', 'F', 'D'), 'r') == (
    ('L', 'F', 'r'),
    ('L', 'r', 'D'),
  )


@pytest.mark.parametrize('base_dtype', ['float32', 'bfloat16', 'int8'])
def test_a_model_equals_its_merged_parameters(base_dtype):
  model = model_with(base_dtype=base_dtype)
  frozen, trained = adapted(model)
  whole = lora.attach(model.adapter, frozen, trained)
  expected_params = plain(model, frozen, trained)
  ours, expected = logps(model, whole), logps(model, expected_params)
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  without = logps(model, frozen)
  assert np.abs(without - expected).max() > 0.1  # the adapter matters
  merged = lora.merge_all(whole, 'float32')  # deletes `frozen`
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
    merged,
    expected_params,
  )


@pytest.mark.parametrize(
  'base_dtype, int8', [('float32', False), ('float32', True), ('int8', False)]
)
def test_decode_weights_are_merged(base_dtype, int8):
  model = model_with(base_dtype=base_dtype)
  frozen, trained = adapted(model)
  whole = lora.attach(model.adapter, frozen, trained)
  weights, _ = decode_weights.place(model, whole, int8)
  expected, _ = decode_weights.place(model, plain(model, frozen, trained), int8)
  assert jax.tree.structure(weights) == jax.tree.structure(expected)

  def check(x, y):
    # An element on the border of two int8 values may be rounded either way.
    tolerance = 1.0 if x.dtype == jnp.int8 else 1e-5
    np.testing.assert_allclose(
      x.astype(jnp.float32), y.astype(jnp.float32), atol=tolerance
    )

  jax.tree.map(check, weights, expected)


def test_int8_decode_weights_of_an_int8_base_have_the_adapter():
  model = model_with(base_dtype='int8')
  frozen, trained = adapted(model)
  whole = lora.attach(model.adapter, frozen, trained)
  weights, _ = decode_weights.place(model, whole, int8=True)
  shapes = decode_weights.abstract_weights(model, int8=True)
  assert jax.tree.structure(weights) == jax.tree.structure(shapes)
  for x, shape in zip(
    jax.tree.leaves(weights), jax.tree.leaves(shapes), strict=True
  ):
    assert (x.shape, x.dtype) == (shape.shape, shape.dtype)
    assert x.sharding == shape.sharding
  expected, _ = decode_weights.place(model, whole)
  np.testing.assert_allclose(flat(weights), flat(expected), atol=1e-6)


def test_small_changes_arrive_in_decode_weights():
  """Rounding to nearest would return the kernels of the base."""
  compute = ComputeConfig(dtype='bfloat16')
  model = model_with(base_dtype='bfloat16', compute=compute)
  frozen, trained = adapted(model)
  small = {'a': 1.0, 'b': 3e-4}
  trained = jax.tree_util.tree_map_with_path(
    lambda path, x: small[path[-1].key] * x, trained
  )
  whole = lora.attach(model.adapter, frozen, trained)
  nearest = jax.tree.map(
    lambda x: jnp.asarray(x, 'bfloat16'), plain(model, frozen, trained)
  )
  exact = model.clone(compute=ComputeConfig())
  base, change = (
    flat(decode_weights.place(exact, x)[0]) for x in (frozen, whole)
  )
  change -= base
  for share, params in ((0.0, nearest), (1.0, whole)):
    weights, _ = decode_weights.place(model, params)
    arrived = (flat(weights) - base) @ change / (change @ change)
    assert arrived == pytest.approx(share, abs=0.35)


def flat(weights):
  """Returns all kernels of layers in float64, dequantized."""
  leaves = jax.tree_util.tree_leaves_with_path(
    weights.layers, is_leaf=lora.is_weight
  )
  return np.concatenate(
    [
      np.asarray(lora.merge(path[-1].key, x, 'float32'), np.float64).ravel()
      for path, x in leaves
      if path[-1].key in lora.TARGETS
    ]
  )


def test_a_new_adapter_changes_nothing():
  model = model_with(scalar=True)
  trained = model_init.init_adapter(model, jax.random.key(0))
  frozen = frozen_of(model)
  np.testing.assert_array_equal(
    logps(model, lora.attach(model.adapter, frozen, trained)),
    logps(model, frozen),
  )
  leaves = jax.tree_util.tree_leaves_with_path(trained)
  assert len(leaves) == 2 * 2 * 7
  for path, x in leaves:
    if path[-1].key == 'b':
      assert not x.any()
      continue
    inputs = 32 if path[-2].key != 'down' else 48
    limit = inputs**-0.5
    assert limit / 2 < np.abs(x).max() <= limit
    assert np.std(x) == pytest.approx(limit / 3**0.5, rel=0.25)


def test_only_targets_and_the_head_are_trained():
  model = model_with(scalar=True, targets=('query', 'down'))
  trained = model_init.abstract_trained(model)
  assert set(trained) == {'pairs', 'value_head'}
  for kind in ('local', 'global'):
    layer = trained['pairs'][kind]
    assert {k: set(v) for k, v in layer.items()} == {
      'attention': {'query'},
      'mlp': {'down'},
    }
  assert trained['pairs']['local']['attention']['query']['a'].shape == (
    2,
    32,
    3,
  )
  assert trained['pairs']['local']['mlp']['down']['b'].shape == (2, 3, 32)


def gradients(model, frozen, trained, batch=BATCH):
  loss = functools.partial(train_step.supervised_loss, model)
  return jax.jit(functools.partial(train_step.grad, loss, model))(
    trained, frozen, batch
  )


@pytest.mark.parametrize('base_dtype', ['float32', 'int8'])
def test_gradients_equal_finite_differences(base_dtype):
  model = model_with(base_dtype=base_dtype)
  frozen, trained = adapted(model)
  sums = gradients(model, frozen, trained)
  assert jax.tree.structure(sums.grads) == jax.tree.structure(trained)

  @jax.jit
  def loss(step, direction):
    moved = jax.tree.map(lambda x, d: x + step * d, trained, direction)
    whole = lora.attach(model.adapter, frozen, moved)
    return train_step.supervised_loss(model, whole, BATCH)[0]

  step = 2e-3
  for path, grad in jax.tree_util.tree_leaves_with_path(sums.grads):
    # The derivative along the gradient of one factor is its norm.
    norm = np.linalg.norm(grad)
    direction = jax.tree_util.tree_map_with_path(
      lambda p, x, path=path, norm=norm: x / norm * (p == path), sums.grads
    )
    difference = (loss(step, direction) - loss(-step, direction)) / (2 * step)
    np.testing.assert_allclose(difference, norm, rtol=1e-2)


def test_full_rank_moves_in_the_direction_of_full_training():
  # With A = 1, the gradient of B is that of the kernel.
  targets = ('gate', 'up')
  model = model_with(rank=32, alpha=32.0, targets=targets)
  frozen = frozen_of(model)
  trained = model_init.init_adapter(model, jax.random.key(0))
  for kind in ('local', 'global'):
    for name in targets:
      factors = trained['pairs'][kind]['mlp'][name]
      factors['a'] = jnp.stack([jnp.eye(32)] * 2)
  ours = gradients(model, frozen, trained).grads
  full = model.clone(adapter=None)
  expected = gradients(full, None, frozen).grads
  for kind in ('local', 'global'):
    for name in targets:
      tiny.assert_close(
        ours['pairs'][kind]['mlp'][name]['b'],
        expected['pairs'][kind]['mlp'][name],
        1e-5,
      )


@pytest.mark.parametrize('base_dtype', ['float32', 'int8'])
def test_eight_devices_equal_one(base_dtype):
  single = model_with(base_dtype=base_dtype)
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  sharded = model_with(layout, base_dtype=base_dtype)
  expected = gradients(single, *adapted(single))
  frozen, trained = adapted(sharded)
  query = frozen['pairs']['local']['attention']['query']
  assert not jax.tree.leaves(query)[0].sharding.is_fully_replicated
  sums = gradients(sharded, frozen, trained)
  np.testing.assert_allclose(sums.numerator, expected.numerator, rtol=1e-5)
  tiny.assert_close(sums.grads, expected.grads, 1e-4)


@pytest.mark.parametrize('base_dtype', ['bfloat16', 'int8'])
def test_abstract_frozen_parameters_are_those_of_the_base(base_dtype):
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  model = model_with(layout, base_dtype=base_dtype)
  abstract, frozen = model_init.abstract_frozen(model), frozen_of(model)

  def check(x, y):
    assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)

  jax.tree.map(check, abstract, frozen)
  assert model_init.abstract_frozen(model.clone(adapter=None)) is None
