"""Request handling: submits examples to the worker and waits for results."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from absl import logging
from fastapi import HTTPException, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judgement.verdict import VoteConfig
from grm_jax.serving import schemas
from grm_jax.serving.limits import ServerLimits
from grm_jax.serving.schemas import (
  Defaults,
  ErrorResponse,
  ScoreRequest,
  ScoreResponse,
  Timings,
)
from grm_jax.serving.server_metrics import ServerMetrics
from grm_jax.serving.worker import (
  Event,
  JudgeWorker,
  PendingRequest,
  QueueFull,
  ShuttingDown,
  WorkerFailed,
)


@dataclasses.dataclass(frozen=True)
class Service:
  """The parts of the application.

  Attributes:
    worker: runs the judge.
    defaults: values of fields that a request leaves out.
    limits: limits on requests.
    metrics: metrics of the service.
    token: bearer token that clients must send; '' for none.
    about: description of the model, returned by /v1/about.
    allowed_hosts: names by which clients may address the server; () for any.
  """

  worker: JudgeWorker
  defaults: Defaults
  limits: ServerLimits
  metrics: ServerMetrics
  token: str = ''
  about: dict[str, Any] = dataclasses.field(default_factory=dict)
  allowed_hosts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _SubmittedExample:
  """A submitted example and the vote over its samples."""

  pending: PendingRequest
  vote_config: VoteConfig


async def score(
  request: Request, service: Service, score_requests: Sequence[ScoreRequest]
) -> list[ScoreResponse | ErrorResponse]:
  """Returns a result or an error for each example, when all are finished.

  Args:
    request: the HTTP request; its disconnection cancels the examples.
    service: the service.
    score_requests: the examples.

  Raises:
    HTTPException: 422, 429 or 503 before any example is queued; 504 after
      limits.timeout_s; 499 if the client disconnects; 503 if the judge fails.
  """
  queues: list[asyncio.Queue[Event]] = [asyncio.Queue() for _ in score_requests]
  submitted = await _submit(service, score_requests, queues)
  try:
    all_results = asyncio.gather(*map(_wait_result, queues))
    results = await _wait_all(request, service, len(submitted), all_results)
    return await asyncio.to_thread(
      lambda: [
        _make_response(service, example, result)
        for example, result in zip(submitted, results, strict=True)
      ]
    )
  finally:
    # Also after an error; finished examples are not affected.
    service.worker.cancel(example.pending for example in submitted)


async def stream(
  service: Service, score_request: ScoreRequest
) -> StreamingResponse:
  """Returns server-sent events of one example.

  Raises:
    HTTPException: the example cannot be queued.
  """
  queue: asyncio.Queue[Event] = asyncio.Queue()
  (example,) = await _submit(service, [score_request], [queue])
  return _EventStreamResponse(
    _event_stream(service, example, queue),
    on_end=lambda: service.worker.cancel([example.pending]),
  )


class _EventStreamResponse(StreamingResponse):
  """Server-sent events with a cleanup that always runs.

  A `finally` in the generator would not be enough: if the client disconnects
  before the first event, the generator never starts, so it never ends either.
  """

  def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]):
    super().__init__(events, media_type='text/event-stream')
    self._on_end = on_end

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._on_end()


async def _submit(
  service: Service,
  score_requests: Sequence[ScoreRequest],
  queues: Sequence[asyncio.Queue[Event]],
) -> list[_SubmittedExample]:
  """Submits all examples, or raises HTTPException."""
  loop = asyncio.get_running_loop()
  try:
    service.limits.check_batch(len(score_requests))
    # In a thread: other requests get answers while long texts are read.
    parsed = await asyncio.to_thread(
      lambda: [
        schemas.parse(x, service.defaults, service.limits)
        for x in score_requests
      ]
    )
  except UserError as error:
    raise HTTPException(422, str(error)) from None
  try:
    pending = service.worker.submit(
      (request, _callback(loop, queue))
      for (request, _), queue in zip(parsed, queues, strict=True)
    )
  except QueueFull as error:
    raise HTTPException(
      429, f'the request queue is full: {error}', {'Retry-After': '1'}
    ) from None
  except ShuttingDown as error:
    raise HTTPException(503, str(error), {'Retry-After': '10'}) from None
  return [
    _SubmittedExample(x, vote_config)
    for x, (_, vote_config) in zip(pending, parsed, strict=True)
  ]


def _callback(loop, queue) -> Callable[[Event], None]:
  """Returns a function that passes events from the judge's thread to the loop.

  asyncio.Queue is not thread-safe: the loop must do the put.
  """

  def on_event(event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
      loop.call_soon_threadsafe(queue.put_nowait, event)

  return on_event


async def _wait_result(queue) -> JudgedExample | ExampleError:
  """Returns the result of an example; HTTPException if the judge fails."""
  while True:
    event = await queue.get()
    if isinstance(event, WorkerFailed):
      raise HTTPException(503, event.reason)
    if isinstance(event, JudgedExample | ExampleError):
      return event


async def _wait_all(
  request: Request,
  service: Service,
  num_examples: int,
  all_results: asyncio.Future,
) -> list[JudgedExample | ExampleError]:
  """Waits for the results, a disconnection or the timeout."""
  disconnected = asyncio.ensure_future(_wait_disconnect(request))
  try:
    await asyncio.wait(
      (all_results, disconnected),
      timeout=service.limits.timeout_s,
      return_when=asyncio.FIRST_COMPLETED,
    )
    if all_results.done():
      return all_results.result()
    outcome = 'disconnect' if disconnected.done() else 'timeout'
    for _ in range(num_examples):
      service.metrics.count_not_judged(outcome)
    if disconnected.done():
      raise HTTPException(499, 'the client has disconnected')
    raise HTTPException(504, _timeout_message(service))
  finally:
    all_results.cancel(), disconnected.cancel()
    # Awaited, or asyncio logs exceptions that were never retrieved.
    await asyncio.gather(all_results, disconnected, return_exceptions=True)


def _timeout_message(service) -> str:
  return (
    f'no result after {service.limits.timeout_s:g} s '
    '(config.limits.timeout_s); request fewer samples or retry later'
  )


async def _wait_disconnect(request: Request) -> None:
  """Returns when the client has closed the connection."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def _make_response(
  service: Service,
  example: _SubmittedExample,
  result: JudgedExample | ExampleError,
) -> ScoreResponse | ErrorResponse:
  """Converts a result to its JSON form and counts it."""
  if isinstance(result, ExampleError):
    return _error(service, result.reason)
  try:
    return _make_score_response(service, example, result)
  except Exception as error:  # of this example; others have their results
    logging.exception('no response to %s', result.example.id)
    return _error(service, f'{type(error).__name__}: {error}')


