"""Builds batches on a background thread while devices compute."""

import collections
import concurrent.futures
from typing import Any

from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.collate import BatchInfo
from grm_jax.model.batch import Batch


class Prefetch:
  """Iterates over the batches of a BatchIterator, `depth` batches ahead.

  Use it as a context manager, or call `close`. It owns the BatchIterator:
  restore that one before, and read the state from here, because the iterator
  itself is ahead of what the caller has received.

  Args:
    batches: positioned at the first batch to return.
    depth: number of batches to build ahead.

  Raises:
    ValueError: `depth` is below 1.
  """

  def __init__(self, batches: BatchIterator, depth: int = 2):
    if depth < 1:
      raise ValueError(f'depth is {depth}; it must be 1 or more')
    self._batches = batches
    self._state = batches.state()
    # One thread: the iterator is not thread-safe and batches have an order.
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'batches')
    self._pending = collections.deque(
      self._pool.submit(self._build) for _ in range(depth)
    )

  def _build(self) -> tuple[tuple[Batch, BatchInfo], dict[str, Any]]:
    return next(self._batches), self._batches.state()

  def __iter__(self) -> 'Prefetch':
    return self

  def __next__(self) -> tuple[Batch, BatchInfo]:
    """Returns the next batch.

    An exception of the background thread is raised here, and again by every
    later call: the failed future stays at the head of the queue.
    """
    if not self._pending:
      raise RuntimeError('this Prefetch is closed')
    batch, self._state = self._pending[0].result()
    self._pending.popleft()
    self._pending.append(self._pool.submit(self._build))
    return batch

  def state(self) -> dict[str, Any]:
    """Returns the BatchIterator.state after the last returned batch."""
    return self._state

  def padding_fraction(self) -> dict[str, float]:
    """Returns BatchIterator.padding_fraction of the returned batches."""
    return self._batches.padding_fraction(self._state)

  def epochs(self) -> dict[str, float]:
    """Returns BatchIterator.epochs of the returned batches."""
    return self._batches.epochs(self._state)

  def close(self) -> None:
    """Waits for the batch in progress and ends the thread."""
    self._pool.shutdown(cancel_futures=True)
    self._pending.clear()

  def __enter__(self) -> 'Prefetch':
    return self

  def __exit__(self, *exception_info) -> None:
    self.close()
