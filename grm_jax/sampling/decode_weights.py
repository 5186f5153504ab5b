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

from grm_jax.model import lora
from grm_jax.model.init import abstract_int8, abstract_params, logical_axes
from grm_jax.model.quantization import CONTRACTING_DIMS, quantize_kernel
from grm_jax.model.transformer import Transformer
from grm_jax.sampling.decode_state import DecodeWeights


def place(
  model: Transformer, params: dict, int8: bool = False
) -> tuple[DecodeWeights, float]:
  """Returns weights for decoding with `model`.

  Args:
    model: the network, with the compute and the layout of decoding.
    params: in any dtype and on any layout of the same devices. Adapters are
      merged into their kernels.
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
    functools.partial(_with_sharding, model),
    shapes,
    weight_axes,
    is_leaf=lora.is_weight,
  )


@functools.cache
def _convert_jit(
  model: Transformer, int8: bool
) -> Callable[[dict], DecodeWeights]:
  shardings = jax.tree.map(lambda x: x.sharding, abstract_weights(model, int8))
  convert = functools.partial(_convert, model, int8)
  return jax.jit(convert, out_shardings=shardings)


def _convert(model: Transformer, int8: bool, params: dict) -> DecodeWeights:
  """Unstacks the layers, merges adapters, casts or quantizes the kernels.

  Each layer is converted before it moves: fewer bytes go between devices, and
  no merged stack of layers is in memory.
  """
  convert = functools.partial(
    jax.tree_util.tree_map_with_path,
    functools.partial(_convert_kernel, model, int8),
    is_leaf=lora.is_weight,
  )
  layers = tuple(
    convert(jax.tree.map(lambda x, i=i: x[i], params['pairs'][kind]))
    for i in range(model.config.num_pairs)
    for kind in ('local', 'global')
  )
  return DecodeWeights(
    convert(params['embedder']), layers, convert(params['final_norm'])
  )


def _convert_kernel(model: Transformer, int8: bool, path: tuple, x: Any) -> Any:
  """Converts a kernel; norms are small and are computed in float32."""
  name = path[-1].key
  if name not in CONTRACTING_DIMS:
    return x.astype('float32')
  if not int8:
    return lora.merge(name, x, model.compute.dtype)
  # Without an adapter, an array is quantized as it is.
  kernel = lora.merge(name, x, 'float32') if lora.is_weight(x) else x
  dither = name in lora.TARGETS and lora.has_int8_base(model.adapter)
  return quantize_kernel(name, kernel, dither)


def _with_sharding(
  model: Transformer, path: tuple, weight: Any, axes: tuple
) -> Any:
  """Returns the shape of a weight with the sharding of its logical axes."""
  if lora.is_weight(weight):
    return abstract_int8(model, path[-1].key, weight.shape, axes)
  sharding = model.layout.sharding(axes, weight.shape)
  return jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)


def _is_axes(x: Any) -> bool:
  return isinstance(x, tuple)
