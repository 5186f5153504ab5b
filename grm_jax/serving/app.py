"""The reward service: HTTP in front of a judge."""

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

import fastapi
import starlette.exceptions
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from grm_jax.judging.judgement import Fault, Judged
from grm_jax.judging.report import Voting
from grm_jax.serving import contract, meters
from grm_jax.serving.body import BodyLimit
from grm_jax.serving.contract import (
  BatchRequest,
  BatchResponse,
  Defaults,
  Refused,
  ScoreRequest,
  ScoreResponse,
  Timings,
)
from grm_jax.serving.desk import Broken, Closed, Desk, Event, Full, Ticket
from grm_jax.serving.limits import Limits

_REFUSALS = {
  400: 'The body is no JSON.',
  401: 'The bearer token is missing or wrong.',
  413: 'The body is too large.',
  415: 'The body is not sent as JSON.',
  422: 'The request is wrong, or more than the limits allow.',
  429: 'As many wait as may; Retry-After says when to come back.',
  503: 'The server is stopping, or its judge has failed.',
  504: 'The judge was not done in time.',
}


@dataclasses.dataclass(frozen=True)
class Service:
  """What the application is made of.

  Attributes:
    desk: where judgements come from.
    defaults, limits: of requests.
    meters: what is counted.
    token: that clients must bear; '' for none.
    about: what /v1/about tells of the model.
  """

  desk: Desk
  defaults: Defaults
  limits: Limits
  meters: meters.Meters
  token: str = ''
  about: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Work:
  """An example on its way, and how its samples will vote."""

  ticket: Ticket
  voting: Voting


def make(service: Service) -> FastAPI:
  """The application; stopping it closes the desk when its work is done."""

  @contextlib.asynccontextmanager
  async def lifespan(app):
    yield
    await asyncio.to_thread(service.desk.close)

  app = FastAPI(
    title='grm_jax',
    description='Votes, scores and critiques of a generative reward model.',
    lifespan=lifespan,
    responses={
      code: {'model': Refused, 'description': words}
      for code, words in _REFUSALS.items()
    },
  )
  app.state.service = service
  app.add_middleware(BodyLimit, most=service.limits.body_bytes)
  app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
  app.add_exception_handler(starlette.exceptions.HTTPException, _say)
  app.include_router(_scores)
  app.include_router(_health)
  return app


async def _say_what_is_wrong(request: Request, error) -> JSONResponse:
  """One line; what the client has sent is not told again."""
  # Not by default, so that no page of another site can post from a browser.
  if 'json' not in request.headers.get('content-type', ''):
    return _refusal(request, 415, 'send it as Content-Type: application/json')
  first = error.errors()[0]
  if first['type'] == 'json_invalid':
    return _refusal(request, 400, f'the body is no JSON: {first["msg"]}')
  where = '.'.join(map(str, first['loc'][1:])) or 'body'
  return _refusal(request, 422, f'{where}: {first["msg"]}')


async def _say(request: Request, error) -> JSONResponse:
  return _refusal(request, error.status_code, error.detail, error.headers)


def _refusal(request, status, words, headers=None) -> JSONResponse:
  request.app.state.service.meters.answered(status)
  return JSONResponse({'error': words}, status, headers=headers)


def _service(request: Request) -> Service:
  return request.app.state.service


_ASKS = Annotated[Service, Depends(_service)]


def _authorized(
  service: _ASKS,
  given: Annotated[
    HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
  ],
) -> None:
  if not service.token:
    return
  token = '' if given is None else given.credentials
  if not secrets.compare_digest(token.encode(), service.token.encode()):
    raise HTTPException(
      401,
      'give the token of this server as Authorization: Bearer TOKEN',
      {'WWW-Authenticate': 'Bearer'},
    )


_scores = fastapi.APIRouter(prefix='/v1', dependencies=[Depends(_authorized)])
_health = fastapi.APIRouter()


@_scores.post('/score', response_model=ScoreResponse)
async def score(request: Request, asked: ScoreRequest, service: _ASKS) -> Any:
  """Judges responses; with `stream` as server-sent events.

  Events are `sample` (a judgement), then `result` (the whole answer) or
  `error`.
  """
  events: asyncio.Queue[Event] = asyncio.Queue()
  (work,) = _begin(service, [asked], [events])
  if asked.stream:
    service.meters.answered(200)
    return StreamingResponse(
      _told(service, work, events), media_type='text/event-stream'
    )
  async with _waiting(request, service, [work]) as waiting:
    found = await waiting(_last(events))
    service.meters.answered(200 if isinstance(found, Judged) else 422)
    answer = _answer(service, work, found)
  if isinstance(answer, Refused):
    return JSONResponse(answer.model_dump(), 422)
  return answer


@_scores.post('/score_batch', response_model=BatchResponse)
async def score_batch(
  request: Request, asked: BatchRequest, service: _ASKS
) -> Any:
  """Judges many at once; one that cannot be judged does not stop the others."""
  if any(x.stream for x in asked.requests):
    raise HTTPException(422, 'requests of a batch cannot stream')
  queues = [asyncio.Queue() for _ in asked.requests]
  works = _begin(service, asked.requests, queues)
  async with _waiting(request, service, works) as waiting:
    found = await waiting(asyncio.gather(*map(_last, queues)))
    results = [
      _answer(service, work, item)
      for work, item in zip(works, found, strict=True)
    ]
  service.meters.answered(200)
  return BatchResponse(results=results)


