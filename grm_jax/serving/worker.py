"""Between the web server's threads and the one that runs the model.

  ask -> waiting (bounded) -> at work -> told: samples, then an answer

A ticket that is dropped is never told anything again, and the model's rows
that worked for it are free before its next call.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest

# A judge: (examples, hand_out, show, dropped), see judges/generative.py.
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
  """As many wait as may."""


class ShuttingDown(Exception):
  """Nothing is taken any more; says why."""


@dataclasses.dataclass(frozen=True)
class SampleEvent:
  """A judgement, before all of its example are there."""

  place: int
  judgement: Judgement


@dataclasses.dataclass(frozen=True)
class WorkerFailed:
  """The judge has failed; nothing else comes."""

  reason: str


Event = SampleEvent | JudgedExample | ExampleError | WorkerFailed


@dataclasses.dataclass(eq=False)
class PendingRequest:
  """An example on its way.

  Attributes:
    asked: the example.
    tell: called with what happens to it, by the judge's thread.
    came, begun: when, by time.monotonic; begun is None while it waits.
    number: the judge's, -1 while it waits.
  """

  asked: JudgementRequest
  tell: Callable[[Event], None]
  came: float
  begun: float | None = None
  number: int = -1


class JudgeWorker:
  """A judge in a thread of its own, and who waits for it."""

  def __init__(self, stream: Stream, most_waiting: int):
    """Begins to work.

    Args:
      stream: the judge.
      most_waiting: tickets that may wait; those at work do not count.
    """
    self._stream, self._most = stream, most_waiting
    self._changed = threading.Condition()
    self._waiting: collections.deque[PendingRequest] = collections.deque()
    self._at_work: dict[int, PendingRequest] = {}
    self._dropped: list[int] = []
    self._closed = ''  # why, once it is
    self.failed = threading.Event()
    self._thread = threading.Thread(target=self._run, name='judge', daemon=True)
    self._thread.start()

  def ask(
    self, wanted: Iterable[tuple[JudgementRequest, Callable[[Event], None]]]
  ) -> list[PendingRequest]:
    """Takes all of these, or none.

    Args:
      wanted: examples, and who is told what happens to each; told by the
        judge's thread, which must not wait there.

    Raises:
      Full: there is no room for all of them.
      Closed: nothing is taken any more.
    """
    now = time.monotonic()
    made = [PendingRequest(asked, tell, now) for asked, tell in wanted]
    with self._changed:
      if self._closed:
        raise ShuttingDown(self._closed)
      if len(self._waiting) + len(made) > self._most:
        raise QueueFull(
          f'{len(self._waiting)} of {self._most} places are taken'
        )
      self._waiting.extend(made)
      self._changed.notify()
    return made

  def drop(self, tickets: Iterable[PendingRequest]) -> None:
    """Nobody waits for these any more; those that are done stay so."""
    with self._changed:
      for ticket in tickets:
        if ticket.number < 0 and ticket in self._waiting:
          self._waiting.remove(ticket)
        elif self._at_work.pop(ticket.number, None) is not None:
          self._dropped.append(ticket.number)

  def counts(self) -> tuple[int, int]:
    """(waiting, at work)."""
    with self._changed:
      return len(self._waiting), len(self._at_work)

  @property
  def open(self) -> bool:
    return not self._closed

  def close(self, seconds: float | None = None) -> bool:
    """Takes nothing more, and waits until all that was taken is done.

    Returns:
      Whether all is done; False after so many seconds.
    """
    with self._changed:
      self._closed = self._closed or 'the server is stopping'
      self._changed.notify()
    self._thread.join(seconds)
    return not self._thread.is_alive()

  def _run(self):
    try:
      self._stream(self._asked(), self._hand_out, self._show, self._drops)
    except BaseException as error:  # whatever it is, clients must be told
      self._fail(f'the judge has failed: {type(error).__name__}: {error}')
      raise

  def _fail(self, reason):
    with self._changed:
      self._closed = reason
      left = [*self._at_work.values(), *self._waiting]
      self._at_work.clear(), self._waiting.clear()
    self.failed.set()
    for ticket in left:
      ticket.tell(WorkerFailed(reason))

  def _asked(self) -> Iterator[JudgementRequest | None]:
    """What waits, in order; None while there is only work; waits if idle."""
    number = 0
    while True:
      with self._changed:
        while not (self._waiting or self._at_work or self._closed):
          self._changed.wait()
        ticket = self._waiting.popleft() if self._waiting else None
        if ticket is not None:
          ticket.number, ticket.begun = number, time.monotonic()
          self._at_work[number] = ticket
          number += 1
        elif not self._at_work:
          return  # closed
      yield ticket and ticket.asked

  def _drops(self):
    with self._changed:
      found, self._dropped = self._dropped, []
    return found

  def _hand_out(self, number, item):
    with self._changed:
      ticket = self._at_work.pop(number, None)
    if ticket is not None:
      ticket.tell(item)

  def _show(self, number, place, found):
    with self._changed:
      ticket = self._at_work.get(number)
    if ticket is not None:
      ticket.tell(SampleEvent(place, found))
