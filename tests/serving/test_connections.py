"""Slow, large and too many clients of a real server."""

import contextlib
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from concurrent import futures

import pytest

from grm_jax.errors import UserError
from grm_jax.serving import server
from tests.messages import names, naming
from tests.serving.fake import PacedJudge, listening, make_limits, make_service

TIMEOUT_S = 30  # a hang is a failure
REQUEST = {'query': 'q', 'responses': ['x 3', 'y 4'], 'k': 2}
HEADER = (
  b'POST /v1/score HTTP/1.1\r\nHost: localhost\r\n'
  b'Content-Type: application/json\r\n'
)


def fast_judge():
  judge = PacedJudge()
  judge.allow(10**5)
  return judge


def connect(address):
  host, port = address.removeprefix('http://').split(':')
  return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def read_until_closed(connection):
  received = b''
  with contextlib.suppress(ConnectionError):
    while data := connection.recv(65536):
      received += data
  return received


def post(address, body, **headers):
  request = urllib.request.Request(
    address + '/v1/score', body, {'Content-Type': 'application/json', **headers}
  )
  try:
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
      return reply.status, json.load(reply)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


def post_request(address):
  return post(address, json.dumps(REQUEST).encode())[0]


def has_closed(connection):
  connection.settimeout(0.1)
  try:
    return connection.recv(1) == b''
  except TimeoutError:
    return False
  except ConnectionError:
    return True


@pytest.mark.parametrize('size', [20_001, 300_000, 30_000_000])
@pytest.mark.parametrize('is_chunked', [False, True])
def test_too_large_body_gets_its_answer(size, is_chunked):
  """Urllib sends the whole body before it reads the answer."""
  with listening(make_service(fast_judge())) as address:
    body = b'x' * size
    chunks = (body[i : i + 50_000] for i in range(0, size, 50_000))
    status, reply = post(address, chunks if is_chunked else body)
    assert status == 413 and names(reply['error'], 20_000)
    assert post_request(address) == 200


def test_too_large_body_on_a_connection_that_stays_open():
  with listening(make_service(fast_judge())) as address:
    connection = http.client.HTTPConnection(address.removeprefix('http://'))
    for body, status in (
      (b'x' * 5_000_000, 413),
      (json.dumps(REQUEST), 200),
      (b'x' * 5_000_000, 413),
    ):
      kind = {'Content-Type': 'application/json'}
      connection.request('POST', '/v1/score', body, kind)
      reply = connection.getresponse()
      assert reply.status == status
      reply.read()
    connection.close()


@pytest.mark.parametrize(
  'header, status',
  [
    (HEADER + b'Authorization: Bearer wrong\r\n', 401),
    (HEADER.replace(b'/v1/score', b'/v1/score_batch'), 401),
    (HEADER.replace(b'/v1/score', b'/openrlhf'), 401),
    (HEADER.replace(b'/v1/score', b'/nowhere'), 404),
    (HEADER.replace(b'/v1/score', b'/healthz'), 405),
    (HEADER.replace(b'localhost', b'elsewhere'), 421),
    (
      HEADER.replace(b'json', b'xml') + b'Authorization: Bearer secret\r\n',
      415,
    ),
    (HEADER + b'Content-Length: 99999\r\n', 413),
  ],
)
def test_header_is_refused_before_the_body_is_read(header, status):
  service = make_service(
    fast_judge(), 'secret', allowed_hosts=('localhost',), receive_timeout_s=0.5
  )
  if b'Content-Length' not in header:
    header += b'Content-Length: 5000\r\n'
  with listening(service) as address, connect(address) as connection:
    begin_s = time.monotonic()
    connection.sendall(header + b'\r\n')
    assert connection.recv(1) and time.monotonic() - begin_s < 0.4
    # The body never arrives.
    received = read_until_closed(connection)
    assert received.startswith(b'TTP/1.1 %d ' % status)


@pytest.mark.parametrize(
  'sent',
  [b'', b'GET /heal', HEADER, HEADER + b'X: ' + b'x' * 1000],
)
def test_slow_header_is_cut(sent):
  service = make_service(fast_judge(), receive_timeout_s=0.3)
  with listening(service) as address, connect(address) as connection:
    connection.sendall(sent)
    assert read_until_closed(connection) == b''
    assert post_request(address) == 200


def test_client_that_sends_a_header_byte_by_byte_is_cut():
  service = make_service(fast_judge(), receive_timeout_s=0.3)
  with listening(service) as address, connect(address) as connection:
    connection.sendall(HEADER)
    begin_s = time.monotonic()
    with pytest.raises(ConnectionError):
      while time.monotonic() - begin_s < TIMEOUT_S:
        connection.sendall(b'X')
        time.sleep(0.02)


