"""Profiler traces of a range of steps: --config.profile_steps=FIRST,LAST.

Every process traces its own devices. The trace files of all hosts are written
to WORKDIR/profile; open them with xprof or TensorBoard's profile plugin.
"""

import os
from typing import Any

import jax
from absl import logging

from grm_jax import settings
from grm_jax.io.gcs_mirror import GcsMirror

FOLDER = 'profile'


def _is_range(value: Any) -> bool:
  if not isinstance(value, str):
    return False
  try:
    first, last = map(int, value.split(','))
  except ValueError:
    return False
  return 1 <= first <= last


SETTING = settings.optional(
  settings.Rule("'FIRST,LAST' such as '10,12', counted from 1", _is_range),
  'no trace',
)


def parse(value: str) -> tuple[int, int] | None:
  """Returns the first and last step to trace, or None for no trace.

  Args:
    value: 'FIRST,LAST', counted from 1; '' for no trace.

  Raises:
    UserError: any other value.
  """
  settings.check_value(value, SETTING, 'config.profile_steps')
  if not value:
    return None
  first, last = map(int, value.split(','))
  return first, last


class Profiler:
  """Traces a range of steps; use as a context manager.

  with Profiler(parse(config.profile_steps), workdir) as profiler:
    for step in ...:
      profiler.begin(step)
      state, metrics = update(state, batch)
      profiler.end(step, metrics)
  """

  def __init__(
    self, steps: tuple[int, int] | None, workdir: str | os.PathLike[str]
  ):
    """Sets the range of steps.

    Args:
      steps: (first, last) from `parse`, or None for no trace.
      workdir: folder of the run, local or gs://.
    """
    self._steps = steps
    self._folder = os.path.join(workdir, FOLDER)
    self._is_running = self._is_done = False

  def begin(self, step: int, num_steps: int = 1) -> None:
    """Starts the trace if needed; call it before steps are dispatched.

    Args:
      step: the last step that is dispatched.
      num_steps: number of steps that are dispatched together.
    """
    if self._steps is None or self._is_running or self._is_done:
      return
    first, last = self._steps
    # A run that resumes within the range traces the remaining steps.
    if first <= step and step - num_steps < last:
      self._mirror = GcsMirror(self._folder)
      jax.profiler.start_trace(os.fspath(self._mirror.path))
      self._is_running = True

  def end(self, step: int, results: Any) -> None:
    """Stops the trace after the last step.

    Args:
      step: the step that was dispatched.
      results: its outputs, to wait for the devices.
    """
    if self._is_running and self._steps and step >= self._steps[1]:
      jax.block_until_ready(results)
      self._stop()

  def close(self) -> None:
    """Stops a running trace; warns if the steps were never reached."""
    if self._is_running:
      self._stop()
    elif self._steps is not None and not self._is_done:
      logging.warning(
        'no trace: the run did not reach config.profile_steps=%d,%d',
        *self._steps,
      )

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._mirror.close()
    self._is_running, self._is_done = False, True
    logging.info('profile -> %s', self._folder)

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *unused) -> None:
    self.close()
