"""Builds batches in a thread while the devices work on those before them."""

import collections
import concurrent.futures
from typing import Any

from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.collate import BatchInfo
from grm_jax.model.batch import Batch


class Prefetch:
  """Batches, the next of which are being built already.

  Use as a context manager, or call `close`. The batches given are its own
  from then on: restore them before, and ask here for their state.
  """

  def __init__(self, batches: BatchIterator, depth: int = 2):
    """Begins to build.

    Args:
      batches: at the first batch that is wanted.
      depth: how many batches are built ahead.

    Raises:
      ValueError: depth is below 1.
    """
    if depth < 1:
      raise ValueError(f'the depth of prefetching is {depth}; it must be >= 1')
    self._batches = batches
    self._state = batches.state()
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'batches')
    self._ahead = collections.deque(
      self._pool.submit(self._build) for _ in range(depth)
    )

  def _build(self):
    return next(self._batches), self._batches.state()

  def __iter__(self) -> 'Prefetch':
    return self

  def __next__(self) -> tuple[Batch, BatchInfo]:
    """The next batch; raises what its building raised, then and ever after."""
    if not self._ahead:
      raise RuntimeError('this Prefetch is closed')
    built, self._state = self._ahead[0].result()
    self._ahead.popleft()
    self._ahead.append(self._pool.submit(self._build))
    return built

  def state(self) -> dict[str, Any]:
    """The batches' state after those that were handed out."""
    return self._state

  def waste(self) -> dict[str, float]:
    """Batches.waste of those that were handed out."""
    return self._batches.waste(self._state)

  def passes(self) -> dict[str, float]:
    """Batches.passes of those that were handed out."""
    return self._batches.passes(self._state)

  def close(self) -> None:
    """Waits for the batch being built and ends the thread."""
    self._pool.shutdown(cancel_futures=True)
    self._ahead.clear()

  def __enter__(self) -> 'Prefetch':
    return self

  def __exit__(self, *unused) -> None:
    self.close()
