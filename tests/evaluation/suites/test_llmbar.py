"""Tests of LLMBar: five subsets with equal weight."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import llmbar
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def row(name, label):
  return {
    'input': f'do {name}',
    'output_1': f'{name} 1',
    'output_2': f'{name} 2',
    'label': label,
  }


FILES = {
  'LLMBar/Natural': [row('a', 1), row('b', 2)],
  'LLMBar/Adversarial/Neighbor': [row('c', 1)],
  'LLMBar/Adversarial/Manual': [row('d', 2)],
}
VOTES = {
  'a 1': 9,
  'a 2': 1,
  'b 1': 4,
  'b 2': 4,
  'c 1': 2,
  'c 2': 3,
  'd 1': 5,
  'd 2': 6,
}


@pytest.fixture
def folder(tmp_path):
  for name, rows in FILES.items():
    write(tmp_path / 'Dataset' / name / 'dataset.json', rows)
    write(
      tmp_path / 'Dataset' / name / 'evaluators/GPT-4/CoT/result.json',
      [{'input': 'x'}],
    )
  return tmp_path / 'Dataset'


def test_load_rows(folder):
  examples = llmbar.load(str(folder))
  best = {e.id: e.responses[e.best] for e in examples}
  assert best == {
    'llmbar/Natural/Natural/1': 'a 1',
    'llmbar/Natural/Natural/2': 'b 2',
    'llmbar/Adversarial/Neighbor/1': 'c 1',
    'llmbar/Adversarial/Manual/1': 'd 2',
  }


def test_score_by_hand(folder):
  score = llmbar.score(judged(llmbar.load(str(folder)), VOTES))
  assert score.subsets == {'Natural': 0.75, 'Neighbor': 0, 'Manual': 1}
  assert score.sections == pytest.approx({'Natural': 0.75, 'Adversarial': 0.5})
  assert score.overall == pytest.approx((0.75 + 0 + 1) / 3)
  assert (score.failures, score.ties) == (0, 1)


def test_load_one_file(folder):
  results = judged(
    llmbar.load(str(folder / 'LLMBar/Natural/dataset.json')), VOTES
  )
  assert llmbar.score(results).overall == 0.75
  assert llmbar.interval(results) == (0.5, 1)


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    (row('x', 3), ['label', 3]),
    (row('x', None), ['label', None]),
    (row('x', 1) | {'output_1': True}, ['output_1', True]),
    (without(row('x', 1), 'output_2'), ['output_2']),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'Natural/dataset.json', [row('a', 1), bad])
  with pytest.raises(UserError, match=in_row('dataset.json', 2, *mentioned)):
    llmbar.load(path)


def test_labels_can_be_texts(tmp_path):
  path = write(tmp_path / 'Natural/dataset.json', [row('a', '2')])
  (example,) = llmbar.load(path)
  assert example.responses[example.best] == 'a 2'
