"""Decoding on a mesh and in other dtypes, from training parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.quantization import CONTRACTING_DIMS, QuantizedWeight
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Request
from grm_jax.sharding import mesh, rules
from tests.messages import naming
from tests.model import tiny

_RNG = np.random.default_rng(2)
REQUESTS = [
  Request(str(i), _RNG.integers(10, 250, n).tolist(), 3, max_tokens=9 + i)
  for i, n in enumerate((3, 16, 9, 1, 12, 7))
]


def make_layout(weights, shape=(2, 2, 2)):
  table = rules.decode_rules(rules.RULES, weights)
  return rules.make_layout(mesh.make_mesh(*shape), table)


def generate(model, weights, **options):
  """Returns generations by (request id, sample), the slots and the state."""
  shapes = {
    'prompts': 4,
    'generations_per_prompt': 2,
    'max_new_tokens': 16,
    'decode_steps_per_call': 4,
    'prompt_buckets': (8, 16),
  }
  engine = Engine(model, **shapes | options)
  states, decode = [], engine.compiled.decode

  def recorded(weights, bucket, cache_length, slots, rows, state):
    new_state, output = decode(
      weights, bucket, cache_length, slots, rows, state
    )
    states[:] = [(slots, new_state)]
    return new_state, output

  engine.compiled.decode = recorded
  items = list(engine.run(weights, REQUESTS))
  return {(x.request_id, x.sample): x for x in items}, *states[0]


@pytest.fixture(scope='module')
def expected():
  model = tiny.gemma()
  weights, _ = decode_weights.place(model, tiny.params(model))
  return generate(model, weights)[0]


@pytest.mark.parametrize('kind', ['resident', 'fsdp'])
@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 4, 2)], ids=str)
def test_a_mesh_samples_the_tokens_of_one_device(expected, kind, shape):
  trained = tiny.gemma(make_layout('fsdp', shape))
  params = tiny.params(trained)
  model = tiny.gemma(make_layout(kind, shape))
  weights, seconds = decode_weights.place(model, params)
  assert seconds > 0
  generations, slots, state = generate(model, weights)
  assert set(generations) == set(expected)
  for name, g in expected.items():
    np.testing.assert_array_equal(generations[name].tokens, g.tokens)
    np.testing.assert_allclose(
      generations[name].model_logps, g.model_logps, atol=1e-4
    )
  # Each device has its share of slots and rows, and no copies.
  for x in jax.tree.leaves((slots.caches, state.caches)):
    assert x.addressable_shards[0].data.size * 8 == x.size


def test_decoding_has_its_own_tensor_axis(expected):
  """Training uses fsdp only; the weights move to the mesh of decoding."""
  training = mesh.make_mesh(2, 4, 1)
  trained = tiny.gemma(rules.make_layout(training, rules.RULES))
  table = rules.decode_rules(rules.RULES, 'resident')
  sampling = rules.make_layout(mesh.decode_mesh(training, 2), table)
  model = tiny.gemma(sampling)
  weights, _ = decode_weights.place(model, tiny.params(trained))
  generations, *_ = generate(model, weights)
  for name, g in expected.items():
    np.testing.assert_array_equal(generations[name].tokens, g.tokens)


def test_resident_weights_are_split_over_tensor_alone():
  model = tiny.gemma(make_layout('resident'))
  trained = tiny.gemma(make_layout('fsdp'))
  weights, _ = decode_weights.place(model, tiny.params(trained))
  kernels = [*weights.layers, weights.embedder]
  for path, x in jax.tree_util.tree_leaves_with_path(kernels):
    split = 2 if path[-1].key in CONTRACTING_DIMS else 1
    assert x.addressable_shards[0].data.size * split == x.size, path


def test_int8_weights_decode_on_a_mesh():
  model = tiny.gemma(make_layout('resident'))
  weights, _ = decode_weights.place(model, tiny.params(model), int8=True)
  single = tiny.gemma()
  alone, _ = decode_weights.place(single, tiny.params(single), int8=True)
  assert isinstance(weights.layers[0]['mlp']['gate'], QuantizedWeight)
  generations, *_ = generate(model, weights)
  for name, g in generate(single, alone)[0].items():
    np.testing.assert_array_equal(generations[name].tokens, g.tokens)


@pytest.mark.parametrize('trained', ['float32', 'bfloat16'])
def test_bfloat16_weights_and_caches(trained):
  compute = ComputeConfig(dtype='bfloat16')
  model = tiny.gemma(compute=compute)
  params = jax.tree.map(lambda x: x.astype(trained), tiny.params(model))
  weights, _ = decode_weights.place(model, params)
  for path, x in jax.tree_util.tree_leaves_with_path(weights):
    kernel = path[-1].key in CONTRACTING_DIMS
    assert x.dtype == (jnp.bfloat16 if kernel else jnp.float32)
  generations, _, state = generate(model, weights)
  assert state.caches[0].key.dtype == jnp.bfloat16
  assert all(np.isfinite(g.model_logps).all() for g in generations.values())


def test_indivisible_numbers_of_prompts_raise():
  model = tiny.gemma(make_layout('resident'))
  weights, _ = decode_weights.place(model, tiny.params(model))
  with pytest.raises(ValueError, match=naming('prompts', 3, 4)):
    generate(model, weights, prompts=3)
