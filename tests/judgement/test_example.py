"""Judging examples: invalid rows and round trips through JSON."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn, from_row, to_row
from tests.messages import naming

ROW = {'query': 'Why?', 'responses': ['Because.', 'No idea.']}
MESSAGES = [
  {'role': 'system', 'content': 'Be short.'},
  {'role': 'user', 'content': 'Hello'},
  {'role': 'assistant', 'content': 'Hi'},
  {'role': 'user', 'content': 'Why?'},
]


def row(**changes):
  """Returns ROW with changes; the value ... removes the key."""
  changed = ROW | changes
  return {key: value for key, value in changed.items() if value is not ...}


def test_minimal_row():
  assert from_row(ROW, 7) == JudgingExample(
    id='row 7',
    query=(Turn('user', 'Why?'),),
    responses=('Because.', 'No idea.'),
    best=None,
    rewards=None,
    reference='',
    tags={},
  )


def test_row_with_all_fields():
  example = from_row(
    {
      'id': 'x1',
      'messages': MESSAGES,
      'responses': ['a', 'b'],
      'best': 1,
      'rewards': [0, 2.5],
      'reference': 'c',
      'principles': 'Truth: 100%',
      'tags': {'suite': 's'},
    },
    7,
  )
  assert example == JudgingExample(
    id='x1',
    query=(
      Turn('system', 'Be short.'),
      Turn('user', 'Hello'),
      Turn('assistant', 'Hi'),
      Turn('user', 'Why?'),
    ),
    responses=('a', 'b'),
    best=1,
    rewards=(0.0, 2.5),
    reference='c',
    principles='Truth: 100%',
    tags={'suite': 's'},
  )
  assert all(type(x) is float for x in example.rewards)


@pytest.mark.parametrize(
  'changes, attribute, expected',
  [
    ({'id': 0}, 'id', '0'),
    ({'id': None}, 'id', 'row 7'),
    ({'id': '7'}, 'id', '7'),
    ({'id': 7}, 'stated_id', 7),
    ({'id': 7.0}, 'stated_id', 7),
    ({'id': -7}, 'stated_id', -7),
    ({'id': '7'}, 'stated_id', '7'),
    ({'id': None}, 'stated_id', 'row 7'),
    ({'best': 1.0}, 'best', 1),
    ({'best': '0'}, 'best', 0),
    ({'best': ' +1 '}, 'best', 1),
    ({'rewards': ['0', '-2.5']}, 'rewards', (0.0, -2.5)),
    ({'rewards': [0, 1.0]}, 'rewards', (0.0, 1.0)),
    ({'best': None}, 'best', None),
    ({'best': 0}, 'best', 0),
    ({'rewards': None}, 'rewards', None),
    ({'reference': None}, 'reference', ''),
    ({'tags': None}, 'tags', {}),
    ({'messages': None}, 'query', (Turn('user', 'Why?'),)),
    ({'responses': ['']}, 'responses', ('',)),
  ],
)
def test_valid_rows(changes, attribute, expected):
  assert getattr(from_row(row(**changes), 7), attribute) == expected


@pytest.mark.parametrize(
  'invalid_row, message',
  [
    (None, 'object'),
    ([ROW], 'object'),
    ('Why?', 'object'),
    (row(responses=...), 'responses'),
    (row(responses='Because.'), 'responses'),
    (row(responses=['Because.', None]), 'responses'),
    (row(responses=[]), 'responses'),
    (row(best='x'), naming('best', "'x'")),
    (row(best=0.5), naming('best', 0.5)),
    (row(best='0.5'), naming('best', "'0.5'")),
    (row(best='1e0'), naming('best', "'1e0'")),
    (row(best=float('nan')), naming('best', 'nan')),
    (row(best=float('inf')), naming('best', 'inf')),
    (row(best='-1'), naming('best', -1)),
    (row(id=True), naming('id', 'True')),
    (row(id=1.5), naming('id', 1.5)),
    (row(id=[1]), 'id'),
    (row(rewards=['nan', 1]), naming('rewards', 'finite')),
    (row(best=True), 'best'),
    (row(best=2), naming('best', 2)),
    (row(best=-1), naming('best', -1)),
    (row(rewards=3), 'rewards'),
    (row(rewards=[1, 'x']), 'rewards'),
    (row(rewards=[True, False]), 'rewards'),
    (row(rewards=[1]), naming('rewards', 1, 2)),
    (row(rewards=[]), naming('rewards', 0, 2)),
    (row(rewards=[10**400]), naming('rewards', 'finite')),
    (row(rewards=[float('nan')]), naming('rewards', 'finite')),
    (row(reference=3), 'reference'),
    # Values that are false are not missing: the answer 0 must not get lost.
    (row(reference=0), 'reference'),
    (row(reference=0.0), 'reference'),
    (row(reference=False), 'reference'),
    (row(principles=[]), 'principles'),
    (row(tags=[]), 'tags'),
    (row(tags=0), 'tags'),
    (row(principles=['a']), 'principles'),
    (row(reference='x' * 1_000_001), naming(1000001)),
    (row(tags=['suite']), 'tags'),
    (row(tags={'suite': 3}), 'tags'),
    (row(query=...), naming('query', 'messages')),
    (row(messages=MESSAGES), naming('query', 'messages')),
    (row(query=3), 'query'),
    (row(query=' \n'), naming('query', 'empty')),
    (row(query=..., messages={}), 'messages'),
    (row(query=..., messages=[]), 'user'),
    (row(query=..., messages=['Why?']), naming('role', 'content')),
    (row(query=..., messages=[{'role': 'user'}]), naming('role', 'content')),
    (
      row(query=..., messages=[{'role': 'user', 'content': None}]),
      naming('role', 'content'),
    ),
    (row(query=..., messages=MESSAGES[:3]), 'user'),
    (
      row(query=..., messages=[{'role': 'tool', 'content': 'x'}, MESSAGES[1]]),
      naming('tool', 'system', 'user', 'assistant'),
    ),
  ],
)
def test_invalid_rows(invalid_row, message):
  with pytest.raises(UserError, match=message):
    from_row(invalid_row, 7)


@pytest.mark.parametrize(
  'other_row, columns',
  [
    (
      {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
      ['prompt', 'chosen', 'rejected', 'query', 'responses', 'best'],
    ),
    (
      {'chosen': MESSAGES, 'rejected': MESSAGES},
      ['chosen', 'rejected', 'skywork:PATH'],
    ),
    (
      {'prompt': 'q', 'completions': ['6'], 'labels': [True]},
      ['prompt', 'completions', 'labels', 'rewards', 'responses'],
    ),
    ({'prompt': 'q', 'completion': 'a'}, ['prompt', 'completion', 'query']),
    ({'question': 'q', 'answer': 'a'}, ['question', 'answer', 'responses']),
    ({}, ['responses', 'query']),
    ({'responses': ['a'], 'prompt': 'q'}, ['prompt', 'query', 'messages']),
    ({f'c{i}': i for i in range(500)}, ['c0', 'responses']),
  ],
)
def test_other_columns_are_named_with_the_cure(other_row, columns):
  with pytest.raises(UserError, match=naming(*columns)) as error:
    from_row(other_row, 7)
  assert len(str(error.value)) < 500


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)
KEYS = [field.name for field in dataclasses.fields(JudgingExample)]
KEYS += ['messages']


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON) | JSON)
def test_any_row_is_an_example_or_a_value_error(value):
  for any_row in (value, row(**value) if type(value) is dict else None):
    try:
      example = from_row(any_row, 0)
    except ValueError:
      continue
    assert isinstance(example, JudgingExample)
    stored = json.loads(json.dumps(to_row(example)))
    assert from_row(stored, 1) == example


def test_constructor_checks_the_fields():
  with pytest.raises(UserError, match=naming('best', 3, 1)):
    JudgingExample('a', (Turn('user', 'Why?'),), ('x',), best=3)
