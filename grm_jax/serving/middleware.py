"""ASGI middleware: request counts, allowed host names, body size limit."""

from collections.abc import Callable, Collection, Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def error_response(
  status: int, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
  """Returns an error in the form of schemas.ErrorResponse."""
  return JSONResponse({'error': message}, status, headers=headers)


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
  """Responds with 413 to a body above the limit, before it is parsed.

  FastAPI's max_body_size rejects the same requests, but replaces the error by a
  plain text that does not state the limit.
  """

  def __init__(self, app: ASGIApp, max_bytes: int):
    self._app, self._max_bytes = app, max_bytes

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Forwards the request if its body is within the limit."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    # The declared length saves reading the body. A chunked body declares none.
    declared = dict(scope['headers']).get(b'content-length', b'')
    if declared.isdigit() and int(declared) > self._max_bytes:
      await self._reject(scope, receive, send)
      return
    messages = await self._read_body(receive)
    if messages is None:
      await self._reject(scope, receive, send)
      return

    async def replay() -> Message:
      # First the messages that were read here, then a later disconnect.
      return messages.pop(0) if messages else await receive()

    await self._app(scope, replay, send)

  async def _read_body(self, receive: Receive) -> list[Message] | None:
    """Returns all messages of the body, or None if it is too large."""
    messages: list[Message] = []
    num_bytes = 0
    while True:
      messages.append(await receive())
      num_bytes += len(messages[-1].get('body', b''))
      if num_bytes > self._max_bytes:
        return None
      if not messages[-1].get('more_body', False):
        return messages

  async def _reject(self, scope, receive, send):
    message = f'the body has more than {self._max_bytes} bytes'
    # The rest of the body is not read, so the connection cannot be reused.
    response = error_response(413, message, {'Connection': 'close'})
    await response(scope, receive, send)
