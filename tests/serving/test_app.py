"""The service over HTTP, with judges by a known rule."""

import asyncio
import json
import re
import threading

import pytest
from starlette.testclient import TestClient

from grm_jax.judgement.verdict import VoteConfig
from grm_jax.serving import app, server_metrics
from tests.judges.fake import RuleMeta
from tests.judges.fake import judge as rule_judge
from tests.messages import names
from tests.serving.fake import Paced, limit, service

REQUEST = {'query': 'q', 'responses': ['x 3', 'y 4'], 'k': 4}


@pytest.fixture(scope='module')
def client():
  """A whole judge with a rule for a model."""
  with TestClient(app.make(service(rule_judge().stream))) as made:
    yield made


def post(client, path='/v1/score', **changes):
  return client.post(path, json={**REQUEST, **changes})


def post_text(client, text):
  kind = {'content-type': 'application/json'}
  return client.post('/v1/score', content=text, headers=kind)


def test_scores_votes_and_texts(client):
  answer = post(client)
  assert answer.status_code == 200
  found = answer.json()
  assert found['votes'] == [12, 16]
  assert found['scores'] == [3, 4]
  assert (found['best'], found['winners'], found['failures']) == (1, [1], 0)
  assert [x['place'] for x in found['samples']] == [0, 1, 2, 3]
  assert {tuple(x['order']) for x in found['samples']} == {(0, 1), (1, 0)}
  for sample in found['samples']:
    assert sample['scores'] == [3, 4]
    assert sample['text'].startswith('Scores: ')
    assert sample['finish'] == 'stop' and sample['tokens'] > 0
    assert sample['meta'] is None
  assert 0 <= found['timings']['queued_seconds'] <= found['timings']['seconds']


def test_the_same_request_has_the_same_answer(client):
  def answer(**changes):
    found = post(client, **changes).json()
    del found['timings']
    return found

  assert answer() == answer()
  assert answer()['id'] != answer(responses=['x 3', 'y 5'])['id']
  assert answer(id='mine')['id'] == 'mine'


def test_a_conversation_and_one_response(client):
  messages = [
    {'role': 'user', 'content': 'q'},
    {'role': 'assistant', 'content': 'a'},
    {'role': 'user', 'content': 'r'},
  ]
  answer = client.post(
    '/v1/score', json={'messages': messages, 'responses': ['x 7'], 'k': 0}
  )
  assert answer.json()['votes'] == [7]
  assert len(answer.json()['samples']) == 1


def test_the_judge_is_asked_as_the_request_says():
  seen = []

  class Noting(Paced):
    def __call__(self, examples, *others):
      def noted():
        for x in examples:
          seen.append(x)
          yield x

      super().__call__(noted(), *others)

  judge = Noting()
  judge.let()
  with TestClient(app.make(service(judge))) as client:
    post(client, k=None, reference='ref', principles='be kind')
    post(client, k=3, temperature=0.25, order='random', seed=9)
  first, second = (x for x in seen if x is not None)
  assert (first.k, first.temperature, first.order) == (2, 0.5, 'balanced')
  assert first.example.reference == 'ref'
  assert first.example.principles == 'be kind'
  assert (second.k, second.temperature) == (3, 0.25)
  assert (second.order, second.seed) == ('random', 9)


