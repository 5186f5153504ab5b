"""What every request passes before a route: ASGI middleware."""

from collections.abc import Callable, Collection, Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def refusal(
  status: int, words: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
  """What every refusal looks like, see contract.Refused."""
  return JSONResponse({'error': words}, status, headers=headers)


class RequestCounter:
  """Tells the path and the status of every answer, whoever gives it."""

  def __init__(
    self,
    app: ASGIApp,
    paths: Collection[str],
    told: Callable[[str, int], None],
  ):
    """Paths that are none of these are told as 'other': clients invent some."""
    self._app, self._paths, self._told = app, frozenset(paths), told

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def counted(message: Message) -> None:
      if message['type'] == 'http.response.start':
        path = scope['path'] if scope['path'] in self._paths else 'other'
        self._told(path, message['status'])
      await send(message)

    await self._app(scope, receive, counted)


class KnownHosts:
  """421 where a request names another host than these.

  A page of any site can have its own name lead to a browser's loopback
  address, and would then read what a service answers there (DNS rebinding);
  the name that the browser asked for gives it away. Starlette's
  TrustedHostMiddleware refuses the same requests, but with 400 and a plain text
  that does not name config.allowed_hosts.
  """

  def __init__(self, app: ASGIApp, hosts: Collection[str]):
    self._app, self._hosts = app, frozenset(x.lower() for x in hosts)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] == 'http':
      host = dict(scope['headers']).get(b'host', b'').decode('latin-1')
      name = _without_port(host).lower()
      if name not in self._hosts:
        words = f'{name!r} is no name of this server; config.allowed_hosts can have it'
        await refusal(421, words)(scope, receive, send)
        return
    await self._app(scope, receive, send)


def _without_port(host):
  """Of 'name:80' and '[::1]:80' what is before the port."""
  end = host.rfind(':')
  return host[:end] if end > host.rfind(']') else host


class BodyLimit:
  """413 for bodies above so many bytes, before any is read as JSON.

  FastAPI's max_body_size refuses the same requests, but replaces the answer by
  a plain text without the limit.
  """

  def __init__(self, app: ASGIApp, most: int):
    self._app, self._most = app, most

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    declared = dict(scope['headers']).get(b'content-length', b'')
    if declared.isdigit() and int(declared) > self._most:
      await self._refuse(scope, receive, send)
      return
    messages = await self._read(receive)
    if messages is None:
      await self._refuse(scope, receive, send)
      return

    async def replayed() -> Message:
      return messages.pop(0) if messages else await receive()

    await self._app(scope, replayed, send)

  async def _read(self, receive: Receive) -> list[Message] | None:
    """All messages of the body; None if they are too large together."""
    messages, count = [], 0
    while True:
      messages.append(await receive())
      count += len(messages[-1].get('body', b''))
      if count > self._most:
        return None
      if not messages[-1].get('more_body', False):
        return messages

  async def _refuse(self, scope, receive, send):
    words = f'the body has more than {self._most} bytes'
    answer = refusal(413, words, {'Connection': 'close'})
    await answer(scope, receive, send)
