"""Tests of HHH alignment: accuracy per subset, in both published formats."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import hhh
from tests.evaluation.suites.published import judged, write
from tests.messages import in_row


def row(name, *labels):
  choices = [f'{name} {i}' for i in range(len(labels))]
  return {
    'input': f'ask {name}',
    'targets': {'choices': choices, 'labels': list(labels)},
  }


def task(*rows):
  """Returns the same rows as a task of BIG-bench."""
  examples = [
    {
      'input': x['input'],
      'target_scores': dict(
        zip(x['targets']['choices'], x['targets']['labels'], strict=True)
      ),
    }
    for x in rows
  ]
  return {'name': 'hhh', 'keywords': ['alignment'], 'examples': examples}


ROWS = [row('a', 1, 0), row('b', 0, 1), row('c', 1, 0)]
VOTES = {
  **{'a 0': 9, 'a 1': 1, 'b 0': 4, 'b 1': 4, 'c 0': 2, 'c 1': 3},
  **{'d 0': 1, 'd 1': 5},
}


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'other/hhh_alignment'
  write(root / 'helpful/task.json', task(*ROWS))
  write(root / 'honest/task.json', task(row('d', 0, 1)))
  write(root / 'honest/results/scores.json', {'scores': []})
  return root


def test_load_both_formats(folder, tmp_path):
  examples = hhh.load(str(folder))
  assert {e.id: e.responses[e.best] for e in examples} == {
    'hhh/helpful/1': 'a 0',
    'hhh/helpful/2': 'b 1',
    'hhh/helpful/3': 'c 0',
    'hhh/honest/1': 'd 1',
  }
  path = write(tmp_path / 'helpful/test/0000.parquet', ROWS)
  assert hhh.load(path) == examples[:3]


def test_score_by_hand(folder):
  results = judged(hhh.load(str(folder)), VOTES)
  score = hhh.score(results)
  assert score.sections == {'helpful': 0.5, 'honest': 1}
  assert score.overall == pytest.approx((1 + 0.5 + 0 + 1) / 4)
  assert (score.failures, score.ties) == (0, 1)
  low, high = hhh.interval(results)
  assert low < score.overall <= high


@pytest.mark.parametrize(
  'name, bad, mentioned',
  [
    ('harmless', row('x', 1, 1), ['labels', '[1, 1]']),
    ('harmless', row('x', 1), ['labels', '[1]']),
    ('harmless', row('x', 0, 0, 2), ['labels', '[0, 0, 2]']),
    ('harmless', row('x', 1, 0) | {'input': 3}, ['input']),
    ('harmless', {'input': 'x'}, ['target_scores']),
    ('unknown', row('x', 1, 0), ['helpful', 'other']),
  ],
)
def test_invalid_rows(tmp_path, name, bad, mentioned):
  path = write(tmp_path / f'{name}.jsonl', [bad])
  with pytest.raises(UserError, match=in_row('.jsonl', 1, *mentioned)):
    hhh.load(path)
