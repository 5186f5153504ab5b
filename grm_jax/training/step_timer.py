"""Time of a training loop: where it went, and how much is left."""

import contextlib
import time
from collections.abc import Callable, Iterator


class StepTimer:
  """Where the seconds of a loop go, and how fast things are counted.

  A loop runs in laps, one for each row of metrics. Devices work in the
  background: their time shows in the part that waits for them.
  """

  def __init__(self, now: Callable[[], float] = time.perf_counter):
    """Starts the first lap; `now` tells seconds."""
    self._now = now
    self._restart(now())

  def _restart(self, begin):
    self._begin, self._parts, self._counts = begin, {}, {}

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Measures the block as part `name`; parts inside it count twice."""
    begin = self._now()
    try:
      yield
    finally:
      spent = self._now() - begin
      self._parts[name] = self._parts.get(name, 0.0) + spent

  def add(self, name: str, count: float) -> None:
    """Counts things of this lap, such as tokens."""
    self._counts[name] = self._counts.get(name, 0) + count

  def lap(self) -> dict[str, float]:
    """Ends the lap and begins the next one.

    Returns:
      time/PART for each part, and time/total for the lap with what was in no
      part: seconds. NAME_per_second for each thing counted, over the time of
      the whole lap.
    """
    now = self._now()
    total = now - self._begin
    out = {f'time/{name}': spent for name, spent in self._parts.items()}
    out['time/total'] = total
    for name, count in self._counts.items():
      out[f'{name}_per_second'] = count / total
    self._restart(now)
    return out
