"""Random choices as pure functions of a key, the same on every machine.

Python's hash() differs between processes, and a stateful generator makes a
choice depend on all earlier ones. Here a choice depends on its key only.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar('T')

# With 128 bits the remainder by a small number is uniform to better than 1e-15.
_BITS = 128


def integer(below: int, *key: Any) -> int:
  """Returns a uniform integer in 0..below - 1."""
  # repr() distinguishes the keys ('a', 'b c') and ('a b', 'c').
  text = repr(key).encode('utf-8', 'surrogatepass')
  digest = hashlib.blake2b(text, digest_size=_BITS // 8).digest()
  return int.from_bytes(digest, 'big') % below


def choice(options: Sequence[T], *key: Any) -> T:
  """Returns one of the options, uniformly."""
  return options[integer(len(options), *key)]


def bernoulli(probability: float, *key: Any) -> bool:
  """Returns True with the given probability."""
  return integer(1 << 53, *key) < probability * (1 << 53)


def shuffled(values: Sequence[T], *key: Any) -> list[T]:
  """Returns the values in a uniformly random order."""
  sort_keys = [integer(1 << _BITS, i, *key) for i in range(len(values))]
  order = sorted(range(len(values)), key=sort_keys.__getitem__)
  return [values[i] for i in order]
