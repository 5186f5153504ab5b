"""Tests of the HTTP service with rule-based judges."""

import asyncio
import json
import re
import threading
import time
from concurrent import futures

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from grm_jax.serving import app, schemas, server_metrics
from tests.judges.fake import RuleMeta
from tests.judges.fake import judge as rule_judge
from tests.messages import names
from tests.serving.fake import PacedJudge, listening, make_limits, make_service

REQUEST = {'query': 'q', 'responses': ['x 3', 'y 4'], 'k': 4}


@pytest.fixture(scope='module')
def client():
  """A client of a full judge whose engine is a rule."""
  service = make_service(rule_judge().stream)
  with TestClient(app.make_app(service)) as client:
    yield client


def post(client, path='/v1/score', **changes):
  return client.post(path, json={**REQUEST, **changes})


def post_text(client, text):
  kind = {'content-type': 'application/json'}
  return client.post('/v1/score', content=text, headers=kind)


def test_score_returns_votes_scores_and_texts(client):
  response = post(client)
  assert response.status_code == 200
  result = response.json()
  assert result['votes'] == [12, 16]
  assert result['scores'] == [3, 4]
  assert (result['best'], result['winners'], result['failures']) == (1, [1], 0)
  assert [x['place'] for x in result['samples']] == [0, 1, 2, 3]
  assert {tuple(x['order']) for x in result['samples']} == {(0, 1), (1, 0)}
  for sample in result['samples']:
    assert sample['scores'] == [3, 4]
    assert sample['text'].startswith('Scores: ')
    assert sample['finish'] == 'stop' and sample['tokens'] > 0
    assert sample['meta'] is None
  assert (
    0 <= result['timings']['queued_seconds'] <= result['timings']['seconds']
  )


def test_same_request_has_same_result(client):
  def result(**changes):
    result = post(client, **changes).json()
    del result['timings']
    return result

  assert result() == result()
  assert result()['id'] != result(responses=['x 3', 'y 5'])['id']
  assert result(id='mine')['id'] == 'mine'


def test_conversation_with_one_response(client):
  messages = [
    {'role': 'user', 'content': 'q'},
    {'role': 'assistant', 'content': 'a'},
    {'role': 'user', 'content': 'r'},
  ]
  response = client.post(
    '/v1/score', json={'messages': messages, 'responses': ['x 7'], 'k': 0}
  )
  assert response.json()['votes'] == [7]
  assert len(response.json()['samples']) == 1


def test_judge_receives_fields_of_the_request_or_defaults():
  judge = PacedJudge()
  judge.allow()
  with TestClient(app.make_app(make_service(judge))) as client:
    post(client, k=None, reference='ref', principles='be kind')
    post(client, k=3, temperature=0.25, order='random', seed=9)
  first, second = judge.requests
  assert (first.k, first.temperature, first.order) == (2, 0.5, 'balanced')
  assert first.example.reference == 'ref'
  assert first.example.principles == 'be kind'
  assert (second.k, second.temperature) == (3, 0.25)
  assert (second.order, second.seed) == ('random', 9)


