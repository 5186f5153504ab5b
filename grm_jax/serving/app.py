"""The HTTP application: routes, authorization and error responses."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import fastapi
import starlette.exceptions
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from grm_jax.errors import UserError
from grm_jax.serving import handlers, openrlhf, playground, server_metrics
from grm_jax.serving.handlers import Service
from grm_jax.serving.middleware import (
  AllowedHosts,
  BodyLimit,
  RequestCounter,
  error_response,
)
from grm_jax.serving.schemas import (
  BatchRequest,
  BatchResponse,
  ErrorResponse,
  ScoreRequest,
  ScoreResponse,
)

_ERRORS = {
  400: 'The body is not valid JSON.',
  401: 'The bearer token is missing or wrong.',
  408: 'The client sends its body too slowly.',
  413: 'The body is too large.',
  415: 'The content type is not application/json.',
  421: 'The Host header is not an allowed host.',
  422: 'The request is invalid or exceeds a limit.',
  429: 'The server is busy; retry after Retry-After seconds.',
  503: 'The server is stopping, or the judge has failed.',
  504: 'The judge did not finish within the timeout.',
}


def make_app(service: Service) -> FastAPI:
  """Returns the application; its shutdown finishes the accepted requests."""

  @contextlib.asynccontextmanager
  async def lifespan(app):
    yield
    # In a thread, since `close` blocks until the judge is done.
    await asyncio.to_thread(service.worker.close)

  app = FastAPI(
    title='grm_jax',
    description='Votes, scores and critiques of a generative reward model.',
    lifespan=lifespan,
    responses={
      status: {'model': ErrorResponse, 'description': description}
      for status, description in _ERRORS.items()
    },
  )
  app.state.service = service
  app.add_exception_handler(RequestValidationError, _on_validation_error)
  app.add_exception_handler(starlette.exceptions.HTTPException, _on_http_error)
  # Documents the token that _CheckedRoute requires.
  security = [Depends(_bearer)] if service.token else []
  app.add_exception_handler(Exception, _on_fault)
  app.include_router(_v1, dependencies=security)
  app.include_router(_trainers, dependencies=security)
  app.include_router(_monitoring)
  app.include_router(playground.make_router())
  if service.allowed_hosts:
    app.add_middleware(AllowedHosts, hosts=service.allowed_hosts)
  app.add_middleware(BodyLimit, limits=service.limits)
  # Added last, so it is the outermost and counts the errors of the others.
  app.add_middleware(
    RequestCounter,
    paths=app.openapi()['paths'],
    on_response=service.metrics.count_response,
  )
  return app


async def _on_validation_error(request: Request, error: Any) -> JSONResponse:
  """Returns one line with the first error, without the client's input."""
  del request
  first = error.errors()[0]
  if first['type'] == 'json_invalid':
    return error_response(400, f'the body is not valid JSON: {first["msg"]}')
  field = '.'.join(map(str, first['loc'][1:])) or 'body'
  return error_response(422, f'{field}: {first["msg"]}')


async def _on_http_error(request: Request, error: Any) -> JSONResponse:
  return error_response(error.status_code, error.detail, error.headers)


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
  """Returns an error in the program; the server logs its traceback."""
  del request
  reason = f'an error in the program: {type(error).__name__}'
  return error_response(500, reason)


def _get_service(request: Request) -> Service:
  return request.app.state.service


_ServiceParam = Annotated[Service, Depends(_get_service)]


_bearer = HTTPBearer(auto_error=False)


class _CheckedRoute(APIRoute):
  """A route that checks the headers of a request before it reads the body."""

  def get_route_handler(self) -> Callable[[Request], Coroutine]:
    """Returns the handler of FastAPI behind the checks."""
    handle = super().get_route_handler()

    async def check_and_handle(request: Request) -> Response:
      await _check_token(request)
      if request.method == 'POST':
        _check_content_type(request)
      return await handle(request)

    return check_and_handle


