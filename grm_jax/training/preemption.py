"""Preemption: after SIGTERM all processes save at the same step and exit."""

import signal

import jax
from absl import logging
from jax.experimental import multihost_utils


class Preemption:
  """Listens for a preemption notice; use as a context manager.

  With several processes, JAX's coordination service receives the signal of any
  process and chooses a step that no process has passed yet.
  """

  def __init__(self):
    """Installs a SIGTERM handler; only the main thread may do so."""
    self._is_requested, self._previous_handler = False, None
    # With several processes JAX installs its own handler.
    if jax.process_count() == 1:
      self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)

  def _on_signal(self, *unused) -> None:
    # A signal handler may interrupt any code: only set a flag.
    self._is_requested = True

  def should_stop(self, step: int) -> bool:
    """Returns whether to save and exit after this step.

    All processes must call it with the same steps in the same order. After
    the first True it stays True.
    """
    if jax.process_count() > 1:
      self._is_requested = multihost_utils.reached_preemption_sync_point(step)
    if self._is_requested:
      logging.info('preemption notice received; saving after step %d', step)
    return self._is_requested

  def close(self) -> None:
    """Restores the previous SIGTERM handler."""
    if self._previous_handler is not None:
      signal.signal(signal.SIGTERM, self._previous_handler)
      self._previous_handler = None

  def __enter__(self) -> 'Preemption':
    return self

  def __exit__(self, *unused) -> None:
    self.close()