@pytest.mark.parametrize(
  'changes, status, mentioned',
  [
    ({'responses': []}, 422, ['responses']),
    ({'responses': 'a'}, 422, ['responses']),
    ({'responses': ['a'] * 5}, 422, ['responses', 5, 4]),
    ({'query': 'x' * 6000}, 422, ['characters', 6006, 5000]),
    ({'k': 9}, 422, ['k', 9, 8]),
    ({'k': -1}, 422, ['k']),
    ({'k': 'many'}, 422, ['k']),
    ({'k': '4'}, 422, ['k']),
    ({'k': True}, 422, ['k']),
    ({'k': 2.5}, 422, ['k']),
    ({'k': [4]}, 422, ['k']),
    ({'temperature': '0.5'}, 422, ['temperature']),
    ({'temperature': False}, 422, ['temperature']),
    ({'seed': True}, 422, ['seed']),
    ({'seed': '1'}, 422, ['seed']),
    ({'seed': 2**64}, 422, ['seed']),
    ({'seed': -1}, 422, ['seed']),
    ({'k_meta': 10**9}, 422, ['k_meta', 10**9, 4]),
    ({'k_meta': 5}, 422, ['k_meta', 5, 4]),
    ({'k_meta': 2}, 422, ['k_meta', 2, 'meta']),  # the vote is a sum
    ({'k_meta': True}, 422, ['k_meta']),
    ({'meta': 1}, 422, ['meta']),
    ({'meta': 'true'}, 422, ['meta']),
    ({'stream': 'yes'}, 422, ['stream']),
    ({'id': 7}, 422, ['id']),
    ({'x' * 15_000: 1}, 422, []),
    ({'order': 'x' * 15_000}, 422, ['order']),
    ({'k': 'x' * 15_000}, 422, ['k']),
    ({'\x1b[31m\n\x9b': 1}, 422, ['\\x1b[31m\\n\\x9b']),
    ({'\ud800': 1}, 422, ['\\ud800']),
    ({str(i): i for i in range(1000)}, 422, [0]),
    ({'messages': ['a', 'b'], 'query': None}, 422, ['messages.0']),
    ({'query': {'\x1b': 1}}, 422, ['query']),
    ({'temperature': -0.1}, 422, ['temperature']),
    ({'temperature': 1e30}, 422, ['temperature']),
    ({'temperature': 1e999}, 422, ['temperature']),
    ({'order': 'sorted'}, 422, ['order']),
    ({'query': ''}, 422, ['query']),
    ({'query': None}, 422, ['query', 'messages']),
    (
      {'messages': [{'role': 'user', 'content': 'q'}]},
      422,
      ['query', 'messages'],
    ),
    ({'meta': True}, 422, ['meta']),
    ({'responces': ['a']}, 422, ['responces']),
    ({'query': 'x' * 30_000}, 413, [20000]),
  ],
)
def test_invalid_request_is_one_line_of_error(
  client, changes, status, mentioned
):
  text = json.dumps({**REQUEST, **changes}).replace('Infinity', '1e999')
  response = post_text(client, text)
  assert response.status_code == status
  assert list(response.json()) == ['error']
  (error,) = response.json().values()
  assert names(error, *mentioned), error
  assert error.isprintable() and len(error) <= 300


@pytest.mark.parametrize(
  'content', [b'', b'{', b'nonsense', b'"\xff"', b'[1', b'{"query": "\\ud800"']
)
def test_invalid_json(client, content):
  response = post_text(client, content)
  assert response.status_code in (400, 422) and response.json()['error']


def test_content_type_must_be_json(client):
  for kind in ({}, {'content-type': 'text/plain'}):
    response = client.post(
      '/v1/score', content=json.dumps(REQUEST), headers=kind
    )
    assert response.status_code == 415
    assert 'application/json' in response.json()['error']


def test_whole_numbers_can_be_floats(client):
  """JSON has one type of numbers."""
  response = post(client, k=4.0, seed=1.0, temperature=1, id='a')
  assert response.status_code == 200
  assert len(response.json()['samples']) == 4


@pytest.mark.parametrize('secured', [False, True])
def test_openapi_names_the_token_where_it_is_required(secured):
  service = make_service(rule_judge().stream, 'secret' if secured else '')
  with TestClient(app.make_app(service)) as client:
    paths = client.get('/openapi.json').json()['paths']
    for path, operations in paths.items():
      for method, operation in operations.items():
        response = client.request(method, path, content=b'{}')
        assert ('security' in operation) == (response.status_code == 401)
    assert ('security' in paths['/v1/about']['get']) == secured


def test_openapi_documents_events(client):
  paths = client.get('/openapi.json').json()['paths']
  content = paths['/v1/score']['post']['responses']['200']['content']
  assert set(content) == {'application/json', 'text/event-stream'}


def longest_pause_s(address, request):
  """Returns the longest answer time of /healthz while a request is handled."""
  pauses = [0.0]
  with futures.ThreadPoolExecutor() as pool:
    running = pool.submit(request)
    while not running.done():
      begin_s = time.monotonic()
      httpx.get(address + '/healthz', timeout=60)
      pauses.append(time.monotonic() - begin_s)
  return max(pauses), running.result()


