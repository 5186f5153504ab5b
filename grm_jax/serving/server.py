"""The HTTP server: uvicorn with limits on connections and slow clients.

Uvicorn limits neither idle connections nor the time in which a client sends a
request, so its class for a connection is extended here. A slow body still gets
an answer from middleware.py. This class closes connections that cannot get one.
"""

import asyncio
import dataclasses
import os
import resource
from typing import cast

import h11
import uvicorn
from absl import logging
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from grm_jax.errors import UserError
from grm_jax.serving.limits import ServerLimits
from grm_jax.serving.middleware import log_limit

# For files of the page, logs, and connections that are being refused.
_RESERVED_DESCRIPTORS = 16
# A refused client has this time to read the answer.
_REFUSAL_S = 1.0
# The middleware answers at the timeout; a connection is closed later.
_ANSWER_S = 1.0
_REFUSAL = (
  b'HTTP/1.1 503 Service Unavailable\r\n'
  b'Content-Type: application/json\r\nContent-Length: 44\r\n'
  b'Retry-After: 1\r\nConnection: close\r\n\r\n'
  b'{"error": "too many connections; try later"}'
)


def make_server(app: FastAPI) -> uvicorn.Server:
  """Returns a server of an application from app.make_app, not yet started."""
  limits = app.state.service.limits
  config = uvicorn.Config(
    app,
    http=Connection,
    ws='none',
    log_level='warning',
    access_log=False,
    timeout_graceful_shutdown=int(limits.timeout_s) + 1,
  )
  return uvicorn.Server(config)


def fit_descriptors(limits: ServerLimits) -> ServerLimits:
  """Returns the limits with as many connections as this process can open.

  Raises the limit on open files (`ulimit -n`) if the system allows it.

  Raises:
    UserError: the process cannot open any connection.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  num_other = len(os.listdir('/dev/fd')) + _RESERVED_DESCRIPTORS
  needed = limits.connections + num_other
  if soft != resource.RLIM_INFINITY and soft < needed:
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  if soft == resource.RLIM_INFINITY or soft >= needed:
    return limits
  connections = soft - num_other
  if connections < 1:
    raise UserError(
      f'this process can open {soft} files, and the server needs more than '
      f'{num_other}; raise the limit with `ulimit -n {needed}`'
    )
  logging.warning(
    'config.limits.connections=%d: this process can open %d files, so %d '
    'connections are allowed; raise the limit with `ulimit -n %d`',
    limits.connections,
    soft,
    connections,
    needed,
  )
  return dataclasses.replace(limits, connections=connections)


class Connection(H11Protocol):
  """A connection that is closed when its client is too slow."""

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    """Starts the connection, or refuses it if there are too many."""
    super().connection_made(cast(asyncio.Transport, transport))
    app = cast(FastAPI, self.config.app)
    self._limits: ServerLimits = app.state.service.limits
    self._begin_s = self.loop.time()
    self._is_refused = False
    # What the client has to send, and the timer that ends the wait for it.
    self._awaited: tuple[type, RequestResponseCycle | None] | None = None
    self._receive_timer: asyncio.TimerHandle | None = None
    self._write_timer: asyncio.TimerHandle | None = None
    self._watch_client()
    if len(self.connections) > self._limits.connections:
      self._make_room()

  def _make_room(self) -> None:
    """Closes the oldest idle connection; without any, refuses this one.

    Idle clients could otherwise keep all others out.
    """
    log_limit(
      f'{self._limits.connections} connections are open '
      '(config.limits.connections); closing idle ones, refusing new ones'
    )
    idle = [
      x
      for x in self.connections
      if isinstance(x, Connection) and x is not self and x.is_idle
    ]
    if idle:
      oldest = min(idle, key=lambda x: x._begin_s)
      # Now, because its `connection_lost` is called later.
      self.connections.discard(oldest)
      oldest.transport.abort()
    else:
      self.connections.discard(self)
      self._is_refused = True
      self.transport.write(_REFUSAL)
      # What the client sends meanwhile is dropped. Closing at once would reset
      # the connection, and the answer would be lost.
      self.loop.call_later(_REFUSAL_S, self.transport.abort)

  @property
  def is_idle(self) -> bool:
    """True if the server waits for the header of a request."""
    return self.conn.their_state is h11.IDLE

  def data_received(self, data: bytes) -> None:
    """Receives data, unless this connection is refused."""
    if not self._is_refused:
      super().data_received(data)

  def handle_events(self) -> None:
    """Processes what was received and updates the timer."""
    super().handle_events()
    self._watch_client()

  def _watch_client(self) -> None:
    """Starts a timer when the server waits for a header or a body."""
    state = self.conn.their_state
    is_waiting = state in (h11.IDLE, h11.SEND_BODY)
    awaited = (state, self.cycle) if is_waiting else None
    if awaited == self._awaited:
      return
    self._awaited = awaited
    _cancel(self._receive_timer)
    if is_waiting:
      timeout_s = self._limits.receive_timeout_s + _ANSWER_S
      self._receive_timer = self.loop.call_later(timeout_s, self._cut)

  def _cut(self) -> None:
    log_limit(
      'closing a connection whose client was too slow '
      '(config.limits.receive_timeout_s)'
    )
    self.transport.abort()

  def pause_writing(self) -> None:
    """Called when the client does not read: limits the time of that, too."""
    super().pause_writing()
    timeout_s = self._limits.receive_timeout_s
    self._write_timer = self.loop.call_later(timeout_s, self._cut)

  def resume_writing(self) -> None:
    """Called when the client has read what was written."""
    _cancel(self._write_timer)
    super().resume_writing()

  def shutdown(self) -> None:
    """Called when the server stops: only complete requests are finished."""
    if self.conn.their_state is h11.SEND_BODY:
      self.transport.abort()
    else:
      super().shutdown()

  def connection_lost(self, exc: Exception | None) -> None:
    """Stops the timers; the application sees a disconnection."""
    _cancel(self._receive_timer)
    _cancel(self._write_timer)
    super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
  if timer is not None:
    timer.cancel()
