"""Array checksums: exact, independent of the sharding, no bit left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grm_jax.checkpoint import array_checksum as checksums
from grm_jax.checkpoint.array_checksum import array_checksum
from tests.messages import naming

UINTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def mix(x):
  """The hash lowbias32 in Python integers."""
  x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
  x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
  return x ^ x >> 16


def expected_checksum(array):
  elements = np.ravel(array).view(UINTS[array.dtype.itemsize]).tolist()
  total = sum(mix(e * (mix(i) | 1) % 2**32) for i, e in enumerate(elements))
  return total % 2**32


def random_bits(shape, dtype, seed=0):
  size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
  raw = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
  return raw.view(dtype).reshape(shape)


def test_literal_value():
  array = np.array([[1.0, -2.5, 3.0], [0.0, 1e-3, 7.0]], np.float32)
  assert expected_checksum(array) == 2832504493
  assert int(array_checksum(jnp.asarray(array))) == 2832504493


@pytest.mark.parametrize(
  'dtype', [np.uint8, np.int8, np.int16, np.int32, np.uint32, np.float32]
)
@pytest.mark.parametrize('shape', [(), (5,), (3, 4, 5)])
def test_supported_dtypes(dtype, shape):
  array = random_bits(shape, dtype)
  assert int(array_checksum(jnp.asarray(array))) == expected_checksum(array)


@pytest.mark.parametrize(
  'dtype', [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn]
)
def test_every_bit_pattern_of_small_floats(dtype):
  bits = jnp.dtype(dtype).itemsize * 8
  array = np.arange(2**bits, dtype=UINTS[bits // 8]).view(dtype)
  assert int(array_checksum(jnp.asarray(array))) == expected_checksum(array)


def test_bool_and_empty_and_eight_bytes():
  flags = np.array([True, False, True])
  assert int(array_checksum(jnp.asarray(flags))) == expected_checksum(
    flags.view(np.uint8)
  )
  assert int(array_checksum(jnp.zeros((0, 4)))) == 0
  with jax.enable_x64(True):
    wide = random_bits((3, 4), np.int64)
    assert int(array_checksum(jnp.asarray(wide))) == expected_checksum(wide)


def test_unsupported_dtypes_are_rejected():
  for x in (jax.random.key(0), jnp.zeros(2, complex), jnp.zeros(2, jnp.int4)):
    with pytest.raises(ValueError, match=naming(x.dtype)):
      array_checksum(x)


SPECS = [
  PartitionSpec(),
  PartitionSpec('a'),
  PartitionSpec(None, 'b', 'a'),
  PartitionSpec('b', None, 'a'),
  PartitionSpec(('b', 'a')),
  PartitionSpec(None, ('a', 'b')),
]


@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('spec', SPECS, ids=str)
@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.float32])
def test_checksum_does_not_depend_on_the_sharding(kind, spec, dtype):
  array = random_bits((8, 16, 12), dtype)
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'), (kind,) * 2)
  sharded = jax.device_put(array, NamedSharding(mesh, spec))
  assert int(array_checksum(sharded)) == expected_checksum(array)


@pytest.mark.parametrize('block_elements', [1, 3, 7, 30, 100])
def test_blocks_cover_every_element_once(monkeypatch, block_elements):
  """Includes a last block that overlaps the block before it."""
  monkeypatch.setattr(checksums, '_BLOCK_ELEMENTS', block_elements)
  jax.clear_caches()
  array = random_bits((3, 5, 7), np.float32)
  assert int(array_checksum(jnp.asarray(array))) == expected_checksum(array)
  jax.clear_caches()


def test_every_flipped_bit_changes_the_checksum():
  array = random_bits((4, 6), jnp.bfloat16)
  results = {int(array_checksum(jnp.asarray(array)))}
  for byte in range(array.nbytes):
    for bit in range(8):
      raw = array.copy()
      raw.view(np.uint8).reshape(-1)[byte] ^= 1 << bit
      results.add(int(array_checksum(jnp.asarray(raw))))
  assert len(results) == 1 + array.nbytes * 8


def test_moved_elements_and_flipped_signs_change_the_checksum():
  array = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
  original = int(array_checksum(jnp.asarray(array)))
  for changed in (-array, array[::-1], array[:, ::-1], np.roll(array, 1)):
    assert int(array_checksum(jnp.asarray(changed.copy()))) != original


@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.float32])
def test_no_temporary_as_large_as_the_array(dtype):
  x = jnp.zeros((40, 1000, 500), dtype)
  x = checksums._without_small_floats(x)
  compiled = checksums._checksum.lower(x, None).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 4
