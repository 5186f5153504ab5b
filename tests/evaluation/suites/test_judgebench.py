"""Tests of JudgeBench: a pair is correct if its two games sum above 0."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.metrics import Result
from grm_jax.evaluation.suites import judgebench
from tests.evaluation.suites.published import without, write
from tests.messages import in_row


def pair(name, source, label):
  return {
    'pair_id': name,
    'original_id': '10646',
    'source': source,
    'question': f'question {name}',
    'response_model': 'gpt-4o-2024-05-13',
    'response_A': f'{name} A',
    'response_B': f'{name} B',
    'label': label,
  }


ROWS = [
  pair('both', 'mmlu-pro-computer science', 'A>B'),
  pair('split', 'mmlu-pro-law', 'B>A'),
  pair('once', 'livebench-reasoning', 'A>B'),
  pair('silent', 'livebench-math', 'B>A'),
  pair('ties', 'livecodebench', 'A>B'),
]
# Votes for (A, B), in the game with A first and in the one with B first.
GAMES = {
  'both': [(8, 3), (9, 1)],
  'split': [(9, 2), (4, 5)],
  'once': [(7, 6), (5, 5)],
  'silent': [None, (2, 3)],
  'ties': [(4, 4), (6, 6)],
}
NAME = 'dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl'


@pytest.fixture
def folder(tmp_path):
  write(tmp_path / 'data' / NAME, ROWS)
  write(tmp_path / 'outputs' / NAME, [{'judgments': []}])
  return str(tmp_path)


def results(examples):
  game_results = []
  for example in examples:
    name, game = example.id.split('/')[1:]
    votes = GAMES[name][('AB', 'BA').index(game)]
    game_results.append(
      Result(example, votes and votes[:: 1 if game == 'AB' else -1])
    )
  return game_results


def test_pair_becomes_two_games(folder):
  examples = judgebench.load(folder)
  assert len(examples) == 10
  first, second = examples[2:4]
  assert (first.id, second.id) == (
    'judgebench/split/AB',
    'judgebench/split/BA',
  )
  assert first.responses == ('split A', 'split B')
  assert second.responses == ('split B', 'split A')
  assert (first.best, second.best) == (1, 0)
  assert first.tags['pair'] == second.tags['pair'] == 'split'


def test_score_by_hand(folder):
  score = judgebench.score(results(judgebench.load(folder)))
  # Right: both; once (+1 and a tie); silent (no verdict and +1).
  assert score.overall == pytest.approx(3 / 5)
  assert score.sections == {
    'Knowledge': 0.5,
    'Reasoning': 1,
    'Math': 1,
    'Coding': 0,
  }
  assert score.subsets['mmlu-pro-law'] == 0
  assert score.counts['mmlu-pro-law'] == 1
  assert (score.failures, score.ties) == (1, 3)


def test_position_bias_scores_zero(folder):
  first = [Result(e, (2.0, 1.0)) for e in judgebench.load(folder)]
  assert judgebench.score(first).overall == 0


def test_margin_of_a_game_does_not_matter(folder):
  examples = judgebench.load(folder)[2:4]
  assert examples[0].best == 1
  games = [Result(examples[0], (1, 10)), Result(examples[1], (5, 6))]
  assert judgebench.score(games).overall == 0


def test_games_of_a_pair_are_resampled_together(folder):
  games = results(judgebench.load(folder))[:4]
  low, high = judgebench.interval(games)
  assert (low, high) == (0, 1)
  assert judgebench.interval(games[:2]) == (1, 1)


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    (pair('x', 'gsm8k', 'A>B'), ['source', 'gsm8k', 'mmlu-pro']),
    (pair('x', 'livecodebench', 'A=B'), ['label', 'A=B', 'A>B', 'B>A']),
    (without(pair('x', 'livecodebench', 'A>B'), 'response_B'), ['response_B']),
    (pair('both', 'livecodebench', 'A>B'), ['judgebench/both/AB']),
    (
      pair('x', 'livecodebench', 'A>B') | {'question': ''},
      ['query'],
    ),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.jsonl', [ROWS[0], bad])
  with pytest.raises(UserError, match=in_row('f.jsonl', 2, *mentioned)):
    judgebench.load(path)
