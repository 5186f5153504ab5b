"""Judges by a known rule, and one whose pace a test decides."""

import contextlib
import socket
import threading

import uvicorn

from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.verdict import VoteConfig
from grm_jax.serving import app, limits, schemas, server_metrics, worker

COUNTS = {'tokens': 7, 'row_steps': 9, 'prompts': 3, 'generations': 2}


class Paced:
  """Judges what `let` allows, an example a sample at a time, in order.

  A response is as good as its last digit. What it was told to drop is noted.
  """

  def __init__(self):
    self.allowed = threading.Semaphore(0)
    self.dropped, self.error = [], None

  def let(self, samples=10_000):
    for _ in range(samples):
      self.allowed.release()

  def __call__(self, examples, hand_out, show, dropped):
    todo, number, examples = {}, 0, iter(examples)
    while True:
      self.dropped += (gone := list(dropped()))
      for x in gone:
        todo.pop(x, None)
      try:
        item = next(examples)
      except StopIteration:
        return
      if item is not None:
        todo[number] = [item, []]
        number += 1
      for each in list(todo):
        if not self.allowed.acquire(timeout=0.002):
          break
        if self.error:
          raise self.error
        self._advance(each, todo, hand_out, show)

  def _advance(self, number, todo, hand_out, show):
    asked, found = todo[number]
    example = asked.example
    if 'unjudgeable' in example.responses[0]:
      del todo[number]
      hand_out(number, ExampleError(example.id, 'it cannot be judged'))
      return
    order = tuple(range(len(example.responses)))
    scores = tuple(_last_digit(x) for x in example.responses)
    text = f'Specific Criteria:\nc\n\nAnalysis:\na\n\nScores: {scores}'
    found.append(Judgement(order, text, 5, 'stop', scores))
    show(number, len(found) - 1, found[-1])
    if len(found) == max(1, asked.k):
      del todo[number]
      hand_out(number, JudgedExample(example, tuple(found)))


def _last_digit(text):
  return int(text[-1]) if text[-1:] in tuple('0123456789') else 0


def limit(**changes):
  values = dict(
    body_bytes=20_000,
    characters=5000,
    responses=4,
    k=8,
    batch=3,
    waiting=4,
    seconds=20.0,
  )
  return limits.ServerLimits(**values | changes)


def service(judge, token='', has_meta=False, voting=None, hosts=(), **changes):
  """A Service over a stream of judgements."""
  made = worker.JudgeWorker(judge, limit(**changes).waiting)
  return app.Service(
    desk=made,
    defaults=schemas.Defaults(
      k=2,
      order='balanced',
      temperature=0.5,
      seed=0,
      voting=voting or VoteConfig(),
      has_meta=has_meta,
    ),
    limits=limit(**changes),
    meters=server_metrics.ServerMetrics(made, lambda: COUNTS),
    token=token,
    about={'checkpoint': 'fake'},
    hosts=hosts,
  )


@contextlib.contextmanager
def listening(made):
  """The address of a real server of this Service."""
  with socket.socket() as bound:
    bound.bind(('127.0.0.1', 0))
    bound.listen()
    config = uvicorn.Config(app.make(made), log_level='warning')
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
      yield f'http://127.0.0.1:{bound.getsockname()[1]}'
    finally:
      server.should_exit = True
      thread.join()
