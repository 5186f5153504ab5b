"""The reward service: HTTP in front of a judge."""

import asyncio
import contextlib
import dataclasses
import secrets
from typing import Annotated, Any

import fastapi
import starlette.exceptions
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from grm_jax.errors import UserError
from grm_jax.serving import handlers, openrlhf, playground, server_metrics
from grm_jax.serving.handlers import Service
from grm_jax.serving.middleware import (
  BodyLimit,
  KnownHosts,
  RequestCounter,
  refusal,
)
from grm_jax.serving.schemas import (
  BatchRequest,
  BatchResponse,
  ErrorResponse,
  ScoreRequest,
  ScoreResponse,
)

_REFUSALS = {
  400: 'The body is no JSON.',
  401: 'The bearer token is missing or wrong.',
  413: 'The body is too large.',
  415: 'The body is not sent as JSON.',
  421: 'The request is meant for another host.',
  422: 'The request is wrong, or more than the limits allow.',
  429: 'As many wait as may; Retry-After says when to come back.',
  503: 'The server is stopping, or its judge has failed.',
  504: 'The judge was not done in time.',
}


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
      code: {'model': ErrorResponse, 'description': words}
      for code, words in _REFUSALS.items()
    },
  )
  app.state.service = service
  app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
  app.add_exception_handler(starlette.exceptions.HTTPException, _say)
  app.include_router(_scores)
  app.include_router(_trainers)
  app.include_router(_health)
  app.include_router(playground.router())
  app.add_middleware(BodyLimit, most=service.limits.body_bytes)
  if service.hosts:
    app.add_middleware(KnownHosts, hosts=service.hosts)
  # The last one is the outermost: refusals of the others are counted, too.
  paths, told = app.openapi()['paths'], service.meters.answered
  app.add_middleware(RequestCounter, paths=paths, told=told)
  return app


async def _say_what_is_wrong(request: Request, error) -> JSONResponse:
  """One line; what the client has sent is not told again."""
  # Not by default, so that no page of another site can post from a browser.
  if 'json' not in request.headers.get('content-type', ''):
    return refusal(415, 'send it as Content-Type: application/json')
  first = error.errors()[0]
  if first['type'] == 'json_invalid':
    return refusal(400, f'the body is no JSON: {first["msg"]}')
  where = '.'.join(map(str, first['loc'][1:])) or 'body'
  return refusal(422, f'{where}: {first["msg"]}')


async def _say(request: Request, error) -> JSONResponse:
  return refusal(error.status_code, error.detail, error.headers)


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
_trainers = fastapi.APIRouter(dependencies=[Depends(_authorized)])
_health = fastapi.APIRouter()


@_scores.post('/score', response_model=ScoreResponse)
async def score(request: Request, asked: ScoreRequest, service: _ASKS) -> Any:
  """Judges responses; with `stream` as server-sent events.

  Events are `sample` (a judgement), then `result` (the whole answer) or
  `error`.
  """
  if asked.stream:
    return handlers.stream(service, asked)
  (found,) = await handlers.of(request, service, [asked])
  if isinstance(found, ErrorResponse):
    raise HTTPException(422, found.error)
  return found


@_scores.post('/score_batch', response_model=BatchResponse)
async def score_batch(
  request: Request, asked: BatchRequest, service: _ASKS
) -> Any:
  """Judges many at once; one that cannot be judged does not stop the others."""
  if any(x.stream for x in asked.requests):
    raise HTTPException(422, 'requests of a batch cannot stream')
  found = await handlers.of(request, service, asked.requests)
  return BatchResponse(results=found)


@_trainers.post('/openrlhf')
async def rewards(
  request: Request, asked: openrlhf.RewardRequest, service: _ASKS
) -> openrlhf.RewardResponse:
  """Rewards for OpenRLHF's --remote_rm_url."""
  try:
    groups, wanted = openrlhf.read(asked, service.limits.responses)
  except UserError as error:
    raise HTTPException(422, str(error)) from None
  found = []
  for first in range(0, len(wanted), service.limits.batch):
    some = wanted[first : first + service.limits.batch]
    found += await handlers.of(request, service, some)
  return openrlhf.rewards(groups, found, asked.missing)


@_scores.get('/about')
async def about(service: _ASKS) -> dict[str, Any]:
  """The model, what requests leave open, and the limits."""
  return {
    **service.about,
    'defaults': dataclasses.asdict(service.defaults),
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


@_health.get(
  '/metrics',
  response_class=Response,
  responses={200: {'content': {'text/plain': {}}}},
)
async def metrics(service: _ASKS) -> Response:
  """For Prometheus."""
  return Response(service.meters.text(), media_type=server_metrics.CONTENT_TYPE)
