"""Endless shuffled epochs of examples whose generations a rollout samples.

The j-th rollout prompt, including the order of its responses, is a function of
the examples, the seed and j. The number of prompts taken is the complete state.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.data import mixture
from grm_jax.errors import UserError
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import response_order as response_orders
from grm_jax.judgement.example import JudgingExample

STRATIFIED = 'stratified'
KINDS = (STRATIFIED, *response_orders.KINDS)


@dataclasses.dataclass(frozen=True)
class RolloutPrompt:
  """An example to sample a group of generations for.

  Attributes:
    example: the query and the responses to judge.
    order: order[position] is the index of the response shown there.
    epoch: number of earlier rollout prompts of the same example.
  """

  example: JudgingExample
  order: tuple[int, ...]
  epoch: int

  @property
  def sample_key(self) -> str:
    """A unique name of this prompt; it seeds the samples of its group."""
    return f'{self.example.id} {self.epoch}'


class RolloutPromptIterator:
  """Endless stream of rollout prompts; `take` returns the next ones.

  Response orders:
    'stratified': a random order, with the best response moved to a position
      from a low-discrepancy sequence. Consecutive prompts then have it in
      every position about equally often; with pairs it alternates exactly.
      Purely random orders are unbalanced: of batches of 64 pairs, one in
      twelve has the best response first 38 times or more, and a policy that
      cannot tell responses apart learns the position.
    'balanced': each epoch shows the next rotation of the responses.
    'random', 'fixed': see judgement/response_order.py.

  Args:
    examples: at least one, with distinct ids.
    response_order: one of KINDS.
    seed: seed of epochs and orders.

  Attributes:
    examples: the examples of one epoch.
    num_taken: number of rollout prompts taken so far. Assigning it moves the
      stream.

  Raises:
    UserError: there is no example, an id occurs twice, or the order is unknown.
  """

  def __init__(
    self, examples: Sequence[JudgingExample], response_order: str, seed: int
  ):
    num_ids = len({example.id for example in examples})
    if num_ids < len(examples) or not examples:
      raise UserError(
        f'config.data has {len(examples)} examples with {num_ids} distinct '
        'ids; give at least one example, and every example its own id'
      )
    if response_order not in KINDS:
      raise UserError(
        f'config.response_order is {response_order!r}; set it to one of '
        f'{", ".join(KINDS)}'
      )
    self.examples, self.num_taken = tuple(examples), 0
    self._response_order, self._seed = response_order, seed
    # Epoch -> order of the examples; keeps two epochs, because a rollout can
    # span their border. 'visits' is an input of a hash and must not change.
    self._epoch_shuffle = functools.lru_cache(maxsize=2)(
      functools.partial(mixture.permutation, len(examples), seed, 'visits')
    )

  @property
  def epochs(self) -> float:
    """Number of epochs taken so far, with fractions."""
    return self.num_taken / len(self.examples)

  def state(self) -> dict[str, Any]:
    """Returns the position, and what identifies the stream, as JSON values."""
    return {
      'num_taken': self.num_taken,
      'response_order': self._response_order,
      'seed': self._seed,
      'examples': f'{len(self.examples)} with fingerprint {self._fingerprint}',
    }

  @functools.cached_property
  def _fingerprint(self) -> str:
    # Cached: `state` is called at every checkpoint.
    digest = hashlib.blake2b(digest_size=8)
    for row in map(examples_lib.to_row, self.examples):
      digest.update(json.dumps(row).encode() + b'\n')
    return digest.hexdigest()

  def restore(self, state: Mapping[str, Any]) -> None:
    """Moves to the position of a stream of the same examples; see `state`.

    Raises:
      UserError: examples, response order or seed differ.
    """
    for name, current in self.state().items():
      if name != 'num_taken' and state.get(name) != current:
        raise UserError(
          f'the saved run has rollout prompts with {name} = {state.get(name)}, '
          f'this run has {current}; resume with the saved value, or start a '
          'new run'
        )
    self.num_taken = state['num_taken']

  def take(self, count: int) -> list[RolloutPrompt]:
    """Returns the next `count` rollout prompts."""
    prompts = [self._prompt(self.num_taken + i) for i in range(count)]
    self.num_taken += count
    return prompts

  def _prompt(self, number: int) -> RolloutPrompt:
    epoch, offset = divmod(number, len(self.examples))
    example = self.examples[int(self._epoch_shuffle(epoch)[offset])]
    n = len(example.responses)
    stratified = self._response_order == STRATIFIED
    kind = 'random' if stratified else self._response_order
    # An order is a function of (seed, id, index), and the epoch is the index.
    orders = response_orders.orders(kind, n, epoch + 1, self._seed, example.id)
    order = orders[epoch]
    if stratified and example.best is not None:
      order = _move(order, example.best, _stratified_position(number, n))
    return RolloutPrompt(example, order, epoch)


def _stratified_position(number: int, n: int) -> int:
  """Returns floor(n * x) for element `number` of the van der Corput sequence.

  x has the binary digits of `number` in reverse behind the point: 0, 1/2, 1/4,
  3/4, 1/8, ...
  """
  digits = f'{number:b}'[::-1]
  return int(digits, 2) * n >> len(digits)


def _move(order: Sequence[int], index: int, position: int) -> tuple[int, ...]:
  """Returns `order` with `index` swapped to `position`."""
  swapped = list(order)
  swapped[order.index(index)] = order[position]
  swapped[position] = index
  return tuple(swapped)
