"""Mixes sources by rate; each source is reshuffled in every epoch.

The j-th draw is a function of the rates, the seed, and the names and sizes of
the sources. The number of draws of each source is the complete state.
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
  """One draw: example `index` of `source`, in epoch `epoch` from 0."""

  source: str
  index: int
  epoch: int


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sources and their shares; `make_mixture` creates one.

  Attributes:
    sizes: number of examples of each source.
    weights: the rates as integers without a common divisor.
    seed: seed of the shuffles.
  """

  sizes: Mapping[str, int]
  weights: Mapping[str, int]
  seed: int

  def draw(
    self, num_drawn: Mapping[str, int], count: int
  ) -> tuple[list[Draw], dict[str, int]]:
    """Returns the next `count` draws.

    After any number j of draws, a source with share r of the sum of all rates
    was drawn floor(j * r) or ceil(j * r) times.

    Args:
      num_drawn: how often each source was drawn so far; {} at the beginning.
      count: number of draws.

    Returns:
      The draws, and `num_drawn` after them.
    """
    counts = {source: num_drawn.get(source, 0) for source in self.sizes}
    total = sum(counts.values())
    draws = []
    for position in range(total + 1, total + count + 1):
      source = self._next_source(counts, position)
      size = self.sizes[source]
      epoch, offset = divmod(counts[source], size)
      order = _epoch_order(size, self.seed, source, epoch)
      draws.append(Draw(source, int(order[offset]), epoch))
      counts[source] += 1
    return draws, counts

  def _next_source(self, counts: Mapping[str, int], position: int) -> str:
    """Returns the source of draw number `position`, counted from 1.

    Draw m of a source with share r is released after draw (m - 1) / r of all
    draws, and its deadline is draw ceil(m / r). Among released sources the one
    with the earliest deadline is drawn. For unit-time tasks this policy meets
    all deadlines that can be met, and these can (Tijdeman, "The chairman
    assignment problem", 1980). Drawing the source with the largest deficit is
    not enough: with weights 1, 1, 1, 4, 4, 24, 24 and 24 one source lags 1.1
    draws behind after 35 draws.
    """
    total = sum(self.weights.values())
    released = [
      source
      for source, weight in self.weights.items()
      if counts[source] * total < position * weight
    ]

    def deadline(source: str) -> int:
      # ceil((counts + 1) / r), in integers; min() takes the first of a tie.
      return -(-(counts[source] + 1) * total // self.weights[source])

    return min(released, key=deadline)

  def epochs(self, num_drawn: Mapping[str, int]) -> dict[str, float]:
    """Returns the epochs of each source after these draws, with fractions."""
    return {s: num_drawn.get(s, 0) / size for s, size in self.sizes.items()}


def make_mixture(
  sizes: Mapping[str, int], rates: Mapping[str, float], seed: int
) -> Mixture:
  """Returns a Mixture of the sources whose rate is above 0.

  Args:
    sizes: number of examples of each source.
    rates: rate of the same sources; they need not sum to 1. Decimal numbers
      are exact: 0.1 is one tenth.
    seed: seed of the shuffles.

  Raises:
    UserError: a source has no rate; a rate is negative, not a finite number,
      or of a source without examples; no rate is above 0.
  """
  for source in sorted(sizes):
    if source not in rates:
      raise UserError(
        f'source {source!r} has no rate, only {", ".join(sorted(rates))} have; '
        'give it a rate, or 0 to leave it out'
      )
  fractions_by_source = {x: _fraction(x, rates[x]) for x in sorted(rates)}
  positive = {x: rate for x, rate in fractions_by_source.items() if rate}
  if not positive:
    raise UserError(
      f'the rates are {dict(rates)}; at least one must be above 0'
    )
  for source, rate in positive.items():
    if not sizes.get(source):
      raise UserError(
        f'source {source!r} has the rate {float(rate):g} but no examples; give '
        'it examples, or the rate 0'
      )
  scale = math.lcm(*(rate.denominator for rate in positive.values()))
  scaled = {source: int(rate * scale) for source, rate in positive.items()}
  divisor = math.gcd(*scaled.values())
  weights = {source: weight // divisor for source, weight in scaled.items()}
  return Mixture({s: sizes[s] for s in weights}, weights, int(seed))


def _fraction(source: str, rate: float) -> fractions.Fraction:
  if not isinstance(rate, numbers.Real) or not 0 <= rate < math.inf:
    raise UserError(
      f'source {source!r} has the rate {rate}; it must be a number >= 0'
    )
  # Via the decimal notation: 0.1 is 1/10, not the nearest binary fraction.
  return fractions.Fraction(str(rate))


def permutation(n: int, *key: int | str) -> np.ndarray:
  """Returns a permutation of range(n), int64 [n], that depends on `key` only.

  NumPy guarantees that the raw output of a bit generator never changes. It
  does not guarantee this for Generator.permutation, and a run must resume
  exactly under a newer NumPy.
  """
  digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
  bits = np.random.PCG64(int.from_bytes(digest, 'little'))
  return np.argsort(bits.random_raw(n), kind='stable')


@functools.lru_cache(maxsize=32)
def _epoch_order(n: int, seed: int, source: str, epoch: int) -> np.ndarray:
  return permutation(n, seed, 'epoch', source, epoch)
