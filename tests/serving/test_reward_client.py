"""Tests of the reward functions with the call signatures of the trainers."""

import itertools
import json
import urllib.error
import urllib.request

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
  with pytest.raises(OSError):
    RewardClient('http://127.0.0.1:1').score(
      [{'query': 'q', 'response': 'x 1'}]
    )


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


def test_missing_is_the_reward_if_no_judgement_parses():
  judge = rule_judge(engine=RuleEngine(silent={('0:0', 0)}))
  with listening(make_service(judge.stream)) as address:
    row = {'query': 'q', 'response': 'x 1'}
    with pytest.raises(ValueError, match='missing'):
      RewardClient(address, options={'k': 1}).score([row])
  judge = rule_judge(engine=RuleEngine(silent={('0:0', 0)}))
  with listening(make_service(judge.stream)) as address:
    assert RewardClient(address, missing=-1.0, options={'k': 1}).score(
      [row]
    ) == [-1.0]


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


@pytest.mark.parametrize(
  'body, message',
  [
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