@pytest.mark.parametrize(
  'length', [b'Content-Length: 500', b'Transfer-Encoding: chunked']
)
def test_slow_body_is_answered_and_cut(length):
  service = make_service(fast_judge(), receive_timeout_s=0.3)
  with listening(service) as address, connect(address) as connection:
    connection.sendall(HEADER + length + b'\r\n\r\n')
    received = read_until_closed(connection)
    assert received.startswith(b'HTTP/1.1 408 ')
    assert names(received.decode(), 'config.limits.receive_timeout_s', 0.3)


def test_idle_connections_do_not_lock_others_out():
  service = make_service(fast_judge(), connections=8)
  with listening(service) as address, contextlib.ExitStack() as stack:
    idle = [stack.enter_context(connect(address)) for _ in range(40)]
    for connection in idle:
      with contextlib.suppress(ConnectionError):
        connection.sendall(b'GET / HT')
    for _ in range(20):
      assert post_request(address) == 200
    assert sum(has_closed(x) for x in idle) >= 32


def test_connections_with_requests_are_kept_and_new_ones_refused():
  judge = PacedJudge()
  service = make_service(judge, connections=3)
  with listening(service) as address, futures.ThreadPoolExecutor() as pool:
    running = [pool.submit(post_request, address) for _ in range(3)]
    while sum(service.worker.counts()) < 3:
      time.sleep(0.01)
    status, reply = post(address, json.dumps(REQUEST).encode())
    assert status == 503 and 'connections' in reply['error']
    judge.allow()
    assert [x.result() for x in running] == [200] * 3
    assert post_request(address) == 200


def test_bodies_of_all_requests_are_limited():
  judge = PacedJudge()
  service = make_service(judge, max_queue=32)
  body = json.dumps(REQUEST).encode().ljust(20_000)
  with listening(service) as address, futures.ThreadPoolExecutor(16) as pool:
    running = [pool.submit(post, address, body) for _ in range(16)]
    while sum(service.worker.counts()) < 16:
      time.sleep(0.01)
    status, reply = post(address, body)
    assert status == 429
    assert names(reply['error'], 'config.limits.body_bytes', 20_000)
    judge.allow()
    assert [x.result()[0] for x in running] == [200] * 16
    assert post(address, body)[0] == 200  # the room is free again


@pytest.mark.parametrize(
  'sent',
  [
    b'',
    HEADER,
    HEADER + b'Content-Length: 500\r\n\r\n{"query"',
    HEADER + b'Content-Length: 5000000\r\n\r\n',  # answered with 413
  ],
)
def test_shutdown_does_not_wait_for_half_a_request(sent):
  """The accepted request is finished."""
  judge = PacedJudge()
  service = make_service(judge)
  with futures.ThreadPoolExecutor() as pool:
    with listening(service) as address:
      connection = connect(address)
      connection.sendall(sent)
      accepted = pool.submit(post_request, address)
      while sum(service.worker.counts()) < 1:
        time.sleep(0.01)
      judge.allow()
      begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 5
    assert accepted.result() == 200
    connection.close()


def test_connections_fit_the_open_files(monkeypatch):
  limits = make_limits(connections=100)
  monkeypatch.setattr(server.os, 'listdir', lambda path: range(20))
  monkeypatch.setattr(server.resource, 'setrlimit', lambda *args: None)
  for soft, hard, expected in (
    (1024, 4096, 100),
    (-1, -1, 100),
    (64, 4096, 100),
    (64, -1, 100),
    (64, 64, 28),
  ):
    monkeypatch.setattr(
      server.resource, 'getrlimit', lambda _, x=(soft, hard): x
    )
    assert server.fit_descriptors(limits).connections == expected
  monkeypatch.setattr(server.resource, 'getrlimit', lambda _: (30, 30))
  with pytest.raises(UserError, match=naming(30, 'ulimit -n 136')):
    server.fit_descriptors(limits)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'batch': 5}, ['config.limits.batch', 5, 'config.limits.max_queue', 4]),
    ({'body_bytes': 0}, ['config.limits.body_bytes', 0]),
    ({'timeout_s': float('inf')}, ['config.limits.timeout_s', 'inf']),
    ({'timeout_s': float('nan')}, ['config.limits.timeout_s', 'nan']),
    ({'connections': 0}, ['config.limits.connections', 0]),
  ],
)
def test_limits_must_be_possible(changes, words):
  with pytest.raises(UserError, match=naming(*words)):
    make_limits(**changes)
