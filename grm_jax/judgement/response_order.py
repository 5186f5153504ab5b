"""The order of the responses in the prompt of each sample.

A GRM can have a position bias; votes over samples with different orders cancel
it. An order is a permutation of length C: order[position] is the index of the
response at that position of the prompt. It depends only on (seed, example id,
sample index), not on the other examples of the run.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

from grm_jax.errors import UserError

KINDS = ('balanced', 'random', 'fixed')

T = TypeVar('T')


def orders(
  kind: str, num_responses: int, num_samples: int, seed: int, example_id: str
) -> list[tuple[int, ...]]:
  """Returns the response orders of an example's samples.

  Args:
    kind: 'balanced' uses the C rotations in turn: over C samples each response
      is at each position once, and only C prompts are prefilled for any number
      of samples. The first rotation depends on the seed and the id, so that
      single samples do not all show the stored order. 'random' is an
      independent shuffle per sample (arXiv 2504.02495, section 4). 'fixed' is
      the stored order.
    num_responses: C, at least 1.
    num_samples: number of orders.
    seed: seed of the orders.
    example_id: id of the example.

  Returns:
    [num_samples] orders. Fewer samples get a prefix of this list.

  Raises:
    UserError: the kind is unknown.
    ValueError: num_responses is below 1.
  """
  if kind not in KINDS:
    raise UserError(
      f'config.response_order is {kind!r}; it must be one of {", ".join(KINDS)}'
    )
  if num_responses < 1:
    raise ValueError(f'num_responses is {num_responses}; it must be at least 1')
  positions = range(num_responses)
  if kind == 'fixed':
    return [tuple(positions)] * num_samples
  if kind == 'random':
    return [
      _shuffled(num_responses, _hash(kind, seed, example_id, i))
      for i in range(num_samples)
    ]
  start = _to_int(_hash(kind, seed, example_id), 32)
  return [
    tuple((start + i + position) % num_responses for position in positions)
    for i in range(num_samples)
  ]


def apply(responses: Sequence[T], order: Sequence[int]) -> tuple[T, ...]:
  """Returns values in prompt order, given them in the example's order."""
  _check(responses, order)
  return tuple(responses[index] for index in order)


def restore(values: Sequence[T], order: Sequence[int]) -> tuple[T, ...]:
  """Returns values in the example's order, given them in prompt order."""
  _check(values, order)
  by_index = dict(zip(order, values, strict=True))
  return tuple(by_index[index] for index in range(len(order)))


def _check(values: Sequence[Any], order: Sequence[int]) -> None:
  if len(values) != len(order):
    raise ValueError(f'{len(values)} values for an order of {len(order)}')
  if sorted(order) != list(range(len(order))):
    raise ValueError(f'order {tuple(order)} is not a permutation')


def _hash(kind: str, seed: int, example_id: str, index: int = 0) -> Any:
  # hash() differs between processes, and random.Random may shuffle differently
  # in another Python version. The id comes last, so that two different keys
  # never have the same bytes. It may contain what UTF-8 cannot encode.
  key = f'{kind} {seed} {index} {example_id}'
  return hashlib.shake_256(key.encode('utf-8', 'surrogatepass'))


def _to_int(hashed: Any, num_bytes: int) -> int:
  return int.from_bytes(hashed.digest(num_bytes), 'big')


def _shuffled(n: int, hashed: Any) -> tuple[int, ...]:
  """Returns a permutation by a Fisher-Yates shuffle.

  The swaps are the digits of one large number in a mixed radix. Its range is
  more than 2^240 times n!, so the bias between permutations is negligible.
  """
  number = _to_int(hashed, 32 + n * n.bit_length() // 8)
  order = list(range(n))
  for last in range(n - 1, 0, -1):
    number, chosen = divmod(number, last + 1)
    order[last], order[chosen] = order[chosen], order[last]
  return tuple(order)
