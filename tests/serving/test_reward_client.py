"""The service as a reward, in the shapes that trainers publish."""

import itertools
import json
import urllib.error
import urllib.request

import pytest

from grm_jax.serving import openrlhf, reward_client
from grm_jax.serving.reward_client import RewardClient
from grm_jax.serving.schemas import ErrorResponse
from tests.judges.fake import RuleEngine
from tests.judges.fake import judge as rule_judge
from tests.messages import naming
from tests.serving.fake import Paced, listening, service

USER = {'role': 'user', 'content': 'q'}


@pytest.fixture(scope='module')
def address():
  """A judge that scores a response by its last digit."""
  with listening(service(rule_judge().stream)) as found:
    yield found


class Noting(Paced):
  """A judge that keeps what it was asked."""

  def __init__(self):
    super().__init__()
    self.let()
    self.seen = []

  def __call__(self, examples, *others):
    def noted():
      for x in examples:
        if x is not None:
          self.seen.append(x)
        yield x

    super().__call__(noted(), *others)


def test_trl_with_texts(address):
  reward = RewardClient(address, how={'k': 2}).trl()
  prompts = ['p', 'p', 'q', 'p']
  completions = ['x 3', 'y 9', 'z 5', 'w 1']
  # A trainer gives columns of the data set and more of its own.
  found = reward(
    prompts=prompts,
    completions=completions,
    completion_ids=[[1]] * 4,
    trainer_state=object(),
  )
  assert found == [3, 9, 5, 1]
  assert reward.__name__ == 'grm_reward'  # what TRL logs it by


def test_trl_with_messages(address):
  reward = RewardClient(address, how={'k': 2}).trl()
  prompts = [[USER], [USER, {'role': 'assistant', 'content': 'a'}, USER]]
  completions = [
    [{'role': 'assistant', 'content': 'x 3'}],
    [{'role': 'assistant', 'content': 'y 8'}],
  ]
  assert reward(prompts=prompts, completions=completions) == [3, 8]


def test_responses_to_one_prompt_are_judged_together():
  judge = Noting()
  with listening(service(judge)) as address:
    reward = RewardClient(address, together=3, batch=2).trl()
    prompts = ['p', 'q', 'p', 'p', 'p', 'p']
    completions = [f'x {i}' for i in range(1, 7)]
    references = ['known'] * 5 + ['another']
    found = reward(prompts, completions, reference=references)
  assert found == [1, 2, 3, 4, 5, 6]
  asked = [x.example.responses for x in judge.seen]
  assert sorted(asked) == [
    ('x 1', 'x 3', 'x 4'),
    ('x 2',),
    ('x 5',),
    ('x 6',),
  ]
  references = {x.example.responses[0]: x.example.reference for x in judge.seen}
  assert references['x 1'] == 'known' and references['x 6'] == 'another'


def test_verl(address):
  extras = [{'question': 'p', 'index': 0}, {'question': [USER], 'index': 1}]
  found = reward_client.verl_batch(
    data_sources=['d', 'd'],
    solution_strs=['x 4', 'y 6'],
    ground_truths=['4', '5'],
    extra_infos=extras,
    url=address,
    k=2,
  )
  assert found == [4, 6]
  one = reward_client.verl(
    data_source='d',
    solution_str='x 7',
    ground_truth='4',
    extra_info={'prompt': 'p'},
    url=address,
    query='prompt',
  )
  assert one == 7
  with pytest.raises(
    ValueError, match=naming("'question'", 'reward_kwargs.query')
  ):
    reward_client.verl('d', 'x 7', '4', {'prompt': 'p'}, url=address)


@pytest.mark.parametrize('told', [False, True])
def test_verl_tells_the_known_answer_if_it_is_asked_to(told):
  judge = Noting()
  with listening(service(judge)) as address:
    given = {'url': address, 'reference': told}
    reward_client.verl('d', 'x 7', 42, {'question': 'p'}, **given)
  assert judge.seen[0].example.reference == ('42' if told else '')