@pytest.mark.parametrize(
  'name, body',
  [
    ('/v1/score', lambda: {str(i): 0 for i in range(300_000)}),
    ('/v1/score', lambda: {**REQUEST, 'responses': [0] * 1_000_000}),
    ('/v1/score', lambda: {'messages': [{}] * 900_000, 'responses': ['a']}),
    ('/v1/score_batch', lambda: {'requests': [0] * 1_000_000}),
    ('/openrlhf', lambda: {'query': ['a'] * 500_000, 'prompts': []}),
    ('/openrlhf', lambda: {'query': ['a'], 'labels': [[]] * 900_000}),
    (
      '/openrlhf',
      lambda: {'query': ['a' + '\n' * 1_900_000 + 'b'], 'prompts': ['a']},
    ),
    (
      '/openrlhf',
      lambda: {'query': ['a' + '\n</s>' * 400_000 + 'b'], 'prompts': ['a']},
    ),
    ('/openrlhf', lambda: {'query': ['<|' * 1_900_000], 'prompts': ['<|']}),
  ],
)
def test_large_bodies_do_not_stop_the_server(name, body):
  """Other clients get answers while 4 MB are checked."""
  judge = PacedJudge()
  judge.allow()
  data = json.dumps(body()).encode()
  assert 2_000_000 < len(data) < 4_000_000
  service = make_service(judge, body_bytes=4_000_000, characters=400_000)
  kind = {'content-type': 'application/json'}
  with listening(service) as address:
    pause_s, response = longest_pause_s(
      address,
      lambda: httpx.post(
        address + name, content=data, headers=kind, timeout=60
      ),
    )
  assert response.status_code == 422 and len(response.content) < 400
  # Reading the JSON takes some tenths of a second.
  assert pause_s < 4


def test_unpaired_surrogate_is_rejected(client):
  for text in (
    '{"query": "\\ud800", "responses": ["a 1"]}',
    '{"query": "q", "responses": ["\\udfff 1"]}',
    '{"query": "q", "responses": ["a 1"], "id": "\\ud800"}',
  ):
    response = post_text(client, text)
    assert response.status_code == 422
    assert 'surrogate' in response.json()['error']


def test_unknown_path_and_method(client):
  assert client.get('/nowhere').json() == {'error': 'Not Found'}
  assert client.get('/v1/score').status_code == 405


def test_example_error_does_not_affect_the_batch():
  judge = PacedJudge()
  judge.allow()
  with TestClient(app.make_app(make_service(judge))) as client:
    response = post(client, responses=['unjudgeable 1'])
    assert response.status_code == 422
    assert response.json() == {'error': 'it cannot be judged'}
    requests = [REQUEST, {**REQUEST, 'responses': ['unjudgeable 1']}]
    response = client.post('/v1/score_batch', json={'requests': requests})
    first, second = response.json()['results']
  assert response.status_code == 200
  assert first['votes'] == [12, 16]
  assert second == {'error': 'it cannot be judged'}


def test_batch(client):
  requests = [{**REQUEST, 'k': k, 'id': str(k)} for k in (1, 2, 3)]
  response = client.post('/v1/score_batch', json={'requests': requests})
  result = response.json()['results']
  assert [x['id'] for x in result] == ['1', '2', '3']
  assert [x['votes'] for x in result] == [[3, 4], [6, 8], [9, 12]]
  for invalid, mentioned in (
    ([*requests, REQUEST], ['requests', 4, 3]),
    ([], ['requests']),
    ([{**REQUEST, 'stream': True}], ['stream']),
  ):
    response = client.post('/v1/score_batch', json={'requests': invalid})
    assert response.status_code == 422
    assert names(response.json()['error'], *mentioned)


def parse_events(text):
  events = []
  for block in text.strip().split('\n\n'):
    kind, data = block.split('\n')
    events.append((kind.removeprefix('event: '), json.loads(data[6:])))
  return events


def test_stream_sends_samples_then_the_result(client):
  unstreamed = post(client).json()
  response = post(client, stream=True)
  assert response.headers['content-type'].startswith('text/event-stream')
  *samples, (kind, result) = parse_events(response.text)
  assert [kind for kind, _ in samples] == ['sample'] * 4
  assert kind == 'result'
  by_place = sorted((x for _, x in samples), key=lambda x: x['place'])
  assert by_place == unstreamed['samples'] == result['samples']
  assert result['votes'] == unstreamed['votes']


def test_stream_of_an_example_error():
  judge = PacedJudge()
  judge.allow()
  with TestClient(app.make_app(make_service(judge))) as client:
    response = post(client, responses=['unjudgeable 1'], stream=True)
  assert parse_events(response.text) == [
    ('error', {'error': 'it cannot be judged'})
  ]


