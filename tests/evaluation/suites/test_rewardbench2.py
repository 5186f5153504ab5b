"""Tests of RewardBench 2: best of four, and the formula of Ties."""

import math

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import rewardbench2
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def row(subset, name, chosen, rejected):
  return {
    'id': name,
    'prompt': f'question {subset} {name}',
    'chosen': [f'{subset} {name} right {i}' for i in range(chosen)],
    'rejected': [f'{subset} {name} wrong {i}' for i in range(rejected)],
    'num_correct': chosen,
    'num_incorrect': rejected,
    'total_completions': chosen + rejected,
    'models': ['m'],
    'subset': subset,
    'additional_metadata': {'category': None, 'index': 1.0},
  }


# (subset, id, votes of correct responses, votes of incorrect ones)
GAMES = [
  ('Factuality', '1', [9], [8, 7, 1]),
  ('Precise IF', '2', [6], [6, 5, 5]),
  ('Math', '3', [4], [5, 1, 1]),
  ('Safety', '4', [None], [5, 1, 1]),
  ('Focus', '5', [3], [3, 3, 3]),
  # gap 3, spread 1; gap 2: hard 2
  ('Ties', 'tied:1', [9, 8], [5, 3]),
  ('Ties', 'ref:1', [7], [5]),
  # gap 1, spread 5; gap -1: hard -1
  ('Ties', 'tied:2', [9, 4], [3]),
  ('Ties', 'ref:2', [5], [6]),
]
ROWS = [row(s, n, len(right), len(wrong)) for s, n, right, wrong in GAMES]
VOTES = {
  f'{s} {n} {kind} {i}': vote
  for s, n, right, wrong in GAMES
  for kind, votes in (('right', right), ('wrong', wrong))
  for i, vote in enumerate(votes)
}


def results(tmp_path, votes=VOTES, rows=ROWS):
  write(tmp_path / 'data' / 'test-00000-of-00001.parquet', rows)
  return judged(rewardbench2.load(str(tmp_path)), votes)


def test_load_rows(tmp_path):
  examples = [r.example for r in results(tmp_path)]
  assert [len(e.responses) for e in examples] == [4, 4, 4, 4, 4, 4, 2, 3, 2]
  assert examples[0].responses[examples[0].best] == 'Factuality 1 right 0'
  tied = examples[5]
  assert tied.best is None
  right = {
    text for text, r in zip(tied.responses, tied.rewards, strict=True) if r
  }
  assert right == {'Ties tied:1 right 0', 'Ties tied:1 right 1'}
  assert tied.tags['query'] == examples[6].tags['query'] == 'ties/1'
  assert examples[6].best is not None


def test_score_by_hand(tmp_path):
  score = rewardbench2.score(results(tmp_path))
  # tied accuracy 1, ref accuracy 1/2, one question of two above its spread,
  # and the mean of tanh(2 / 1 - 1) and tanh(-1 / 5 - 1).
  assert math.tanh(1) == pytest.approx(0.761594156)
  assert math.tanh(-1.2) == pytest.approx(-0.833654607)
  ties = 0.30 * 1 + 0.30 * 0.5 + 0.20 * 0.5 + 0.20 * 0.5 + 0.01 * -0.0360302255
  assert score.sections == pytest.approx(
    {
      'Factuality': 1,
      'Precise IF': 0.5,
      'Math': 0,
      'Safety': 0,
      'Focus': 0.25,
      'Ties': ties,
    }
  )
  assert score.sections['Ties'] == pytest.approx(0.649639697745)
  assert score.overall == pytest.approx((1.75 + 0.649639697745) / 6)
  assert score.subsets['Ties/ref'] == 0.5
  assert score.counts['Ties/margin'] == 2
  assert (score.failures, score.ties) == (1, 2)


def test_ties_accuracy_needs_all_correct_responses_above(tmp_path):
  # One correct response only equals the best incorrect one.
  votes = VOTES | {'Ties tied:1 right 1': 5}
  score = rewardbench2.score(results(tmp_path, votes))
  assert score.subsets['Ties/tied'] == 0.5


@pytest.mark.parametrize(
  'gap, spread, gap_of_ref, value',
  [
    (3, 1, 2, 0.4 + 0.01 * math.tanh(1)),
    (3, 1, 1, 0.2 + 0.01 * 0),
    (1, 1, 5, 0.01 * 0),
    (2, 0, 2, 0.4 + 0.01),
    (2, 0, 0, 0.2),
    (2, 0, -1, 0.2 - 0.01),
    (-math.inf, 0, 5, -0.01),
    (3, 2, -math.inf, 0.2 - 0.01),
  ],
)
def test_margin(gap, spread, gap_of_ref, value):
  assert rewardbench2.margin(gap, spread, gap_of_ref) == pytest.approx(value)


def test_question_without_vote_loses_all_comparisons(tmp_path):
  votes = VOTES | {'Ties tied:1 right 1': None}
  score = rewardbench2.score(results(tmp_path, votes))
  expected = 0.30 * 0.5 + 0.30 * 0.5 + 0.01 * (-1 + math.tanh(-1.2)) / 2
  assert score.sections['Ties'] == pytest.approx(expected)
  assert score.failures == 2


def test_score_of_a_part_of_the_suite(tmp_path):
  suite_results = results(tmp_path)
  assert rewardbench2.score(suite_results[:1]).overall == 1
  # A tied question without its ref: accuracy only.
  assert rewardbench2.score([suite_results[5]]).overall == pytest.approx(0.30)
  with pytest.raises(UserError):
    rewardbench2.score([])


def test_interval_resamples_questions(tmp_path):
  suite_results = results(tmp_path)
  low, high = rewardbench2.interval(suite_results)
  assert low < rewardbench2.score(suite_results).overall < high
  # tied and ref of a question are resampled together, so a single question has
  # no spread.
  low, high = rewardbench2.interval(suite_results[5:7])
  assert low == pytest.approx(high)


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    (row('Chat', '9', 1, 3), ['subset', 'Chat']),
    (row('Math', '9', 2, 3), ['chosen', 2, 'Ties']),
    (row('Ties', '9', 2, 3), ['id', 'Ties', 'ref:N', 'tied:N', "'9'"]),
    (row('Math', '9', 1, 3) | {'num_correct': 3}, ['num_correct', 3]),
    (row('Math', '9', 1, 3) | {'rejected': []}, ['rejected']),
    (row('Math', '9', 1, 3) | {'chosen': 'x'}, ['chosen']),
    (without(row('Math', '9', 1, 3), 'prompt'), ['prompt']),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.jsonl', [ROWS[0], bad])
  with pytest.raises(UserError, match=in_row('f.jsonl', 2, *mentioned)):
    rewardbench2.load(path)
