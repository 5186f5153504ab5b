"""The splash kernel, interpreted on CPU, equals the xla backend.

Guards the mask (its left side counts without the token itself), the softcap,
grouped heads and shard_map. The arithmetic of a TPU is not tested here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.model import logprobs, splash
from grm_jax.model.attention import SequenceLayout, attend
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh, rules
from tests.messages import naming, setting
from tests.model import tiny

XLA = ComputeConfig(query_block=64)
SPLASH = ComputeConfig(attention='splash', interpret=True, splash_block=128)
PLACES = 256


@pytest.fixture(scope='module')
def layout():
  """Two ways along every axis."""
  return rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)


def random_arrays(count, heads=4, kv_heads=2, head_dim=128, places=PLACES):
  """Queries, keys, values and the weights of the loss."""
  rng = np.random.default_rng(0)
  shapes = [
    (count, places, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)
  ]
  query, key, value, weights = (
    rng.standard_normal(shape).astype(np.float32) for shape in shapes
  )
  return query * 0.2, key, value, weights


@functools.partial(
  jax.jit, static_argnames=('window', 'cap', 'compute', 'layout')
)
def run(arrays, window, cap, compute, layout, segments=None):
  """(output, gradients of q, k, v) of a random weighted sum."""
  *qkv, weights = arrays
  lengths = jnp.full(weights.shape[:1], weights.shape[1])
  rows = SequenceLayout(lengths, weights.shape[1], segment_ids=segments)

  def loss(qkv):
    out = attend(
      *qkv, rows, window=window, cap=cap, compute=compute, layout=layout
    )
    return jnp.sum(out * weights), out

  gradients, out = jax.grad(loss, has_aux=True)(qkv)
  return out, gradients


def assert_equal(ours, expected):
  np.testing.assert_allclose(ours[0], expected[0], atol=2e-6)
  # The value's gradient never vanishes; the others do with one key.
  assert np.abs(expected[1][2]).max() > 1
  for our, theirs in zip(ours[1], expected[1], strict=True):
    np.testing.assert_allclose(our, theirs, atol=2e-4)


# A window of a tile, of one more and one less, of one key, across two tiles,
# of nearly everything, and none; the softcap on and off.
@pytest.mark.parametrize(
  'window, cap',
  [
    (128, 2.0),
    (129, None),
    (127, 2.0),
    (1, 2.0),
    (200, 2.0),
    (255, None),
    (None, 2.0),
    (None, None),
  ],
)
def test_equals_xla(window, cap):
  arrays = random_arrays(1)
  one = mesh.one_device()
  ours = run(arrays, window, cap, SPLASH, one)
  assert_equal(ours, run(arrays, window, cap, XLA, one))


def test_softcap_takes_effect():
  arrays = random_arrays(1)
  off, on = (
    run(arrays, None, cap, SPLASH, mesh.one_device())[0] for cap in (None, 2.0)
  )
  assert np.abs(off - on).max() > 1e-2


def test_mesh_equals_one_device(layout):
  """Prompts over data and fsdp, heads over tensor: one group a device."""
  arrays = random_arrays(4, places=128)
  expected = run(arrays, 100, 2.0, SPLASH, mesh.one_device())
  assert_equal(run(arrays, 100, 2.0, SPLASH, layout), expected)


@pytest.mark.parametrize('window', [None, 50])
def test_packed_texts_equal_xla(layout, window):
  arrays = random_arrays(4, places=128)
  ends = np.array([[10, 90], [64, 128], [127, 128], [1, 2]])
  segments = np.sum(np.arange(128)[None, :, None] >= ends[:, None], axis=-1)
  segments = segments.astype(np.int32)
  expected = run(arrays, window, 2.0, XLA, mesh.one_device(), segments)
  assert_equal(run(arrays, window, 2.0, SPLASH, layout, segments), expected)
  apart = run(arrays, window, 2.0, XLA, mesh.one_device())
  assert np.abs(apart[0] - expected[0]).max() > 1e-2


def tiny_gemma(compute, layout=None):
  return tiny.gemma(layout, compute=compute, head_dim=128, window=50)


def test_gemma_equals_xla():
  """Prompts by splash, their generations still exact."""
  batch = tiny.batch([70, 128], 128, [[4, 6], [0, 5]], 6)
  params = tiny.params(tiny_gemma(XLA))
  weights = np.random.default_rng(1).standard_normal((2, 2, 6))
  ours, expected = (
    logps_and_gradients(tiny_gemma(compute), params, batch, weights)
    for compute in (SPLASH, XLA)
  )
  tiny.assert_close(ours[0], expected[0], 1e-5)
  tiny.assert_close(ours[1], expected[1], 1e-4)


def logps_and_gradients(model, params, batch, weights):
  def loss(params):
    logps, _ = logprobs.generation_logps(model, params, batch)
    return jnp.sum(logps * weights), logps

  gradients, logps = jax.jit(jax.grad(loss, has_aux=True))(params)
  return logps, gradients


def test_gemma_on_a_mesh_equals_one_device(layout):
  batch = tiny.batch([100, 128, 1, 5], 128, [[4], [2], [0], [3]], 4)

  def logps(layout):
    model = tiny_gemma(SPLASH, layout)
    run = jax.jit(functools.partial(logprobs.generation_logps, model))
    return run(tiny.params(model), batch)[0]

  np.testing.assert_allclose(logps(layout), logps(mesh.one_device()), atol=1e-5)


@pytest.mark.parametrize(
  'places, block, used',
  [
    (192, 128, 128),
    (100, 128, 100),
    (384, 192, 192),
  ],
)
def test_bad_sizes(places, block, used):
  compute = ComputeConfig(
    attention='splash', interpret=True, splash_block=block
  )
  arrays = random_arrays(1, places=places)
  words = places, *setting('compute.splash_block', used)
  with pytest.raises(UserError, match=naming(*words)):
    run(arrays, None, None, compute, mesh.one_device())


def test_heads_the_mesh_does_not_split(layout):
  arrays = random_arrays(4, heads=3, kv_heads=1, places=128)
  with pytest.raises(UserError, match=naming('heads', 3, 'config.mesh.tensor')):
    run(arrays, None, None, SPLASH, layout)


@pytest.mark.parametrize(
  'size, block, window',
  [
    (1024, 512, None),
    (2048, 512, 4096),  # a window that is longer than the prompt
    (1024, 128, 1),
    (1024, 128, 2),
    (1024, 128, 129),
    (1024, 128, 130),
    (1024, 256, 128),
  ],
)
def test_tiles_that_are_computed(size, block, window):
  """Counted in the whole mask, which no kernel ever makes."""
  apart = np.arange(size)[:, None] - np.arange(size)[None]
  seen = (apart >= 0) & (apart < (window or size))
  tiles = seen.reshape(size // block, block, size // block, block)
  expected = int(tiles.any(axis=(1, 3)).sum())
  assert splash.num_tiles(size, block, window) == expected
