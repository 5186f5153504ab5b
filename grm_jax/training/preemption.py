"""Preemption: after SIGTERM all processes save at the same step and exit."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Listens for a preemption notice; use as a context manager.

  With several processes, JAX's coordination service receives the signal of any
  process and chooses a step that no process has passed yet.
  """

  def __init__(self):
    """Installs a SIGTERM handler; only the main thread may do so."""
    self._is_requested, self._num_calls = False, 0
    self._previous_handler = None
    # With several processes JAX installs its own handler.
    if jax.process_count() == 1:
      self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)

  def _on_signal(self, *unused) -> None:
    # A signal handler may interrupt any code: only set a flag.
    self._is_requested = True

  def should_stop(self) -> bool:
    """Returns whether to save and exit now; stays True after the first True.

    It may be called several times per step. All processes must call it equally
    often.
    """
    if jax.process_count() > 1 and not self._is_requested:
      # The service stops all processes at the call after the last one that any
      # of them has made. It requires numbers without gaps, and must not be
      # called again after it has returned True.
      self._num_calls += 1
      self._is_requested = multihost_utils.reached_preemption_sync_point(
        self._num_calls
      )
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
