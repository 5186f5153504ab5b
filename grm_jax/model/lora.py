"""Low-rank adapters: trained changes of frozen kernels (LoRA).

A kernel W with an adapter computes W + alpha / rank * A B (arXiv 2106.09685).
A maps the kernel's inputs to `rank` numbers and B maps those to its outputs.
Only A and B are trained. W stays as it is, in bfloat16 or int8 (QLoRA, arXiv
2305.14314), so it has no gradient and no optimizer state.

An adapted kernel is a LoraWeight in the place of the kernel's array: layers
compute with either. `attach` builds the tree of a model from the frozen
parameters and the trained ones, `merge` computes the sum.

Names of parameters: transformer.py. Those of an adapter have a level more:
pairs/local/mlp/down/a and .../b.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from grm_jax import settings
from grm_jax.model import quantization
from grm_jax.model.quantization import CONTRACTING_DIMS
from grm_jax.unused_settings import Unused

TARGETS = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
BASE_DTYPES = ('float32', 'bfloat16', 'int8')
RANK = 'lora_rank'  # logical axis of the rank, see sharding/rules.py

ALPHA = settings.number(0, 1e6, above=True)
# Rules of config.lora.
SETTINGS: settings.Rules = {
  'rank': settings.integer(0, 4096, note='0: all parameters are trained'),
  'alpha': ALPHA,
  'targets': settings.Rule(
    f'a tuple of at least one of {", ".join(map(repr, TARGETS))}, each once',
    lambda x: settings.tuple_of(TARGETS).is_valid(x) and len(x) > 0,
  ),
  'base_dtype': settings.one_of(*BASE_DTYPES),
}
UNUSED = Unused(
  ('lora.alpha', 'lora.targets', 'lora.base_dtype'),
  '{key}.lora.rank is 0',
  lambda config: not config.lora.rank,
)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """Settings of an adapter, and the model that it belongs to.

  Attributes:
    rank: columns of A, rows of B.
    alpha: the change is multiplied by alpha / rank.
    targets: names of the adapted kernels, from TARGETS.
    base_dtype: dtype of the frozen parameters, from BASE_DTYPES.
    base: model directory of the frozen parameters, or 'random'.
    base_step: its step; None for a random base.
    base_digest: identifies the contents of that step, or the random seed.
    base_from_here: path of the base from the directory of the adapter, for
      folders that move together; '' if there is none.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]
  base_dtype: str
  base: str
  base_step: int | None
  base_digest: str
  base_from_here: str = ''

  @property
  def scale(self) -> float:
    """Factor of the product of A and B."""
    return self.alpha / self.rank


def has_int8_base(adapter: AdapterConfig | None) -> bool:
  """Returns whether a model has, or was merged from, an int8 base."""
  return adapter is not None and adapter.base_dtype == 'int8'


