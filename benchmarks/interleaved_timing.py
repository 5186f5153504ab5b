"""Interleaved timing, which exposes all contenders to the same background load.

Contenders run round-robin. Other processes on the machine then slow all of
them alike, and the ratio of two contenders within a round stays meaningful.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import tqdm


@dataclasses.dataclass(frozen=True)
class Timings:
  """Measured rounds of one contender.

  Attributes:
    seconds: wall-clock time of each round.
    cpu_seconds: processor time of all threads in each round. It is about
      cores * seconds, unless other processes used the cores or the contender
      left them idle.
    results: return value of each round.
  """

  seconds: list[float]
  cpu_seconds: list[float]
  results: list[Any]

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  @property
  def cores(self) -> float:
    """Average number of cores in use."""
    return sum(self.cpu_seconds) / sum(self.seconds)


@dataclasses.dataclass(frozen=True)
class Ratio:
  """Time of one contender divided by the time of a reference contender.

  Attributes:
    medians: ratio of the two medians.
    least: smallest ratio of a single round.
    most: largest ratio of a single round.
  """

  medians: float
  least: float
  most: float

  def __str__(self) -> str:
    return f'{self.medians:.2f}x {self.least:.2f}-{self.most:.2f}'


def ratio(timings: Timings, reference: Timings) -> Ratio:
  """Compares two contenders that ran the same number of rounds."""
  rounds = [
    x / y for x, y in zip(timings.seconds, reference.seconds, strict=True)
  ]
  return Ratio(timings.median / reference.median, min(rounds), max(rounds))


def run_interleaved(
  runs: dict[str, Callable[[int], Any]],
  repeats: int,
  description: str,
  warmup_rounds: int = 1,
) -> dict[str, Timings]:
  """Times all contenders round-robin.

  Args:
    runs: functions of the round number, by name of the contender.
    repeats: number of measured rounds.
    description: label of the progress bar.
    warmup_rounds: rounds before the measured ones; they compile and start
      thread pools.

  Returns:
    The timings by name of the contender.
  """
  timings = {name: Timings([], [], []) for name in runs}
  rounds = [(n, name) for n in range(warmup_rounds + repeats) for name in runs]
  for number, name in tqdm.tqdm(rounds, description, disable=None, leave=False):
    start, cpu_start = time.perf_counter(), time.process_time()
    result = runs[name](number)
    cpu_seconds = time.process_time() - cpu_start
    seconds = time.perf_counter() - start
    if number >= warmup_rounds:
      timings[name].seconds.append(seconds)
      timings[name].cpu_seconds.append(cpu_seconds)
      timings[name].results.append(result)
  return timings
