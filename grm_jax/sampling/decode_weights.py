"""Converts training parameters to weights for decoding.

Decoding reads every weight once per step. It wants them in the dtype that it
computes with (or int8), split over `tensor`, and usually replicated over the
other axes (see sharding.rules.decode_rules). Layers are no longer stacked.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from grm_jax.model import lora
from grm_jax.model.init import (
  abstract_frozen,
  abstract_int8,
  abstract_params,
  abstract_trained,
  logical_axes,
)
from grm_jax.model.lora import LoraWeight
from grm_jax.model.quantization import (
  CONTRACTING_DIMS,
  QuantizedWeight,
  quantize_kernel,
)
from grm_jax.model.transformer import Transformer
from grm_jax.sampling.decode_state import DecodeWeights

Path = tuple[str, ...]


def place(
  model: Transformer, params: dict, int8: bool = False
) -> tuple[DecodeWeights, float]:
  """Returns weights for decoding with `model`.

  Args:
    model: the network, with the compute and the layout of decoding.
    params: in any dtype and on any layout of the same devices. Adapters are
      merged into their kernels, except if both are int8: a change of less than
      half a step would be lost, so that the adapter stays beside its kernel.
    int8: quantize kernels to int8 per output channel, see
      model/quantization.py.

  Returns:
    The weights, and the time in seconds; for the first call with a model it
    includes a compilation.
  """
  begin = time.monotonic()
  convert = converter(model, int8)
  weights = join(
    jax.tree_util.tree_map_with_path(
      lambda path, x: convert(tuple(key.key for key in path), x),
      params,
      is_leaf=lora.is_weight,
    )
  )
  jax.block_until_ready(weights)
  return weights, time.monotonic() - begin


def converter(
  model: Transformer, int8: bool = False
) -> Callable[[Path, Any], Any]:
  """Returns a function: (path of a parameter, its value) -> weights.

  The result for a stack of layers is a tuple of the layers' weights, and None
  for a scalar head. `join` makes DecodeWeights of a tree of results.

  Args:
    model: see `place`.
    int8: see `place`.
  """

  def convert(path: Path, x: Any) -> Any:
    """Returns the weights of a parameter."""
    if path[0] not in ('embedder', 'pairs', 'final_norm'):
      return None
    is_stack = path[0] == 'pairs'
    # Both kinds of layers have the same shapes: they share a program.
    names = path[2:] if is_stack else path[1:]
    return _convert_jit(model, int8, is_stack, names)(x)

  return convert


def join(tree: dict) -> DecodeWeights:
  """Returns the weights in a tree of results of a `converter`."""
  kinds = [tree['pairs']['local'], tree['pairs']['global']]
  (num_pairs,) = {len(x) for x in jax.tree.leaves(kinds, is_leaf=_is_tuple)}
  layers = tuple(
    jax.tree.map(lambda x, i=i: x[i], kind, is_leaf=_is_tuple)
    for i in range(num_pairs)
    for kind in kinds
  )
  return DecodeWeights(tree['embedder'], layers, tree['final_norm'])


@functools.cache
def abstract_weights(model: Transformer, int8: bool = False) -> DecodeWeights:
  """Returns the result of `place` as ShapeDtypeStructs with shardings.

  Raises:
    UserError: the mesh does not divide a dimension.
  """

  def convert(path, x):
    """Returns the weights of a parameter."""
    return _convert(model, int8, path[0].key == 'pairs', path[-1].key, x)

  shapes = jax.eval_shape(
    lambda params: join(
      jax.tree_util.tree_map_with_path(convert, params, is_leaf=lora.is_weight)
    ),
    _abstract_params(model.clone(scalar=False), int8),
  )
  axes = logical_axes(model)
  # Layers are no longer stacked: drop the leading axis of the pairs.
  pairs = jax.tree.map(lambda x: x[1:], axes['pairs'], is_leaf=_is_tuple)
  layers = (pairs['local'], pairs['global']) * model.config.num_pairs
  weight_axes = DecodeWeights(axes['embedder'], layers, axes['final_norm'])
  return jax.tree_util.tree_map_with_path(
    functools.partial(_with_sharding, model),
    shapes,
    weight_axes,
    is_leaf=lora.is_weight,
  )


def _abstract_params(model: Transformer, int8: bool) -> dict:
  if int8 and lora.has_int8_base(model.adapter):
    frozen, trained = abstract_frozen(model), abstract_trained(model)
    return lora.attach(model.adapter, frozen, trained)
  return abstract_params(model)


@functools.cache
def _convert_jit(
  model: Transformer, int8: bool, is_stack: bool, path: Path
) -> Callable[[Any], Any]:
  """Returns the conversion of a parameter.

  Args:
    model: see `place`.
    int8: see `place`.
    is_stack: whether the parameter is a stack of layers.
    path: its path in a layer, in the embedder or in the final norm.
  """
  weights = abstract_weights(model, int8)
  tree: Any = weights.layers[0]
  if not is_stack:
    tree = weights.embedder | weights.final_norm
  for name in path:
    tree = tree[name]
  shardings = jax.tree.map(lambda x: x.sharding, tree)
  if is_stack:
    shardings = (shardings,) * model.config.num_pairs
  convert = functools.partial(_convert, model, int8, is_stack, path[-1])
  return jax.jit(convert, out_shardings=shardings)


def _convert(
  model: Transformer, int8: bool, is_stack: bool, name: str, x: Any
) -> Any:
  """Unstacks layers, merges adapters, casts or quantizes kernels.

  Each layer is converted before it moves: fewer bytes go between devices, and
  no merged stack of layers is in memory.
  """
  if not is_stack:
    return _convert_one(model, int8, name, x)
  layers = [
    jax.tree.map(lambda y, i=i: y[i], x) for i in range(model.config.num_pairs)
  ]
  return tuple(_convert_one(model, int8, name, layer) for layer in layers)


def _convert_one(model: Transformer, int8: bool, name: str, x: Any) -> Any:
  """Converts a kernel; norms are small and are computed in float32."""
  if name not in CONTRACTING_DIMS:
    return x.astype('float32')
  if not int8:
    return lora.merge(name, x, model.compute.dtype)
  if isinstance(x, LoraWeight) and isinstance(x.base, QuantizedWeight):
    a, b = x.a.astype(model.compute.dtype), x.b.astype(model.compute.dtype)
    return LoraWeight(x.base, a, b, x.scale)
  # Without an adapter, an array is quantized as it is.
  return quantize_kernel(
    name, lora.merge(name, x, 'float32') if lora.is_weight(x) else x
  )


def _with_sharding(
  model: Transformer, path: tuple, weight: Any, axes: tuple
) -> Any:
  """Returns the shape of a weight with the sharding of its logical axes."""
  name = path[-1].key
  if isinstance(weight, LoraWeight):
    a, b = lora.factors(name, axes, lora.RANK)
    return LoraWeight(
      _with_sharding(model, path, weight.base, axes),
      _with_sharding(model, path, weight.a, a),
      _with_sharding(model, path, weight.b, b),
      weight.scale,
    )
  if isinstance(weight, QuantizedWeight):
    return abstract_int8(model, name, weight.shape, axes)
  sharding = model.layout.sharding(axes, weight.shape)
  return jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)


def _is_tuple(x: Any) -> bool:
  return isinstance(x, tuple)
