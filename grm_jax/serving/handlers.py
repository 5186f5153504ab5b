"""From requests to tickets, and from what becomes of these to answers."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

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
  """What the application is made of.

  Attributes:
    desk: where judgements come from.
    defaults, limits: of requests.
    meters: what is counted.
    token: that clients must bear; '' for none.
    about: what /v1/about tells of the model.
    hosts: names by which clients may call this server; () for any.
  """

  desk: JudgeWorker
  defaults: Defaults
  limits: ServerLimits
  meters: ServerMetrics
  token: str = ''
  about: dict[str, Any] = dataclasses.field(default_factory=dict)
  hosts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _RequestWork:
  """An example on its way, and how its samples will vote."""

  ticket: PendingRequest
  voting: VoteConfig


async def of(
  request: Request, service: Service, wanted: Sequence[ScoreRequest]
) -> list[ScoreResponse | ErrorResponse]:
  """An answer or a refusal for each of these, when all are there.

  Raises:
    HTTPException: one is wrong or there is no room, before any is begun; it
      takes too long, the client is gone, or the judge has failed.
  """
  queues = [asyncio.Queue() for _ in wanted]
  works = _begin(service, wanted, queues)
  try:
    every = asyncio.gather(*map(_last, queues))
    found = await _wait(request, service, works, every)
    return [
      _answer(service, work, item)
      for work, item in zip(works, found, strict=True)
    ]
  finally:
    service.desk.drop(work.ticket for work in works)


def stream(service: Service, wanted: ScoreRequest) -> StreamingResponse:
  """Server-sent events; HTTPException if nothing can be begun."""
  events: asyncio.Queue[Event] = asyncio.Queue()
  (work,) = _begin(service, [wanted], [events])
  told = _told(service, work, events)
  return _Stream(told, lambda: service.desk.drop([work.ticket]))


class _Stream(StreamingResponse):
  """Events, and what is to be done however they end.

  A generator could not do it: where a client leaves before the first event, it
  is never begun, and does not end.
  """

  def __init__(self, told: AsyncIterator[str], ended: Callable[[], None]):
    super().__init__(told, media_type='text/event-stream')
    self._ended = ended

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._ended()


def _begin(
  service: Service,
  requests: Sequence[ScoreRequest],
  queues: Sequence[asyncio.Queue],
) -> list[_RequestWork]:
  """Puts all of them on the desk, or raises HTTPException."""
  loop = asyncio.get_running_loop()
  try:
    service.limits.check_batch(len(requests))
    read = [schemas.read(x, service.defaults, service.limits) for x in requests]
  except UserError as error:
    raise HTTPException(422, str(error)) from None
  wanted = [
    (asked, _teller(loop, queue))
    for (asked, _), queue in zip(read, queues, strict=True)
  ]
  try:
    tickets = service.desk.ask(wanted)
  except QueueFull as error:
    raise HTTPException(
      429, f'too many wait: {error}', {'Retry-After': '1'}
    ) from None
  except ShuttingDown as error:
    raise HTTPException(503, str(error), {'Retry-After': '10'}) from None
  return [
    _RequestWork(ticket, voting)
    for ticket, (_, voting) in zip(tickets, read, strict=True)
  ]


def _teller(loop, queue) -> Callable[[Event], None]:
  """From the judge's thread to the loop's."""

  def tell(event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
      loop.call_soon_threadsafe(queue.put_nowait, event)

  return tell


async def _last(events: asyncio.Queue) -> JudgedExample | ExampleError:
  """What came of an example; HTTPException where nothing will."""
  while True:
    event = await events.get()
    if isinstance(event, WorkerFailed):
      raise HTTPException(503, event.reason)
    if isinstance(event, JudgedExample | ExampleError):
      return event


async def _wait(
  request: Request,
  service: Service,
  works: list[_RequestWork],
  wanted: asyncio.Future,
) -> list[JudgedExample | ExampleError]:
  """Waits while the client does, and not too long; else HTTPException."""
  gone = asyncio.ensure_future(_gone(request))
  try:
    await asyncio.wait(
      (wanted, gone),
      timeout=service.limits.timeout_s,
      return_when=asyncio.FIRST_COMPLETED,
    )
    if wanted.done():
      return wanted.result()
    _give_up(service, works, 'gone' if gone.done() else 'late')
    if gone.done():
      raise HTTPException(499, 'the client is gone')
    raise HTTPException(504, _late(service))
  finally:
    wanted.cancel(), gone.cancel()
    # Or asyncio would log that nobody has looked at how they ended.
    await asyncio.gather(wanted, gone, return_exceptions=True)


def _late(service) -> str:
  return (
    f'the judge was not done in {service.limits.timeout_s:g} s '
    '(config.limits.timeout_s); ask for fewer samples or try again later'
  )


def _give_up(service, works, why) -> None:
  for _ in works:
    service.meters.gave_up(why)


async def _gone(request: Request) -> None:
  """Returns when the client has closed the connection."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def _answer(
  service: Service, work: _RequestWork, found: JudgedExample | ExampleError
) -> ScoreResponse | ErrorResponse:
  if isinstance(found, ExampleError):
    service.meters.gave_up('fault')
    return ErrorResponse(error=found.reason)
  ticket, now = work.ticket, time.monotonic()
  timings = Timings(
    queued_seconds=ticket.begun - ticket.came, seconds=now - ticket.came
  )
  service.meters.judged(found, timings.queued_seconds, timings.seconds)
  return schemas.response(found, work.voting, ticket.asked.seed, timings)


async def _told(service, work, events) -> AsyncIterator[str]:
  """Server-sent events; the client's going away ends the generator."""
  try:
    async with asyncio.timeout(service.limits.timeout_s):
      while True:
        event = await events.get()
        if isinstance(event, WorkerFailed):
          yield _event('error', ErrorResponse(error=event.reason))
          return
        if isinstance(event, JudgedExample | ExampleError):
          found = _answer(service, work, event)
          kind = 'error' if isinstance(found, ErrorResponse) else 'result'
          yield _event(kind, found)
          return
        yield _event('sample', schemas.sample(event.place, event.judgement))
  except TimeoutError:
    _give_up(service, [work], 'late')
    yield _event('error', ErrorResponse(error=_late(service)))
  except (asyncio.CancelledError, GeneratorExit):
    _give_up(service, [work], 'gone')
    raise


def _event(kind: str, content) -> str:
  data = json.dumps(content.model_dump(), allow_nan=False)
  return f'event: {kind}\ndata: {data}\n\n'
