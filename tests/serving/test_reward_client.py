"""Tests of the reward functions with the call signatures of the trainers."""

import email.utils
import http.server
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from typing import ClassVar

import numpy as np
import pytest

from grm_jax.serving import openrlhf, reward_client
from grm_jax.serving.reward_client import RewardClient
from grm_jax.serving.schemas import ErrorResponse
from grm_jax.serving.worker import QueueFull
from tests.judges.fake import RuleEngine
from tests.judges.fake import judge as rule_judge
from tests.messages import naming
from tests.serving.fake import PacedJudge, listening, make_service

USER = {'role': 'user', 'content': 'q'}


@pytest.fixture(scope='module')
def address():
  """URL of a service that scores a response by its last digit."""
  with listening(make_service(rule_judge().stream)) as url:
    yield url


def unlimited_judge():
  """Returns a judge without pauses; it records its requests."""
  judge = PacedJudge()
  judge.allow()
  return judge


def test_trl_reward_of_texts(address):
  reward = RewardClient(address, options={'k': 2}).trl()
  prompts = ['p', 'p', 'q', 'p']
  completions = ['x 3', 'y 9', 'z 5', 'w 1']
  # TRL passes dataset columns and arguments of its own.
  rewards = reward(
    prompts=prompts,
    completions=completions,
    completion_ids=[[1]] * 4,
    trainer_state=object(),
  )
  assert rewards == [3, 9, 5, 1]
  assert reward.__name__ == 'grm_reward'  # TRL logs it by this name


def test_trl_reward_of_messages(address):
  reward = RewardClient(address, options={'k': 2}).trl()
  prompts = [[USER], [USER, {'role': 'assistant', 'content': 'a'}, USER]]
  completions = [
    [{'role': 'assistant', 'content': 'x 3'}],
    [{'role': 'assistant', 'content': 'y 8'}],
  ]
  assert reward(prompts=prompts, completions=completions) == [3, 8]


def test_responses_to_the_same_prompt_are_judged_together():
  judge = unlimited_judge()
  with listening(make_service(judge)) as address:
    reward = RewardClient(address, group_size=3, batch_size=2).trl()
    prompts = ['p', 'q', 'p', 'p', 'p', 'p']
    completions = [f'x {i}' for i in range(1, 7)]
    references = ['known'] * 5 + ['another']
    rewards = reward(prompts, completions, reference=references)
  assert rewards == [1, 2, 3, 4, 5, 6]
  groups = [x.example.responses for x in judge.requests]
  assert sorted(groups) == [
    ('x 1', 'x 3', 'x 4'),
    ('x 2',),
    ('x 5',),
    ('x 6',),
  ]
  references = {
    x.example.responses[0]: x.example.reference for x in judge.requests
  }
  assert references['x 1'] == 'known' and references['x 6'] == 'another'


def test_verl_rewards(address):
  extras = [{'question': 'p', 'index': 0}, {'question': [USER], 'index': 1}]
  rewards = reward_client.verl_batch(
    data_sources=['d', 'd'],
    solution_strs=['x 4', 'y 6'],
    ground_truths=['4', '5'],
    extra_infos=extras,
    url=address,
    k=2,
  )
  assert rewards == [4, 6]
  reward = reward_client.verl(
    data_source='d',
    solution_str='x 7',
    ground_truth='4',
    extra_info={'prompt': 'p'},
    url=address,
    query='prompt',
  )
  assert reward == 7
  with pytest.raises(
    ValueError, match=naming("'question'", 'reward_kwargs.query')
  ):
    reward_client.verl('d', 'x 7', '4', {'prompt': 'p'}, url=address)


@pytest.mark.parametrize('reference', [False, True])
def test_verl_sends_reference_answer_on_request(reference):
  judge = unlimited_judge()
  with listening(make_service(judge)) as address:
    reward_client.verl(
      'd', 'x 7', 42, {'question': 'p'}, url=address, reference=reference
    )
  assert judge.requests[0].example.reference == ('42' if reference else '')


def test_rejected_request_raises(address):
  with pytest.raises(ValueError, match=naming(address, 'responses', 5, 4)):
    RewardClient(address).trl()(['p'] * 5, [f'x {i}' for i in range(5)])
  with pytest.raises(ValueError, match=naming(address, 'query')):
    RewardClient(address).score([{'query': ' ', 'response': 'x 1'}])


