"""Fields of a row, checked; where the responses stand."""

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
  assert ROW.text('text') == 'x'
  assert (ROW.whole('number'), ROW.whole('digits')) == (3, 4)
  assert ROW.texts('texts') == ('x', 'y')
  assert ROW.inners('objects')[0].text('text') == 'a'
  assert ROW.one_of('text', ['x', 'y']) == 'x'


@pytest.mark.parametrize(
  'read, parts',
  [
    (lambda: ROW.text('none'), ('none', 'text', 'number')),
    (lambda: ROW.text('number'), ('number', 3)),
    (lambda: ROW.whole('text'), ('text', "'x'")),
    (lambda: ROW.whole('truth'), ('truth', 'True')),
    (lambda: ROW.texts('text'), ('text', "'x'")),
    (lambda: ROW.texts('empty'), ('empty', '[]')),
    (lambda: ROW.texts('objects'), ('objects', '{')),
    (lambda: ROW.one_of('text', 'ab'), ('text', "'x'", 'a, b')),
    (lambda: ROW.inner('text'), ('text', "'x'")),
    (lambda: ROW.inner('object').text('text'), ('object', 'text', 'None')),
    (
      lambda: ROW.inners('objects')[1].text('text'),
      ('objects[1]', 'text', 5),
    ),
  ],
)
def test_faults_of_fields(read, parts):
  with pytest.raises(UserError, match=rf'f\.json\D+7\b{naming(*parts)}'):
    read()


def test_a_long_value_is_cut_in_an_error():
  row = preference_rows.SourceRow('f', 1, {'a': ['x' * 500]})
  with pytest.raises(UserError, match=r"\['x+\.\.\.") as error:
    row.text('a')
  assert len(str(error.value)) < 120


def test_places_never_change():
  # Other places are other prompts: no result would be comparable.
  assert preference_rows.places('a', 2) == (1, 0)
  assert preference_rows.places('b', 2) == (0, 1)
  assert preference_rows.places('a', 4) == (2, 1, 3, 0)


def test_the_right_response_stands_everywhere():
  numbers = [preference_rows.places(f'id{i}', 4).index(0) for i in range(4000)]
  for place in range(4):
    assert 920 < numbers.count(place) < 1080


def test_best_and_rewards_move_with_the_responses():
  for i in range(20):
    example = preference_rows.arranged(
      ROW, str(i), preference_rows.asked('q'), 'abc', best=1, rewards=(0, 1, 0)
    )
    assert sorted(example.responses) == ['a', 'b', 'c']
    assert example.responses[example.best] == 'b'
    assert example.rewards[example.best] == 1
    assert sum(example.rewards) == 1
