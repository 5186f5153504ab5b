"""Weight-only int8 for decoding: symmetric, one scale per output channel.

A decode step reads every weight and computes little with it, so its time is
the bytes of the weights. Kernels and the embedding table rest as int8 with a
float32 scale per output channel; activations stay in floats. The scale is
constant along the contracted dimensions, so it can be applied to the result:

  x @ (values * scale) = (x @ values) * scale

No kernel is ever written to memory in floats: the integers -127..127 are exact
in bfloat16, and are converted on their way into the product. The scheme is the
symmetric per-channel one of Krishnamoorthi 2018 (arXiv 1806.08342, section
3.1), without -128, so that the grid is symmetric around zero.

Norms and the scalar head stay in floats; they have few bytes.

Letters in einsums are those of the callers. Names of parameters:
transformer.py.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.sharding.rules import ShardingLayout

# Contracted dimensions of each kernel, counted from the end, so that they are
# the same for one layer and for a stack of layers. The table is listed as the
# kernel of the output head.
CONTRACTING_DIMS = {
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
  """An int8 kernel, values * scale; takes the place of the kernel's array.

  Attributes:
    values: int8, in the shape of the kernel. It must be the first field: Linen
      checks the shape of a parameter's first leaf.
    scale: float32, in the shape of the kernel without contracted dimensions.
  """

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the kernel."""
    return self.values.shape


Weight = jax.Array | QuantizedWeight


def quantize(params: dict) -> dict:
  """Rounds every kernel and the table to int8.

  The error of an element is at most half the scale of its channel, which is the
  channel's largest magnitude / 127. A channel of zeros stays zero.

  Args:
    params: a whole tree, or the part of one layer or of the embedder; float32
      or bfloat16, layers stacked or not.

  Returns:
    The tree with a QuantizedWeight for each kernel; other arrays as they are.

  Raises:
    ValueError: a kernel is int8 already.
  """

  def quantize_leaf(path, x):
    """Returns a matrix as a QuantizedWeight and other leaves unchanged."""
    name = path[-1].key
    if isinstance(x, QuantizedWeight):
      raise ValueError(
        f'{jax.tree_util.keystr(path)} is int8 already; quantize float params'
      )
    if name not in CONTRACTING_DIMS:
      return x
    return quantize_kernel(name, x)

  return jax.tree_util.tree_map_with_path(
    quantize_leaf, params, is_leaf=lambda x: isinstance(x, QuantizedWeight)
  )


def quantize_kernel(
  name: str, kernel: jax.Array, dither: bool = False
) -> QuantizedWeight:
  """Rounds a kernel to one of 255 values per output channel.

  The error of an element is at most half the scale of its channel, which is the
  channel's largest magnitude / 127. A channel of zeros stays zero.

  Args:
    name: the kernel's name, a key of CONTRACTING_DIMS.
    kernel: one layer or a stack of layers, floats.
    dither: round up or down at random, so that the mean error is zero; errors
      are up to the whole scale. For kernels that were int8 before a small
      change, which rounding to the nearest value would remove.
  """
  contracting_dims = CONTRACTING_DIMS[name]
  wide = kernel.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=contracting_dims, keepdims=True) / 127
  # Not where(scale > 0, ...): a NaN must stay a NaN.
  scale = jnp.where(scale == 0, 1.0, scale)
  values = wide / scale
  if dither:
    values = jnp.floor(values + jax.random.uniform(_dither_key(), wide.shape))
  values = jnp.clip(jnp.round(values), -127, 127).astype(jnp.int8)
  return QuantizedWeight(values, jnp.squeeze(scale, contracting_dims))


def dither_to_bfloat16(kernel: jax.Array) -> jax.Array:
  """Rounds float32 up or down at random, so that the mean error is zero."""
  noise = jax.random.bits(_dither_key(), kernel.shape, jnp.uint16)
  bits = jax.lax.bitcast_convert_type(kernel, jnp.uint32)
  bits = (bits + noise) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def _dither_key() -> jax.Array:
  """Returns a constant key: the same kernel is always rounded in one way."""
  return jax.random.key(0)


def dequantize(name: str, weight: QuantizedWeight) -> jax.Array:
  """Returns the kernel in float32.

  Args:
    name: the parameter's name, a key of CONTRACTING_DIMS.
    weight: one layer or a stack of layers.
  """
  scale = jnp.expand_dims(weight.scale, CONTRACTING_DIMS[name])
  return weight.values.astype(jnp.float32) * scale