def _error(service: Service, reason: str) -> ErrorResponse:
  service.metrics.count_not_judged('error')
  return ErrorResponse(error=reason)


def _make_score_response(
  service: Service, example: _SubmittedExample, judged: JudgedExample
) -> ScoreResponse:
  pending, now = example.pending, time.monotonic()
  assert pending.start_time is not None  # a judged example has left the queue
  timings = Timings(
    queued_seconds=pending.start_time - pending.arrival_time,
    seconds=now - pending.arrival_time,
  )
  response = schemas.make_response(
    judged, example.vote_config, pending.request.seed, timings
  )
  service.metrics.count_judged(judged, timings.queued_seconds, timings.seconds)
  return response


async def _event_stream(service, example, queue) -> AsyncIterator[str]:
  """Yields server-sent events: samples, then the result or an error."""
  try:
    async with asyncio.timeout(service.limits.timeout_s):
      while True:
        event = await queue.get()
        if isinstance(event, WorkerFailed):
          yield _format_event('error', ErrorResponse(error=event.reason))
          return
        if isinstance(event, JudgedExample | ExampleError):
          response = _make_response(service, example, event)
          is_error = isinstance(response, ErrorResponse)
          yield _format_event('error' if is_error else 'result', response)
          return
        sample = schemas.make_sample(event.place, event.judgement)
        yield _format_event('sample', sample)
  except TimeoutError:
    service.metrics.count_not_judged('timeout')
    message = _timeout_message(service)
    yield _format_event('error', ErrorResponse(error=message))
  except (asyncio.CancelledError, GeneratorExit):  # the client disconnected
    service.metrics.count_not_judged('disconnect')
    raise
  except Exception as error:
    logging.exception(
      'the stream of %s ends', example.pending.request.example.id
    )
    response = _error(service, f'{type(error).__name__}: {error}')
    yield _format_event('error', response)


def _format_event(kind: str, content) -> str:
  data = json.dumps(content.model_dump(), allow_nan=False)
  return f'event: {kind}\ndata: {data}\n\n'
