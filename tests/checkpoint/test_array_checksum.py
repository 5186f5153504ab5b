"""Fingerprints: exact, sharding-free, and no bit left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grm_jax.checkpoint import array_checksum
from grm_jax.checkpoint.array_checksum import fingerprint
from tests.messages import naming

UINTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def mix(x):
  """lowbias32, in Python integers."""
  x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
  x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
  return x ^ x >> 16


def by_hand(array):
  words = np.ravel(array).view(UINTS[array.dtype.itemsize]).tolist()
  total = sum(mix(w * (mix(i) | 1) % 2**32) for i, w in enumerate(words))
  return total % 2**32


def random_bits(shape, dtype, seed=0):
  size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
  raw = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
  return raw.view(dtype).reshape(shape)


def test_literal_value():
  array = np.array([[1.0, -2.5, 3.0], [0.0, 1e-3, 7.0]], np.float32)
  assert by_hand(array) == 2832504493
  assert int(fingerprint(jnp.asarray(array))) == 2832504493


@pytest.mark.parametrize(
  'dtype', [np.uint8, np.int8, np.int16, np.int32, np.uint32, np.float32]
)
@pytest.mark.parametrize('shape', [(), (5,), (3, 4, 5)])
def test_plain_dtypes(dtype, shape):
  array = random_bits(shape, dtype)
  assert int(fingerprint(jnp.asarray(array))) == by_hand(array)


@pytest.mark.parametrize(
  'dtype', [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn]
)
def test_every_bit_pattern_of_small_floats(dtype):
  bits = jnp.dtype(dtype).itemsize * 8
  array = np.arange(2**bits, dtype=UINTS[bits // 8]).view(dtype)
  assert int(fingerprint(jnp.asarray(array))) == by_hand(array)


def test_bool_and_empty_and_eight_bytes():
  flags = np.array([True, False, True])
  assert int(fingerprint(jnp.asarray(flags))) == by_hand(flags.view(np.uint8))
  assert int(fingerprint(jnp.zeros((0, 4)))) == 0
  with jax.enable_x64(True):
    wide = random_bits((3, 4), np.int64)
    assert int(fingerprint(jnp.asarray(wide))) == by_hand(wide)


def test_other_dtypes_are_refused():
  for x in (jax.random.key(0), jnp.zeros(2, complex), jnp.zeros(2, jnp.int4)):
    with pytest.raises(ValueError, match=naming(x.dtype)):
      fingerprint(x)


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
def test_same_for_every_sharding(kind, spec, dtype):
  array = random_bits((8, 16, 12), dtype)
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'), (kind,) * 2)
  sharded = jax.device_put(array, NamedSharding(mesh, spec))
  assert int(fingerprint(sharded)) == by_hand(array)


@pytest.mark.parametrize('at_once', [1, 3, 7, 30, 100])
def test_blocks_cover_every_element_once(monkeypatch, at_once):
  """Also where the last block overlaps the one before it."""
  monkeypatch.setattr(array_checksum, '_ELEMENTS_AT_ONCE', at_once)
  jax.clear_caches()
  array = random_bits((3, 5, 7), np.float32)
  assert int(fingerprint(jnp.asarray(array))) == by_hand(array)
  jax.clear_caches()


def test_every_flipped_bit_shows():
  array = random_bits((4, 6), jnp.bfloat16)
  numbers = {int(fingerprint(jnp.asarray(array)))}
  for byte in range(array.nbytes):
    for bit in range(8):
      raw = array.copy()
      raw.view(np.uint8).reshape(-1)[byte] ^= 1 << bit
      numbers.add(int(fingerprint(jnp.asarray(raw))))
  assert len(numbers) == 1 + array.nbytes * 8


def test_moves_and_flipped_signs_show():
  array = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
  same = int(fingerprint(jnp.asarray(array)))
  for other in (-array, array[::-1], array[:, ::-1], np.roll(array, 1)):
    assert int(fingerprint(jnp.asarray(other.copy()))) != same


@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.float32])
def test_no_temporary_as_large_as_the_array(dtype):
  x = jnp.zeros((40, 1000, 500), dtype)
  x = array_checksum._without_small_floats(x)
  compiled = array_checksum._fingerprint.lower(x, None).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 4
