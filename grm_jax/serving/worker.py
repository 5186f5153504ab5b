"""The thread that runs the judge, and the queue in front of it.

  submit -> queue (bounded) -> in flight -> callback: samples, then a result

The web server runs in an asyncio loop; the judge blocks and keeps the device
busy, so it has a thread of its own. All threads share the fields of JudgeWorker
under one condition variable. Callbacks are called outside of the lock.

Shutdown: `close` rejects new requests, and the thread ends when the queue is
empty and no request is in flight. If the judge raises, every open request
receives WorkerFailed, and `failed` is set.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest

# A judge: (requests, on_result, on_sample, cancelled_numbers), see
# judges/generative.py. It numbers the requests in the order it takes them.
Stream = Callable[
  [
    Iterable[JudgementRequest | None],
    Callable[[int, JudgedExample | ExampleError], None],
    Callable[[int, int, Judgement], None],
    Callable[[], Collection[int]],
  ],
  None,
]


class QueueFull(Exception):
  """The queue has no room for the submitted requests."""


class ShuttingDown(Exception):
  """The worker accepts no requests; the message states the reason."""


@dataclasses.dataclass(frozen=True)
class SampleEvent:
  """One finished judgement of an example that is still in flight.

  Attributes:
    place: index of the judgement among the k of its example.
    judgement: the judgement.
  """

  place: int
  judgement: Judgement


@dataclasses.dataclass(frozen=True)
class WorkerFailed:
  """The judge has raised an error; no other event follows."""

  reason: str


Event = SampleEvent | JudgedExample | ExampleError | WorkerFailed


@dataclasses.dataclass(eq=False)  # compared by identity: equal requests differ
class PendingRequest:
  """A submitted request.

  Attributes:
    request: what to judge.
    on_event: called by the judge's thread with each event.
    arrival_time: time.monotonic() of submission.
    start_time: time.monotonic() when the judge took it; None in the queue.
    number: the judge's number of it; -1 in the queue.
  """

  request: JudgementRequest
  on_event: Callable[[Event], None]
  arrival_time: float
  start_time: float | None = None
  number: int = -1


class JudgeWorker:
  """Runs a judge in a thread and queues requests for it."""

  def __init__(self, stream: Stream, max_queue: int):
    """Starts the thread.

    Args:
      stream: the judge.
      max_queue: maximum number of queued requests; requests in flight do not
        count.
    """
    self._stream, self._max_queue = stream, max_queue
    # Guards all fields below; notified on a new request and on close.
    self._changed = threading.Condition()
    self._queue: collections.deque[PendingRequest] = collections.deque()
    self._in_flight: dict[int, PendingRequest] = {}
    self._cancelled: list[int] = []
    self._close_reason = ''  # not empty once requests are rejected
    self.failed = threading.Event()
    # A daemon: a judge that hangs must not keep the process alive.
    self._thread = threading.Thread(target=self._run, name='judge', daemon=True)
    self._thread.start()

  def submit(
    self, requests: Iterable[tuple[JudgementRequest, Callable[[Event], None]]]
  ) -> list[PendingRequest]:
    """Queues all of these requests, or none.

    Args:
      requests: each request and its callback. The judge's thread calls it with
        each event, so it must not block.

    Raises:
      QueueFull: the queue has no room for all of them.
      ShuttingDown: the worker is closed or has failed.
    """
    now = time.monotonic()
    pending = [PendingRequest(x, on_event, now) for x, on_event in requests]
    with self._changed:
      if self._close_reason:
        raise ShuttingDown(self._close_reason)
      if len(self._queue) + len(pending) > self._max_queue:
        raise QueueFull(
          f'{len(self._queue)} examples are queued, and the maximum is '
          f'{self._max_queue} (config.limits.max_queue)'
        )
      self._queue.extend(pending)
      self._changed.notify()
    return pending

  def cancel(self, requests: Iterable[PendingRequest]) -> None:
    """Cancels requests; has no effect on those that are finished.

    The callback of a cancelled request is not called again, except for an event
    that the judge's thread is delivering at this moment. The judge frees its
    rows before its next step.
    """
    with self._changed:
      for pending in requests:
        if pending.number < 0 and pending in self._queue:
          self._queue.remove(pending)
        elif self._in_flight.pop(pending.number, None) is not None:
          self._cancelled.append(pending.number)

  def counts(self) -> tuple[int, int]:
    """Returns the numbers of requests in the queue and in flight."""
    with self._changed:
      return len(self._queue), len(self._in_flight)

  @property
  def is_open(self) -> bool:
    """True while requests are accepted."""
    return not self._close_reason

  def close(self, timeout_s: float | None = None) -> bool:
    """Rejects new requests and waits until the accepted ones are finished.

    Args:
      timeout_s: seconds to wait; None waits without a limit.

    Returns:
      Whether the thread has ended.
    """
    with self._changed:
      # The reason of a failure is more useful to clients; keep it.
      self._close_reason = self._close_reason or 'the server is stopping'
      self._changed.notify()
    self._thread.join(timeout_s)
    return not self._thread.is_alive()

  def _run(self):
    try:
      self._stream(
        self._requests(), self._on_result, self._on_sample, self._take_cancelled
      )
    except BaseException as error:  # clients must learn of any failure
      self._fail(f'the judge has failed: {type(error).__name__}: {error}')
      raise

  def _fail(self, reason):
    with self._changed:
      self._close_reason = reason
      unfinished = [*self._in_flight.values(), *self._queue]
      self._in_flight.clear(), self._queue.clear()
    self.failed.set()
    for pending in unfinished:
      pending.on_event(WorkerFailed(reason))

  def _requests(self) -> Iterator[JudgementRequest | None]:
    """Yields queued requests in order; None to continue without one.

    The judge asks for the next request between its steps. With requests in
    flight and an empty queue it gets None and continues to decode. With nothing
    to do it blocks here. The iterator ends when the worker is closed and no
    request is left.
    """
    number = 0
    while True:
      request = None
      with self._changed:
        while not (self._queue or self._in_flight or self._close_reason):
          self._changed.wait()
        if self._queue:
          pending = self._queue.popleft()
          pending.number, pending.start_time = number, time.monotonic()
          self._in_flight[number] = pending
          request = pending.request
          number += 1
        elif not self._in_flight:
          return  # closed
      yield request

  def _take_cancelled(self) -> Collection[int]:
    """Returns the numbers cancelled since the last call."""
    with self._changed:
      numbers, self._cancelled = self._cancelled, []
    return numbers

  def _on_result(self, number, result):
    with self._changed:
      pending = self._in_flight.pop(number, None)
    if pending is not None:  # None if it was cancelled
      pending.on_event(result)

  def _on_sample(self, number, place, judgement):
    with self._changed:
      pending = self._in_flight.get(number)
    if pending is not None:
      pending.on_event(SampleEvent(place, judgement))