def test_client_sends_token():
  judge = unlimited_judge()
  with listening(make_service(judge, token='secret')) as address:
    row = {'query': 'q', 'response': 'x 1'}
    assert RewardClient(address, token='secret').score([row]) == [1]
    with pytest.raises(ValueError, match=naming(address, 'token')):
      RewardClient(address).score([row])


def test_client_retries_while_the_queue_is_full():
  judge = unlimited_judge()
  service = make_service(judge)
  is_full = itertools.chain([True, True], itertools.repeat(False))
  submit = service.worker.submit

  def submit_unless_full(requests):
    if next(is_full):
      raise QueueFull('full')
    return submit(requests)

  service.worker.submit = submit_unless_full
  row = {'query': 'q', 'response': 'x 1'}
  with listening(service) as address:
    assert RewardClient(address).score([row]) == [1]
    is_full = itertools.repeat(True)
    with pytest.raises(ValueError, match=naming(address)):
      RewardClient(address, max_attempts=1).score([row])


class ScriptedHandler(http.server.BaseHTTPRequestHandler):
  """Replies with the next (status, headers, body) of `replies`, or drops.

  After the last one, a batch gets the score 5 for every response.
  """

  replies: ClassVar[list] = []
  paths: ClassVar[list] = []
  num_examples: ClassVar[list] = []

  def do_POST(self):  # noqa: N802, a name of the standard library
    body = self.rfile.read(int(self.headers['Content-Length']))
    requests = json.loads(body)['requests']
    self.paths.append(self.path)
    self.num_examples.append(len(requests))
    scores = [{'scores': [5.0] * len(x['responses'])} for x in requests]
    reply = 200, {}, json.dumps({'results': scores}).encode()
    status, headers, content = self.replies.pop(0) if self.replies else reply
    if not status:
      return  # closes the connection without a reply
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *unused):
    pass


@pytest.fixture
def scripted():
  """Yields (url, handler class) of a server with scripted replies."""
  handler = type(
    'Handler',
    (ScriptedHandler,),
    {'replies': [], 'paths': [], 'num_examples': []},
  )
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}', handler
    server.shutdown()
    thread.join()


ROW = {'query': 'q', 'response': 'x 1'}


@pytest.mark.parametrize(
  'reply',
  [
    (0, {}, b''),  # the connection is closed
    (502, {}, b'<html>'),
    (503, {'Retry-After': '0'}, b'{"error": "e"}'),
    (429, {'Retry-After': 'Wed, 21 Oct 2015 07:28:00 GMT'}, b''),
    (429, {'Retry-After': 'Wed, 21 Oct 2015 07:28:00 -0000'}, b''),
    (429, {'Retry-After': 'soon'}, b''),
    (429, {'Retry-After': '-5'}, b''),
    (429, {'Retry-After': 'nan'}, b''),
    (200, {'Content-Length': '999'}, b'{"results'),  # cut off
  ],
)
def test_client_retries(scripted, reply):
  address, handler = scripted
  handler.replies += [reply, reply]
  client = RewardClient(address, backoff_s=0.01)
  assert client.score([ROW]) == [5]
  assert len(handler.paths) == 3


@pytest.mark.parametrize(
  'body',
  ['[]', '1', '{}', '{"results": null}', '{"results": []}']
  + ['{"results": [1]}', '{"results": [{}]}', '<html>'],
)
def test_reply_of_another_service_is_refused(scripted, body):
  address, handler = scripted
  handler.replies.append((200, {}, body.encode()))
  with pytest.raises(ValueError, match='not a reply of grm_jax'):
    RewardClient(address).score([ROW])


def test_client_waits_for_a_service_that_starts_later(monkeypatch):
  server = http.server.HTTPServer(('127.0.0.1', 0), ScriptedHandler)
  address = f'http://127.0.0.1:{server.server_port}'
  server.server_close()
  waits = []
  monkeypatch.setattr(reward_client.time, 'sleep', waits.append)
  client = RewardClient(address, max_attempts=8)
  with pytest.raises(OSError, match=naming(address, 8)):
    client.score([ROW])
  assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_retry_after_a_date_in_the_future():
  date = email.utils.formatdate(time.time() + 100, usegmt=True)
  assert 90 < reward_client._wait_s(date, 1.0) <= 100
  assert reward_client._wait_s('7', 1.0) == 7
  assert reward_client._wait_s(None, 1.5) == 1.5


