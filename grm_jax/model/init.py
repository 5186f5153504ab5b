"""Parameters: shapes first, then shardings, then arrays.

No parameter ever exists unsharded: shapes come from eval_shape, shardings
from the logical names beside each shape, arrays from a jitted init whose
outputs have those shardings (or from a checkpoint restored into them).
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer

_NORM_DIMS = 2  # of the scales of layers' norms, [L/2, D]; kernels have more


def abstract_params(model: Transformer) -> dict:
  """The parameter tree as ShapeDtypeStructs with their shardings.

  Raises:
    UserError: the mesh does not divide a dimension, or the rules clash.
  """
  shaped = functools.partial(_shaped, model)
  return jax.tree.map(shaped, _boxed(model), is_leaf=_is_boxed)


def logical_axes(model: Transformer) -> dict:
  """The parameter tree with a tuple of logical names for each array."""
  return jax.tree.map(lambda x: x.names, _boxed(model), is_leaf=_is_boxed)


def init_params(model: Transformer, key: jax.Array) -> dict:
  """Random parameters, each made where it will live."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model))
  return jax.jit(
    lambda key: nn.unbox(_init(model, key)), out_shardings=shardings
  )(key)


def cast_kernels(params: dict, dtype: jnp.dtype) -> dict:
  """The tree with the kernels of layers in a dtype; the rest as it is.

  Layers cast them to the dtype they compute in anyway. The table stays: the
  head adds up its gradient over chunks.
  """
  layers = jax.tree.map(
    lambda x: x.astype(dtype) if x.ndim > _NORM_DIMS else x, params['pairs']
  )
  return {**params, 'pairs': layers}


def _boxed(model):
  """Shapes with their logical names."""
  return jax.eval_shape(functools.partial(_init, model), jax.random.key(0))


def _init(model, key):
  split = model.layout.split
  tokens = jnp.zeros((split('prompts'), split('residual_tokens')), jnp.int32)
  batch = Batch(tokens, jnp.ones(tokens.shape[:1], jnp.int32))
  # Any backend makes the same parameters; splash would want 128 places.
  compute = dataclasses.replace(model.compute, attention='xla')
  return model.clone(compute=compute).init(key, batch)['params']


def _is_boxed(x):
  return isinstance(x, nn.LogicallyPartitioned)


def _shaped(model, box):
  value = box.value
  sharding = model.layout.sharding(box.names, value.shape)
  return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
