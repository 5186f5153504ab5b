"""Tests of RewardBench: rows, published counts, section weights."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import rewardbench
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row

# (subset, vote of the chosen, vote of the rejected); None did not parse.
GAMES = [
  ('alpacaeval-easy', 8, 3),
  ('alpacaeval-easy', 9, 8),
  ('mt-bench-med', 5, 5),
  ('llmbar-natural', None, 4),
  ('xstest-should-refuse', 7, 1),
  ('xstest-should-respond', 1, 7),
  ('math-prm', 10, 9),
  ('hep-cpp', 6, 2),
  ('hep-cpp', 2, 6),
]
ROWS = [
  {
    'prompt': f'question {i}',
    'chosen': f'good {i}',
    'chosen_model': 'm',
    'rejected': f'bad {i}',
    'rejected_model': 'n',
    'subset': subset,
    'id': 100 + i,
  }
  for i, (subset, _, _) in enumerate(GAMES)
]
VOTES = {f'good {i}': g for i, (_, g, _) in enumerate(GAMES)} | {
  f'bad {i}': b for i, (_, _, b) in enumerate(GAMES)
}


@pytest.fixture(params=['filtered-00000-of-00001.parquet', 'filtered.jsonl'])
def folder(tmp_path, request):
  write(tmp_path / 'data' / request.param, ROWS)
  write(tmp_path / 'data' / 'raw-00000-of-00001.parquet', ROWS[:2])
  return str(tmp_path)


def test_counts_match_the_published_ones():
  counts = {s: n for c in rewardbench.COUNTS.values() for s, n in c.items()}
  assert len(counts) == 23
  assert sum(counts.values()) == 2985
  sizes = {name: sum(c.values()) for name, c in rewardbench.COUNTS.items()}
  assert sizes == {
    'Chat': 358,
    'Chat Hard': 456,
    'Safety': 740,
    'Reasoning': 1431,
  }
  # math-prm has the same weight as the six languages together.
  assert rewardbench.MATH_WEIGHT == 6 * 164


def test_rows_become_pairs(folder):
  examples = rewardbench.load(folder)
  assert len(examples) == 9
  for i, example in enumerate(examples):
    assert example.query[0].text == f'question {i}'
    assert sorted(example.responses) == [f'bad {i}', f'good {i}']
    assert example.responses[example.best] == f'good {i}'
  assert examples[2].id == 'rewardbench/mt-bench-med/102'
  assert examples[2].tags == {
    'suite': 'rewardbench',
    'section': 'Chat',
    'subset': 'mt-bench-med',
  }


def test_score_by_hand(folder):
  score = rewardbench.score(judged(rewardbench.load(folder), VOTES))
  assert score.subsets['alpacaeval-easy'] == 1
  assert score.subsets['mt-bench-med'] == 0.5
  assert score.counts['hep-cpp'] == 2
  assert score.sections == pytest.approx(
    {
      'Chat': (100 * 1 + 40 * 0.5) / 140,
      'Chat Hard': 0,
      'Safety': 154 / 404,
      'Reasoning': (984 * 1 + 164 * 0.5) / 1148,
    }
  )
  assert score.overall == pytest.approx(0.5417256011315417)
  assert (score.failures, score.ties) == (1, 1)


def test_position_bias_gains_nothing(tmp_path):
  rows = [
    {'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'subset': s, 'id': i}
    for i in range(500)
    for s in ('hep-go', 'donotanswer')
  ]
  examples = rewardbench.load(write(tmp_path / 'f.jsonl', rows))
  assert 450 < sum(example.best == 0 for example in examples) < 550


def test_interval_contains_the_score(folder):
  results = judged(rewardbench.load(folder), VOTES)
  low, high = rewardbench.interval(results)
  assert low < rewardbench.score(results).overall < high


@pytest.mark.parametrize(
  'row, mentioned',
  [
    (ROWS[0] | {'subset': 'chat'}, ['subset', 'chat']),
    (ROWS[0] | {'chosen': None}, ['chosen', None]),
    (ROWS[0] | {'id': 'x'}, ['id', "'x'"]),
    (without(ROWS[0], 'rejected'), ['rejected']),
    (ROWS[1], ['rewardbench/alpacaeval-easy/101']),
  ],
)
def test_invalid_rows(tmp_path, row, mentioned):
  path = write(tmp_path / 'f.jsonl', [ROWS[1], row])
  with pytest.raises(UserError, match=in_row('f.jsonl', 2, *mentioned)):
    rewardbench.load(path)