@pytest.mark.parametrize(
  'suffix, path',
  [
    ('/', '/v1/score_batch'),
    ('//', '/v1/score_batch'),
    ('/judge/', '/judge/v1/score_batch'),
    ('/v1/score', '/v1/score_batch'),
    ('/v1/score_batch/', '/v1/score_batch'),
    ('/judge/openrlhf', '/judge/v1/score_batch'),
  ],
)
def test_address_with_a_path(scripted, suffix, path):
  address, handler = scripted
  assert RewardClient(address + suffix).score([ROW]) == [5]
  assert handler.paths == [path]


def test_address_without_a_scheme():
  with pytest.raises(ValueError, match=naming('127.0.0.1:8080', 'http://')):
    RewardClient('127.0.0.1:8080')


@pytest.mark.parametrize(
  'answer, text',
  [
    (0, '0'),
    (0.0, '0.0'),
    (False, 'False'),
    (np.int64(0), '0'),
    (np.float32(0), '0.0'),
    (np.bool_(False), 'False'),
    ('0', '0'),
    ('nan', 'nan'),
    (None, ''),
    (float('nan'), ''),
    (np.float32('nan'), ''),
    ('', ''),
  ],
)
def test_known_answers(answer, text):
  judge = unlimited_judge()
  with listening(make_service(judge)) as address:
    RewardClient(address).trl()(
      ['p'], ['x 1'], reference=np.array([answer, 1], object)[:1]
    )
    RewardClient(address).score([ROW | {'reference': answer}])
    reward_client.verl(
      'd', 'x 1', answer, {'question': 'q'}, url=address, reference=True
    )
  assert [x.example.reference for x in judge.requests] == [text] * 3


def test_messages_without_text():
  """Messages of tool calls have no content; others have a list of parts."""
  judge = unlimited_judge()
  parts = [{'type': 'text', 'text': 'q'}, {'type': 'image'}]
  prompt = [
    USER,
    {'role': 'assistant', 'content': None, 'tool_calls': []},
    {'role': 'user', 'content': parts},
  ]
  completions = [
    [{'role': 'assistant', 'content': None}],
    [{'role': 'assistant'}],
    [],
  ]
  with listening(make_service(judge)) as address:
    client = RewardClient(address)
    assert client.trl()([prompt] * 3, completions) == [0, 0, 0]
    client.score([{'messages': prompt, 'response': 'x 1'}])
  for request in judge.requests:
    assert [x.text for x in request.example.query] == ['q', '', 'q']


def test_batches_are_split_by_size_and_by_the_limits_of_the_service():
  judge = unlimited_judge()
  rows = [
    {'query': f'q {i}', 'response': 'x' * 400 + f' {i % 10}'} for i in range(20)
  ]
  expected = [i % 10 for i in range(20)]
  service = make_service(judge, body_bytes=1000, max_queue=30, batch=3)
  with listening(service) as address:
    client = RewardClient(address, batch_size=20, body_bytes=1000)
    assert client.score(rows) == expected
    # The limits of the service are unknown to this client.
    assert RewardClient(address, batch_size=20).score(rows) == expected
    rows[7]['response'] *= 3
    with pytest.raises(ValueError, match=naming(1000)):
      client.score(rows)


def test_default_batches_fit_the_default_limits(scripted):
  """64 prompts with 8 responses of 8,000 characters."""
  address, handler = scripted
  rows = [
    {'query': str(i), 'response': str(j) + 'x' * 8000}
    for i in range(64)
    for j in range(8)
  ]
  assert RewardClient(address).score(rows) == [5] * 512
  assert handler.num_examples == [62, 2]


def test_missing_is_the_reward_if_no_judgement_parses():
  def silent_judge():
    return rule_judge(engine=RuleEngine(silent={('0:0', 0)})).stream

  for missing in (None, -1.0):
    with listening(make_service(silent_judge())) as address:
      client = RewardClient(address, missing=missing, options={'k': 1})
      assert client.trl()(['q', 'r'], ['x 1', 'x 2']) == [missing, 2]
  with listening(make_service(silent_judge())) as address:
    extra = {'question': 'q'}
    assert reward_client.verl('d', 'x 1', '', extra, url=address, k=1) == 0


