"""Tests of principles from a file."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import given_principles, judgement_io
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement
from tests.evaluation.suites.published import write
from tests.messages import in_row

QUERY = (Turn('user', 'q'),)


def example(id, best=0):
  return JudgingExample(id, QUERY, ('a', 'b'), best)


def sample(principles, scores):
  text = f'Specific Criteria:\n{principles}\n\nAnalysis:\nfine\n\nScores: 1, 2'
  return Judgement((0, 1), text, 9, 'stop', scores)


def test_stated_principles(tmp_path):
  rows = [
    {'id': 'x', 'principles': ' Be short. '},
    {'id': 'y', 'principles': ''},
  ]
  principles = given_principles.read(write(tmp_path / 'f.jsonl', rows))
  assert principles == {'x': 'Be short.', 'y': ''}
  given = given_principles.give([example('z'), example('x')], principles)
  assert [(x.id, x.principles) for x in given] == [
    ('z', ''),
    ('x', 'Be short.'),
  ]


def test_principles_of_the_first_correct_sample(tmp_path):
  path = str(tmp_path / 'ppe.samples.jsonl')
  judged = [
    (example('x'), [('wrong', (1, 2)), ('tied', (2, 2)), ('right', (2, 1))]),
    (example('y', 1), [('first', (1, 2)), ('second', (1, 2))]),
    (example('none'), [('wrong', (1, 2)), ('failed', None)]),
    (example('unlabelled', None), [('a', (1, 2))]),
  ]
  judgement_io.write(
    path, [JudgedExample(x, tuple(sample(*y) for y in ys)) for x, ys in judged]
  )
  assert given_principles.read(path) == {
    'x': 'right',
    'y': 'first',
    'none': '',
    'unlabelled': '',
  }


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    ({'id': 'x', 'principles': 'p'}, ['id', "'x'"]),
    ({'id': 'y'}, ['principles']),
    ({'id': 3, 'principles': 'p'}, ['id', 3]),
    ({'example': {}}, ['samples']),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.jsonl', [{'id': 'x', 'principles': 'p'}, bad])
  with pytest.raises(UserError, match=in_row('f.jsonl', 2, *mentioned)):
    given_principles.read(path)
