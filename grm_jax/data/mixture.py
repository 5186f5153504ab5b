"""Drawing from several sources by rate, each in shuffled epochs of its own.

Which record is drawn j-th is a function of the rates, the seed, and the names
and sizes of the sources. How often each source was drawn is the whole state.
"""

import dataclasses
import fractions
import functools
import hashlib
import json
import math
import numbers
from collections.abc import Mapping

import numpy as np

from grm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Draw:
  """Record number `index` of a source, in its epoch `epoch`, from 0."""

  source: str
  index: int
  epoch: int


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sources and their shares; make one with `mix`.

  Attributes:
    sizes: records of each source.
    weights: the rates as whole numbers without a common divisor.
    seed: of the shuffles.
  """

  sizes: Mapping[str, int]
  weights: Mapping[str, int]
  seed: int

  def draw(
    self, drawn: Mapping[str, int], count: int
  ) -> tuple[list[Draw], dict[str, int]]:
    """The next `count` draws.

    After any number of draws j, a source that has the share r of all rates
    was drawn j * r times, rounded up or down.

    Args:
      drawn: how often each source was drawn before; {} for never.
      count: how many draws.

    Returns:
      The draws, and how often each source was drawn after them.
    """
    drawn = {source: drawn.get(source, 0) for source in self.sizes}
    before = sum(drawn.values())
    draws = []
    for position in range(before + 1, before + count + 1):
      source = self._next(drawn, position)
      size = self.sizes[source]
      epoch, place = divmod(drawn[source], size)
      order = _epoch_order(size, self.seed, source, epoch)
      draws.append(Draw(source, int(order[place]), epoch))
      drawn[source] += 1
    return draws, drawn

  def _next(self, drawn, position):
    """The source of the draw number `position`, from 1.

    Draw m of a source may come after draw (m - 1) / r of all, and must come
    by draw m / r, rounded up. Of the sources that may come, the one that must
    come first does: for tasks of one unit of time that meets all deadlines
    that can be met, and these can (Tijdeman, "The chairman assignment
    problem", 1980). To take the largest deficit would not do: of 1, 1, 1, 4,
    4, 24, 24 and 24 parts, one lags 1.1 draws behind after 35.
    """
    total = sum(self.weights.values())
    ready = [
      source
      for source, weight in self.weights.items()
      if drawn[source] * total < position * weight
    ]

    def deadline(source):  # (drawn + 1) / r, rounded up
      return -(-(drawn[source] + 1) * total // self.weights[source])

    return min(ready, key=deadline)

  def passes(self, drawn: Mapping[str, int]) -> dict[str, float]:
    """How many epochs of each source were drawn, parts included."""
    return {s: drawn.get(s, 0) / size for s, size in self.sizes.items()}


def mix(
  sizes: Mapping[str, int], rates: Mapping[str, float], seed: int
) -> Mixture:
  """A Mixture of the sources whose rate is above 0.

  Args:
    sizes: records of each source.
    rates: the same sources; their sum may be anything above 0. A decimal
      number is taken as written: 0.1 is a tenth.
    seed: of the shuffles.

  Raises:
    UserError: a source without a rate; a rate that is no number, negative or
      of an empty source; no rate above 0.
  """
  for source in sorted(sizes):
    if source not in rates:
      raise UserError(
        f'source {source!r} has no rate; there are rates for '
        f'{", ".join(sorted(rates))}; give it one, 0 to leave it out'
      )
  exact = {source: _exact(source, rates[source]) for source in sorted(rates)}
  exact = {source: rate for source, rate in exact.items() if rate}
  if not exact:
    raise UserError(f'no source has a rate above 0: {dict(rates)}')
  for source, rate in exact.items():
    if not sizes.get(source):
      raise UserError(
        f'source {source!r} has the rate {float(rate):g} and no records; give '
        'it records, or the rate 0'
      )
  scale = math.lcm(*(rate.denominator for rate in exact.values()))
  whole = {source: int(rate * scale) for source, rate in exact.items()}
  common = math.gcd(*whole.values())
  weights = {source: weight // common for source, weight in whole.items()}
  return Mixture({s: sizes[s] for s in weights}, weights, int(seed))


def _exact(source, rate):
  if not isinstance(rate, numbers.Real) or not 0 <= rate < math.inf:
    raise UserError(
      f'source {source!r} has the rate {rate}; it must be a number, 0 or more'
    )
  return fractions.Fraction(str(rate))


def permutation(n: int, *names: int | str) -> np.ndarray:
  """int64 [n]: 0 to n - 1 in an order that depends on the names only.

  NumPy promises to keep a bit generator's raw output in all its releases, as
  it does not for Generator.permutation; a run may go on with a newer NumPy.
  """
  digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=16).digest()
  bits = np.random.PCG64(int.from_bytes(digest, 'little'))
  return np.argsort(bits.random_raw(n), kind='stable')


@functools.lru_cache(maxsize=32)
def _epoch_order(n, seed, source, epoch):
  return permutation(n, seed, 'epoch', source, epoch)