def scale_axes(name: str, axes: Sequence) -> tuple:
  """Returns the entries of a kernel's dimensions that its scale has too.

  Args:
    name: the parameter's name, a key of CONTRACTING_DIMS.
    axes: one entry per dimension of the kernel: logical names, or sizes.
  """
  contracted = {len(axes) + i for i in CONTRACTING_DIMS[name]}
  return tuple(axis for i, axis in enumerate(axes) if i not in contracted)


def constrain(
  layout: ShardingLayout, name: str, weight: Weight, axes: Sequence[str]
) -> Weight:
  """Constrains the sharding of a weight of either kind.

  Args:
    layout: mesh and rules.
    name: the parameter's name.
    weight: an array or QuantizedWeight, whose scale is split like its values.
    axes: logical names of the kernel's dimensions.
  """
  if not isinstance(weight, QuantizedWeight):
    return layout.constrain(weight, axes)
  return QuantizedWeight(
    layout.constrain(weight.values, axes),
    layout.constrain(weight.scale, scale_axes(name, axes)),
  )


def cast(weight: Weight, dtype: jax.typing.DTypeLike) -> Weight:
  """Casts an array; returns a QuantizedWeight as it is (einsum casts it)."""
  return weight if isinstance(weight, QuantizedWeight) else weight.astype(dtype)


def einsum(
  letters: str,
  x: jax.Array,
  weight: Weight,
  dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """Multiplies activations with a weight of either kind.

  Args:
    letters: for einsum; the output ends in the weight's free dimensions.
    x: activations.
    weight: an array, or a QuantizedWeight, whose product is accumulated and
      scaled in float32 and rounded once.
    dtype: of the result; None is the dtype of `x`.
  """
  if not isinstance(weight, QuantizedWeight):
    return _matmul_einsum(letters, x, weight, dtype)
  with jax.named_scope('int8_matmul'):
    values = weight.values.astype(x.dtype)
    out = _matmul_einsum(letters, x, values, jnp.float32)
    leading = range(out.ndim - weight.scale.ndim)
    out *= jnp.expand_dims(weight.scale, leading)
    return out.astype(dtype or x.dtype)


def _matmul_einsum(letters, x, kernel, dtype):
  """An einsum computed as a product of two matrices.

  If the contracted dimensions are the last ones of x, they are merged into one,
  and so are the others; that moves no data. With separate dimensions XLA's CPU
  backend copies the kernel, and its gradients take more than twice as long
  (gradient of a gated MLP, 10,240 tokens, width 128: 190 ms; merged: 82 ms).
  """
  inputs, out = letters.split('->')
  x_letters, kernel_letters = inputs.split(',')
  contracted = [letter for letter in x_letters if letter not in out]
  if not x_letters.endswith(''.join(contracted)):
    return jnp.einsum(letters, x, kernel, preferred_element_type=dtype)
  count = len(contracted)
  leading = x.shape[:-count]
  x = x.reshape(math.prod(leading), -1)  # [leading, contracted]
  if count > 1:
    # Kernels begin with the contracted dimensions, as in NHD for PXNH,NHD->PXD.
    kernel = kernel.reshape(-1, *kernel.shape[count:])
    kernel_letters = contracted[0] + kernel_letters[count:]
  free = kernel_letters.replace(contracted[0], '')
  product = jnp.einsum(
    f'{x_letters[0]}{contracted[0]},{kernel_letters}->{x_letters[0]}{free}',
    x,
    kernel,
    preferred_element_type=dtype,
  )
  return product.reshape(*leading, *product.shape[1:])


@jax.named_scope('embedding_lookup')
def lookup(
  table: Weight, tokens: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """Looks up rows of the embedding table.

  Args:
    table: [V, D].
    tokens: int [...]; ids outside the table are clipped.
    dtype: of the result.

  Returns:
    [..., D].
  """

  def take(x):
    """Returns the rows x[tokens], clipped to the table."""
    return jnp.take(x, tokens, axis=0, mode='clip')

  if not isinstance(table, QuantizedWeight):
    return take(table).astype(dtype)
  # Dequantizes the looked-up rows only, in float32, and rounds once.
  wide = take(table.values).astype(jnp.float32)
  return (wide * take(table.scale)[..., None]).astype(dtype)