@pytest.mark.parametrize('stream', [False, True])
def test_a_fault_fails_its_request_alone(monkeypatch, stream):
  """The text of one judgement cannot be split into sections."""
  split = schemas.sections.split

  def fail(text):
    if '7' in text:
      raise RecursionError('too deep')
    return split(text)

  monkeypatch.setattr(schemas.sections, 'split', fail)
  with TestClient(app.make_app(make_service(rule_judge().stream))) as client:
    response = post(client, responses=['x 7', 'y 1'], stream=stream)
    if stream:
      kind, error = parse_events(response.text)[-1]
      assert kind == 'error' and names(error['error'], 'RecursionError')
    else:
      assert response.status_code == 422
      assert names(response.json()['error'], 'RecursionError')
    requests = [{**REQUEST, 'responses': ['x 7']}, REQUEST]
    batch = client.post('/v1/score_batch', json={'requests': requests})
    first, second = batch.json()['results']
    assert 'error' in first and second['votes'] == [12, 16]
    outcomes = read_metrics(client)
  assert outcomes['grm_examples_total{outcome="error"}'] == '2.0'


def test_a_fault_before_the_queue_is_one_error_500(monkeypatch):
  def fail(row, number):
    raise RecursionError('too deep')

  with TestClient(
    app.make_app(make_service(rule_judge().stream)),
    raise_server_exceptions=False,
  ) as client:
    with monkeypatch.context() as patch:
      patch.setattr(schemas.examples, 'from_row', fail)
      response = post(client)
    assert response.status_code == 500
    assert names(response.json()['error'], 'RecursionError')
    assert post(client).status_code == 200


def test_meta_rm_selects_the_votes():
  judge = rule_judge(k_meta=1, meta=RuleMeta())
  service = make_service(judge.stream, has_meta=True, voting=judge.vote_config)
  with TestClient(app.make_app(service)) as client:
    guided = post(client).json()
    plain = post(client, meta=False).json()
    two = post(client, k_meta=2).json()
    half = post(client, k_meta=0).json()
    assert post(client, k=0).json()['counted'] == [0]
    assert post(client, meta=False, k_meta=2).status_code == 422
  assert guided['votes'] == [3, 4]
  assert plain['votes'] == [12, 16]
  assert two['votes'] == half['votes'] == [6, 8]
  metas = [x['meta'] for x in guided['samples']]
  assert guided['counted'] == [metas.index(max(metas))]
  assert len(two['counted']) == 2 and plain['counted'] == [0, 1, 2, 3]
  assert all(x['meta'] is not None for x in guided['samples'])


@pytest.mark.parametrize('path', ['/v1/score', '/v1/score_batch', '/v1/about'])
@pytest.mark.parametrize(
  'header', ['', 'Bearer wrong', 'Basic secret', 'Bearer']
)
def test_token_is_required(path, header):
  judge = PacedJudge()
  judge.allow()
  with TestClient(app.make_app(make_service(judge, token='secret'))) as client:
    send = client.get if path == '/v1/about' else client.post
    response = send(path, headers={'Authorization': header} if header else {})
    assert response.status_code == 401
    assert 'Bearer' in response.headers['www-authenticate']
    assert 'secret' not in response.text
    valid = {'Authorization': 'Bearer secret'}
    assert send(path, headers=valid).status_code in (200, 415)
    assert client.get('/readyz').status_code == 200


def test_full_queue_rejects_with_retry_after():
  """Four requests fill the queue; the fifth succeeds when it retries."""
  judge = PacedJudge()
  started = threading.Event()

  def blocked_judge(requests, *callbacks):
    started.wait()
    judge(requests, *callbacks)

  with TestClient(app.make_app(make_service(blocked_judge))) as client:
    responses = []
    threads = [
      threading.Thread(target=lambda: responses.append(post(client)))
      for _ in range(4)
    ]
    for thread in threads:
      thread.start()
    service = client.app.state.service
    while service.worker.counts() != (4, 0):
      pass
    rejected = post(client)
    assert rejected.status_code == 429
    assert rejected.headers['retry-after'] == '1'
    assert names(rejected.json()['error'], 4)
    started.set()
    judge.allow()
    for thread in threads:
      thread.join()
    assert [x.status_code for x in responses] == [200] * 4
    assert post(client).status_code == 200


@pytest.mark.parametrize('stream', [False, True])
def test_timeout_cancels_the_request(stream):
  judge = PacedJudge()
  with TestClient(app.make_app(make_service(judge, timeout_s=0.2))) as client:
    response = post(client, stream=stream)
    if stream:
      ((kind, error),) = parse_events(response.text)
      assert kind == 'error'
    else:
      assert response.status_code == 504
      error = response.json()
    assert '0.2' in error['error']
    while judge.cancelled != [0]:
      pass
    judge.allow()
    assert post(client).status_code == 200
    text = client.get('/metrics').text
  assert 'grm_examples_total{outcome="timeout"} 1.0' in text


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
@pytest.mark.parametrize('stream', [False, True])
def test_failure_of_the_judge(stream):
  judge = PacedJudge()
  judge.error = MemoryError('no room')
  with TestClient(app.make_app(make_service(judge))) as client:
    judge.allow()
    response = post(client, stream=stream)
    if not stream:
      assert response.status_code == 503
    assert names(response.text, 'MemoryError', 'no room')
    assert client.get('/readyz').status_code == 503
    assert client.get('/healthz').status_code == 200
    assert post(client).status_code == 503


