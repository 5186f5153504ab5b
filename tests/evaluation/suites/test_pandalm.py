"""Tests of PandaLM: majorities of three annotators."""

import pytest

from grm_jax.data.datasets import pandalm as pandalm_rows
from grm_jax.errors import UserError
from grm_jax.evaluation.suites import pandalm
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def row(idx, labels, prompt='say', **changes):
  return {
    'idx': idx,
    'motivation_app': 'Grammarly',
    'cmp_key': 'bloom-7b_llama-7b',
    'instruction': prompt,
    'input': '',
    'response1': f'{idx} 1',
    'response2': f'{idx} 2',
    **dict(zip(pandalm_rows.ANNOTATORS, labels, strict=True)),
    **changes,
  }


ROWS = [
  row(0, (1, 1, 1)),
  row(1, (2, 1, 2), input='this'),
  row(2, (0, 0, 1)),
  row(3, (1, 2, 0)),
  row(4, ('2', '2', '2'), response1=True),
  row(5, (1, 1, 2), response2=''),
]
VOTES = {
  '0 1': 8,
  '0 2': 2,
  '1 1': 5,
  '1 2': 5,
  'True': 7,
  '4 2': 6,
  '5 1': 3,
  '': 1,
}


@pytest.fixture
def path(tmp_path):
  write(tmp_path / 'gpt-3.5-turbo-testset-v1.json', [{'idx': 0}])
  return write(tmp_path / 'testset-v1.json', ROWS)


def test_rows_without_a_preferred_response_are_dropped(path, tmp_path):
  examples = pandalm.load(path)
  assert {e.id: e.responses[e.best] for e in examples} == {
    'pandalm/0': '0 1',
    'pandalm/1': '1 2',
    'pandalm/4': '4 2',
    'pandalm/5': '5 1',
  }
  assert examples[0].query[0].text == 'say'
  assert examples[1].query[0].text == 'say\n\nthis'
  assert set(examples[2].responses) == {'True', '4 2'}
  assert pandalm.load(str(tmp_path)) == examples


def test_score_by_hand(path):
  score = pandalm.score(judged(pandalm.load(path), VOTES))
  assert score.overall == pytest.approx((1 + 0.5 + 0 + 1) / 4)
  assert score.subsets == {'unanimous': 0.5, 'majority': 0.75}
  assert score.counts == {'unanimous': 2, 'majority': 2}
  assert (score.failures, score.ties) == (0, 1)


def test_rows_of_a_prompt_are_resampled_together(path):
  results = judged(pandalm.load(path), VOTES)
  same_prompt = [results[0], *results[2:]]
  low, high = pandalm.interval(same_prompt)
  assert low == high == pytest.approx(2 / 3)


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    (row(9, (1, 1, 3)), [3]),
    (without(row(9, (1, 1, 1)), 'annotator3'), ['annotator3']),
    (row(9, (1, 1, 1), response1=None), ['response1', None]),
    (row(9, (1, 1, 1), prompt=''), ['query']),
    (row(0, (1, 1, 1)), ['pandalm/0']),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.json', [ROWS[0], bad])
  with pytest.raises(UserError, match=in_row('f.json', 2, *mentioned)):
    pandalm.load(path)
