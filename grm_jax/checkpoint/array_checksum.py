"""A 32-bit checksum of an array, independent of its sharding.

Orbax array files need not carry checksums. A checkpoint therefore stores a
checksum of every leaf, and a restore computes it again. The checksum is a sum
modulo 2**32 over the elements, so it is exact and does not depend on the order
of the summation or on the sharding.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from grm_jax.sharding.rules import HOST_MEMORY

# XLA on CPU does not fuse a reduction with the computation of its operand. A
# larger block would create a temporary as large as the array.
_BLOCK_ELEMENTS = 2**20
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def array_checksum(x: jax.Array) -> jax.Array:
  """Returns a uint32 scalar that depends on every bit of `x` and its position.

  With e the elements of `x` in row-major order as unsigned integers (an 8-byte
  element counts as two 4-byte elements, low half first) and mix a bijection on
  uint32:

      sum over i of mix(e[i] * (mix(i) | 1))   modulo 2**32

  A change within a single element always changes the sum. Any other damage,
  including exchanged elements, goes undetected with probability 2**-32.

  Args:
    x: any shape (0 elements included) and any sharding; bool, integers and
      floats of 1, 2, 4 or 8 bytes. Every process that holds a part of `x` must
      call this function.

  Returns:
    uint32 [], the same on all devices that hold `x`.

  Raises:
    ValueError: unsupported dtype (PRNG keys, complex, int4).
  """
  is_supported = any(
    jnp.issubdtype(x.dtype, kind)
    for kind in (jnp.bool_, jnp.integer, jnp.floating)
  )
  # int4 and similar dtypes take one byte in NumPy but not on the device.
  if not is_supported or x.dtype.name in ('int2', 'uint2', 'int4', 'uint4'):
    raise ValueError(
      f'dtype {x.dtype} has no checksum; save PRNG keys as '
      'jax.random.key_data(key)'
    )
  if x.size == 0:
    return jnp.uint32(0)
  if x.sharding.memory_kind == HOST_MEMORY:
    x = jax.device_put(x, jax.memory.Space.Device)
  x = _without_small_floats(x)
  is_named = isinstance(x.sharding, NamedSharding)
  checksum = _checksum(x, x.sharding if is_named else None)
  if len(x.sharding.device_set) > 1 and jax.default_backend() == 'cpu':
    # Too many queued programs with collectives deadlock on CPU devices:
    # forever between processes, until XLA aborts within one process.
    checksum.block_until_ready()
  return checksum


def _without_small_floats(x: jax.Array) -> jax.Array:
  """Returns a view of floats under 4 bytes as integers on CPU; else `x`.

  XLA on CPU slices these floats as float32, which doubles the memory and
  changes some NaN bit patterns.
  """
  is_small = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
  device: Any = next(iter(x.sharding.device_set))
  if not is_small or device.platform != 'cpu':
    return x
  uint = _UINTS[x.dtype.itemsize]
  views = [
    jax.device_put(np.asarray(shard.data).view(uint), shard.device)
    for shard in x.addressable_shards
  ]
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, views)


@functools.partial(jax.jit, static_argnums=1)
def _checksum(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
  """Returns the checksum of an array of any shape, uint32 []."""
  if sharding is None:
    return _shard_sum(x, [np.uint32(0)] * x.ndim, x.shape)
  axes = [_axes(sharding.spec, dim) for dim in range(x.ndim)]

  def shard_sum(shard):
    """Sums one shard, then over the devices that split the array; uint32 []."""
    # The index of the shard's first element in the global array.
    starts = [
      lax.axis_index(names).astype(jnp.uint32) * np.uint32(size)
      if names
      else np.uint32(0)
      for names, size in zip(axes, shard.shape, strict=True)
    ]
    total = _shard_sum(shard, starts, x.shape)
    split_axes = sum(axes, ())
    return lax.psum(total, split_axes) if split_axes else total

  return jax.shard_map(
    shard_sum,
    mesh=sharding.mesh,
    in_specs=PartitionSpec(*(names or None for names in axes)),
    out_specs=PartitionSpec(),
    check_vma=False,  # replicas of a shard compute the same number
  )(x)


def _axes(spec: PartitionSpec, dim: int) -> tuple[str, ...]:
  """Returns the mesh axes that split dimension `dim`, major first."""
  names = spec[dim] if dim < len(spec) else None
  return names if isinstance(names, tuple) else (names,) if names else ()


def _shard_sum(
  shard: jax.Array, starts: Sequence[Any], shape: tuple[int, ...]
) -> jax.Array:
  """Returns the contribution of one shard to the checksum.

  Loops over blocks of the shard: one index of the leading dimensions, a run of
  `block_rows` indices of the loop dimension, all of the trailing dimensions.
  The last block of a run is shifted back to fit into the shard, so it overlaps
  the block before it; rows that were already summed are masked.

  Args:
    shard: the elements of one device.
    starts: uint32 index of the shard's first element in each dimension.
    shape: shape of the global array.

  Returns:
    uint32 [].
  """
  halves = max(1, shard.dtype.itemsize // 4)
  strides = [math.prod(shape[d + 1 :]) * halves for d in range(len(shape))]
  loop_dim = _loop_dim(shard.shape)
  row_elements = math.prod(shard.shape[loop_dim + 1 :])
  num_rows = shard.shape[loop_dim] if shard.ndim else 1
  block_rows = min(num_rows, max(1, _BLOCK_ELEMENTS // row_elements))
  outer, steps = shard.shape[:loop_dim], -(-num_rows // block_rows)
  block_shape = [1] * len(outer) + [block_rows, *shard.shape[loop_dim + 1 :]]
  block_shape = block_shape[: shard.ndim]  # a scalar has no loop dimension

  def add_block(i, total):
    """Adds the hashes of block i, of shape block_shape, to total, uint32 []."""
    first_row = (i % steps) * block_rows
    at = list(jnp.unravel_index(i // steps, outer)) if outer else []
    at += [jnp.minimum(first_row, num_rows - block_rows)]
    at = (at + [0] * shard.ndim)[: shard.ndim]
    bits = _bits(lax.dynamic_slice(shard, at, block_shape)).astype(jnp.uint32)
    # Position of each element in the global array; 8-byte elements have one
    # more dimension, of their two halves.
    index = _iota(bits, bits.ndim - 1) if halves > 1 else jnp.zeros_like(bits)
    for d in range(shard.ndim):
      start = jnp.asarray(at[d]).astype(jnp.uint32) + starts[d]
      index += (_iota(bits, d) + start) * np.uint32(strides[d] % 2**32)
    hashes = _mix(bits * (_mix(index) | np.uint32(1)))
    if steps > 1:
      row = _iota(bits, loop_dim) + at[loop_dim].astype(jnp.uint32)
      hashes = jnp.where(row >= first_row.astype(jnp.uint32), hashes, 0)
    return total + jnp.sum(hashes, dtype=jnp.uint32)

  num_blocks = math.prod(outer) * steps
  return lax.fori_loop(0, num_blocks, add_block, jnp.uint32(0))


def _loop_dim(shape: tuple[int, ...]) -> int:
  """Returns the first dimension whose single rows fit into a block."""
  for d in range(len(shape)):
    if math.prod(shape[d + 1 :]) <= _BLOCK_ELEMENTS:
      return d
  return 0


def _iota(like: jax.Array, dim: int) -> jax.Array:
  """Returns the index along `dim` of each element of `like`, uint32."""
  return lax.broadcasted_iota(jnp.uint32, like.shape, dim)


def _bits(x: jax.Array) -> jax.Array:
  """Returns the bits, unsigned; 8-byte elements as uint32 [..., 2]."""
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  return lax.bitcast_convert_type(x, _UINTS[x.dtype.itemsize])


def _mix(x: jax.Array) -> jax.Array:
  """Mixes the bits of uint32 values with a bijection.

  Multipliers and shifts: Chris Wellons, "Prospecting for Hash Functions".
  """
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))
