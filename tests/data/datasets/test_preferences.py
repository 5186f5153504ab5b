"""Adapters of preference datasets."""

import pytest

from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import preferences
from grm_jax.judgement.example import Turn
from tests.data.datasets import rows
from tests.evaluation.suites.published import without
from tests.messages import names

# UltraFeedback


def test_ultrafeedback():
  example = rows.adapt_to_one(
    preferences.ultrafeedback, rows.ultrafeedback(6.5, 3, 8.5, 3)
  )
  assert example.query == (Turn('user', 'Say it.'),)
  scores = dict(zip(example.responses, example.rewards, strict=True))
  assert scores == {'text 0': 6.5, 'text 1': 3, 'text 2': 8.5, 'text 3': 3}
  assert example.responses[example.best] == 'text 2'
  assert example.tags == {'suite': 'ultrafeedback', 'subset': 'evol_instruct'}


@pytest.mark.parametrize(
  'scores, word',
  [
    ((8, 3, 8, 1), 'tie'),
    ((8.0, 8), 'tie'),
    ((8,), 'completions'),
  ],
)
def test_ultrafeedback_skipped_rows(scores, word):
  skipped = rows.adapt_to_one(
    preferences.ultrafeedback, rows.ultrafeedback(*scores)
  )
  assert isinstance(skipped, SkippedRow) and names(skipped.reason, word)


@pytest.mark.parametrize('score', [None, 'N/A', True, float('nan')])
def test_ultrafeedback_score_that_is_not_a_number(score):
  message = rows.error_of(
    preferences.ultrafeedback, rows.ultrafeedback(1, score)
  )
  assert names(message, 'completions[1]', 'overall_score')


# OffsetBias


@pytest.mark.parametrize('label, best', [(1, 'one'), (2, 'two'), ('2', 'two')])
def test_offsetbias(label, best):
  example = rows.adapt_to_one(
    preferences.offsetbias, rows.OFFSETBIAS | {'label': label}
  )
  assert sorted(example.responses) == ['one', 'two']
  assert example.responses[example.best] == best
  assert example.query == (Turn('user', 'Say.'),)
  assert example.tags == {'suite': 'offsetbias'}


def test_offsetbias_bad_rows():
  message = rows.error_of(
    preferences.offsetbias, rows.OFFSETBIAS | {'label': 0}
  )
  assert names(message, 'label', 0)
  message = rows.error_of(
    preferences.offsetbias, without(rows.OFFSETBIAS, 'output_2')
  )
  assert names(message, 'output_2', 'instruction')


# Skywork


def test_skywork_turns_before_the_last_are_the_query():
  row = {
    'chosen': rows.turns('hi', 'hello', 'more', 'good'),
    'rejected': rows.turns('hi', 'hello', 'more', 'bad'),
    'source': 'magpie_ultra',
  }
  example = rows.adapt_to_one(preferences.skywork, row)
  assert example.query == (
    Turn('user', 'hi'),
    Turn('assistant', 'hello'),
    Turn('user', 'more'),
  )
  assert sorted(example.responses) == ['bad', 'good']
  assert example.responses[example.best] == 'good'
  assert example.tags == {'suite': 'skywork', 'subset': 'magpie_ultra'}


def test_skywork_chosen_is_in_both_positions():
  examples = [
    rows.adapt_to_one(
      preferences.skywork,
      {
        'chosen': rows.turns(f'{i}', 'yes'),
        'rejected': rows.turns(f'{i}', 'no'),
      },
    )
    for i in range(400)
  ]
  assert len({example.id for example in examples}) == 400
  assert 160 < sum(example.best for example in examples) < 240


@pytest.mark.parametrize(
  'chosen, rejected, words',
  [
    (rows.turns('a', 'x'), rows.turns('b', 'y'), ['chosen', 'rejected']),
    (rows.turns('a', 'x', 'b'), rows.turns('a', 'x', 'c'), ['user']),
    (rows.turns('a', 'x'), [], ['rejected']),
    (rows.turns('a', 'x'), [{'role': 'user'}], ['rejected[0]', 'content']),
    (
      rows.turns('x', first='assistant'),
      rows.turns('y', first='assistant'),
      ['query', 'user'],
    ),
  ],
)
def test_skywork_bad_rows(chosen, rejected, words):
  row = {'chosen': chosen, 'rejected': rejected}
  assert names(rows.error_of(preferences.skywork, row), *words)


# HelpSteer2


@pytest.mark.parametrize(
  'strength, best, tag',
  [(-3, 'one', '3'), (-1, 'one', '1'), (1, 'two', '1'), (2, 'two', '2')],
)
def test_helpsteer2(strength, best, tag):
  example = rows.adapt_to_one(preferences.helpsteer2, rows.helpsteer2(strength))
  assert example.responses[example.best] == best
  assert example.tags == {'suite': 'helpsteer2', 'strength': tag}


def test_helpsteer2_without_a_preference():
  skipped = rows.adapt_to_one(preferences.helpsteer2, rows.helpsteer2(0))
  assert isinstance(skipped, SkippedRow)
  for strength in (4, 1.5):
    message = rows.error_of(preferences.helpsteer2, rows.helpsteer2(strength))
    assert names(message, 'preference_strength', strength)


def test_helpsteer2_conversation():
  prompt = 'hi\n<extra_id_1>Assistant\nhello\nyou\n<extra_id_1>User\nmore'
  example = rows.adapt_to_one(
    preferences.helpsteer2, rows.helpsteer2(1, prompt)
  )
  assert example.query == (
    Turn('user', 'hi'),
    Turn('assistant', 'hello\nyou'),
    Turn('user', 'more'),
  )
  message = rows.error_of(
    preferences.helpsteer2, rows.helpsteer2(1, prompt[:30])
  )
  assert names(message, 'query', 'user')
