"""Parameters: shapes first, then shardings, then arrays.

No parameter ever exists unsharded. eval_shape gives the shapes, the logical
axes beside each shape give the shardings, and the arrays come from a jitted
init with these output shardings, or from a checkpoint that is restored into
them.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from grm_jax.model import lora
from grm_jax.model.batch import Batch
from grm_jax.model.quantization import QuantizedWeight, scale_axes
from grm_jax.model.transformer import Transformer
from grm_jax.sharding.rules import HOST_MEMORY

_NORM_RANK = 2  # scales of layer norms are [L/2, D]; kernels have a higher rank


def abstract_params(model: Transformer) -> dict:
  """Returns the parameter tree as ShapeDtypeStructs with shardings.

  Args:
    model: the network.

  Raises:
    UserError: the mesh does not divide a dimension, or rules contradict.
  """

  def abstract(box):
    """Returns the shape, dtype and sharding of a boxed parameter."""
    value = box.value
    sharding = model.layout.sharding(box.names, value.shape)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

  return jax.tree.map(abstract, _boxed_shapes(model), is_leaf=_is_boxed)


def logical_axes(model: Transformer) -> dict:
  """Returns the parameter tree with a tuple of logical names per array."""
  return jax.tree.map(
    lambda box: box.names, _boxed_shapes(model), is_leaf=_is_boxed
  )


def init_params(model: Transformer, key: jax.Array) -> dict:
  """Returns random parameters, each created on the devices that hold it."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_params(model))
  return jax.jit(
    lambda key: nn.unbox(_init(model, key)), out_shardings=shardings
  )(key)


def abstract_trained(model: Transformer) -> dict:
  """Returns the trained parameters as ShapeDtypeStructs with shardings.

  Without an adapter these are all parameters. With one, they are its factors
  and the scalar head.
  """
  params = abstract_params(model)
  if model.adapter is None:
    return params
  axes = logical_axes(model)['pairs']
  trained = {'pairs': _factors(model, params['pairs'], axes)}
  if model.scalar:
    trained['value_head'] = params['value_head']
  return trained


def abstract_frozen(model: Transformer) -> dict | None:
  """Returns the frozen parameters of a model with an adapter, abstract.

  With adapter.base_dtype int8, kernels of layers are QuantizedWeights; other
  parameters are bfloat16, also the embedding table, which the logits need.
  """
  if model.adapter is None:
    return None
  dtype = model.adapter.base_dtype
  is_int8 = dtype == 'int8'

  def frozen(path, value, axes):
    """Returns a parameter in the dtype of the base."""
    name = path[-1].key
    cast = jax.ShapeDtypeStruct(
      value.shape, 'bfloat16' if is_int8 else dtype, sharding=value.sharding
    )
    if not is_int8 or name not in lora.TARGETS:
      return cast
    return abstract_int8(model, name, value.shape, axes)

  base = model.clone(scalar=False)
  return jax.tree_util.tree_map_with_path(
    frozen, abstract_params(base), logical_axes(base)
  )


def abstract_int8(
  model: Transformer, name: str, shape: tuple[int, ...], axes: tuple
) -> QuantizedWeight:
  """Returns an int8 kernel as ShapeDtypeStructs with shardings.

  Args:
    model: for its layout.
    name: the kernel's name.
    shape: its shape.
    axes: the logical name of each dimension.
  """

  def abstract(shape, dtype, axes):
    sharding = model.layout.sharding(axes, shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  # ShapeDtypeStructs stand for arrays here.
  values: Any = abstract(shape, jnp.int8, axes)
  scale: Any = abstract(
    scale_axes(name, shape), jnp.float32, scale_axes(name, axes)
  )
  return QuantizedWeight(values, scale)


def init_adapter(model: Transformer, key: jax.Array) -> dict:
  """Returns the factors of a new adapter, which changes no kernel yet.

  Args:
    model: a model with an adapter.
    key: random key; the result does not depend on the mesh.
  """
  abstract = {'pairs': abstract_trained(model)['pairs']}
  leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)

  def init(key):
    """Returns the factors, each with a key of its own."""
    return structure.unflatten(
      lora.init_factor(
        *(x.key for x in path[-2:]), leaf.shape, jax.random.fold_in(key, i)
      ).astype(leaf.dtype)
      for i, (path, leaf) in enumerate(leaves)
    )

  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(init, out_shardings=shardings)(key)


