"""The splash kernel, interpreted on CPU, equals the xla backend.

Covers rows with and without generations, the softcap, grouped heads, segments
and shard_map. The arithmetic of a TPU is not tested here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from grm_jax.errors import UserError
from grm_jax.model import logprobs
from grm_jax.model.attention import SequenceLayout, attend
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh, rules
from tests.messages import naming, setting
from tests.model import tiny

XLA = ComputeConfig(query_block=64)
SPLASH = ComputeConfig(attention='splash', interpret=True, splash_block=128)
STATIC = ('window', 'cap', 'compute', 'layout')


@pytest.fixture(scope='module')
def layout():
  """Returns a layout with two devices along every axis."""
  return rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)


def sequence_of(lengths, size, num_generations=0, generation_size=0):
  return SequenceLayout(
    jnp.array(lengths, jnp.int32), size, num_generations, generation_size
  )


def random_arrays(sequence, heads=4, kv_heads=2, head_dim=128):
  """Returns queries, keys, values and the weights of the loss.

  The weights are 0 at the padding of prompts, whose output is not used.
  """
  rng = np.random.default_rng(0)
  s = sequence.prompt_size
  size = s + sequence.num_generations * sequence.generation_size
  count = len(sequence.prompt_lengths)
  query, key, value, weights = (
    rng.standard_normal((count, size, n, head_dim)).astype(np.float32)
    for n in (heads, kv_heads, kv_heads, heads)
  )
  first = s - np.array(sequence.prompt_lengths)
  if sequence.num_generations:
    weights[np.arange(size)[None] < first[:, None]] = 0
  return query * 0.2, key, value, weights


@functools.partial(jax.jit, static_argnames=STATIC)
def run(arrays, sequence, window, cap, compute, layout):
  """Returns (output, gradients of q, k, v) of a weighted sum."""
  *qkv, weights = arrays

  def loss(qkv):
    out = attend(
      *qkv, sequence, window=window, cap=cap, compute=compute, layout=layout
    )
    return jnp.sum(out * weights), jnp.where(weights == 0, 0, out)

  gradients, out = jax.grad(loss, has_aux=True)(qkv)
  return out, gradients


def assert_equal(ours, expected):
  np.testing.assert_allclose(ours[0], expected[0], atol=5e-6)
  # The gradient of the values is never 0; the others are 0 with one key.
  assert np.abs(expected[1][2]).max() > 1
  for x, expected_x in zip(ours[1], expected[1], strict=True):
    np.testing.assert_allclose(x, expected_x, atol=2e-4)


PROMPTS = sequence_of([256], 256)
# Prompts of one token, of all S tokens and between; X is a multiple of 128.
ROWS = sequence_of([1, 201, 256], 256, 3, 128)


# A window of a tile, of one more and one less, of one key, across two tiles,
# of nearly everything, and none; the softcap on and off.
@pytest.mark.parametrize(
  'sequence, window, cap',
  [
    (PROMPTS, 128, 2.0),
    (PROMPTS, 129, None),
    (PROMPTS, 1, 2.0),
    (PROMPTS, 255, None),
    (PROMPTS, None, 2.0),
    # In rows with generations these windows cross the end of the prompt.
    (ROWS, 127, 2.0),
    (ROWS, 129, None),
    (ROWS, 200, 2.0),
    (ROWS, 300, 2.0),
    (ROWS, 1, None),
    (ROWS, None, None),
    (ROWS, None, 2.0),
    # Rows that are not a multiple of the tile, and tiles with parts of several
    # generations.
    (sequence_of([77, 5], 100, 4, 30), None, 2.0),
    (sequence_of([77, 5], 100, 4, 30), 20, 2.0),
    (sequence_of([1], 1, 1, 1), None, 2.0),
    (sequence_of([60], 60, 1, 300), 64, None),
  ],
)
def test_splash_equals_xla(sequence, window, cap):
  arrays = random_arrays(sequence)
  layout = mesh.one_device()
  ours = run(arrays, sequence, window, cap, SPLASH, layout)
  assert_equal(ours, run(arrays, sequence, window, cap, XLA, layout))


@pytest.mark.parametrize('heads, kv_heads', [(1, 1), (3, 3), (6, 2), (8, 1)])
def test_head_ratios(heads, kv_heads):
  sequence = sequence_of([50], 70, 2, 60)
  arrays = random_arrays(sequence, heads, kv_heads, head_dim=256)
  ours, expected = (
    run(arrays, sequence, 80, 2.0, compute, mesh.one_device())
    for compute in (SPLASH, XLA)
  )
  assert_equal(ours, expected)


def test_softcap_affects_the_output():
  arrays = random_arrays(PROMPTS)
  off, on = (
    run(arrays, PROMPTS, None, cap, SPLASH, mesh.one_device())[0]
    for cap in (None, 2.0)
  )
  assert np.abs(off - on).max() > 1e-2


def test_mesh_equals_one_device(layout):
  """Prompts are split over data and fsdp, heads over tensor."""
  sequence = sequence_of([1, 64, 33, 50], 64, 2, 32)
  arrays = random_arrays(sequence)
  expected = run(arrays, sequence, 40, 2.0, SPLASH, mesh.one_device())
  assert_equal(run(arrays, sequence, 40, 2.0, SPLASH, layout), expected)
  assert_equal(run(arrays, sequence, 40, 2.0, XLA, layout), expected)


@pytest.mark.parametrize('window', [None, 50])
def test_packed_texts_equal_xla(layout, window):
  ends = np.array([[10, 90], [64, 128], [127, 128], [1, 2]])
  segments = np.sum(np.arange(128)[None, :, None] >= ends[:, None], axis=-1)
  unpacked = sequence_of([128] * 4, 128)
  packed = unpacked.replace(segment_ids=segments.astype(np.int32))
  arrays = random_arrays(packed)
  expected = run(arrays, packed, window, 2.0, XLA, mesh.one_device())
  assert_equal(run(arrays, packed, window, 2.0, SPLASH, layout), expected)
  unpacked = run(arrays, unpacked, window, 2.0, XLA, mesh.one_device())
  assert np.abs(unpacked[0] - expected[0]).max() > 1e-2


def tiny_gemma(compute, layout=None):
  return tiny.gemma(layout, compute=compute, head_dim=128, window=50)


def gradient_program(remat):
  """Returns the jaxpr of values and gradients as text, without dead code."""
  model = tiny_gemma(dataclasses.replace(SPLASH, remat=remat))
  batch = tiny.batch([70], 128, [[4]], 6)
  args = tiny.params(model), batch, np.ones((1, 1, 6))
  closed = jax.make_jaxpr(functools.partial(logps_and_gradients, model))(*args)
  # Remat leaves it to dead-code elimination to drop what it has saved.
  num_outputs = len(closed.jaxpr.outvars)
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * num_outputs)
  return str(jaxpr)


NUM_LAYERS = 2  # of a pair, which is traced once


@pytest.mark.parametrize(
  ('remat', 'times'),
  [('dots', 1), ('sublayers', 1), ('attention', 1), ('nothing_saveable', 2)],
)
def test_times_that_the_forward_kernel_runs(remat, times):
  """What remat saves of a layer decides whether it runs again."""
  jaxpr = gradient_program(remat)
  assert jaxpr.count('name=splash_mqa_fwd') == times * NUM_LAYERS
  assert jaxpr.count('name=splash_mqa_dkv') == NUM_LAYERS


def test_what_gradients_store():
  """What products read is not computed again for each of their tiles."""
  # Gradients of gate, up, and the outputs of attention and MLP; and the input
  # of the down product, in the forward pass and again in the backward pass.
  count = gradient_program('dots').count('optimization_barrier')
  assert count == 6 * NUM_LAYERS
  model = tiny_gemma(SPLASH)
  batch = tiny.batch([70], 128, [[4]], 6)
  jaxpr = jax.make_jaxpr(model.apply)({'params': tiny.params(model)}, batch)
  assert 'optimization_barrier' not in str(jaxpr)


def test_products_that_are_computed_again():
  count = {
    remat: gradient_program(remat).count('dot_general[')
    for remat in ('dots', 'sublayers', 'attention')
  }
  # Query, key, value, gate and up; the norms after out and down need these two.
  assert count['sublayers'] - count['dots'] == 5 * NUM_LAYERS
  assert count['attention'] - count['sublayers'] == 2 * NUM_LAYERS


@pytest.mark.parametrize('remat', ['none', 'dots'])
def test_model_with_splash_equals_xla(remat):
  splash_compute = dataclasses.replace(SPLASH, remat=remat)
  batch = tiny.batch([70, 128, 1], 128, [[4, 6], [0, 5], [0, 0]], 6)
  params = tiny.params(tiny_gemma(XLA))
  weights = np.random.default_rng(1).standard_normal((3, 2, 6))
  ours, expected = (
    logps_and_gradients(tiny_gemma(compute), params, batch, weights)
    for compute in (splash_compute, XLA)
  )
  tiny.assert_close(ours[0], expected[0], 1e-5)
  tiny.assert_close(ours[1], expected[1], 1e-4)


def logps_and_gradients(model, params, batch, weights):
  def loss(params):
    logps, _ = logprobs.generation_logps(model, params, batch)
    return jnp.sum(logps * weights), logps

  gradients, logps = jax.jit(jax.grad(loss, has_aux=True))(params)
  return logps, gradients


def test_model_on_a_mesh_equals_one_device(layout):
  batch = tiny.batch([100, 128, 1, 5], 128, [[4], [2], [0], [3]], 4)

  def logps(layout):
    model = tiny_gemma(SPLASH, layout)
    run = jax.jit(functools.partial(logprobs.generation_logps, model))
    return run(tiny.params(model), batch)[0]

  np.testing.assert_allclose(logps(layout), logps(mesh.one_device()), atol=1e-5)


@pytest.mark.parametrize('block', [100, 192])
def test_wrong_tile_sizes_are_rejected(block):
  compute = dataclasses.replace(SPLASH, splash_block=block)
  arrays = random_arrays(PROMPTS)
  with pytest.raises(
    UserError, match=naming(*setting('compute.splash_block', block))
  ):
    run(arrays, PROMPTS, None, None, compute, mesh.one_device())


def test_heads_that_the_mesh_does_not_divide(layout):
  sequence = sequence_of([64] * 4, 64)
  arrays = random_arrays(sequence, heads=3, kv_heads=1)
  with pytest.raises(UserError, match=naming('heads', 3, 'config.mesh.tensor')):
    run(arrays, sequence, None, None, SPLASH, layout)
