"""Contenders that take turns, so that a busy machine is busy for all."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import tqdm


@dataclasses.dataclass(frozen=True)
class Timed:
  """The rounds of one contender.

  Attributes:
    seconds: by the clock.
    cpu_seconds: of all threads; about cores times seconds unless something
      else had the cores, or the contender left them idle.
    results: what was returned.
  """

  seconds: list[float]
  cpu_seconds: list[float]
  results: list[Any]

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  @property
  def cores(self) -> float:
    """Cores that it had, on average."""
    return sum(self.cpu_seconds) / sum(self.seconds)


@dataclasses.dataclass(frozen=True)
class Ratio:
  """How many times another contender's seconds one took.

  Attributes:
    medians: of the two medians.
    least, most: of the ratios of single rounds.
  """

  medians: float
  least: float
  most: float

  def __str__(self) -> str:
    """The ratio of medians, and the spread over rounds."""
    return f'{self.medians:.2f}x {self.least:.2f}-{self.most:.2f}'


def ratio(timed: Timed, to: Timed) -> Ratio:
  """Of contenders with the same number of rounds."""
  rounds = [x / y for x, y in zip(timed.seconds, to.seconds, strict=True)]
  return Ratio(timed.median / to.median, min(rounds), max(rounds))


def turns(
  runs: dict[str, Callable[[int], Any]],
  repeats: int,
  what: str,
  uncounted: int = 1,
) -> dict[str, Timed]:
  """Calls each with the round's number, in turns.

  The first, uncounted round compiles what is not, and wakes up thread pools.
  """
  found = {name: Timed([], [], []) for name in runs}
  rounds = [(n, name) for n in range(uncounted + repeats) for name in runs]
  for number, name in tqdm.tqdm(rounds, what, disable=None, leave=False):
    start, cpu = time.perf_counter(), time.process_time()
    result = runs[name](number)
    cpu = time.process_time() - cpu
    seconds = time.perf_counter() - start
    if number >= uncounted:
      found[name].seconds.append(seconds)
      found[name].cpu_seconds.append(cpu)
      found[name].results.append(result)
  return found
