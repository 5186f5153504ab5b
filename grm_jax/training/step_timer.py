"""Wall-clock time of a training loop and its parts."""

import contextlib
import time
from collections.abc import Callable, Iterator


class StepTimer:
  """Measures the parts of a loop and the rates of counted things.

  A loop runs in laps, one for each row of metrics. Devices compute in the
  background, so their time appears in the part that waits for them.
  """

  def __init__(self, now: Callable[[], float] = time.perf_counter):
    """Starts the first lap.

    Args:
      now: returns the time in seconds.
    """
    self._now = now
    self._start_lap(now())

  def _start_lap(self, start: float) -> None:
    self._lap_start = start
    self._part_seconds: dict[str, float] = {}
    self._counts: dict[str, float] = {}

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Measures the block as part `name`; nested parts count in both."""
    start = self._now()
    try:
      yield
    finally:
      seconds = self._now() - start
      self._part_seconds[name] = self._part_seconds.get(name, 0.0) + seconds

  def add(self, name: str, count: float) -> None:
    """Adds to a count of this lap, such as tokens."""
    self._counts[name] = self._counts.get(name, 0) + count

  def lap(self) -> dict[str, float]:
    """Ends the lap and starts the next one.

    Returns:
      time/PART of each part and time/total of the whole lap, in seconds;
      NAME_per_second of each count, over the whole lap.
    """
    now = self._now()
    total = now - self._lap_start
    metrics = {f'time/{name}': s for name, s in self._part_seconds.items()}
    metrics['time/total'] = total
    for name, count in self._counts.items():
      metrics[f'{name}_per_second'] = count / total
    self._start_lap(now)
    return metrics
