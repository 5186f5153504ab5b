"""Correctness of judgements, the outcome reward and users' reward functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.judgement.correctness import (
  has_label,
  is_correct,
  load_reward,
  matches_label,
  outcome,
  outcome_reward,
  prefers_best,
)
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import Judgement
from tests.messages import naming

QUERY = (Turn('user', 'Which is it?'),)


def pair(best=None, n=2):
  return JudgingExample('row7', QUERY, ('a',) * n, best=best)


def single(label=None):
  rewards = None if label is None else (label,)
  return JudgingExample('row8', QUERY, ('a',), rewards=rewards)


def generation(scores, finish='stop', text='text'):
  n = 2 if scores is None else len(scores)
  return Judgement(tuple(range(n)), text, 3, finish, scores)


@pytest.mark.parametrize(
  'scores, best, expected',
  [
    ((8, 9), 1, True),
    ((8, 9), 0, False),
    ((9, 9), 0, False),
    ((9, 9), 1, False),
    ((3, 7, 7), 1, False),
    ((3, 7, 6), 1, True),
    ((3, 7, 8), 1, False),
    ((7, 3, 3), 0, True),
    (None, 0, False),
  ],
)
def test_best_response_must_score_strictly_highest(scores, best, expected):
  n = 2 if scores is None else len(scores)
  example = pair(best, n)
  assert prefers_best(scores, best) is expected
  assert is_correct(scores, example) is expected
  reward = outcome_reward(example, generation(scores))
  assert reward == (1.0 if expected else -1.0)


@pytest.mark.parametrize(
  'score, label, expected',
  [
    (1, 1.0, True),
    (0, 0.0, True),
    (1, 0.0, False),
    (0, 1.0, False),
    (10, 1.0, False),
    (None, 0.0, False),
    (None, 1.0, False),
  ],
)
def test_single_response_must_score_its_label(score, label, expected):
  scores = None if score is None else (score,)
  assert matches_label(score, label) is expected
  assert is_correct(scores, single(label)) is expected
  reward = outcome_reward(single(label), generation(scores))
  assert reward == (1.0 if expected else -1.0)


@pytest.mark.parametrize(
  'scores, finish, expected',
  [
    ((1, 9), 'stop', 'correct'),
    ((1, 9), 'string', 'correct'),
    ((9, 1), 'stop', 'incorrect'),
    ((9, 9), 'stop', 'incorrect'),
    (None, 'stop', 'parse_failure'),
    ((1, 9), 'length', 'correct'),  # config.prompt.truncated is 'read'
    (None, 'length', 'truncated'),
  ],
)
def test_only_correct_judgements_are_rewarded(scores, finish, expected):
  judgement = generation(scores, finish)
  assert outcome(pair(best=1), judgement) == expected
  reward = load_reward('outcome')(pair(best=1), judgement)
  assert reward == (1.0 if expected == 'correct' else -1.0)


def test_has_label():
  assert has_label(pair(best=0)) and not has_label(pair())
  assert has_label(single(0.0)) and has_label(single(1.0))
  assert not has_label(single()) and not has_label(single(0.5))


@pytest.mark.parametrize('scores', [None, (8, 9)])
def test_example_without_best_response(scores):
  with pytest.raises(UserError, match=naming('row7', 'best')):
    is_correct(scores, pair())


def test_reward_needs_a_label():
  with pytest.raises(UserError, match='row7'):
    outcome_reward(pair(), generation((8, 9)))


@pytest.mark.parametrize('scores', [None, (1,)])
def test_single_response_without_label(scores):
  with pytest.raises(UserError, match=naming('row8', 'label')):
    is_correct(scores, single())


def test_wrong_numbers_are_refused():
  with pytest.raises(ValueError, match=naming('row7', 3, 2)):
    is_correct((1, 2, 3), pair(0))
  with pytest.raises(ValueError, match=naming('row8', 2, 1)):
    is_correct((1, 2), single(1.0))
  with pytest.raises(ValueError, match=naming('best', 2)):
    prefers_best((1, 2), 2)
  with pytest.raises(ValueError, match=naming('best', -1)):
    prefers_best((1, 2), -1)
  with pytest.raises(ValueError, match=naming(1)):
    prefers_best((1,), 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=6))
def test_at_most_one_response_can_be_the_best(scores):
  best = [i for i in range(len(scores)) if prefers_best(scores, i)]
  top = max(scores)
  expected = [scores.index(top)] if scores.count(top) == 1 else []
  assert best == expected


@pytest.fixture
def reward_file(tmp_path):
  def write(source):
    path = tmp_path / 'my_reward.py'
    path.write_text(source)
    return str(path)

  return write


def test_reward_function_of_a_user(reward_file):
  path = reward_file(
    'from grm_jax.judgement import correctness\n'
    'import dataclasses\n\n'
    '@dataclasses.dataclass\n'
    'class Weights:\n'
    '  length: "float" = 0.25\n\n'
    'def reward(example, judgement):\n'
    '  short = len(judgement.text) <= 4 and not judgement.truncated\n'
    '  base = correctness.outcome_reward(example, judgement)\n'
    '  return base + Weights().length * short\n'
  )
  reward = load_reward(f'{path}:reward')
  assert reward(pair(best=1), generation((1, 9))) == 1.25
  assert reward(pair(best=1), generation((1, 9), text='longer')) == 1.0
  assert reward(pair(best=1), generation(None, 'length')) == -1.0


@pytest.mark.parametrize('value', ['1', '-0.5', 'np.float32(0.5)', 'True'])
def test_reward_may_be_any_real_number(reward_file, value):
  path = reward_file(
    f'import numpy as np\ndef reward(example, judgement):\n  return {value}'
  )
  reward = load_reward(f'{path}:reward')(pair(best=0), generation((9, 1)))
  assert type(reward) is float
  assert reward == eval(value, {'np': np})


@pytest.mark.parametrize(
  'value', ['None', '"1"', 'float("nan")', 'float("-inf")', '[1.0]', '10**400']
)
def test_reward_must_be_a_finite_number(reward_file, value):
  path = reward_file(f'def reward(example, judgement):\n  return {value}')
  reward = load_reward(f'{path}:reward')
  with pytest.raises(UserError, match=naming('config.reward', path, 'row7')):
    reward(pair(best=0), generation((9, 1)))


@pytest.mark.parametrize(
  'spec', ['', 'accuracy', 'my_reward.py', 'my_reward:reward', 'a.py:1+1']
)
def test_bad_reward_spec(spec):
  with pytest.raises(UserError, match=naming('config.reward')):
    load_reward(spec)


def test_missing_reward_file(tmp_path):
  path = tmp_path / 'absent.py'
  with pytest.raises(UserError, match=naming('config.reward', path)):
    load_reward(f'{path}:reward')


@pytest.mark.parametrize('source', ['', 'reward = 1.0'])
def test_missing_reward_function(reward_file, source):
  path = reward_file(source)
  with pytest.raises(UserError, match=naming('config.reward', path, 'reward')):
    load_reward(f'{path}:reward')


@pytest.mark.parametrize('source', ['\nimport absent_module', '\ndef reward('])
def test_reward_file_that_cannot_be_imported(reward_file, source):
  path = reward_file(source)
  with pytest.raises(UserError, match=naming('config.reward', path, 'line', 2)):
    load_reward(f'{path}:reward')


def test_reward_function_that_fails_names_its_line(reward_file):
  path = reward_file(
    'def reward(example, judgement):\n  return example.tags["x"]'
  )
  reward = load_reward(f'{path}:reward')
  words = ('config.reward', path, 'row7', 'line', 2, 'KeyError')
  with pytest.raises(UserError, match=naming(*words)):
    reward(pair(best=0), generation((9, 1)))
