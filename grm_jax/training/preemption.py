"""Being asked to stop: SIGTERM becomes a step at which all processes save."""

import signal

import jax
from absl import logging
from jax.experimental import multihost_utils


class Preemption:
  """Knows whether this run was asked to stop; use as a context manager.

  Several processes: JAX's coordination service, which takes the signal of
  any of them, agrees on a step that none has passed.
  """

  def __init__(self):
    """Begins to listen. Only the main thread may."""
    self._asked, self._before = False, None
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._ask)

  def _ask(self, *unused):
    self._asked = True

  def at(self, step: int) -> bool:
    """Whether to save and end after this step. All processes call it."""
    if jax.process_count() > 1:
      self._asked = multihost_utils.reached_preemption_sync_point(step)
    if self._asked:
      logging.info('asked to stop: saving after step %d', step)
    return self._asked

  def close(self) -> None:
    """Listens no more."""
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      self._before = None

  def __enter__(self) -> 'Preemption':
    return self

  def __exit__(self, *unused) -> None:
    self.close()
