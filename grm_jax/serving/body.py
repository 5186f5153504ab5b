"""A limit on what one request may send, before any of it is read as JSON."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
  """ASGI middleware: 413 for bodies above so many bytes."""

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
    answer = JSONResponse(
      {'error': f'the body has more than {self._most} bytes'},
      413,
      headers={'Connection': 'close'},
    )
    await answer(scope, receive, send)
