"""Fingerprints of arrays: one number that changes when any bit of one does.

Array files need not carry checksums, so a checkpoint keeps a fingerprint of
every leaf and a restore computes it again. It is a sum modulo 2**32 over the
elements, so it is exact, and the same however the array is sharded.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from grm_jax.sharding.rules import HOST_MEMORY

# XLA on CPU does not fuse a reduction into what it sums: more elements at
# once would make a temporary as large as the array.
_ELEMENTS_AT_ONCE = 2**20
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def fingerprint(x: jax.Array) -> jax.Array:
  """A uint32 scalar made of every bit of `x` and of where it stands.

  With e the elements of `x` in row-major order as unsigned integers (8-byte
  elements are two 4-byte ones, low half first) and mix a bijection on uint32:

      sum over i of mix(e[i] * (mix(i) | 1))   modulo 2**32

  A change within a single element always changes the sum; any other damage,
  moved elements included, stays unseen with probability 2**-32.

  Args:
    x: any shape, 0 elements included, any sharding; bool, integers and floats
      of 1, 2, 4 or 8 bytes. Every process that holds a part of it must call.

  Returns:
    uint32 [], the same on all devices that hold `x`.

  Raises:
    ValueError: the dtype is another one (PRNG keys, complex, int4).
  """
  real = any(
    jnp.issubdtype(x.dtype, kind)
    for kind in (jnp.bool_, jnp.integer, jnp.floating)
  )
  # int4 and its like are one byte in NumPy but not on the device.
  if not real or x.dtype.name in ('int2', 'uint2', 'int4', 'uint4'):
    raise ValueError(
      f'no fingerprint of dtype {x.dtype}; save PRNG keys as '
      'jax.random.key_data(key)'
    )
  if x.size == 0:
    return jnp.uint32(0)
  if x.sharding.memory_kind == HOST_MEMORY:
    x = jax.device_put(x, jax.memory.Space.Device)
  x = _without_small_floats(x)
  named = isinstance(x.sharding, NamedSharding)
  found = _fingerprint(x, x.sharding if named else None)
  if len(x.sharding.device_set) > 1 and jax.default_backend() == 'cpu':
    # Of CPU devices that wait for each other, too many programs at once hang:
    # between processes for ever, within one until XLA aborts it.
    found.block_until_ready()
  return found


def _without_small_floats(x):
  """On CPU, a view of floats under 4 bytes as integers; else `x` itself.

  XLA on CPU slices them as float32: twice the memory, and some NaNs change.
  """
  small = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
  if not small or next(iter(x.sharding.device_set)).platform != 'cpu':
    return x
  uint = _UINTS[x.dtype.itemsize]
  views = [
    jax.device_put(np.asarray(shard.data).view(uint), shard.device)
    for shard in x.addressable_shards
  ]
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, views)


@functools.partial(jax.jit, static_argnums=1)
def _fingerprint(x, sharding):
  if sharding is None:
    return _local_sum(x, [np.uint32(0)] * x.ndim, x.shape)
  axes = [_axes(sharding.spec, d) for d in range(x.ndim)]

  def shard_sum(shard):
    starts = [
      lax.axis_index(names).astype(jnp.uint32) * np.uint32(size)
      if names
      else np.uint32(0)
      for names, size in zip(axes, shard.shape, strict=True)
    ]
    total = _local_sum(shard, starts, x.shape)
    split = sum(axes, ())
    return lax.psum(total, split) if split else total

  return jax.shard_map(
    shard_sum,
    mesh=sharding.mesh,
    in_specs=PartitionSpec(*(names or None for names in axes)),
    out_specs=PartitionSpec(),
    check_vma=False,  # replicas of a shard compute the same number
  )(x)


def _axes(spec, dim):
  """The mesh axes that split dimension `dim`, major first."""
  names = spec[dim] if dim < len(spec) else None
  return names if isinstance(names, tuple) else (names,) if names else ()


def _local_sum(shard, starts, shape):
  """The part of the sum that `shard`, at `starts` of `shape`, gives.

  Walks over blocks: one index on the first dimensions, `rows` on the next
  (the last block overlaps the one before and leaves those rows out), all of
  the others.
  """
  halves = max(1, shard.dtype.itemsize // 4)
  strides = [math.prod(shape[d + 1 :]) * halves for d in range(len(shape))]
  loop = _loop_dim(shard.shape)
  inner = math.prod(shard.shape[loop + 1 :])
  length = shard.shape[loop] if shard.ndim else 1
  rows = min(length, max(1, _ELEMENTS_AT_ONCE // inner))
  outer, steps = shard.shape[:loop], -(-length // rows)

  def add(i, total):
    first = (i % steps) * rows
    at = list(jnp.unravel_index(i // steps, outer)) if outer else []
    at += [jnp.minimum(first, length - rows)]
    at = (at + [0] * shard.ndim)[: shard.ndim]
    sizes = ([1] * len(outer) + [rows, *shard.shape[loop + 1 :]])[: shard.ndim]
    bits = _bits(lax.dynamic_slice(shard, at, sizes)).astype(jnp.uint32)
    index = _iota(bits, bits.ndim - 1) if halves > 1 else jnp.zeros_like(bits)
    for d in range(shard.ndim):
      start = jnp.asarray(at[d]).astype(jnp.uint32) + starts[d]
      index += (_iota(bits, d) + start) * np.uint32(strides[d] % 2**32)
    hashes = _mix(bits * (_mix(index) | np.uint32(1)))
    if steps > 1:
      again = _iota(bits, loop) + at[loop].astype(jnp.uint32)
      hashes = jnp.where(again >= first.astype(jnp.uint32), hashes, 0)
    return total + jnp.sum(hashes, dtype=jnp.uint32)

  blocks = math.prod(outer) * steps
  return lax.fori_loop(0, blocks, add, jnp.uint32(0))


def _loop_dim(shape):
  """The first dimension whose single rows are small enough for a block."""
  for d in range(len(shape)):
    if math.prod(shape[d + 1 :]) <= _ELEMENTS_AT_ONCE:
      return d
  return 0


def _iota(like, dim):
  return lax.broadcasted_iota(jnp.uint32, like.shape, dim)


def _bits(x):
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  return lax.bitcast_convert_type(x, _UINTS[x.dtype.itemsize])


def _mix(x):
  """A bijection on uint32 after which every bit depends on every other.

  Multipliers and shifts: Chris Wellons, "Prospecting for Hash Functions".
  """
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))
