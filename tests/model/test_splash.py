"""The splash kernel, interpreted on CPU, equals the xla backend.

Covers the mask (its left side does not count the token itself), the softcap,
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
PROMPT_SIZE = 256


@pytest.fixture(scope='module')
def layout():
  """Returns a layout with two devices along every axis."""
  return rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)


def random_arrays(count, heads=4, kv_heads=2, head_dim=128, size=PROMPT_SIZE):
  """Returns queries, keys, values and the weights of the loss."""
  rng = np.random.default_rng(0)
  shapes = [
    (count, size, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)
  ]
  query, key, value, weights = (
    rng.standard_normal(shape).astype(np.float32) for shape in shapes
  )
  return query * 0.2, key, value, weights


@functools.partial(
  jax.jit, static_argnames=('window', 'cap', 'compute', 'layout')
)
def run(arrays, window, cap, compute, layout, segments=None):
  """Returns (output, gradients of q, k, v) of a weighted sum."""
  *qkv, weights = arrays
  lengths = jnp.full(weights.shape[:1], weights.shape[1])
  sequence = SequenceLayout(lengths, weights.shape[1], segment_ids=segments)

  def loss(qkv):
    out = attend(
      *qkv, sequence, window=window, cap=cap, compute=compute, layout=layout
    )
    return jnp.sum(out * weights), out

  gradients, out = jax.grad(loss, has_aux=True)(qkv)
  return out, gradients


def assert_equal(ours, expected):
  np.testing.assert_allclose(ours[0], expected[0], atol=2e-6)
  # The gradient of the values is never 0; the others are 0 with one key.
  assert np.abs(expected[1][2]).max() > 1
  for x, expected_x in zip(ours[1], expected[1], strict=True):
    np.testing.assert_allclose(x, expected_x, atol=2e-4)


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
def test_splash_equals_xla(window, cap):
  arrays = random_arrays(1)
  layout = mesh.one_device()
  ours = run(arrays, window, cap, SPLASH, layout)
  assert_equal(ours, run(arrays, window, cap, XLA, layout))


def test_softcap_affects_the_output():
  arrays = random_arrays(1)
  off, on = (
    run(arrays, None, cap, SPLASH, mesh.one_device())[0] for cap in (None, 2.0)
  )
  assert np.abs(off - on).max() > 1e-2


def test_mesh_equals_one_device(layout):
  """Prompts are split over data and fsdp, heads over tensor."""
  arrays = random_arrays(4, size=128)
  expected = run(arrays, 100, 2.0, SPLASH, mesh.one_device())
  assert_equal(run(arrays, 100, 2.0, SPLASH, layout), expected)


@pytest.mark.parametrize('window', [None, 50])
def test_packed_texts_equal_xla(layout, window):
  arrays = random_arrays(4, size=128)
  ends = np.array([[10, 90], [64, 128], [127, 128], [1, 2]])
  segments = np.sum(np.arange(128)[None, :, None] >= ends[:, None], axis=-1)
  segments = segments.astype(np.int32)
  expected = run(arrays, window, 2.0, XLA, mesh.one_device(), segments)
  assert_equal(run(arrays, window, 2.0, SPLASH, layout, segments), expected)
  unpacked = run(arrays, window, 2.0, XLA, mesh.one_device())
  assert np.abs(unpacked[0] - expected[0]).max() > 1e-2


def tiny_gemma(compute, layout=None):
  return tiny.gemma(layout, compute=compute, head_dim=128, window=50)


def test_model_with_splash_equals_xla():
  """Splash computes the prompts, xla their generations."""
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


def test_model_on_a_mesh_equals_one_device(layout):
  batch = tiny.batch([100, 128, 1, 5], 128, [[4], [2], [0], [3]], 4)

  def logps(layout):
    model = tiny_gemma(SPLASH, layout)
    run = jax.jit(functools.partial(logprobs.generation_logps, model))
    return run(tiny.params(model), batch)[0]

  np.testing.assert_allclose(logps(layout), logps(mesh.one_device()), atol=1e-5)


@pytest.mark.parametrize(
  'size, block, used',
  [
    (192, 128, 128),
    (100, 128, 100),
    (384, 192, 192),
  ],
)
def test_wrong_tile_sizes_are_rejected(size, block, used):
  compute = ComputeConfig(
    attention='splash', interpret=True, splash_block=block
  )
  arrays = random_arrays(1, size=size)
  words = size, *setting('compute.splash_block', used)
  with pytest.raises(UserError, match=naming(*words)):
    run(arrays, None, None, compute, mesh.one_device())


def test_heads_that_the_mesh_does_not_divide(layout):
  arrays = random_arrays(4, heads=3, kv_heads=1, size=128)
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
def test_num_tiles(size, block, window):
  """Equals the count in the full mask, which no kernel materializes."""
  distance = np.arange(size)[:, None] - np.arange(size)[None]
  visible = (distance >= 0) & (distance < (window or size))
  tiles = visible.reshape(size // block, block, size // block, block)
  expected = int(tiles.any(axis=(1, 3)).sum())
  assert splash.num_tiles(size, block, window) == expected