def post(address, body):
  request = urllib.request.Request(
    address + '/openrlhf',
    json.dumps(body).encode(),
    {'Content-Type': 'application/json'},
  )
  try:
    with urllib.request.urlopen(request) as reply:
      return json.load(reply)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)['error']


def test_openrlhf_rewards():
  """Texts have control tokens; equal prompts and labels form a group."""
  judge = unlimited_judge()
  with listening(make_service(judge)) as address:
    p, q = '<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n', 'q: '
    rewards = post(
      address,
      {
        'query': [
          p + 'x 1<|im_end|>',
          q + 'y 10</s>',
          '<s>' + p + 'z 4<eos>\n',
          p + 'w 7',
        ],
        'prompts': [p, q, p, p],
        'labels': ['l', None, 'l', 'm'],
      },
    )
  # The score of a response is its last digit.
  assert rewards['rewards'] == [1, 0, 4, 7]
  assert rewards['scores'] == pytest.approx([0, 0, 3 / 9, 6 / 9])
  assert rewards['extra_logs'] == {'parse_failures': [0, 0, 0, 0]}
  examples = {x.example.responses: x.example for x in judge.requests}
  assert set(examples) == {('x 1', 'z 4'), ('y 10',), ('w 7',)}
  assert examples['x 1', 'z 4'].reference == 'l'
  assert examples['y 10',].reference == ''


def test_openrlhf_labels_can_be_numbers():
  """Python writes NaN into JSON for a missing number."""
  labels = [0, 0.0, False, 7, '0', '', None, float('nan')]
  judge = unlimited_judge()
  prompts = [f'p{i}:' for i in range(len(labels))]
  with listening(make_service(judge)) as address:
    post(
      address,
      {
        'query': [x + 'y 1' for x in prompts],
        'prompts': prompts,
        'labels': labels,
      },
    )
  references = {
    x.example.query[0].text: x.example.reference for x in judge.requests
  }
  expected = ['0', '0.0', 'False', '7', '0', '', '', '']
  assert [references[x] for x in prompts] == expected


@pytest.mark.parametrize(
  'response, expected',
  [
    ('x 1', 'x 1'),
    ('x 1 \n', 'x 1 \n'),
    ('x 1</s>', 'x 1'),
    (' x 1 \n<|im_end|> \n</s>\n ', ' x 1'),
    ('x 1<EOS><｜end▁of▁sentence｜>', 'x 1'),
    ('x</s>1', 'x</s>1'),
    ('</s>', ''),
    ('<|IM_end|>', ''),
    ('<|a b|>', '<|a b|>'),
    ('', ''),
    ('x' + '\n' * 10**6 + 'y', 'x' + '\n' * 10**6 + 'y'),
    ('x' + '\u2028\x85' * 10**6 + '</s>', 'x'),
    ('x' + ' </s>' * 10**5, 'x'),
    ('<|' * 10**6, '<|' * 10**6),
    ('<｜' * 10**6 + 'a>', '<｜' * 10**6 + 'a>'),
  ],
  ids=range(15),
)
def test_end_tokens(response, expected):
  begin_s = time.monotonic()
  assert openrlhf._without_end_tokens(response) == expected
  assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize(
  'body, message',
  [
    ({'query': ['a'] * 13, 'prompts': ['a'] * 13}, 'query has 13 texts'),
    ({'query': ['a'], 'prompts': ['a'], 'labels': [[0]]}, 'labels'),
    ({'query': ['a']}, 'prompts are missing'),
    ({'query': ['a'], 'prompts': ['a', 'b']}, '2 prompts for 1 texts'),
    ({'query': ['ab'], 'prompts': ['a'], 'labels': []}, None),
    ({'query': ['a'], 'prompts': ['b']}, 'query 0 does not begin'),
    ({'query': [], 'prompts': []}, 'query'),
    ({'query': 'a', 'prompts': 'a'}, 'query'),
  ],
)
def test_openrlhf_invalid_request(address, body, message):
  rewards = post(address, body)
  if message is None:  # an empty list of labels is the same as no labels
    assert 'rewards' in rewards
  else:
    assert rewards[0] == 422 and message in rewards[1]


def test_openrlhf_reward_of_an_example_error():
  response = openrlhf.make_response(
    [[1], [0]], [ErrorResponse(error='x')] * 2, -2.0
  )
  assert response.rewards == [-2, -2]
  assert response.scores == [0, 0]
  assert response.extra_logs == {'parse_failures': [1, 1]}
