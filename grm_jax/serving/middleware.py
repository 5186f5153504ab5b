"""ASGI middleware: request counts, allowed host names, body size limit."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping

from absl import logging
from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grm_jax.serving import schemas
from grm_jax.serving.limits import ServerLimits


def error_response(
  status: int, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
  """Returns an error in the form of schemas.ErrorResponse."""
  content = schemas.ErrorResponse(error=message).model_dump()
  return JSONResponse(content, status, headers=headers)


class RequestCounter:
  """Reports the path and the status of every response.

  It must be the outermost middleware to count the errors of the others.
  """

  def __init__(
    self,
    app: ASGIApp,
    paths: Collection[str],
    on_response: Callable[[str, int], None],
  ):
    """Wraps an application.

    Args:
      app: the wrapped application.
      paths: paths that are counted by name. Any other path is reported as
        'other', so that clients cannot create metric labels at will.
      on_response: receives (path, status).
    """
    self._app, self._paths = app, frozenset(paths)
    self._on_response = on_response

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Forwards the request and reports the status of its response."""

    async def send_and_report(message: Message) -> None:
      if message['type'] == 'http.response.start':
        path = scope['path'] if scope['path'] in self._paths else 'other'
        self._on_response(path, message['status'])
      await send(message)

    await self._app(scope, receive, send_and_report)


class AllowedHosts:
  """Responds with 421 if the Host header is not one of the allowed names.

  This prevents DNS rebinding: a page of any site can resolve its own name to
  the loopback address of a browser, and would then read what the service
  returns there. The Host header still holds the name of that site.

  Starlette's TrustedHostMiddleware rejects the same requests, but with 400 and
  a plain text. All errors of this service are JSON, and this one names
  config.allowed_hosts, the key to change behind a proxy.
  """

  def __init__(self, app: ASGIApp, hosts: Collection[str]):
    self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Forwards the request if its Host header is allowed."""
    if scope['type'] == 'http':
      header = dict(scope['headers']).get(b'host', b'').decode('latin-1')
      host = _without_port(header).lower()
      if host not in self._hosts:
        message = f'unknown host {host!r}; add it to config.allowed_hosts'
        await error_response(421, message)(scope, receive, send)
        return
    await self._app(scope, receive, send)


def _without_port(host):
  """Returns 'name' for 'name:80', and '[::1]' for '[::1]:80' and '[::1]'."""
  colon = host.rfind(':')
  # A colon inside the brackets belongs to an IPv6 address.
  return host[:colon] if colon > host.rfind(']') else host


class BodyLimit:
  """Limits the size of bodies and the time in which clients must send them.

  A body is read when the application asks for it. A request that is refused for
  its path, its token or its headers is answered without that.

  Many clients read the answer only after they have sent the whole body. Closing
  the connection before that would discard the answer, so the rest of the body
  is read and dropped until receive_timeout_s is over.

  FastAPI's max_body_size rejects the same sizes, but replaces the error by a
  plain text that does not state the limit.
  """

  def __init__(self, app: ASGIApp, limits: ServerLimits):
    self._app, self._limits = app, limits
    self._total_bytes = 0  # of the bodies of unanswered requests

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Forwards the request; the application reads its body through limits."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    body = _Body(scope, receive, self._limits.receive_timeout_s)

    async def receive_within_limits() -> Message:
      if body.is_complete:
        return await receive()  # a disconnection
      message = await body.receive()
      self._total_bytes += len(message.get('body', b''))
      self._check_sizes(body.num_bytes)
      return message

    def release() -> None:
      self._total_bytes -= body.num_bytes
      body.num_bytes = 0

    async def send_and_drain(message: Message) -> None:
      is_body = message['type'] == 'http.response.body'
      if is_body and not message.get('more_body') and not body.is_complete:
        # The client has the whole answer, and the connection stays open.
        await send({**message, 'more_body': True})
        release()
        await body.drain()
        message = {'type': 'http.response.body'}
      await send(message)

    try:
      # The declared length saves reading. A chunked body declares none.
      if body.declared_bytes > self._limits.body_bytes:
        response = error_response(413, self._too_large())
        await response(scope, receive, send_and_drain)
      else:
        await self._app(scope, receive_within_limits, send_and_drain)
    finally:
      release()

  def _check_sizes(self, num_bytes: int) -> None:
    """Raises HTTPException if a body, or all bodies together, are too large."""
    if num_bytes > self._limits.body_bytes:
      raise HTTPException(413, self._too_large())
    if self._total_bytes > self._limits.total_body_bytes:
      message = (
        'the unanswered requests have more than '
        f'{self._limits.total_body_bytes} bytes, 16 times '
        f'config.limits.body_bytes={self._limits.body_bytes}; retry later'
      )
      log_limit(message)
      raise HTTPException(429, message, {'Retry-After': '1'})

  def _too_large(self) -> str:
    return f'the body has more than {self._limits.body_bytes} bytes'


class _Body:
  """The body of one request.

  Attributes:
    declared_bytes: its size in the header; 0 if unknown.
    num_bytes: bytes that the application has received.
    is_complete: whether nothing more can be received.
  """

  def __init__(self, scope: Scope, receive: Receive, timeout_s: float):
    headers = dict(scope['headers'])
    declared = headers.get(b'content-length', b'')
    self.declared_bytes = int(declared) if declared.isdigit() else 0
    self.num_bytes = 0
    self.is_complete = not (declared or b'transfer-encoding' in headers)
    self._receive, self._timeout_s = receive, timeout_s
    self._deadline = asyncio.get_running_loop().time() + timeout_s

  async def receive(self) -> Message:
    """Returns the next part; HTTPException if the client is too slow."""
    message = await self._next()
    self.num_bytes += len(message.get('body', b''))
    return message

  async def drain(self) -> None:
    """Drops the rest, until it ends or the client is too slow."""
    with contextlib.suppress(HTTPException):
      while not self.is_complete:
        await self._next()

  async def _next(self) -> Message:
    try:
      async with asyncio.timeout_at(self._deadline):
        message = await self._receive()
    except TimeoutError:
      reason = (
        f'the body is not complete after {self._timeout_s:g} s '
        '(config.limits.receive_timeout_s)'
      )
      log_limit(reason)
      raise HTTPException(408, reason, {'Connection': 'close'}) from None
    self.is_complete = not message.get('more_body', False)
    return message


def log_limit(message: str) -> None:
  """Logs that a limit was met, at most once in ten seconds."""
  logging.log_every_n_seconds(logging.WARNING, '%s', 10, message)
