"""Tests of EvalBiasBench: accuracy per bias."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import evalbiasbench
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def row(bias, name, label=1):
  return {
    'bias': bias,
    'instruction': f'do {name}',
    'response1': f'{name} 1',
    'response2': f'{name} 2',
    'label': label,
  }


ROWS = [
  row('length bias', 'a'),
  row('length bias', 'b', 2),
  row('concreteness', 'c'),
]
VOTES = {'a 1': 9, 'a 2': 1, 'b 1': 4, 'b 2': 4, 'c 1': 2, 'c 2': 3}


@pytest.fixture
def path(tmp_path):
  return write(
    tmp_path / 'biasbench.json',
    {'length bias': ROWS[:2], 'concreteness': ROWS[2:]},
  )


def test_load_the_published_object(path, tmp_path):
  examples = evalbiasbench.load(path)
  assert {e.id: e.responses[e.best] for e in examples} == {
    'evalbiasbench/length bias/1': 'a 1',
    'evalbiasbench/length bias/2': 'b 2',
    'evalbiasbench/concreteness/1': 'c 1',
  }
  assert evalbiasbench.load(str(tmp_path)) == examples


def test_score_by_hand(path):
  results = judged(evalbiasbench.load(path), VOTES)
  score = evalbiasbench.score(results)
  assert score.sections == {'length bias': 0.75, 'concreteness': 0}
  assert score.subsets == score.sections
  assert score.overall == 0.5
  assert (score.failures, score.ties) == (0, 1)
  low, high = evalbiasbench.interval(results)
  assert low < 0.5 < high


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    ([row('x', 'a', 3)], ['x[0]', 'label', 3]),
    (
      [row('x', 'a'), without(row('x', 'a'), 'response2')],
      ['x[1]', 'response2'],
    ),
    (['a'], ['x[0]', 'object']),
    ('a', ['x', 'list']),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.json', {'x': bad})
  with pytest.raises(UserError, match=in_row('f.json', 1, *mentioned)):
    evalbiasbench.load(path)
