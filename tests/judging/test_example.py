"""The records: each fault of a row by itself, and round trips."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judging import judgement
from grm_jax.judging.example import JudgingExample, Turn, from_row, to_row
from grm_jax.judging.judgement import Judged, Judgement

ROW = {'query': 'Why?', 'responses': ['Because.', 'No idea.']}
MESSAGES = [
  {'role': 'system', 'content': 'Be short.'},
  {'role': 'user', 'content': 'Hello'},
  {'role': 'assistant', 'content': 'Hi'},
  {'role': 'user', 'content': 'Why?'},
]


def row(**changes):
  """ROW with changes; a value of ... leaves the key out."""
  changed = ROW | changes
  return {key: value for key, value in changed.items() if value is not ...}


def test_a_row_of_the_least():
  assert from_row(ROW, 7) == JudgingExample(
    id='7',
    query=(Turn('user', 'Why?'),),
    responses=('Because.', 'No idea.'),
    best=None,
    rewards=None,
    reference='',
    tags={},
  )


def test_a_row_of_everything():
  found = from_row(
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
  assert found == JudgingExample(
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
  assert all(type(x) is float for x in found.rewards)


@pytest.mark.parametrize(
  'changes, attribute, expected',
  [
    ({'id': 0}, 'id', '0'),
    ({'id': None}, 'id', '7'),
    ({'best': None}, 'best', None),
    ({'best': 0}, 'best', 0),
    ({'rewards': None}, 'rewards', None),
    ({'reference': None}, 'reference', ''),
    ({'tags': None}, 'tags', {}),
    ({'messages': None}, 'query', (Turn('user', 'Why?'),)),
    ({'responses': ['']}, 'responses', ('',)),
  ],
)
def test_rows_that_are_fine(changes, attribute, expected):
  assert getattr(from_row(row(**changes), 7), attribute) == expected


@pytest.mark.parametrize(
  'faulty, message',
  [
    (None, 'not a JSON object'),
    ([ROW], 'not a JSON object'),
    ('Why?', 'not a JSON object'),
    (row(responses=...), 'responses must be'),
    (row(responses='Because.'), 'responses must be'),
    (row(responses=['Because.', None]), 'responses must be'),
    (row(responses=[]), 'no responses'),
    (row(best='0'), "best must be an index from 0, not '0'"),
    (row(best=1.0), 'best must be an index'),
    (row(best=True), 'best must be an index'),
    (row(best=2), 'best is 2; there are 2 responses'),
    (row(best=-1), 'best is -1'),
    (row(rewards=3), 'rewards must be'),
    (row(rewards=[1, 'x']), 'rewards must be'),
    (row(rewards=[True, False]), 'rewards must be'),
    (row(rewards=[1]), '1 rewards for 2 responses'),
    (row(rewards=[]), '0 rewards for 2 responses'),
    (row(rewards=[10**400]), 'finite numbers'),
    (row(rewards=[float('nan')]), 'finite numbers'),
    (row(reference=3), 'reference must be'),
    (row(principles=['a']), 'principles must be'),
    (row(reference='x' * 1_000_001), 'a text has 1000001'),
    (row(tags=['suite']), 'tags must be'),
    (row(tags={'suite': 3}), 'tags must be'),
    (row(query=...), 'either a query or messages'),
    (row(messages=MESSAGES), 'either a query or messages'),
    (row(query=3), 'query must be a text'),
    (row(query=' \n'), 'the query is empty'),
    (row(query=..., messages={}), 'messages must be a list'),
    (row(query=..., messages=[]), "must be the user's"),
    (row(query=..., messages=['Why?']), 'every message must be'),
    (row(query=..., messages=[{'role': 'user'}]), 'every message must be'),
    (
      row(query=..., messages=[{'role': 'user', 'content': None}]),
      'every message must be',
    ),
    (row(query=..., messages=MESSAGES[:3]), "must be the user's"),
    (
      row(query=..., messages=[{'role': 'tool', 'content': 'x'}, MESSAGES[1]]),
      "role 'tool' is none of system, user, assistant",
    ),
  ],
)
def test_faulty_rows(faulty, message):
  with pytest.raises(ValueError, match=message):
    from_row(faulty, 7)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)
KEYS = [field.name for field in dataclasses.fields(JudgingExample)]
KEYS += ['messages']


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON) | JSON)
def test_any_row_is_an_example_or_a_value_error(anything):
  for value in (anything, row(**anything) if type(anything) is dict else None):
    try:
      found = from_row(value, 0)
    except ValueError:
      continue
    assert isinstance(found, JudgingExample)
    row_ = json.loads(json.dumps(to_row(found)))
    assert from_row(row_, 1) == found


def test_an_example_built_in_code_is_checked_too():
  with pytest.raises(ValueError, match='best is 3; there are 1'):
    JudgingExample('a', (Turn('user', 'Why?'),), ('x',), best=3)


JUDGEMENTS = st.builds(
  Judgement,
  order=st.permutations(range(3)).map(tuple),
  text=st.text(),
  num_tokens=st.integers(0, 10**6),
  finish=st.sampled_from(['stop', 'length', 'string']),
  scores=st.none() | st.tuples(*[st.integers(1, 10)] * 3),
  meta=st.none() | st.floats(allow_nan=False),
)


@settings(deadline=None)
@given(JUDGEMENTS)
def test_judgements_survive_json(value):
  line = json.dumps(judgement.to_row(value))
  found = judgement.from_row(json.loads(line))
  assert found == value
  assert type(found.order) is tuple
  assert found.scores is None or type(found.scores) is tuple


def test_every_field_of_a_judgement_is_in_its_row():
  value = Judgement((1, 0), 'text', 5, 'stop', (8, 9), 0.5)
  assert judgement.to_row(value) == {
    'order': (1, 0),
    'text': 'text',
    'num_tokens': 5,
    'finish': 'stop',
    'scores': (8, 9),
    'meta': 0.5,
  }
  assert Judged(from_row(ROW, 0), (value,)).greedy is None