def _begin(
  service: Service,
  requests: Sequence[ScoreRequest],
  queues: Sequence[asyncio.Queue],
) -> list[_Work]:
  """Puts all of them on the desk, or raises HTTPException."""
  loop = asyncio.get_running_loop()
  try:
    service.limits.check_batch(len(requests))
    read = [
      contract.read(x, service.defaults, service.limits) for x in requests
    ]
  except ValueError as error:
    raise HTTPException(422, str(error)) from None
  wanted = [
    (asked, _teller(loop, queue))
    for (asked, _), queue in zip(read, queues, strict=True)
  ]
  try:
    tickets = service.desk.ask(wanted)
  except Full as error:
    raise HTTPException(
      429, f'too many wait: {error}', {'Retry-After': '1'}
    ) from None
  except Closed as error:
    raise HTTPException(503, str(error), {'Retry-After': '10'}) from None
  return [
    _Work(ticket, voting)
    for ticket, (_, voting) in zip(tickets, read, strict=True)
  ]


def _teller(loop, queue) -> Callable[[Event], None]:
  """From the judge's thread to the loop's."""

  def tell(event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
      loop.call_soon_threadsafe(queue.put_nowait, event)

  return tell


async def _last(events: asyncio.Queue) -> Judged | Fault:
  """What came of an example; HTTPException where nothing will."""
  while True:
    event = await events.get()
    if isinstance(event, Broken):
      raise HTTPException(503, event.reason)
    if isinstance(event, Judged | Fault):
      return event


@contextlib.asynccontextmanager
async def _waiting(request: Request, service: Service, works: list[_Work]):
  """Waits for an awaitable while the client does, and not too long.

  Whatever happens, what is not done by then is dropped.
  """

  async def waiting(wanted):
    task = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_gone(request))
    try:
      await asyncio.wait(
        (task, gone),
        timeout=service.limits.seconds,
        return_when=asyncio.FIRST_COMPLETED,
      )
      if task.done():
        return task.result()
      _give_up(service, works, 'gone' if gone.done() else 'late')
      if gone.done():
        raise HTTPException(499, 'the client is gone')
      raise HTTPException(504, _late(service))
    finally:
      task.cancel(), gone.cancel()

  try:
    yield waiting
  finally:
    service.desk.drop(work.ticket for work in works)


def _late(service) -> str:
  return (
    f'the judge was not done in {service.limits.seconds:g} s '
    '(config.limits.seconds); ask for fewer samples or try again later'
  )


def _give_up(service, works, why) -> None:
  for _ in works:
    service.meters.gave_up(why)


async def _gone(request: Request) -> None:
  """Returns when the client has closed the connection."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def _answer(
  service: Service, work: _Work, found: Judged | Fault
) -> ScoreResponse | Refused:
  if isinstance(found, Fault):
    service.meters.gave_up('fault')
    return Refused(error=found.reason)
  ticket, now = work.ticket, time.monotonic()
  timings = Timings(
    queued_seconds=ticket.begun - ticket.came, seconds=now - ticket.came
  )
  service.meters.judged(found, timings.queued_seconds, timings.seconds)
  return contract.response(found, work.voting, ticket.asked.seed, timings)


async def _told(service, work, events) -> AsyncIterator[str]:
  """Server-sent events; the client's going away ends the generator."""
  try:
    async with asyncio.timeout(service.limits.seconds):
      while True:
        event = await events.get()
        if isinstance(event, Broken):
          yield _event('error', Refused(error=event.reason))
          return
        if isinstance(event, Judged | Fault):
          answer = _answer(service, work, event)
          kind = 'error' if isinstance(answer, Refused) else 'result'
          yield _event(kind, answer)
          return
        yield _event('sample', contract.sample(event.place, event.judgement))
  except TimeoutError:
    _give_up(service, [work], 'late')
    yield _event('error', Refused(error=_late(service)))
  except (asyncio.CancelledError, GeneratorExit):
    _give_up(service, [work], 'gone')
    raise
  finally:
    service.desk.drop([work.ticket])


def _event(kind: str, content) -> str:
  data = json.dumps(content.model_dump(), allow_nan=False)
  return f'event: {kind}\ndata: {data}\n\n'


@_scores.get('/about')
async def about(service: _ASKS) -> dict[str, Any]:
  """The model, what requests leave open, and the limits."""
  return {
    **service.about,
    'defaults': service.defaults.model_dump(),
    'limits': dataclasses.asdict(service.limits),
  }


@_health.get('/healthz')
async def healthz() -> dict[str, str]:
  """The server runs."""
  return {'status': 'ok'}


@_health.get('/readyz')
async def readyz(service: _ASKS) -> dict[str, str]:
  """The judge takes requests."""
  if not service.desk.open:
    raise HTTPException(503, 'no requests are taken')
  return {'status': 'ready'}


@_health.get('/metrics')
async def metrics(service: _ASKS) -> Response:
  """For Prometheus."""
  return Response(service.meters.text(), media_type=meters.CONTENT_TYPE)
