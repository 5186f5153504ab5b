"""Progress lines of a training run."""

import datetime
import time
from collections.abc import Callable

import jax


class ProgressPrinter:
  """Prints how far a run is, on process 0; call `update` after each step.

  A line is printed for the first and the last step, and otherwise at most once
  per interval:

    step 12/900: loss 1.234, learning rate 5.00e-06, 8100 tokens/s, ETA 1:23:45

  Args:
    start_step: number of steps done before this process started.
    total_steps: number of steps of the whole run.
    interval_s: minimum time between two lines, in seconds.
    now: returns the time in seconds.
  """

  def __init__(
    self,
    start_step: int,
    total_steps: int,
    interval_s: float = 10.0,
    now: Callable[[], float] = time.monotonic,
  ):
    self._start_step, self._total_steps = start_step, total_steps
    self._interval_s, self._now = interval_s, now
    self._start_time, self._last_time = now(), -float('inf')

  def update(
    self,
    step: int,
    values: str,
    learning_rate: float,
    tokens_per_second: float,
  ) -> None:
    """Prints a line if one is due.

    Args:
      step: the step that was done.
      values: what the run optimizes, for example 'loss 1.234'.
      learning_rate: learning rate of the step.
      tokens_per_second: training speed.
    """
    now = self._now()
    is_due = now - self._last_time >= self._interval_s
    if jax.process_index() or not (is_due or step == self._total_steps):
      return
    self._last_time = now
    seconds_per_step = (now - self._start_time) / (step - self._start_step)
    eta = datetime.timedelta(
      seconds=round(seconds_per_step * (self._total_steps - step))
    )
    print(
      f'step {step}/{self._total_steps}: {values}, '
      f'learning rate {learning_rate:.2e}, {tokens_per_second:.0f} tokens/s, '
      f'ETA {eta}',
      flush=True,
    )
