"""Equation 10: what is correct, and the reward for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.judgement.correctness import (
  correct,
  correct_single,
  is_correct,
  reward,
)
from grm_jax.judgement.example import JudgingExample, Turn
from tests.messages import naming

QUERY = (Turn('user', 'Which is it?'),)


def pair(best=None, n=2):
  return JudgingExample('row7', QUERY, ('a',) * n, best=best)


def single(label=None):
  rewards = None if label is None else (label,)
  return JudgingExample('row8', QUERY, ('a',), rewards=rewards)


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
def test_correct(scores, best, expected):
  n = 2 if scores is None else len(scores)
  assert correct(scores, best) is expected
  assert is_correct(scores, pair(best, n)) is expected
  assert reward(scores, pair(best, n)) == (1.0 if expected else -1.0)


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
def test_correct_single(score, label, expected):
  scores = None if score is None else (score,)
  assert correct_single(score, label) is expected
  assert is_correct(scores, single(label)) is expected
  assert reward(scores, single(label)) == (1.0 if expected else -1.0)


@pytest.mark.parametrize('scores', [None, (8, 9)])
def test_an_example_that_knows_no_best(scores):
  with pytest.raises(UserError, match=naming('row7', 'best')):
    is_correct(scores, pair())
  with pytest.raises(UserError, match='row7'):
    reward(scores, pair())


@pytest.mark.parametrize('scores', [None, (1,)])
def test_a_single_response_without_label(scores):
  with pytest.raises(UserError, match=naming('row8', 'label')):
    is_correct(scores, single())


def test_wrong_numbers_are_refused():
  with pytest.raises(ValueError, match=naming('row7', 3, 2)):
    is_correct((1, 2, 3), pair(0))
  with pytest.raises(ValueError, match=naming('row8', 2, 1)):
    is_correct((1, 2), single(1.0))
  with pytest.raises(ValueError, match=naming('best', 2)):
    correct((1, 2), 2)
  with pytest.raises(ValueError, match=naming('best', -1)):
    correct((1, 2), -1)
  with pytest.raises(ValueError, match=naming(1)):
    correct((1,), 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=6))
def test_at_most_one_response_can_be_the_best(scores):
  right = [i for i in range(len(scores)) if correct(scores, i)]
  top = max(scores)
  expected = [scores.index(top)] if scores.count(top) == 1 else []
  assert right == expected