async def _check_token(request: Request) -> None:
  service, credentials = _get_service(request), await _bearer(request)
  if not service.token:
    return
  token = '' if credentials is None else credentials.credentials
  # Constant time: the duration does not reveal a common prefix.
  if not secrets.compare_digest(token.encode(), service.token.encode()):
    raise HTTPException(
      401,
      'missing or wrong token; send Authorization: Bearer TOKEN',
      {'WWW-Authenticate': 'Bearer'},
    )


def _check_content_type(request: Request) -> None:
  """Raises HTTPException if the body is not declared as JSON.

  A page of another site can post text/plain without the browser's permission
  check (CORS preflight), but not application/json.
  """
  header = request.headers.get('content-type', '')
  kind, _, subtype = header.partition(';')[0].strip().lower().partition('/')
  if kind != 'application' or subtype.rpartition('+')[2] != 'json':
    raise HTTPException(415, 'send the body as Content-Type: application/json')


_v1 = fastapi.APIRouter(prefix='/v1', route_class=_CheckedRoute)
_trainers = fastapi.APIRouter(route_class=_CheckedRoute)
_monitoring = fastapi.APIRouter()


@_v1.post(
  '/score',
  response_model=ScoreResponse,
  responses={
    200: {
      'description': 'The result, or with `stream` server-sent events.',
      'content': {'text/event-stream': {'schema': {'type': 'string'}}},
    }
  },
)
async def score(
  request: Request, score_request: ScoreRequest, service: _ServiceParam
) -> Any:
  """Judges the responses to one query.

  With `stream`, the response is a stream of server-sent events: `sample` for
  each judgement, then `result` (the same as without `stream`) or `error`.
  """
  if score_request.stream:
    return await handlers.stream(service, score_request)
  (result,) = await handlers.score(request, service, [score_request])
  if isinstance(result, ErrorResponse):
    raise HTTPException(422, result.error)
  return result


@_v1.post('/score_batch', response_model=BatchResponse)
async def score_batch(
  request: Request, batch: BatchRequest, service: _ServiceParam
) -> Any:
  """Judges many examples; each gets its own result or error."""
  if any(x.stream for x in batch.requests):
    raise HTTPException(422, 'stream is true; a batch cannot be streamed')
  results = await handlers.score(request, service, batch.requests)
  return BatchResponse(results=results)


@_trainers.post('/openrlhf')
async def openrlhf_rewards(
  request: Request,
  reward_request: openrlhf.RewardRequest,
  service: _ServiceParam,
) -> openrlhf.RewardResponse:
  """Returns rewards for OpenRLHF's --remote_rm_url."""
  try:
    groups, score_requests = await asyncio.to_thread(
      openrlhf.parse,
      reward_request,
      service.limits.batch * service.limits.responses,
      service.limits.responses,
    )
  except UserError as error:
    raise HTTPException(422, str(error)) from None
  results: list[ScoreResponse | ErrorResponse] = []
  for start in range(0, len(score_requests), service.limits.batch):
    chunk = score_requests[start : start + service.limits.batch]
    results += await handlers.score(request, service, chunk)
  return openrlhf.make_response(groups, results, reward_request.missing)


@_v1.get('/about')
async def about(service: _ServiceParam) -> dict[str, Any]:
  """Returns the model, the defaults of requests, and the limits."""
  return {
    **service.about,
    'defaults': dataclasses.asdict(service.defaults),
    'limits': dataclasses.asdict(service.limits),
  }


@_monitoring.get('/healthz')
async def healthz() -> dict[str, str]:
  """Responds while the server runs."""
  return {'status': 'ok'}


@_monitoring.get('/readyz')
async def readyz(service: _ServiceParam) -> dict[str, str]:
  """Responds with 200 while requests are accepted, otherwise with 503."""
  if not service.worker.is_open:
    raise HTTPException(503, 'the server accepts no requests')
  return {'status': 'ready'}


@_monitoring.get(
  '/metrics',
  response_class=Response,
  responses={200: {'content': {'text/plain': {}}}},
)
async def metrics(service: _ServiceParam) -> Response:
  """Returns metrics for Prometheus."""
  return Response(
    service.metrics.exposition(), media_type=server_metrics.CONTENT_TYPE
  )
