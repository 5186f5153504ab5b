"""A profiler trace of some steps: --config.profile_steps=FIRST,LAST.

Every process traces its own devices; the files of all lie beside each other
in WORKDIR/profile, named by host. TensorBoard with its profile plugin, or
xprof, shows them.
"""

import os
from typing import Any

import jax
from absl import logging

from grm_jax.errors import UserError
from grm_jax.io.gcs_mirror import GcsMirror

FOLDER = 'profile'


def parse(
  value: str | tuple[int, ...], key: str = 'config.profile_steps'
) -> tuple[int, int] | None:
  """The first and the last step to trace, from 1; None for no trace.

  Args:
    value: 'FIRST,LAST' or a tuple; '' or () is off.
    key: config key of `value`, for messages.

  Raises:
    UserError: anything else.
  """
  if not value:
    return None
  parts = value.split(',') if isinstance(value, str) else value
  try:
    first, last = map(int, parts)
  except ValueError:
    first, last = 0, 0
  if not 1 <= first <= last:
    raise UserError(
      f'{key} is {value!r}; expected FIRST,LAST such as 10,12, steps from 1'
    )
  return first, last


class Profiler:
  """Traces the steps it was asked for; use as a context manager.

  with Profiler(parse(config.profile_steps), workdir) as profiler:
    for step in ...:
      profiler.begin(step)
      state, metrics = update(state, batch)
      profiler.end(step, metrics)
  """

  def __init__(
    self, steps: tuple[int, int] | None, workdir: str | os.PathLike[str]
  ):
    """Prepares for the steps (first, last), or for none."""
    self._steps = steps
    self._folder = os.path.join(workdir, FOLDER)
    self._running = self._done = False

  def begin(self, step: int) -> None:
    """To be called before the work of a step is given to the devices."""
    if self._steps is None or self._running or self._done:
      return
    first, last = self._steps
    # A run that goes on from between the two traces what is left.
    if first <= step <= last:
      self._mirror = GcsMirror(self._folder)
      jax.profiler.start_trace(os.fspath(self._mirror.path))
      self._running = True

  def end(self, step: int, results: Any) -> None:
    """To be called when it is; waits for `results` after the last step."""
    if self._running and step >= self._steps[1]:
      jax.block_until_ready(results)
      self._stop()

  def close(self) -> None:
    """Ends a trace that is not over; warns if none was begun."""
    if self._running:
      self._stop()
    elif self._steps is not None and not self._done:
      logging.warning(
        'no trace: none of the steps of config.profile_steps=%d,%d was run',
        *self._steps,
      )

  def _stop(self):
    jax.profiler.stop_trace()
    self._mirror.close()
    self._running, self._done = False, True
    logging.info('profile -> %s', self._folder)

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *unused) -> None:
    self.close()
