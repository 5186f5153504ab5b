"""Random choices as functions of a key, the same on every machine.

Not hash(), which differs between processes, and no generator with a state: a
choice depends on its own key and on nothing that was drawn before.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar('T')

# So many that a remainder by a small number is even to 1e-15 and better.
_BITS = 128


def integer(below: int, *key: Any) -> int:
  """0 to below - 1, all as likely."""
  # repr, so that ('a', 'b c') and ('a b', 'c') are two keys.
  text = repr(key).encode('utf-8', 'surrogatepass')
  digest = hashlib.blake2b(text, digest_size=_BITS // 8).digest()
  return int.from_bytes(digest, 'big') % below


def choice(options: Sequence[T], *key: Any) -> T:
  """One of the options, all as likely."""
  return options[integer(len(options), *key)]


def chance(share: float, *key: Any) -> bool:
  """True for this share of keys."""
  return integer(1 << 53, *key) < share * (1 << 53)


def shuffled(values: Sequence[T], *key: Any) -> list[T]:
  """The values in an order that the key decides."""
  numbers = [integer(1 << _BITS, i, *key) for i in range(len(values))]
  return [
    values[i] for i in sorted(range(len(values)), key=numbers.__getitem__)
  ]
