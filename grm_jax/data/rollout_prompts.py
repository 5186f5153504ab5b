"""Examples in endless shuffled epochs, for runs that write their own data.

Which example is visited j-th, and in which order its responses are shown, is a
function of the examples, the seed and j: how many visits there were is the
whole state.
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
from grm_jax.judgement import response_order
from grm_jax.judgement.example import JudgingExample

STRATIFIED = 'stratified'
KINDS = (STRATIFIED, *response_order.KINDS)


@dataclasses.dataclass(frozen=True)
class RolloutPrompt:
  """An example, shown once.

  Attributes:
    example: what is judged.
    order: order[place] is the response that is shown there.
    epoch: how often the example was visited before.
  """

  example: JudgingExample
  order: tuple[int, ...]
  epoch: int

  @property
  def name(self) -> str:
    """Of this visit alone: what is drawn at it depends on this name."""
    return f'{self.example.id} {self.epoch}'


class RolloutPromptIterator:
  """An endless stream; `take` the next ones.

  Attributes:
    drawn: visits so far.
  """

  def __init__(self, examples: Sequence[JudgingExample], order: str, seed: int):
    """Begins with the first epoch.

    Args:
      examples: at least one, no id twice.
      order: 'stratified': a shuffle in which the best response stands where
        its turn is, so that visits in a row have it in each place about as
        often (of pairs, in every other one exactly). Shuffled alone, one run
        of 64 pairs in twelve has it first in 38 or more, and a policy that
        cannot tell responses apart learns the place. 'balanced':
        each visit shows the next rotation of the responses; 'random' or
        'fixed', see judgement/response_order.py.
      seed: of epochs and orders.

    Raises:
      UserError: no example, an id twice, an unknown order.
    """
    ids = {example.id for example in examples}
    if len(ids) < len(examples) or not examples:
      raise UserError(
        f'{len(examples)} examples with {len(ids)} ids: there must be at '
        'least one, and ids must differ'
      )
    if order not in KINDS:
      raise UserError(
        f'config.response_order is {order!r}, none of {", ".join(KINDS)}'
      )
    self.examples, self.drawn = tuple(examples), 0
    self._order, self._seed = order, seed
    self._shuffled = functools.lru_cache(maxsize=2)(
      functools.partial(mixture.permutation, len(examples), seed, 'visits')
    )

  @property
  def epochs(self) -> float:
    """How many epochs were drawn, parts included."""
    return self.drawn / len(self.examples)

  def state(self) -> dict[str, Any]:
    """The place, and what tells this stream from others, as JSON values."""
    return {
      'drawn': self.drawn,
      'order': self._order,
      'seed': self._seed,
      'examples': f'{len(self.examples)}, {self._digest}',
    }

  @functools.cached_property
  def _digest(self):
    """Of all examples: computed once, and not whenever a run is saved."""
    digest = hashlib.blake2b(digest_size=8)
    for row in map(examples_lib.to_row, self.examples):
      digest.update(json.dumps(row).encode() + b'\n')
    return digest.hexdigest()

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes to where a stream of the same examples was.

    Raises:
      UserError: it was of others, with both sides.
    """
    for name, ours in self.state().items():
      if name != 'drawn' and state.get(name) != ours:
        raise UserError(
          f'the saved run visits examples with {name} = {state.get(name)}, '
          f'this one with {ours}; go on with what was saved, or begin a new run'
        )
    self.drawn = state['drawn']

  def take(self, count: int) -> list[RolloutPrompt]:
    """The next `count` visits."""
    found = [self._visit(self.drawn + i) for i in range(count)]
    self.drawn += count
    return found

  def _visit(self, number):
    epoch, place = divmod(number, len(self.examples))
    example = self.examples[int(self._shuffled(epoch)[place])]
    stratified = self._order == STRATIFIED
    kind = 'random' if stratified else self._order
    n = len(example.responses)
    shown = response_order.orders(kind, n, epoch + 1, self._seed, example.id)[
      epoch
    ]
    if stratified and example.best is not None:
      shown = _moved(shown, example.best, _turn(number, n))
    return RolloutPrompt(example, shown, epoch)


def _turn(number, n):
  """A place for each of 0, 1, 2, ...: floor(n x) of van der Corput's x.

  Binary digits behind the point in reverse: 0, 1/2, 1/4, 3/4, 1/8, ...
  """
  digits = f'{number:b}'[::-1]
  return int(digits, 2) * n >> len(digits)


def _moved(order, index, place):
  """`order` with `index` at `place`, in exchange for what stood there."""
  changed = list(order)
  changed[order.index(index)] = order[place]
  changed[place] = index
  return tuple(changed)
