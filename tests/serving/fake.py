"""A judge whose pace a test controls, and a service around a judge."""

import contextlib
import socket
import threading

from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.verdict import VoteConfig
from grm_jax.serving import app, limits, schemas, server_metrics, worker
from grm_jax.serving import server as http_server

COUNTS = {'tokens': 7, 'row_steps': 9, 'prompts': 3, 'generations': 2}


class PacedJudge:
  """Samples only as many judgements as the test allows, one at a time.

  The score of a response is its last digit.

  Attributes:
    requests: the requests it took.
    cancelled: numbers of the requests that were cancelled.
    error: if set, raised in place of the next judgement.
  """

  def __init__(self):
    self.allowed = threading.Semaphore(0)
    self.requests, self.cancelled, self.error = [], [], None

  def allow(self, samples=10_000):
    for _ in range(samples):
      self.allowed.release()

  def __call__(self, requests, on_result, on_sample, take_cancelled):
    in_flight, number, requests = {}, 0, iter(requests)
    while True:
      cancelled = list(take_cancelled())
      self.cancelled += cancelled
      for x in cancelled:
        in_flight.pop(x, None)
      try:
        request = next(requests)
      except StopIteration:
        return
      if request is not None:
        self.requests.append(request)
        in_flight[number] = [request, []]
        number += 1
      for x in list(in_flight):
        if not self.allowed.acquire(timeout=0.002):
          break
        if self.error:
          raise self.error
        self._advance(x, in_flight, on_result, on_sample)

  def _advance(self, number, in_flight, on_result, on_sample):
    request, samples = in_flight[number]
    example = request.example
    if 'unjudgeable' in example.responses[0]:
      del in_flight[number]
      on_result(number, ExampleError(example.id, 'it cannot be judged'))
      return
    order = tuple(range(len(example.responses)))
    scores = tuple(_last_digit(x) for x in example.responses)
    text = f'Specific Criteria:\nc\n\nAnalysis:\na\n\nScores: {scores}'
    samples.append(Judgement(order, text, 5, 'stop', scores))
    on_sample(number, len(samples) - 1, samples[-1])
    if len(samples) == max(1, request.k):
      del in_flight[number]
      on_result(number, JudgedExample(example, tuple(samples)))


def _last_digit(text):
  return int(text[-1]) if text[-1:] in tuple('0123456789') else 0


def make_limits(**changes):
  values = dict(
    body_bytes=20_000,
    characters=5000,
    responses=4,
    k=8,
    batch=3,
    max_queue=4,
    timeout_s=20.0,
    receive_timeout_s=20.0,
    connections=64,
  )
  return limits.ServerLimits(**values | changes)


def make_service(
  judge, token='', has_meta=False, voting=None, allowed_hosts=(), **changes
):
  """Returns a service around a judge; `changes` are of the limits."""
  service_limits = make_limits(**changes)
  judge_worker = worker.JudgeWorker(judge, service_limits.max_queue)
  return app.Service(
    worker=judge_worker,
    defaults=schemas.Defaults(
      k=2,
      order='balanced',
      temperature=0.5,
      seed=0,
      voting=voting or VoteConfig(),
      has_meta=has_meta,
    ),
    limits=service_limits,
    metrics=server_metrics.ServerMetrics(judge_worker, lambda: COUNTS),
    token=token,
    about={'checkpoint': 'fake'},
    allowed_hosts=allowed_hosts,
  )


@contextlib.contextmanager
def listening(service):
  """Runs a real server of a service and yields its URL."""
  with socket.socket() as bound_socket:
    bound_socket.bind(('127.0.0.1', 0))
    bound_socket.listen()
    server = http_server.make_server(app.make_app(service))
    thread = threading.Thread(target=server.run, args=([bound_socket],))
    thread.start()
    try:
      yield f'http://127.0.0.1:{bound_socket.getsockname()[1]}'
    finally:
      server.should_exit = True
      thread.join()
