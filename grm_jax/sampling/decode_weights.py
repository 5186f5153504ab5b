"""From training parameters to decoding weights: layers apart, cast, laid out.

Decoding reads every weight once a step, so it wants them where they are used:
in the dtype it computes with (or int8), split over `tensor`, and usually whole
over the other axes (sharding/rules.py, for_decoding). The one-time move is a
single jitted program; its seconds are returned for the log.
"""

import functools
import time

import jax

from grm_jax.model.init import abstract_params, logical_axes
from grm_jax.model.quantization import (
  CONTRACTED,
  QuantizedWeight,
  quantize,
  scale_axes,
)
from grm_jax.model.transformer import Transformer
from grm_jax.sampling.decode import DecodeWeights


def place(
  model: Transformer, params: dict, int8: bool = False
) -> tuple[DecodeWeights, float]:
  """Weights for `model`, whose compute and layout are those of decoding.

  Args:
    model: the network that decodes.
    params: in any dtype and on any layout of the same devices.
    int8: kernels as int8 per output channel, see model/quantization.py.

  Returns:
    The weights, and the seconds that it took; the first time for a model
    these include a compilation.
  """
  begin = time.monotonic()
  names = ('embedder', 'pairs', 'final_norm')
  weights = _program(model, int8)({name: params[name] for name in names})
  jax.block_until_ready(weights)
  return weights, time.monotonic() - begin


def abstract_weights(model: Transformer, int8: bool = False) -> DecodeWeights:
  """What `place` returns, as ShapeDtypeStructs with their shardings.

  Raises:
    UserError: the mesh does not divide a dimension.
  """
  function = functools.partial(_take_apart, model, int8)
  shapes = jax.eval_shape(function, abstract_params(model))
  axes = logical_axes(model)
  pairs = jax.tree.map(lambda x: x[1:], axes['pairs'], is_leaf=_is_names)
  layers = (pairs['local'], pairs['global']) * model.size.num_pairs
  names = DecodeWeights(axes['embedder'], layers, axes['final_norm'])
  return jax.tree_util.tree_map_with_path(
    functools.partial(_at_home, model.layout), shapes, names, is_leaf=_is_int8
  )


@functools.cache
def _program(model, int8):
  homes = jax.tree.map(lambda x: x.sharding, abstract_weights(model, int8))
  function = functools.partial(_take_apart, model, int8)
  return jax.jit(function, out_shardings=homes)


def _take_apart(model, int8, params):
  """Weights of stacked parameters, cast or rounded first: less to move."""
  if int8:
    params = quantize(params)
  else:
    cast = functools.partial(_cast_kernel, model.compute.dtype)
    params = jax.tree_util.tree_map_with_path(cast, params)
  layers = tuple(
    jax.tree.map(lambda x, i=i: x[i], params['pairs'][kind])
    for i in range(model.size.num_pairs)
    for kind in ('local', 'global')
  )
  return DecodeWeights(params['embedder'], layers, params['final_norm'])


def _cast_kernel(dtype, path, x):
  """Norms stay as they are: few bytes, and they are computed in float32."""
  return x.astype(dtype) if path[-1].key in CONTRACTED else x


def _at_home(layout, path, weight, names):
  def shaped(x, names):
    sharding = layout.sharding(names, x.shape)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  if not _is_int8(weight):
    return shaped(weight, names)
  scale = shaped(weight.scale, scale_axes(path[-1].key, names))
  return QuantizedWeight(shaped(weight.values, names), scale)


def _is_int8(x):
  return isinstance(x, QuantizedWeight)


def _is_names(x):
  return isinstance(x, tuple)