def read_metrics(client):
  response = client.get('/metrics')
  assert response.headers['content-type'] == server_metrics.CONTENT_TYPE
  return dict(
    line.rsplit(' ', 1)
    for line in response.text.splitlines()
    if not line.startswith('#')
  )


def test_responses_are_counted_by_path_and_status():
  service = make_service(
    rule_judge().stream, 'secret', allowed_hosts=('testserver',)
  )
  with TestClient(app.make_app(service)) as client:
    authorized = {'authorization': 'Bearer secret'}
    client.post('/v1/score', json=REQUEST, headers=authorized)
    client.post('/v1/score', json=REQUEST)
    client.post('/v1/score', content='x' * 30_000)
    client.post('/v1/score', json=REQUEST, headers={'host': 'elsewhere'})
    client.get('/nowhere/1'), client.get('/nowhere/2')
    client.get('/healthz')
    values = read_metrics(client)
  counts = {
    tuple(re.findall('"(.*?)"', name)): float(value)
    for name, value in values.items()
    if name.startswith('grm_requests_total')
  }
  assert counts == {
    ('/v1/score', '200'): 1,
    ('/v1/score', '401'): 1,
    ('/v1/score', '413'): 1,
    ('/v1/score', '421'): 1,
    ('other', '404'): 2,
    ('/healthz', '200'): 1,
  }


@pytest.mark.parametrize(
  'host, status',
  [
    ('127.0.0.1', 200),
    ('localhost:8080', 200),
    ('LocalHost', 200),
    ('[::1]:8080', 200),
    ('[::1]', 200),
    ('evil.example', 421),
    ('evil.example:8080', 421),
    ('127.0.0.1.evil.example', 421),
    ('', 421),
  ],
)
def test_host_header_must_be_allowed(host, status):
  hosts = '127.0.0.1', 'localhost', '[::1]'
  service = make_service(rule_judge().stream, allowed_hosts=hosts)
  with TestClient(app.make_app(service)) as client:
    response = client.get('/readyz', headers={'host': host})
  assert response.status_code == status
  if status == 421:
    assert names(response.json()['error'], 'config.allowed_hosts')


def test_metrics_and_about(client):
  post(client)
  values = read_metrics(client)
  counter = 'grm_requests_total{path="/v1/score",status="200"}'
  assert float(values[counter]) >= 1
  assert float(values['grm_samples_total']) >= 4
  assert values['grm_engine_tokens_total'] == '7.0'
  assert values['grm_queue_depth'] == '0.0'
  about = client.get('/v1/about').json()
  assert about['checkpoint'] == 'fake'
  assert about['limits']['k'] == make_limits().k
  assert about['defaults']['k'] == 2


def test_openapi_documents_all_errors(client):
  openapi = client.get('/openapi.json').json()
  for path in ('/v1/score', '/v1/score_batch'):
    codes = set(openapi['paths'][path]['post']['responses'])
    assert codes == {'200', *map(str, app._ERRORS)}
  assert client.get('/docs').status_code == 200


def test_page_allows_its_own_scripts_only(client):
  for path, kind in (
    ('/', 'text/html'),
    ('/page.css', 'text/css'),
    ('/page.js', 'text/javascript'),
  ):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers['content-type'].startswith(kind)
    policy = response.headers['content-security-policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy
  page = client.get('/').text
  assert '<script src="page.js"' in page and 'http' not in page


def test_disconnect_before_first_event_cancels_the_request():
  judge = PacedJudge()
  service = make_service(judge)
  body = json.dumps({**REQUEST, 'stream': True}).encode()
  scope = {
    'type': 'http',
    'method': 'POST',
    'path': '/v1/score',
    'query_string': b'',
    'headers': [(b'content-type', b'application/json')],
  }

  messages = [{'type': 'http.request', 'body': body}]

  async def receive():
    if not messages:
      await asyncio.Event().wait()
    return messages.pop()

  async def send(message):
    raise asyncio.CancelledError

  asyncio.run(app.make_app(service)(scope, receive, send))
  assert service.worker.counts() == (0, 0)
  assert service.worker.close(20.0)
