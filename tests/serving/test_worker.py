"""Who waits, who is told, and what becomes of those who leave."""

import queue
import time

import pytest

from grm_jax.judgement.judgement import JudgedExample
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.serving import worker
from grm_jax.serving.worker import (
  JudgeWorker,
  QueueFull,
  SampleEvent,
  ShuttingDown,
  WorkerFailed,
)
from tests.judges.fake import example
from tests.messages import names, naming
from tests.serving.fake import Paced

WAIT = 30  # seconds; a hang is a failure


def asked(name, k=2):
  return JudgementRequest(example(name, 'x 3', 'y 4'), k)


class Client:
  """Whoever asks; `events` are what it was told."""

  def __init__(self, made, name='a', k=2):
    self.events = queue.Queue()
    self.desk = made
    (self.ticket,) = made.ask([(asked(name, k), self.events.put)])

  def next(self):
    return self.events.get(timeout=WAIT)

  def leave(self):
    self.desk.drop([self.ticket])


@pytest.fixture
def judge():
  return Paced()


@pytest.fixture
def made(judge):
  built = JudgeWorker(judge, 3)
  yield built
  judge.let()
  assert built.close(WAIT)


def until(condition):
  for _ in range(int(WAIT / 0.01)):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError('it did not come about')


def test_samples_come_before_the_answer(judge, made):
  judge.let()
  client = Client(made, k=3)
  found = [client.next() for _ in range(4)]
  assert [x.place for x in found[:3]] == [0, 1, 2]
  assert all(isinstance(x, SampleEvent) for x in found[:3])
  assert isinstance(found[3], JudgedExample)
  assert found[3].samples == tuple(x.judgement for x in found[:3])
  assert client.ticket.begun >= client.ticket.came
  assert made.counts() == (0, 0)


class Stuck(Paced):
  """Takes nothing until it is let."""

  def __call__(self, examples, *others):
    self.allowed.acquire()
    super().__call__(examples, *others)


def test_no_more_than_so_many_wait():
  judge = Stuck()
  made = JudgeWorker(judge, 3)
  clients = [Client(made, str(i)) for i in range(3)]
  with pytest.raises(QueueFull, match=naming(3)):
    Client(made, 'one too many')
  assert made.counts() == (3, 0)
  judge.let()
  for client in clients:
    while not isinstance(client.next(), JudgedExample):
      pass
  assert made.close(WAIT)


def test_all_of_a_batch_or_none(judge, made):
  told = queue.Queue()
  with pytest.raises(QueueFull):
    made.ask([(asked(str(i)), told.put) for i in range(4)])
  assert made.counts() == (0, 0)
  judge.let()
  made.ask([(asked(str(i)), told.put) for i in range(3)])
  answers = set()
  while len(answers) < 3:
    event = told.get(timeout=WAIT)
    if isinstance(event, JudgedExample):
      answers.add(event.example.id)


def test_who_leaves_is_told_nothing_and_takes_no_place(judge, made):
  gone, stays = Client(made, 'gone'), Client(made, 'stays')
  until(lambda: made.counts() == (0, 2))
  gone.leave()
  gone.leave()
  until(lambda: judge.dropped == [0])
  judge.let()
  while not isinstance(stays.next(), JudgedExample):
    pass
  assert gone.events.empty()


def test_who_leaves_while_waiting():
  judge = Stuck()
  made = JudgeWorker(judge, 3)
  gone, stays = Client(made, 'gone'), Client(made, 'stays')
  assert made.counts() == (2, 0)
  gone.leave()
  assert made.counts() == (1, 0)
  judge.let()
  while not isinstance(stays.next(), JudgedExample):
    pass
  assert gone.events.empty() and judge.dropped == []
  assert made.close(WAIT)


def test_closing_answers_what_was_taken(judge, made):
  clients = [Client(made, str(i)) for i in range(3)]
  assert not made.close(0.05)  # nothing was allowed yet
  with pytest.raises(ShuttingDown):
    Client(made)
  assert not made.open
  judge.let()
  assert made.close(WAIT)
  for client in clients:
    while not isinstance(client.next(), JudgedExample):
      pass


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
def test_a_judge_that_fails_is_told_to_all():
  judge = Paced()
  judge.error = MemoryError('no room')
  made = JudgeWorker(judge, 3)
  clients = [Client(made, str(i)) for i in range(3)]
  judge.let()
  for client in clients:
    event = client.next()
    assert isinstance(event, WorkerFailed)
    assert names(event.reason, 'MemoryError', 'no room')
  assert made.failed.wait(WAIT)
  with pytest.raises(worker.ShuttingDown, match='no room'):
    Client(made)
  assert made.close(WAIT)
