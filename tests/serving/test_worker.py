"""Tests of the judge's thread: queue, events, cancellation, shutdown."""

import queue
import time

import pytest

from grm_jax.judgement.judgement import JudgedExample
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.serving.worker import (
  JudgeWorker,
  QueueFull,
  SampleEvent,
  ShuttingDown,
  WorkerFailed,
)
from tests.judges.fake import example
from tests.messages import names, naming
from tests.serving.fake import PacedJudge

TIMEOUT_S = 30  # a hang is a failure


def make_request(name, k=2):
  return JudgementRequest(example(name, 'x 3', 'y 4'), k)


class Client:
  """Submits one request and collects its events."""

  def __init__(self, worker, name='a', k=2):
    self.events = queue.Queue()
    self.worker = worker
    (self.pending,) = worker.submit([(make_request(name, k), self.events.put)])

  def next_event(self):
    return self.events.get(timeout=TIMEOUT_S)

  def wait_judged(self):
    while not isinstance(self.next_event(), JudgedExample):
      pass

  def cancel(self):
    self.worker.cancel([self.pending])


@pytest.fixture
def judge():
  return PacedJudge()


@pytest.fixture
def worker(judge):
  worker = JudgeWorker(judge, max_queue=3)
  yield worker
  judge.allow()
  assert worker.close(TIMEOUT_S)


def wait_until(condition):
  for _ in range(int(TIMEOUT_S / 0.01)):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError(f'the condition is still false after {TIMEOUT_S} s')


def test_samples_precede_the_result(judge, worker):
  judge.allow()
  client = Client(worker, k=3)
  events = [client.next_event() for _ in range(4)]
  assert [x.place for x in events[:3]] == [0, 1, 2]
  assert all(isinstance(x, SampleEvent) for x in events[:3])
  assert isinstance(events[3], JudgedExample)
  assert events[3].samples == tuple(x.judgement for x in events[:3])
  assert client.pending.start_time >= client.pending.arrival_time
  assert worker.counts() == (0, 0)


class BlockedJudge(PacedJudge):
  """Takes no request before the first `allow`."""

  def __call__(self, requests, *callbacks):
    self.allowed.acquire()
    super().__call__(requests, *callbacks)


def test_queue_is_bounded():
  judge = BlockedJudge()
  worker = JudgeWorker(judge, max_queue=3)
  clients = [Client(worker, str(i)) for i in range(3)]
  with pytest.raises(QueueFull, match=naming(3)):
    Client(worker, 'one too many')
  assert worker.counts() == (3, 0)
  judge.allow()
  for client in clients:
    client.wait_judged()
  assert worker.close(TIMEOUT_S)


def test_batch_is_queued_whole_or_not_at_all(judge, worker):
  events = queue.Queue()
  with pytest.raises(QueueFull):
    worker.submit([(make_request(str(i)), events.put) for i in range(4)])
  assert worker.counts() == (0, 0)
  judge.allow()
  worker.submit([(make_request(str(i)), events.put) for i in range(3)])
  judged_ids = set()
  while len(judged_ids) < 3:
    event = events.get(timeout=TIMEOUT_S)
    if isinstance(event, JudgedExample):
      judged_ids.add(event.example.id)


def test_cancelled_in_flight_gets_no_event_and_frees_its_place(judge, worker):
  cancelled, remaining = Client(worker, 'a'), Client(worker, 'b')
  wait_until(lambda: worker.counts() == (0, 2))
  cancelled.cancel()
  cancelled.cancel()  # the second call has no effect
  wait_until(lambda: judge.cancelled == [0])
  judge.allow()
  remaining.wait_judged()
  assert cancelled.events.empty()


def test_cancelled_in_queue_never_reaches_the_judge():
  judge = BlockedJudge()
  worker = JudgeWorker(judge, max_queue=3)
  cancelled, remaining = Client(worker, 'a'), Client(worker, 'b')
  assert worker.counts() == (2, 0)
  cancelled.cancel()
  assert worker.counts() == (1, 0)
  judge.allow()
  remaining.wait_judged()
  assert cancelled.events.empty() and judge.cancelled == []
  assert worker.close(TIMEOUT_S)


def test_close_finishes_accepted_requests(judge, worker):
  clients = [Client(worker, str(i)) for i in range(3)]
  assert not worker.close(0.05)  # the judge is not allowed to finish
  with pytest.raises(ShuttingDown):
    Client(worker)
  assert not worker.is_open
  judge.allow()
  assert worker.close(TIMEOUT_S)
  for client in clients:
    client.wait_judged()


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
def test_failure_of_the_judge_reaches_all_clients():
  judge = PacedJudge()
  judge.error = MemoryError('no room')
  worker = JudgeWorker(judge, max_queue=3)
  clients = [Client(worker, str(i)) for i in range(3)]
  judge.allow()
  for client in clients:
    event = client.next_event()
    assert isinstance(event, WorkerFailed)
    assert names(event.reason, 'MemoryError', 'no room')
  assert worker.failed.wait(TIMEOUT_S)
  with pytest.raises(ShuttingDown, match='no room'):
    Client(worker)
  assert worker.close(TIMEOUT_S)
