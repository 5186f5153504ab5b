"""Converts training parameters to weights for decoding.

Decoding reads every weight once per step. It wants them in the dtype that it
computes with (or int8), split over `tensor`, and usually replicated over the
other axes (see sharding.rules.decode_rules). The conversion is one jitted
function.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from grm_jax.model.init import abstract_params, logical_axes
from grm_jax.model.quantization import (
  CONTRACTING_DIMS,
  QuantizedWeight,
  quantize,
  scale_axes,
)
from grm_jax.model.transformer import Transformer
from grm_jax.sampling.decode_state import DecodeWeights
from grm_jax.sharding.rules import ShardingLayout


def place(
  model: Transformer, params: dict, int8: bool = False
) -> tuple[DecodeWeights, float]:
  """Returns weights for decoding with `model`.

  Args:
    model: the network, with the compute and the layout of decoding.
    params: in any dtype and on any layout of the same devices.
    int8: quantize kernels to int8 per output channel, see
      model/quantization.py.

  Returns:
    The weights, and the time in seconds; for the first call with a model it
    includes a compilation.
  """
  begin = time.monotonic()
  # Without the scalar head, if there is one.
  names = ('embedder', 'pairs', 'final_norm')
  weights = _convert_jit(model, int8)({name: params[name] for name in names})
  jax.block_until_ready(weights)
  return weights, time.monotonic() - begin


def abstract_weights(model: Transformer, int8: bool = False) -> DecodeWeights:
  """Returns the result of `place` as ShapeDtypeStructs with shardings.

  Raises:
    UserError: the mesh does not divide a dimension.
  """
  convert = functools.partial(_convert, model, int8)
  shapes = jax.eval_shape(convert, abstract_params(model))
  axes = logical_axes(model)
  # Layers are no longer stacked: drop the leading axis of the pairs.
  pairs = jax.tree.map(lambda x: x[1:], axes['pairs'], is_leaf=_is_axes)
  layers = (pairs['local'], pairs['global']) * model.config.num_pairs
  weight_axes = DecodeWeights(axes['embedder'], layers, axes['final_norm'])
  return jax.tree_util.tree_map_with_path(
    functools.partial(_with_sharding, model.layout),
    shapes,
    weight_axes,
    is_leaf=_is_int8,
  )


@functools.cache
def _convert_jit(
  model: Transformer, int8: bool
) -> Callable[[dict], DecodeWeights]:
  shardings = jax.tree.map(lambda x: x.sharding, abstract_weights(model, int8))
  convert = functools.partial(_convert, model, int8)
  return jax.jit(convert, out_shardings=shardings)


def _convert(model: Transformer, int8: bool, params: dict) -> DecodeWeights:
  """Casts or quantizes the parameters and unstacks the layers.

  The cast comes first, so that fewer bytes move between devices.
  """
  if int8:
    params = quantize(params)
  else:
    cast = functools.partial(_cast_kernel, model.compute.dtype)
    params = jax.tree_util.tree_map_with_path(cast, params)
  layers = tuple(
    jax.tree.map(lambda x, i=i: x[i], params['pairs'][kind])
    for i in range(model.config.num_pairs)
    for kind in ('local', 'global')
  )
  return DecodeWeights(params['embedder'], layers, params['final_norm'])


def _cast_kernel(dtype: str, path: tuple, x: jax.Array) -> jax.Array:
  """Casts kernels only: norms are small and are computed in float32."""
  return x.astype(dtype) if path[-1].key in CONTRACTING_DIMS else x


def _with_sharding(
  layout: ShardingLayout, path: tuple, weight: Any, axes: tuple
) -> Any:
  """Returns the shape of a weight with the sharding of its logical axes."""

  def abstract(x, axes):
    sharding = layout.sharding(axes, x.shape)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  if not _is_int8(weight):
    return abstract(weight, axes)
  scale = abstract(weight.scale, scale_axes(path[-1].key, axes))
  return QuantizedWeight(abstract(weight.values, axes), scale)


def _is_int8(x: Any) -> bool:
  return isinstance(x, QuantizedWeight)


def _is_axes(x: Any) -> bool:
  return isinstance(x, tuple)