@struct.dataclass
class LoraWeight:
  """A frozen kernel and its adapter; takes the place of the kernel's array.

  Attributes:
    base: the kernel, an array or QuantizedWeight. It must be the first field:
      Linen checks the shape of a parameter's first leaf.
    a: the kernel's contracted dimensions, then the rank.
    b: the rank, then the kernel's free dimensions.
    scale: factor of the product of a and b.
  """

  base: quantization.Weight
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the kernel."""
    return self.base.shape


def factors(name: str, dims: tuple, rank: Any) -> tuple[tuple, tuple]:
  """Returns the dimensions of A and of B for a kernel.

  Args:
    name: the kernel's name, from TARGETS.
    dims: sizes or logical names of the kernel's dimensions; dimensions in front
      of the kernel's, such as stacked layers, are in both results.
    rank: size or name of the rank.
  """
  contracted = CONTRACTING_DIMS[name]
  first, end = len(dims) + min(contracted), len(dims) + max(contracted) + 1
  return (*dims[:end], rank), (*dims[:first], rank, *dims[end:])


def init_factor(
  name: str, factor: str, shape: tuple[int, ...], key: jax.Array
) -> jax.Array:
  """Returns A or B of a new adapter, which changes nothing yet: B is zero.

  A is uniform with variance 1 / (3 fan_in), the initialization of PEFT.

  Args:
    name: the kernel's name.
    factor: 'a' or 'b'.
    shape: shape of the factor.
    key: random key.
  """
  if factor == 'b':
    return jnp.zeros(shape, jnp.float32)
  inputs = shape[-1 - len(CONTRACTING_DIMS[name]) : -1]
  limit = math.prod(inputs) ** -0.5
  return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def attach(
  adapter: AdapterConfig | None, frozen: dict | None, trained: dict
) -> dict:
  """Returns the parameters of a model from a frozen and a trained part.

  Args:
    adapter: None if all parameters are trained.
    frozen: all parameters of the base; None without an adapter.
    trained: for adapted kernels dicts of `a` and `b`. Other leaves, such as a
      scalar head, take the place of those in `frozen`.
  """
  if adapter is None or frozen is None:
    return trained

  def join(base, part):
    if set(part) == {'a', 'b'}:
      return LoraWeight(base, part['a'], part['b'], adapter.scale)
    return base | {
      name: join(base[name], x) if isinstance(x, dict) and name in base else x
      for name, x in part.items()
    }

  return join(frozen, trained)


def einsum(
  letters: str, x: jax.Array, weight: quantization.Weight | LoraWeight
) -> jax.Array:
  """Multiplies activations with a weight of any kind, see quantization.einsum.

  The change is computed from the activations, [tokens, rank] in between: the
  sum of a kernel and its change is never in memory.
  """
  if not isinstance(weight, LoraWeight):
    return quantization.einsum(letters, x, weight)
  inputs, out = letters.split('->')
  x_letters, kernel_letters = inputs.split(',')
  contracted = ''.join(c for c in kernel_letters if c in x_letters)
  leading = x_letters.removesuffix(contracted)
  free = kernel_letters.removeprefix(contracted)
  result = quantization.einsum(letters, x, weight.base)
  with jax.named_scope('lora'):
    low = quantization.einsum(
      f'{x_letters},{contracted}Z->{leading}Z', x, weight.a
    )
    change = quantization.einsum(f'{leading}Z,Z{free}->{out}', low, weight.b)
    return result + weight.scale * change


def merge(
  name: str,
  weight: quantization.Weight | LoraWeight,
  dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """Returns a kernel as an array: dequantized, its change added, rounded once.

  A change of less than half of the last bit of a bfloat16 kernel would be lost
  by rounding to nearest: after a few small updates, 93 % of the change of the
  log-probabilities (docs/lora.md). The sum is rounded up or down at random.

  Args:
    name: the kernel's name.
    weight: a weight of any kind, of a single layer.
    dtype: of the result.
  """
  base = weight.base if isinstance(weight, LoraWeight) else weight
  if isinstance(base, quantization.QuantizedWeight):
    base = quantization.dequantize(name, base)
  if isinstance(weight, LoraWeight):
    a, b = weight.a.astype(jnp.float32), weight.b.astype(jnp.float32)
    change = jnp.tensordot(a, b, 1, precision='highest')
    base = base.astype(jnp.float32) + weight.scale * change
    if jnp.dtype(dtype) == jnp.bfloat16:
      return quantization.dither_to_bfloat16(base)
  return base.astype(dtype)


def merge_all(params: dict, dtype: jax.typing.DTypeLike) -> dict:
  """Returns the parameters of a model as arrays of one dtype.

  Args:
    params: a tree with weights of any kind, layers stacked. Frozen weights are
      deleted when they are merged: devices may have no room for a second copy.
    dtype: of the result.
  """

  def merge_leaf(path, x):
    if not is_weight(x):
      return x.astype(dtype)
    base = x.base if isinstance(x, LoraWeight) else x
    sharding = jax.tree.leaves(base)[0].sharding
    convert = _by_layer(merge, path[-1].key, jnp.dtype(dtype).name, sharding)
    return _converted(convert(x), base)

  return jax.tree_util.tree_map_with_path(merge_leaf, params, is_leaf=is_weight)


def convert_all(params: dict, convert: Callable[[tuple, Any], Any]) -> dict:
  """Returns converted parameters; adapted bases are deleted as in `merge_all`.

  Args:
    params: a tree with weights of any kind.
    convert: (path, parameter) -> result.
  """

  def convert_leaf(path, x):
    result = convert(tuple(key.key for key in path), x)
    if isinstance(x, LoraWeight):
      return _converted(result, x.base)
    return result

  return jax.tree_util.tree_map_with_path(
    convert_leaf, params, is_leaf=is_weight
  )


def quantize_base(params: dict, shardings: dict, dither: bool = False) -> dict:
  """Returns frozen parameters with kernels of layers in int8.

  Args:
    params: arrays, layers stacked; kernels are deleted as in `merge_all`.
    shardings: of the result.
    dither: see quantization.quantize_kernel.
  """
  quantize = _quantize_dithered if dither else _quantize

  def quantize_leaf(path, x, sharding):
    name = path[-1].key
    if name not in TARGETS:
      return x
    return _converted(_by_layer(quantize, name, 'int8', sharding)(x), x)

  layers = jax.tree_util.tree_map_with_path(
    quantize_leaf, params['pairs'], shardings['pairs']
  )
  return {**params, 'pairs': layers}


def _quantize(name, kernel, dtype):
  del dtype  # int8
  return quantization.quantize_kernel(name, kernel)


def _quantize_dithered(name, kernel, dtype):
  del dtype  # int8
  return quantization.quantize_kernel(name, kernel, dither=True)


@functools.cache
def _by_layer(
  function: Callable, name: str, dtype: str, shardings: Any
) -> Callable:
  """Jits the conversion of a stack of layers, one layer after the other.

  The float32 form of a kernel then exists for one layer only.

  Args:
    function: (name, weight, dtype) -> converted weight.
    name: the kernel's name.
    dtype: argument of the function.
    shardings: of the result.
  """

  def convert(weight):
    return jax.lax.map(lambda x: function(name, x, dtype), weight)

  return jax.jit(convert, out_shardings=shardings)


def _converted(result: Any, old: quantization.Weight) -> Any:
  """Waits for the conversion of a weight, and frees the memory of the old."""
  jax.block_until_ready(result)
  for array in jax.tree.leaves(old):
    array.delete()
  return result


def is_weight(x: Any) -> bool:
  """Returns whether `x` is a weight that is not an array."""
  return isinstance(x, LoraWeight | quantization.QuantizedWeight)
