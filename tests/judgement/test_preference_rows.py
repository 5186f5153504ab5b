"""Checked fields of a row, and the order of the responses."""

import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import preference_rows
from tests.messages import naming

FIELDS = {
  'text': 'x',
  'number': 3,
  'digits': ' 4',
  'texts': ['x', 'y'],
  'objects': [{'text': 'a'}, {'text': 5}],
  'object': {'text': None},
  'empty': [],
  'truth': True,
}
ROW = preference_rows.SourceRow('f.json', 7, FIELDS)


def test_fields():
  assert ROW.text_field('text') == 'x'
  assert (ROW.int_field('number'), ROW.int_field('digits')) == (3, 4)
  assert ROW.text_list_field('texts') == ('x', 'y')
  assert ROW.object_list_field('objects')[0].text_field('text') == 'a'
  assert ROW.choice_field('text', ['x', 'y']) == 'x'


def row_with(value):
  return preference_rows.SourceRow('f.json', 7, {'x': value})


@pytest.mark.parametrize(
  'value, integer',
  [(-2, -2), ('-2', -2), (' +2 ', 2), ('2.0', 2), ('-0', 0), (2.0, 2)]
  + [(np.float32(-3), -3), (np.int8(3), 3), ('007', 7), ('２', 2)],
)
def test_integers_in_all_spellings(value, integer):
  result = row_with(value).int_field('x')
  assert (result, type(result)) == (integer, int)


@pytest.mark.parametrize(
  'value',
  [2.5, '2.5', True, np.True_, float('nan'), float('inf'), '1e3', '', ' ', '-']
  + ['1_0', '--2', '\u22122', 'two', None, [2], '9' * 5000],
)
def test_other_values_are_no_integers(value):
  with pytest.raises(UserError, match=naming('x')):
    row_with(value).int_field('x')


@pytest.mark.parametrize(
  'value, number', [(-2, -2.0), ('-0.5', -0.5), ('.5', 0.5), (1.5, 1.5)]
)
def test_numbers_in_all_spellings(value, number):
  assert row_with(value).number_field('x') == number


@pytest.mark.parametrize(
  'value', [True, 'nan', float('nan'), float('inf'), 10**400, 'x', None, [1]]
)
def test_other_values_are_no_numbers(value):
  with pytest.raises(UserError, match=naming('x')):
    row_with(value).number_field('x')


@pytest.mark.parametrize(
  'read_field, words',
  [
    (lambda: ROW.text_field('none'), ('none', 'text', 'number')),
    (lambda: ROW.text_field('number'), ('number', 3)),
    (lambda: ROW.int_field('text'), ('text', "'x'")),
    (lambda: ROW.int_field('truth'), ('truth', 'True')),
    (lambda: ROW.text_list_field('text'), ('text', "'x'")),
    (lambda: ROW.text_list_field('empty'), ('empty', '[]')),
    (lambda: ROW.text_list_field('objects'), ('objects', '{')),
    (lambda: ROW.choice_field('text', 'ab'), ('text', "'x'", 'a, b')),
    (lambda: ROW.object_field('text'), ('text', "'x'")),
    (
      lambda: ROW.object_field('object').text_field('text'),
      ('object', 'text', 'None'),
    ),
    (
      lambda: ROW.object_list_field('objects')[1].text_field('text'),
      ('objects[1]', 'text', 5),
    ),
  ],
)
def test_invalid_fields(read_field, words):
  with pytest.raises(UserError, match=rf'f\.json\D+7\b{naming(*words)}'):
    read_field()


def test_long_values_are_abbreviated_in_errors():
  row = preference_rows.SourceRow('f', 1, {'a': ['x' * 500]})
  with pytest.raises(UserError, match=r"\['x+\.\.\.") as error:
    row.text_field('a')
  assert len(str(error.value)) < 120


def test_shuffled_order_is_stable():
  # Another order changes the prompts: results would not be comparable.
  assert preference_rows.shuffled_order('a', 2) == (1, 0)
  assert preference_rows.shuffled_order('b', 2) == (0, 1)
  assert preference_rows.shuffled_order('a', 4) == (2, 1, 3, 0)


def test_every_position_is_equally_frequent():
  positions = [
    preference_rows.shuffled_order(f'id{i}', 4).index(0) for i in range(4000)
  ]
  for position in range(4):
    assert 920 < positions.count(position) < 1080


def test_best_and_rewards_move_with_the_responses():
  for i in range(20):
    example = preference_rows.shuffled_example(
      ROW,
      str(i),
      preference_rows.user_query('q'),
      'abc',
      best=1,
      rewards=(0, 1, 0),
    )
    assert sorted(example.responses) == ['a', 'b', 'c']
    assert example.responses[example.best] == 'b'
    assert example.rewards[example.best] == 1
    assert sum(example.rewards) == 1
