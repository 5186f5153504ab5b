"""Gemma on a mesh of 2 x 2 x 2 devices is Gemma on one device.

Guards equal numbers, parameters and gradients that really are split as they
say, and that XLA never falls back to holding a whole array on every device.
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
# Keeps every layer's gathered kernels for the backward pass.
KEEPS_ALL = dataclasses.replace(COMPUTE, remat='none')
OWN_LENGTHS = [[7, 0], [3, 5], [1, 2], [6, 4]]
# What XLA's partitioner prints when it gives up on a layout.
WARNING = 'Involuntary full rematerialization'
# The gates [L/2, D, F] = [2, 32, 48] of all pairs, split over tensor only.
GATHERED_STACK = 'f32[2,32,24]'


def layout_of(**changed):
  made = mesh.make_mesh(2, 2, 2)
  return rules.make_layout(made, {**rules.RULES, **changed})


@pytest.fixture(
  scope='module', params=[(), ('tensor',)], ids=['whole', 'tokens_split']
)
def layout(request):
  return layout_of(residual_tokens=request.param)


@pytest.fixture(scope='module')
def batch():
  return tiny.batch([1, 9, 4, 12], 12, OWN_LENGTHS, 7)


def gemma(layout=None, compute=COMPUTE):
  # 500 live tokens of 512: the last devices hold dead rows.
  return tiny.gemma(layout, scalar=True, compute=compute, vocab_size=500)


def loss(model, params, batch):
  logps, entropy = logprobs.generation_logps(model, params, batch)
  value = logprobs.values(model, params, batch)
  return jnp.sum(logps) + jnp.sum(value), (logps, entropy, value)


@contextlib.contextmanager
def stderr_into(lines):
  """Appends what the process writes to file descriptor 2, XLA included."""
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
  """(executable of loss and gradients, what XLA printed meanwhile)."""
  rows = model.layout.sharding(('prompts',))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch
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
  """((loss, outputs), gradients) on the mesh and on one device."""
  one = gemma()
  return (
    run(gemma(layout), on_mesh[0], batch),
    run(one, compiled(one, batch)[0], batch),
  )


def test_forward_equals_one_device(results):
  ours, expected = jax.device_get(results)
  tiny.assert_close(ours[0], expected[0], 1e-5)


def test_gradients_equal_one_device(results):
  ours, expected = jax.device_get(results)
  tiny.assert_close(ours[1], expected[1], 1e-5)


def test_xla_rematerializes_nothing(on_mesh):
  assert WARNING not in on_mesh[1]


def test_gradients_are_split_as_their_kernels(results, layout):
  """Though nothing but the model asks for it."""

  def check(gradient, parameter):
    assert gradient.sharding.is_equivalent_to(parameter.sharding, gradient.ndim)

  params = abstract_params(gemma(layout))
  jax.tree.map(check, results[0][1]['pairs'], params['pairs'])


def test_gathered_kernels_never_pile_up(on_mesh):
  """Neither they nor their gradients, in the loops over layers."""
  assert GATHERED_STACK not in on_mesh[0].as_text()


def test_what_is_kept_of_each_pair_is_split(on_mesh, layout):
  """Hidden states [L/2, P, X, D], of P = 4 prompts of X = 12 + 2 * 7 places."""
  whole, split = 'f32[2,1,26,32]', 'f32[2,1,13,32]'
  if layout.num_shards('residual_tokens') > 1:
    whole, split = split, whole
  text = on_mesh[0].as_text()
  assert whole in text and split not in text


def test_no_pieces_are_sent_around(on_mesh):
  """On CPUs, whose devices take collectives in any order, they would hang."""
  assert 'collective-permute' not in on_mesh[0].as_text()


def test_both_would_be_found(batch):
  """Tokens split by prompt and the table by width make the table whole."""
  bad = layout_of(lookup_prompts=('data', 'fsdp'), lookup_width=('tensor',))
  executable, messages = compiled(gemma(bad, KEEPS_ALL), batch)
  assert WARNING in messages
  assert GATHERED_STACK in executable.as_text()


@pytest.fixture(scope='module')
def initial(layout):
  """The same key on the mesh and on one device."""
  key = jax.random.key(7)
  return init_params(gemma(layout), key), init_params(gemma(), key)


def test_init_gives_the_same_numbers(initial):
  ours, expected = jax.device_get(initial)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, expected
  )


def test_every_leaf_is_split_as_it_says(initial, layout):
  def check(leaf, shape):
    assert leaf.sharding == shape.sharding
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    expected = shape.sharding.shard_shape(shape.shape)
    assert all(s.data.shape == expected for s in leaf.addressable_shards)

  jax.tree.map(check, initial[0], abstract_params(gemma(layout)))


def test_ways_a_leaf_is_split(initial):
  ways = jax.tree.map(
    lambda x: x.size // x.addressable_shards[0].data.size, initial[0]
  )
  assert ways['embedder']['table'] == 4
  assert ways['final_norm']['scale'] == 1
  block = ways['pairs']['local']
  kernels = jax.tree.leaves([block['attention'], block['mlp']])
  assert kernels == [4] * 7
