"""Parameters: shapes first, then shardings, then arrays.

No parameter ever exists unsharded. eval_shape gives the shapes, the logical
axes beside each shape give the shardings, and the arrays come from a jitted
init with these output shardings, or from a checkpoint that is restored into
them.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from grm_jax.model.batch import Batch
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


def cast_kernels(params: dict, dtype: DTypeLike) -> dict:
  """Casts the kernels of all layers; the other parameters stay as they are.

  Layers cast kernels to the compute dtype anyway. The table stays, because its
  gradient is summed over chunks in float32 (logprobs.py).

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
