"""The model on a mesh of 2 x 2 x 2 devices equals the model on one device.

The numbers are equal, parameters and gradients have their declared shardings,
and XLA never falls back to holding a whole array on every device.
"""

import contextlib
import dataclasses
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import logprobs
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.init import abstract_params, init_params
from grm_jax.sharding import mesh, rules
from tests.model import tiny

COMPUTE = ComputeConfig(remat='nothing_saveable', head_chunk=16, query_block=8)
# Saves the gathered kernels of all layers for the backward pass.
WITHOUT_REMAT = dataclasses.replace(COMPUTE, remat='none')
GENERATION_LENGTHS = [[7, 0], [3, 5], [1, 2], [6, 4]]
# Printed by XLA's partitioner when it cannot reshard efficiently.
WARNING = 'Involuntary full rematerialization'
# The gathered gates of all layers: [L/2, D, F] = [2, 32, 48], with F split over
# tensor.
GATHERED_STACK = 'f32[2,32,24]'


def make_layout(**changed_rules):
  devices = mesh.make_mesh(2, 2, 2)
  return rules.make_layout(devices, {**rules.RULES, **changed_rules})


@pytest.fixture(
  scope='module', params=[(), ('tensor',)], ids=['whole', 'tokens_split']
)
def layout(request):
  return make_layout(residual_tokens=request.param)


@pytest.fixture(scope='module')
def batch():
  return tiny.batch([1, 9, 4, 12], 12, GENERATION_LENGTHS, 7)


def gemma(layout=None, compute=COMPUTE):
  # 500 of 512 rows are in use: the last devices hold padding rows.
  return tiny.gemma(layout, scalar=True, compute=compute, vocab_size=500)


def loss(model, params, batch):
  logps, entropy = logprobs.generation_logps(model, params, batch)
  value = logprobs.values(model, params, batch)
  return jnp.sum(logps) + jnp.sum(value), (logps, entropy, value)


@contextlib.contextmanager
def stderr_into(lines):
  """Appends all lines written to file descriptor 2, also those of XLA."""
  with tempfile.TemporaryFile('w+') as file:
    saved = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(saved, 2)
      os.close(saved)
      file.seek(0)
      lines += file.readlines()


def compiled(model, batch):
  """Returns (executable of loss and gradients, what XLA printed)."""
  sharding = model.layout.sharding(('prompts',))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch
  )
  grad = jax.value_and_grad(functools.partial(loss, model), has_aux=True)
  messages = []
  with stderr_into(messages):
    lowered = jax.jit(grad).lower(abstract_params(model), shapes)
    executable = lowered.compile()
  return executable, ''.join(messages)


@pytest.fixture(scope='module')
def on_mesh(layout, batch):
  return compiled(gemma(layout), batch)


def run(model, executable, batch):
  batch = jax.device_put(batch, model.layout.sharding(('prompts',)))
  return executable(tiny.params(model), batch)


@pytest.fixture(scope='module')
def results(layout, on_mesh, batch):
  """Returns ((loss, outputs), gradients) on the mesh and on one device."""
  model = gemma()
  return (
    run(gemma(layout), on_mesh[0], batch),
    run(model, compiled(model, batch)[0], batch),
  )


def test_forward_equals_one_device(results):
  ours, expected = jax.device_get(results)
  tiny.assert_close(ours[0], expected[0], 1e-5)


def test_gradients_equal_one_device(results):
  ours, expected = jax.device_get(results)
  tiny.assert_close(ours[1], expected[1], 1e-5)


def test_xla_rematerializes_nothing(on_mesh):
  assert WARNING not in on_mesh[1]


def test_gradients_have_the_shardings_of_their_parameters(results, layout):
  """The model alone constrains them."""

  def check(gradient, parameter):
    assert gradient.sharding.is_equivalent_to(parameter.sharding, gradient.ndim)

  params = abstract_params(gemma(layout))
  jax.tree.map(check, results[0][1]['pairs'], params['pairs'])


def test_gathered_kernels_of_all_layers_never_exist_at_once(on_mesh):
  """Nor do their gradients, in the loops over layers."""
  assert GATHERED_STACK not in on_mesh[0].as_text()


def test_saved_inputs_of_layer_pairs_are_split(on_mesh, layout):
  """Hidden states [L/2, P, X, D] with P = 4 and X = 12 + 2 * 7."""
  whole, split = 'f32[2,1,26,32]', 'f32[2,1,13,32]'
  if layout.num_shards('residual_tokens') > 1:
    whole, split = split, whole
  text = on_mesh[0].as_text()
  assert whole in text and split not in text


def test_no_collective_permutes(on_mesh):
  """They would hang on CPU, whose devices run collectives in any order."""
  assert 'collective-permute' not in on_mesh[0].as_text()


def test_a_bad_layout_is_detected(batch):
  """Prompts over fsdp in the lookup make XLA gather the whole table."""
  bad = make_layout(lookup_prompts=('data', 'fsdp'), lookup_width=('tensor',))
  executable, messages = compiled(gemma(bad, WITHOUT_REMAT), batch)
  assert WARNING in messages
  assert GATHERED_STACK in executable.as_text()


@pytest.fixture(scope='module')
def initial(layout):
  """Returns parameters from one key, on the mesh and on one device."""
  key = jax.random.key(7)
  return init_params(gemma(layout), key), init_params(gemma(), key)


def test_init_equals_one_device(initial):
  ours, expected = jax.device_get(initial)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, expected
  )


def test_initial_parameters_have_their_declared_shardings(initial, layout):
  def check(leaf, shape):
    assert leaf.sharding == shape.sharding
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    expected = shape.sharding.shard_shape(shape.shape)
    assert all(s.data.shape == expected for s in leaf.addressable_shards)

  jax.tree.map(check, initial[0], abstract_params(gemma(layout)))


def test_number_of_shards(initial):
  shards = jax.tree.map(
    lambda x: x.size // x.addressable_shards[0].data.size, initial[0]
  )
  assert shards['embedder']['table'] == 4
  assert shards['final_norm']['scale'] == 1
  block = shards['pairs']['local']
  kernels = jax.tree.leaves([block['attention'], block['mlp']])
  assert kernels == [4] * 7
