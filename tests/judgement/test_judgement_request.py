"""Requests for judgements: invalid settings name their config key."""

import math

import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import judgement_request, response_order
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement_request import JudgementRequest
from tests.messages import naming

EXAMPLE = JudgingExample('a', (Turn('user', 'Why?'),), ('x', 'y'))


@pytest.mark.parametrize(
  'settings, words',
  [
    ({'k': -1}, ('config.k', -1)),
    (
      {'order': 'up'},
      ('config.response_order', 'up', *response_order.KINDS),
    ),
    ({'temperature': -0.5}, ('config.temperature', -0.5)),
    ({'temperature': 1e30}, ('config.temperature', 1e30)),
    ({'temperature': math.inf}, ('config.temperature', 'inf')),
    ({'temperature': math.nan}, ('config.temperature', 'nan')),
  ],
)
def test_invalid_settings(settings, words):
  with pytest.raises(UserError, match=naming(*words)):
    JudgementRequest(EXAMPLE, **{'k': 1, **settings})


def test_messages_name_the_given_key():
  with pytest.raises(UserError, match=naming('config.evaluation.k', -1)):
    judgement_request.check(-1, 'fixed', 0.0, 'config.evaluation')


def test_zero_samples_are_one_greedy_judgement():
  assert JudgementRequest(EXAMPLE, k=0, temperature=0.0).k == 0
