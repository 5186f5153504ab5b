"""Judgements: round trips through JSON."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judgement import judgement
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement

EXAMPLE = JudgingExample('a', (Turn('user', 'Why?'),), ('x', 'y'))

JUDGEMENTS = st.builds(
  Judgement,
  order=st.permutations(range(3)).map(tuple),
  text=st.text(),
  num_tokens=st.integers(0, 10**6),
  finish=st.sampled_from(['stop', 'length', 'string']),
  scores=st.none() | st.tuples(*[st.integers(1, 10)] * 3),
  meta=st.none() | st.floats(allow_nan=False),
  shortened=st.booleans(),
  extraction_differs=st.booleans(),
)


@settings(deadline=None)
@given(JUDGEMENTS)
def test_judgement_round_trip(value):
  line = json.dumps(judgement.to_row(value))
  restored = judgement.from_row(json.loads(line))
  assert restored == value
  assert restored.truncated == (value.finish == 'length')
  assert type(restored.order) is tuple
  assert restored.scores is None or type(restored.scores) is tuple


def test_row_of_a_judgement():
  value = Judgement((1, 0), 'text', 5, 'stop', (8, 9), 0.5)
  assert judgement.to_row(value) == {
    'order': (1, 0),
    'text': 'text',
    'num_tokens': 5,
    'finish': 'stop',
    'scores': (8, 9),
    'meta': 0.5,
    'shortened': False,
    'extraction_differs': False,
  }
  assert JudgedExample(EXAMPLE, (value,)).greedy is None