@pytest.mark.parametrize(
  'changes, status, words',
  [
    ({'responses': []}, 422, ['responses']),
    ({'responses': 'a'}, 422, ['responses']),
    ({'responses': ['a'] * 5}, 422, ['responses', 5, 4]),
    ({'query': 'x' * 6000}, 422, ['characters', 6006, 5000]),
    ({'k': 9}, 422, ['k', 9, 8]),
    ({'k': -1}, 422, ['k']),
    ({'k': 'many'}, 422, ['k']),
    ({'temperature': -0.1}, 422, ['temperature']),
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
def test_what_is_wrong_is_said_in_a_line(client, changes, status, words):
  text = json.dumps({**REQUEST, **changes}).replace('Infinity', '1e999')
  answer = post_text(client, text)
  assert answer.status_code == status
  assert list(answer.json()) == ['error']
  (error,) = answer.json().values()
  assert names(error, *words), error
  assert '\n' not in error and len(error) < 300


@pytest.mark.parametrize(
  'content', [b'', b'{', b'nonsense', b'"\xff"', b'[1', b'{"query": "\\ud800"']
)
def test_no_json(client, content):
  answer = post_text(client, content)
  assert answer.status_code in (400, 422) and answer.json()['error']


def test_json_must_be_sent_as_such(client):
  for kind in ({}, {'content-type': 'text/plain'}):
    answer = client.post('/v1/score', content=json.dumps(REQUEST), headers=kind)
    assert answer.status_code == 415
    assert 'application/json' in answer.json()['error']


def test_half_a_surrogate_is_no_text(client):
  for text in (
    '{"query": "\\ud800", "responses": ["a 1"]}',
    '{"query": "q", "responses": ["\\udfff 1"]}',
    '{"query": "q", "responses": ["a 1"], "id": "\\ud800"}',
  ):
    answer = post_text(client, text)
    assert answer.status_code == 422
    assert 'surrogate' in answer.json()['error']


def test_no_such_page(client):
  assert client.get('/nowhere').json() == {'error': 'Not Found'}
  assert client.get('/v1/score').status_code == 405


def test_an_example_that_cannot_be_judged():
  judge = Paced()
  judge.let()
  with TestClient(app.make(service(judge))) as client:
    answer = post(client, responses=['unjudgeable 1'])
    assert answer.status_code == 422
    assert answer.json() == {'error': 'it cannot be judged'}
    requests = [REQUEST, {**REQUEST, 'responses': ['unjudgeable 1']}]
    answer = client.post('/v1/score_batch', json={'requests': requests})
    first, second = answer.json()['results']
  assert answer.status_code == 200
  assert first['votes'] == [12, 16]
  assert second == {'error': 'it cannot be judged'}


def test_batches(client):
  requests = [{**REQUEST, 'k': k, 'id': str(k)} for k in (1, 2, 3)]
  answer = client.post('/v1/score_batch', json={'requests': requests})
  found = answer.json()['results']
  assert [x['id'] for x in found] == ['1', '2', '3']
  assert [x['votes'] for x in found] == [[3, 4], [6, 8], [9, 12]]
  for wrong, words in (
    ([*requests, REQUEST], ['requests', 4, 3]),
    ([], ['requests']),
    ([{**REQUEST, 'stream': True}], ['stream']),
  ):
    answer = client.post('/v1/score_batch', json={'requests': wrong})
    assert answer.status_code == 422
    assert names(answer.json()['error'], *words)


def events(text):
  found = []
  for block in text.strip().split('\n\n'):
    kind, data = block.split('\n')
    found.append((kind.removeprefix('event: '), json.loads(data[6:])))
  return found


def test_samples_are_streamed_and_then_the_answer(client):
  plain = post(client).json()
  answer = post(client, stream=True)
  assert answer.headers['content-type'].startswith('text/event-stream')
  *samples, (kind, result) = events(answer.text)
  assert [kind for kind, _ in samples] == ['sample'] * 4
  assert kind == 'result'
  by_place = sorted((x for _, x in samples), key=lambda x: x['place'])
  assert by_place == plain['samples'] == result['samples']
  assert result['votes'] == plain['votes']


def test_a_stream_of_what_cannot_be_judged():
  judge = Paced()
  judge.let()
  with TestClient(app.make(service(judge))) as client:
    answer = post(client, responses=['unjudgeable 1'], stream=True)
  assert events(answer.text) == [('error', {'error': 'it cannot be judged'})]


def test_votes_by_a_meta_rm():
  judge = rule_judge(vote='guided', k_meta=1, meta=RuleMeta())
  made = service(judge.stream, has_meta=True, voting=VoteConfig('guided', 1))
  with TestClient(app.make(made)) as client:
    guided = post(client).json()
    plain = post(client, meta=False).json()
    two = post(client, k_meta=2).json()
  assert guided['votes'] == [3, 4]
  assert plain['votes'] == [12, 16]
  assert two['votes'] == [6, 8]
  metas = [x['meta'] for x in guided['samples']]
  assert guided['counted'] == [metas.index(max(metas))]
  assert len(two['counted']) == 2 and plain['counted'] == [0, 1, 2, 3]
  assert all(x['meta'] is not None for x in guided['samples'])


@pytest.mark.parametrize('path', ['/v1/score', '/v1/score_batch', '/v1/about'])
@pytest.mark.parametrize(
  'given', ['', 'Bearer wrong', 'Basic secret', 'Bearer']
)
def test_a_token_is_asked_for(path, given):
  judge = Paced()
  judge.let()
  with TestClient(app.make(service(judge, token='secret'))) as client:
    ask = client.get if path == '/v1/about' else client.post
    answer = ask(path, headers={'Authorization': given} if given else {})
    assert answer.status_code == 401
    assert 'Bearer' in answer.headers['www-authenticate']
    assert 'secret' not in answer.text
    right = {'Authorization': 'Bearer secret'}
    assert ask(path, headers=right).status_code in (200, 415)
    assert client.get('/readyz').status_code == 200


def test_full(client):
  """Five wait where four may; the refused one may come back."""
  judge = Paced()
  started = threading.Event()

  def stuck(examples, *others):
    started.wait()
    judge(examples, *others)

  with TestClient(app.make(service(stuck))) as client:
    answers = []
    threads = [
      threading.Thread(target=lambda: answers.append(post(client)))
      for _ in range(4)
    ]
    for thread in threads:
      thread.start()
    made = client.app.state.service
    while made.desk.counts() != (4, 0):
      pass
    refused = post(client)
    assert refused.status_code == 429
    assert refused.headers['retry-after'] == '1'
    assert names(refused.json()['error'], 4)
    started.set()
    judge.let()
    for thread in threads:
      thread.join()
    assert [x.status_code for x in answers] == [200] * 4
    assert post(client).status_code == 200


@pytest.mark.parametrize('stream', [False, True])
def test_a_request_has_so_much_time(stream):
  judge = Paced()
  with TestClient(app.make(service(judge, seconds=0.2))) as client:
    answer = post(client, stream=stream)
    if stream:
      ((kind, found),) = events(answer.text)
      assert kind == 'error'
    else:
      assert answer.status_code == 504
      found = answer.json()
    assert '0.2' in found['error']
    while judge.dropped != [0]:
      pass
    judge.let()
    assert post(client).status_code == 200
    text = client.get('/metrics').text
  assert 'grm_examples_total{outcome="late"} 1.0' in text


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
@pytest.mark.parametrize('stream', [False, True])
def test_a_judge_that_fails(stream):
  judge = Paced()
  judge.error = MemoryError('no room')
  with TestClient(app.make(service(judge))) as client:
    judge.let()
    answer = post(client, stream=stream)
    if not stream:
      assert answer.status_code == 503
    assert names(answer.text, 'MemoryError', 'no room')
    assert client.get('/readyz').status_code == 503
    assert client.get('/healthz').status_code == 200
    assert post(client).status_code == 503


def metrics_of(client):
  answer = client.get('/metrics')
  assert answer.headers['content-type'] == server_metrics.CONTENT_TYPE
  return dict(
    line.rsplit(' ', 1)
    for line in answer.text.splitlines()
    if not line.startswith('#')
  )


def test_every_answer_is_counted_by_path_and_status():
  made = service(rule_judge().stream, 'secret', hosts=('testserver',))
  with TestClient(app.make(made)) as client:
    allowed = {'authorization': 'Bearer secret'}
    client.post('/v1/score', json=REQUEST, headers=allowed)
    client.post('/v1/score', json=REQUEST)
    client.post('/v1/score', content='x' * 30_000)
    client.post('/v1/score', json=REQUEST, headers={'host': 'elsewhere'})
    client.get('/nowhere/1'), client.get('/nowhere/2')
    client.get('/healthz')
    values = metrics_of(client)
  found = {
    tuple(re.findall('"(.*?)"', name)): float(value)
    for name, value in values.items()
    if name.startswith('grm_requests_total')
  }
  assert found == {
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
def test_a_host_that_is_not_known_is_refused(host, status):
  made = service(rule_judge().stream, hosts=('127.0.0.1', 'localhost', '[::1]'))
  with TestClient(app.make(made)) as client:
    answer = client.get('/readyz', headers={'host': host})
  assert answer.status_code == status
  if status == 421:
    assert names(answer.json()['error'], 'config.allowed_hosts')


def test_metrics_and_about(client):
  post(client)
  values = metrics_of(client)
  made = 'grm_requests_total{path="/v1/score",status="200"}'
  assert float(values[made]) >= 1
  assert float(values['grm_samples_total']) >= 4
  assert values['grm_engine_tokens_total'] == '7.0'
  assert values['grm_waiting'] == '0.0'
  about = client.get('/v1/about').json()
  assert about['checkpoint'] == 'fake'
  assert about['limits']['k'] == limit().k
  assert about['defaults']['k'] == 2


def test_the_description_names_all_refusals(client):
  found = client.get('/openapi.json').json()
  for path in ('/v1/score', '/v1/score_batch'):
    codes = set(found['paths'][path]['post']['responses'])
    assert codes == {'200', *map(str, app._REFUSALS)}
  assert client.get('/docs').status_code == 200


def test_the_page_runs_nothing_but_itself(client):
  for path, kind in (
    ('/', 'text/html'),
    ('/page.css', 'text/css'),
    ('/page.js', 'text/javascript'),
  ):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers['content-type'].startswith(kind)
    policy = answer.headers['content-security-policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy
  page = client.get('/').text
  assert '<script src="page.js"' in page and 'http' not in page


def test_a_client_that_leaves_before_the_first_event_is_dropped():
  judge = Paced()
  made = service(judge)
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

  asyncio.run(app.make(made)(scope, receive, send))
  assert made.desk.counts() == (0, 0)
  assert made.desk.close(20.0)
