"""Weight-only int8 for decoding: symmetric, one scale per output channel.

A decode step reads every weight once and computes little with it, so its time
is the weights' bytes. Here kernels and the table rest as int8 with a float32
scale for each of their outputs; activations stay as they are. The scale is
the same along every contracted dimension, so it leaves the sum:

  x @ (values * scale) = (x @ values) * scale

and no kernel is ever written out in floats: values in -127..127 are exact in
bfloat16 and turn into it on their way into the product. The scheme is the
per-channel symmetric one of Krishnamoorthi 2018 (arXiv 1806.08342, 3.1);
without -128 the grid is even around zero.

Norms and the scalar head stay in floats: next to no bytes.

Letters: see each caller. Parameters and their names: gemma.py.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.sharding.rules import ShardingLayout

# The dimensions that are summed over, from the end: one layer's kernels and
# stacks of them have the same ones. The table is a kernel of the head.
CONTRACTED = {
  'query': (-3,),  # [D, N, H]
  'key': (-3,),  # [D, K, H]
  'value': (-3,),  # [D, K, H]
  'out': (-3, -2),  # [N, H, D]
  'gate': (-2,),  # [D, F]
  'up': (-2,),  # [D, F]
  'down': (-2,),  # [F, D]
  'table': (-1,),  # [V, D]
}


@struct.dataclass
class QuantizedWeight:
  """A kernel as values * scale; stands where the kernel's array would.

  Attributes:
    values: int8, the kernel's shape. First, because Linen checks the shape of
      a parameter's first leaf.
    scale: float32, the kernel's dimensions that are not contracted.
  """

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """The kernel's."""
    return self.values.shape


Weight = jax.Array | QuantizedWeight


def quantize(params: dict) -> dict:
  """Parameters with every kernel and table as Int8, rounded to nearest.

  An element is off by at most half its channel's scale, which is the
  channel's largest magnitude / 127; a channel of zeros stays zeros.

  Args:
    params: a whole tree, or the part of one layer or of the embedder; arrays
      in float32 or bfloat16, layers stacked or not.

  Raises:
    ValueError: a kernel that is Int8 already.
  """

  def leaf(path, x):
    name = path[-1].key
    if isinstance(x, QuantizedWeight):
      raise ValueError(f'{jax.tree_util.keystr(path)} is int8 already')
    return _round(x, CONTRACTED[name]) if name in CONTRACTED else x

  return jax.tree_util.tree_map_with_path(
    leaf, params, is_leaf=lambda x: isinstance(x, QuantizedWeight)
  )


def _round(kernel, contracted):
  wide = kernel.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=contracted, keepdims=True) / 127
  # Not where(scale > 0): a NaN must stay one.
  scale = jnp.where(scale == 0, 1.0, scale)
  values = jnp.clip(jnp.round(wide / scale), -127, 127).astype(jnp.int8)
  return QuantizedWeight(values, jnp.squeeze(scale, contracted))


def scale_axes(name: str, axes: Sequence) -> tuple:
  """What belongs to a scale's dimensions, of what belongs to its kernel's.

  Args:
    name: of the parameter, a key of CONTRACTED.
    axes: one entry per dimension of the kernel: logical names, or sizes.
  """
  gone = {len(axes) + i for i in CONTRACTED[name]}
  return tuple(axis for i, axis in enumerate(axes) if i not in gone)


def constrain(
  layout: ShardingLayout, name: str, weight: Weight, axes: Sequence[str]
) -> Weight:
  """layout.constrain by the kernel's logical names, for either kind."""
  if not isinstance(weight, QuantizedWeight):
    return layout.constrain(weight, axes)
  return QuantizedWeight(
    layout.constrain(weight.values, axes),
    layout.constrain(weight.scale, scale_axes(name, axes)),
  )


def cast(weight: Weight, dtype: jax.typing.DTypeLike) -> Weight:
  """An array in `dtype`; Int8 as it is, since its products cast."""
  return weight if isinstance(weight, QuantizedWeight) else weight.astype(dtype)


def contract(
  letters: str,
  x: jax.Array,
  weight: Weight,
  dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """Einsum of activations with a weight of either kind.

  Args:
    letters: for einsum; the output ends in the weight's free dimensions.
    x: activations.
    weight: an array, or Int8: summed and scaled in float32, rounded once.
    dtype: of the result; None is x's.
  """
  if not isinstance(weight, QuantizedWeight):
    return _einsum(letters, x, weight, dtype)
  out = _einsum(letters, x, weight.values.astype(x.dtype), jnp.float32)
  front = range(out.ndim - weight.scale.ndim)
  out *= jnp.expand_dims(weight.scale, front)
  return out.astype(dtype or x.dtype)


def _einsum(letters, x, kernel, dtype):
  """Einsum as a product of two matrices.

  The dimensions that are contracted stand last in x, and those that are not
  are merged into one as well: that moves nothing. Apart, XLA's CPU backend
  copies the kernel to bring the former together, and takes more than twice as
  long for the gradients with the latter (grad of a gated MLP of 10,240 tokens,
  width 128: 190 ms, merged 82 ms).
  """
  inputs, out = letters.split('->')
  of_x, of_kernel = inputs.split(',')
  shared = [letter for letter in of_x if letter not in out]
  if not of_x.endswith(''.join(shared)):
    return jnp.einsum(letters, x, kernel, preferred_element_type=dtype)
  count = len(shared)
  front = x.shape[:-count]
  x = x.reshape(math.prod(front), -1)
  if count > 1:
    kernel = kernel.reshape(-1, *kernel.shape[count:])
    of_kernel = shared[0] + of_kernel[count:]
  free = of_kernel.replace(shared[0], '')
  product = jnp.einsum(
    f'{of_x[0]}{shared[0]},{of_kernel}->{of_x[0]}{free}',
    x,
    kernel,
    preferred_element_type=dtype,
  )
  return product.reshape(*front, *product.shape[1:])


def lookup(
  table: Weight, tokens: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """Rows [..., D] in `dtype` of a table [V, D]; ids outside it are clipped."""

  def take(x):
    return jnp.take(x, tokens, axis=0, mode='clip')

  if not isinstance(table, QuantizedWeight):
    return take(table).astype(dtype)
  wide = take(table.values).astype(jnp.float32)
  return (wide * take(table.scale)[..., None]).astype(dtype)
