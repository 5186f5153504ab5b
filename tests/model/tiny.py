"""Tiny models, parameters and batches for the tests of model and parallel.

The softcaps are tight and the norms spread around their zero, so that losing
either shows in every number.
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


def gemma(layout=None, scalar=False, compute=None, **size):
  """A Gemma of CONFIG with fields of `size` replaced; on one device."""
  size = dataclasses.replace(CONFIG, **size)
  layout = layout or mesh.one_device()
  return Transformer(size, compute or ComputeConfig(), layout, scalar)


def params(model, seed=0):
  """Random parameters without compiling anything, laid out as they should."""
  rng = np.random.default_rng(seed)

  def leaf(shape):
    values = 0.25 * rng.standard_normal(shape.shape)
    return jax.device_put(values.astype(shape.dtype), shape.sharding)

  return jax.tree.map(leaf, abstract_params(model))


def batch(
  lengths, size, own_lengths=None, own_size=0, seed=1, vocab=CONFIG.vocab_size
):
  """Random tokens everywhere, in the padding too.

  Args:
    lengths: [P] true lengths of the prompts.
    size: S.
    own_lengths: [P, R] true lengths of the generations, or None.
    own_size: T.
    seed: of the tokens.
    vocab: tokens are below it.
  """
  rng = np.random.default_rng(seed)
  lengths = jnp.asarray(lengths, jnp.int32)
  prompts = rng.integers(0, vocab, (len(lengths), size))
  prompts = jnp.asarray(prompts, jnp.int32)
  if own_lengths is None:
    return Batch(prompts, lengths)
  own_lengths = jnp.asarray(own_lengths, jnp.int32)
  own = rng.integers(0, vocab, (*own_lengths.shape, own_size))
  return Batch(prompts, lengths, jnp.asarray(own, jnp.int32), own_lengths)


def assert_close(ours, expected, tolerance):
  """Equal trees, each leaf measured by its largest number."""

  def check(our, their):
    scale = np.abs(their).max()
    assert scale > 0
    np.testing.assert_allclose(our / scale, their / scale, atol=tolerance)

  jax.tree.map(check, ours, expected)


def equations(function, *args):
  """All equations of the jaxpr of `function(*args)`, at any depth."""

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      yield equation
      # Bodies of jit, scan, remat and the like.
      for part in jax.tree.leaves(list(equation.params.values())):
        inner = getattr(part, 'jaxpr', part)
        if hasattr(inner, 'eqns'):
          yield from walk(inner)

  return walk(jax.make_jaxpr(function)(*args).jaxpr)


def intermediate_shapes(function, *args):
  """Shapes of all arrays that `function(*args)` makes, at any depth."""
  made = equations(function, *args)
  return [out.aval.shape for equation in made for out in equation.outvars]
