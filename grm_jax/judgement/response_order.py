"""Which response is shown at which place in each sample.

A GRM may prefer a place; votes over samples of different orders even that out.
An order is a tuple of length n: order[place] is the index of the response
shown there. What a sample is shown is a function of (seed, example id, sample
index) only, whatever else is judged beside it.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from grm_jax.errors import UserError

KINDS = ('balanced', 'random', 'fixed')

T = TypeVar('T')


def orders(
  kind: str, num_responses: int, num_samples: int, seed: int, example_id: str
) -> list[tuple[int, ...]]:
  """The orders of an example's samples.

  Args:
    kind: 'balanced': the n rotations in turn, so that over n samples each
      response stands at each place once and there are n prompts to prefill,
      not k; the first one depends on the seed and the id, so that one sample
      per example does not always show the responses as they are stored.
      'random': an independent shuffle per sample (arXiv 2504.02495, section
      4). 'fixed': as they are stored.
    num_responses: n.
    num_samples: k.
    seed, example_id: what the orders depend on.

  Returns:
    k orders; the first j of them are those of j samples.

  Raises:
    UserError: an unknown kind.
    ValueError: n below 1.
  """
  if kind not in KINDS:
    raise UserError(
      f'config.response_order is {kind!r}, none of {", ".join(KINDS)}'
    )
  if num_responses < 1:
    raise ValueError(f'orders of {num_responses} responses: at least 1')
  places = range(num_responses)
  if kind == 'fixed':
    return [tuple(places)] * num_samples
  if kind == 'random':
    return [
      _shuffled(num_responses, _hash(kind, seed, example_id, i))
      for i in range(num_samples)
    ]
  start = _number(_hash(kind, seed, example_id), 32)
  return [
    tuple((start + i + place) % num_responses for place in places)
    for i in range(num_samples)
  ]


def apply(responses: Sequence[T], order: Sequence[int]) -> tuple[T, ...]:
  """The responses as they are shown: from the example's order to places."""
  _check(responses, order)
  return tuple(responses[index] for index in order)


def restore(values: Sequence[T], order: Sequence[int]) -> tuple[T, ...]:
  """One value per place, in the example's own order: `apply` undone."""
  _check(values, order)
  by_index = dict(zip(order, values, strict=True))
  return tuple(by_index[index] for index in range(len(order)))


def _check(values, order):
  if len(values) != len(order):
    raise ValueError(f'{len(values)} values for an order of {len(order)}')
  if sorted(order) != list(range(len(order))):
    raise ValueError(f'{tuple(order)} is not an order: not every index once')


def _hash(kind, seed, example_id, index=0):
  # Not hash(), which differs between processes, and not random.Random, whose
  # shuffle may differ between Python versions. The id comes last, so that no
  # two keys have the same bytes; it may hold what UTF-8 cannot.
  key = f'{kind} {seed} {index} {example_id}'
  return hashlib.shake_256(key.encode('utf-8', 'surrogatepass'))


def _number(hashed, num_bytes):
  return int.from_bytes(hashed.digest(num_bytes), 'big')


def _shuffled(n, hashed):
  """Fisher-Yates with the digits of one large number.

  Its range is more than 2^240 times n!, so that all orders are as likely.
  """
  number = _number(hashed, 32 + n * n.bit_length() // 8)
  order = list(range(n))
  for last in range(n - 1, 0, -1):
    number, chosen = divmod(number, last + 1)
    order[last], order[chosen] = order[chosen], order[last]
  return tuple(order)