def test_a_refusal_is_an_error(address):
  with pytest.raises(ValueError, match=naming(address, 'responses', 5, 4)):
    RewardClient(address).trl()(['p'] * 5, [f'x {i}' for i in range(5)])
  with pytest.raises(ValueError, match=naming(address, 'query')):
    RewardClient(address).of([{'query': ' ', 'response': 'x 1'}])
  with pytest.raises(OSError):
    RewardClient('http://127.0.0.1:1').of([{'query': 'q', 'response': 'x 1'}])


def test_a_token_is_sent():
  judge = Noting()
  with listening(service(judge, token='secret')) as address:
    row = {'query': 'q', 'response': 'x 1'}
    assert RewardClient(address, token='secret').of([row]) == [1]
    with pytest.raises(ValueError, match=naming(address, 'token')):
      RewardClient(address).of([row])


def test_it_waits_while_the_service_is_full():
  judge = Noting()
  made = service(judge)
  answers = itertools.chain([True, True], itertools.repeat(False))
  ask = made.desk.ask

  def sometimes_full(wanted):
    from grm_jax.serving.worker import QueueFull

    if next(answers):
      raise QueueFull('full')
    return ask(wanted)

  made.desk.ask = sometimes_full
  row = {'query': 'q', 'response': 'x 1'}
  with listening(made) as address:
    assert RewardClient(address).of([row]) == [1]
    answers = itertools.repeat(True)
    with pytest.raises(ValueError, match=naming(address)):
      RewardClient(address, tries=1).of([row])


def test_where_no_judgement_parses_there_is_no_reward():
  judge = rule_judge(engine=RuleEngine(silent={('0:0', 0)}))
  with listening(service(judge.stream)) as address:
    row = {'query': 'q', 'response': 'x 1'}
    with pytest.raises(ValueError, match='missing'):
      RewardClient(address, how={'k': 1}).of([row])
  judge = rule_judge(engine=RuleEngine(silent={('0:0', 0)}))
  with listening(service(judge.stream)) as address:
    assert RewardClient(address, missing=-1.0, how={'k': 1}).of([row]) == [-1.0]


def post(address, body):
  asked = urllib.request.Request(
    address + '/openrlhf',
    json.dumps(body).encode(),
    {'Content-Type': 'application/json'},
  )
  try:
    with urllib.request.urlopen(asked) as found:
      return json.load(found)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)['error']


def test_openrlhf():
  """Whole texts with control tokens; groups of a prompt; known answers."""
  judge = Noting()
  with listening(service(judge)) as address:
    p, q = '<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n', 'q: '
    found = post(
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
  # A response is as good as its last digit.
  assert found['rewards'] == [1, 0, 4, 7]
  assert found['scores'] == pytest.approx([0, 0, 3 / 9, 6 / 9])
  assert found['extra_logs'] == {'parse_failures': [0, 0, 0, 0]}
  asked = {x.example.responses: x.example for x in judge.seen}
  assert set(asked) == {('x 1', 'z 4'), ('y 10',), ('w 7',)}
  assert asked['x 1', 'z 4'].reference == 'l'
  assert asked['y 10',].reference == ''


@pytest.mark.parametrize(
  'body, words',
  [
    ({'query': ['a']}, 'prompts are missing'),
    ({'query': ['a'], 'prompts': ['a', 'b']}, '2 prompts for 1 texts'),
    ({'query': ['ab'], 'prompts': ['a'], 'labels': []}, None),
    ({'query': ['a'], 'prompts': ['b']}, 'query 0 does not begin'),
    ({'query': [], 'prompts': []}, 'query'),
    ({'query': 'a', 'prompts': 'a'}, 'query'),
  ],
)
def test_openrlhf_with_what_is_wrong(address, body, words):
  found = post(address, body)
  if words is None:  # no labels are the same as none
    assert 'rewards' in found
  else:
    assert found[0] == 422 and words in found[1]


def test_openrlhf_gets_a_number_for_what_cannot_be_judged():
  made = openrlhf.rewards([[1], [0]], [ErrorResponse(error='x')] * 2, -2.0)
  assert made.rewards == [-2, -2]
  assert made.scores == [0, 0]
  assert made.extra_logs == {'parse_failures': [1, 1]}