def _factors(model, params, axes):
  """Returns the adapters of one branch of the parameters, abstract."""
  result = {}
  for name, value in params.items():
    if isinstance(value, dict):
      result[name] = _factors(model, value, axes[name])
    elif name in model.adapter.targets:
      shapes = lora.factors(name, value.shape, model.adapter.rank)
      names = lora.factors(name, axes[name], lora.RANK)
      result[name] = {
        key: jax.ShapeDtypeStruct(
          shape, value.dtype, sharding=model.layout.sharding(x, shape)
        )
        for key, shape, x in zip('ab', shapes, names, strict=True)
      }
  return {name: x for name, x in result.items() if x}


def cast_kernels(params: dict, dtype: DTypeLike) -> dict:
  """Casts the kernels of all layers; the other parameters stay as they are.

  Layers cast kernels to the compute dtype anyway.

  Args:
    params: the parameter tree.
    dtype: the compute dtype.
  """
  layers = jax.tree.map(
    lambda x: x.astype(dtype) if x.ndim > _NORM_RANK else x, params['pairs']
  )
  return {**params, 'pairs': layers}


def parameter_overview(params: dict) -> str:
  """Formats a table of all parameters, to be logged at the start of a run.

  Args:
    params: a tree of arrays, or of ShapeDtypeStructs with shardings (see
      `abstract_params`).

  Returns:
    One line per array: name, shape, dtype, the mesh axes that split each
    dimension ('-' for none), bytes of the whole array and bytes per device. The
    last line has the totals.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  header = 'name', 'shape', 'dtype', 'sharding', 'bytes', 'bytes per device'
  rows = [header, *(_overview_row(path, x) for path, x in leaves)]
  arrays = [x for _, x in leaves]
  rows.append(
    (
      'total',
      f'{sum(math.prod(x.shape) for x in arrays):,}',
      '',
      '',
      _format_bytes(sum(map(_num_bytes, arrays))),
      _format_bytes(sum(map(_num_device_bytes, arrays))),
    )
  )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      # Text columns are left-aligned, the two columns of bytes right-aligned.
      cell.ljust(width) if i < 4 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )


def _overview_row(path, x):
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  return (
    name,
    str(tuple(x.shape)),
    jnp.dtype(x.dtype).name,
    _format_sharding(x),
    _format_bytes(_num_bytes(x)),
    _format_bytes(_num_device_bytes(x)),
  )


def _format_sharding(x):
  """Returns the mesh axes of each dimension, as in '(-, fsdp, tensor)'."""
  sharding = getattr(x, 'sharding', None)
  spec = tuple(getattr(sharding, 'spec', ()))
  spec += (None,) * (len(x.shape) - len(spec))
  axes = ['+'.join(a) if isinstance(a, tuple) else a or '-' for a in spec]
  on_host = getattr(sharding, 'memory_kind', None) == HOST_MEMORY
  return f'({", ".join(axes)})' + (' on host' if on_host else '')


def _num_bytes(x):
  return math.prod(x.shape) * jnp.dtype(x.dtype).itemsize


def _num_device_bytes(x):
  """Returns the bytes of `x` on each device that holds a shard."""
  sharding = getattr(x, 'sharding', None)
  shape = sharding.shard_shape(tuple(x.shape)) if sharding else x.shape
  return math.prod(shape) * jnp.dtype(x.dtype).itemsize


def _format_bytes(count):
  for unit in ('B', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.4g} {unit}'
    count /= 1024
  return f'{count:,.2f} GiB'


@functools.lru_cache(maxsize=16)
def _boxed_shapes(model):
  """Returns the parameter tree as shapes boxed with their logical names.

  A run needs it several times, and tracing a model takes a quarter of a second.
  """
  return jax.eval_shape(functools.partial(_init, model), jax.random.key(0))


def _init(model, key):
  # The smallest batch that the mesh splits evenly; values do not matter.
  num_shards = model.layout.num_shards
  shape = num_shards('prompts'), num_shards('residual_tokens')
  batch = Batch(jnp.zeros(shape, jnp.int32), jnp.ones(shape[:1], jnp.int32))
  # The backend does not change parameters, and splash needs longer prompts.
  compute = dataclasses.replace(model.compute, attention='xla')
  return model.clone(compute=compute).init(key, batch)['params']


def _is_boxed(x):
  return isinstance(x, nn.LogicallyPartitioned)
