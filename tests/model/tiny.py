"""Tiny models, parameters and batches for tests.

The softcaps are tight and the norm scales are far from zero, so a lost softcap
or norm changes every number.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import abstract_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

CONFIG = ModelConfig(
  num_layers=4,
  width=32,
  mlp_width=48,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  query_pre_attn_scalar=5,
  vocab_size=250,
  window=6,
  attn_softcap=1.5,
  final_softcap=3.0,
)


def gemma(layout=None, scalar=False, compute=None, **fields):
  """Returns a model of CONFIG with `fields` replaced; default: one device."""
  config = dataclasses.replace(CONFIG, **fields)
  layout = layout or mesh.one_device()
  return Transformer(config, compute or ComputeConfig(), layout, scalar)


def params(model, seed=0):
  """Returns random parameters in their shardings, without compiling."""
  rng = np.random.default_rng(seed)

  def leaf(shape):
    values = 0.25 * rng.standard_normal(shape.shape)
    return jax.device_put(values.astype(shape.dtype), shape.sharding)

  return jax.tree.map(leaf, abstract_params(model))


def batch(
  prompt_lengths,
  prompt_size,
  generation_lengths=None,
  generation_size=0,
  seed=1,
  vocab_size=CONFIG.vocab_size,
):
  """Returns a batch of random tokens, also in the padding.

  Args:
    prompt_lengths: [P], true lengths.
    prompt_size: S.
    generation_lengths: [P, R], true lengths, or None for prompts alone.
    generation_size: T.
    seed: seed of the tokens.
    vocab_size: tokens are below it.
  """
  rng = np.random.default_rng(seed)
  prompt_lengths = jnp.asarray(prompt_lengths, jnp.int32)
  shape = (len(prompt_lengths), prompt_size)
  prompts = jnp.asarray(rng.integers(0, vocab_size, shape), jnp.int32)
  if generation_lengths is None:
    return Batch(prompts, prompt_lengths)
  generation_lengths = jnp.asarray(generation_lengths, jnp.int32)
  shape = (*generation_lengths.shape, generation_size)
  generations = jnp.asarray(rng.integers(0, vocab_size, shape), jnp.int32)
  return Batch(prompts, prompt_lengths, generations, generation_lengths)


def assert_close(ours, expected, tolerance):
  """Asserts that trees are equal, relative to each leaf's largest number."""

  def check(x, expected_x):
    scale = np.abs(expected_x).max()
    assert scale > 0
    np.testing.assert_allclose(x / scale, expected_x / scale, atol=tolerance)

  jax.tree.map(check, ours, expected)


def equations(function, *args):
  """Yields all equations of the jaxpr of `function(*args)`, at any depth."""

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      yield equation
      # Bodies of jit, scan, remat and similar.
      for part in jax.tree.leaves(list(equation.params.values())):
        inner = getattr(part, 'jaxpr', part)
        if hasattr(inner, 'eqns'):
          yield from walk(inner)

  return walk(jax.make_jaxpr(function)(*args).jaxpr)


def intermediate_shapes(function, *args):
  """Returns the shapes of all intermediate arrays of `function(*args)`."""
  return [
    out.aval.shape
    for equation in equations(function, *args)
    for out in equation.outvars
  ]
