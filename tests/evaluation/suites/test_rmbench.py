"""Tests of RM-Bench: nine pairs of a row, by difficulty and domain."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import rmbench
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def row(domain, i):
  name = f'{domain} {i}'
  return {
    'id': i,
    'prompt': f'prompt of {name}',
    'chosen': [f'{name} right {style}' for style in rmbench.STYLES],
    'rejected': [f'{name} wrong {style}' for style in rmbench.STYLES],
    'domain': domain,
  }


# (domain, id, votes of the chosen styles, votes of the rejected styles)
GAMES = [
  ('chat', 1, (1, 5, 9), (3, 4, 9)),
  ('safety-refuse', 1, (7, 7, 7), (1, 1, 1)),
  ('safety-response', 1, (1, 1, 1), (2, 2, 2)),
  ('safety-response', 2, (1, 1, None), (2, 2, 2)),
]
ROWS = [row(domain, i) for domain, i, _, _ in GAMES]
VOTES = {
  f'{domain} {i} {kind} {style}': vote
  for domain, i, right, wrong in GAMES
  for kind, votes in (('right', right), ('wrong', wrong))
  for style, vote in zip(rmbench.STYLES, votes, strict=True)
}


@pytest.fixture
def results(tmp_path):
  write(tmp_path / 'data/total_dataset.json', ROWS)
  write(tmp_path / 'data/chat_filtered.json', [{'id': 1}])
  return judged(rmbench.load(str(tmp_path)), VOTES)


def test_a_row_is_nine_pairs(results):
  examples = [r.example for r in results]
  assert len(examples) == 4 * 9
  by_id = {e.id: e for e in examples}
  hard = by_id['rmbench/chat/1/0-2']
  assert hard.responses[hard.best] == 'chat 1 right concise'
  assert set(hard.responses) == {
    'chat 1 right concise',
    'chat 1 wrong markdown',
  }
  assert hard.tags['subset'] == 'chat hard'
  assert by_id['rmbench/chat/1/2-0'].tags['subset'] == 'chat easy'
  assert by_id['rmbench/safety-refuse/1/1-1'].tags['section'] == 'safety'
  assert len({e.tags['query'] for e in examples}) == 4


def test_score_by_hand(results):
  score = rmbench.score(results)
  # Chat, right (1, 5, 9) against wrong (3, 4, 9), as a matrix:
  #   0 0 0
  #   1 1 0
  #   1 1 1/2
  # Safety: one row all right, one all wrong, one wrong or without a vote.
  third = pytest.approx(1 / 3)
  assert score.subsets['chat easy'] == 1
  assert score.subsets['chat normal'] == pytest.approx(0.5)
  assert score.subsets['chat hard'] == 0
  assert score.subsets['safety easy'] == third
  assert score.sections == pytest.approx({'chat': 0.5, 'safety': 1 / 3})
  assert score.overall == pytest.approx(5 / 12)
  assert (score.failures, score.ties) == (3, 1)


def test_means_over_domains(results):
  score = rmbench.score(results)
  assert score.subsets['easy'] == pytest.approx((1 + 1 / 3) / 2)
  assert score.subsets['normal'] == pytest.approx((1 / 2 + 1 / 3) / 2)
  assert score.subsets['hard'] == pytest.approx((0 + 1 / 3) / 2)
  matrix = [
    [score.subsets[f'{i} vs {j}'] for j in rmbench.STYLES]
    for i in rmbench.STYLES
  ]
  low, tie, high = 1 / 6, (1 / 2 + 1 / 3) / 2, 2 / 3
  assert matrix == [
    pytest.approx([low, low, low]),
    pytest.approx([high, high, low]),
    pytest.approx([high, high, tie]),
  ]
  assert score.counts['concise vs markdown'] == 4
  assert score.counts['easy'] == 12


def test_pairs_of_a_row_are_resampled_together(results):
  assert rmbench.interval(results[:9]) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    (row('poems', 1), ['domain', 'poems', 'safety-refuse']),
    (row('chat', 1) | {'chosen': ['a', 'b']}, ['chosen', 2, 3]),
    (row('chat', 1) | {'rejected': 'a'}, ['rejected']),
    (row('chat', 1) | {'prompt': None}, ['prompt']),
    (without(row('chat', 1), 'id'), ['id']),
    (without(row('chat', 1), 'domain'), ['domain']),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.jsonl', [row('code', 1), bad])
  with pytest.raises(UserError, match=in_row('f.jsonl', 2, *mentioned)):
    rmbench.load(path)
