"""Tests of ReaLMistake: single responses, ROC-AUC per task and pooled."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import realmistake
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row

MATH, FACTS, ANSWERS = realmistake.TASKS


def row(name, label, key='error_label'):
  return {
    'input': f'task {name}',
    'llm_response': name,
    key: label,
    'human_explanation': '',
    'error_categories': [],
    'metadata': {'id': name, 'llm_response_model': 'gpt-4-0613'},
  }


FILES = {
  f'{MATH}/gpt-4-0613.jsonl': [
    row('m1', 'no_error'),
    row('m2', 'no_error'),
    row('m3', 'error'),
  ],
  f'{FACTS}/gpt-4-0613.jsonl': [row('f1', 'no_error')],
  f'{FACTS}/Llama-2-70b-chat-hf.jsonl': [row('f2', 'error', key='label')],
  f'{ANSWERS}/gpt-4-0613.jsonl': [row('a1', 'no_error'), row('a2', 'error')],
  'example.jsonl': [row('e', 'error')],
}
VOTES = {'m1': 8, 'm2': 5, 'm3': 5, 'f1': 3, 'f2': 7, 'a1': None, 'a2': 2}


@pytest.fixture
def folder(tmp_path):
  for name, rows in FILES.items():
    write(tmp_path / 'data' / name, rows)
  return tmp_path


def test_load_rows(folder):
  examples = realmistake.load(str(folder))
  assert len(examples) == 7
  by_text = {e.responses[0]: e for e in examples}
  assert by_text['m1'].rewards == (1.0,)
  assert by_text['m3'].rewards == (0.0,)
  assert by_text['m1'].best is None
  assert by_text['f2'].id == f'realmistake/{FACTS}/Llama-2-70b-chat-hf/1'
  assert by_text['f2'].tags['section'] == FACTS
  assert by_text['f2'].query[0].text == 'task f2'


def test_score_by_hand(folder):
  score = realmistake.score(judged(realmistake.load(str(folder)), VOTES))
  # Mathematics: 8 > 5 is 1, 5 = 5 is 1/2. Facts: 3 < 7. Answers: no vote.
  assert score.sections == {MATH: 0.75, FACTS: 0, ANSWERS: 0}
  # No error: 8, 5, 3 and none. Error: 5, 7, 2. 8 wins three, 5 wins 1.5, 3 one.
  assert score.overall == pytest.approx((3 + 1.5 + 1 + 0) / 12)
  assert score.counts[f'{FACTS}/Llama-2-70b-chat-hf'] == 1
  # Subsets with one label have no AUC.
  assert score.subsets == {
    f'{MATH}/gpt-4-0613': 0.75,
    f'{ANSWERS}/gpt-4-0613': 0,
  }
  assert (score.failures, score.ties) == (1, 0)


def test_parse_failure_loses_for_either_label(folder):
  results = judged(realmistake.load(str(folder)), VOTES | {'m3': None, 'a1': 9})
  assert realmistake.score(results).sections[MATH] == 0


def test_score_needs_both_labels(folder):
  examples = realmistake.load(str(folder / 'data' / FILES_WITH_ONE_LABEL))
  with pytest.raises(UserError):
    realmistake.score(judged(examples, VOTES))


FILES_WITH_ONE_LABEL = f'{FACTS}/gpt-4-0613.jsonl'


def test_interval_contains_the_score(folder):
  results = judged(realmistake.load(str(folder)), VOTES)
  low, high = realmistake.interval(results)
  assert low < realmistake.score(results).overall < high
  assert realmistake.interval(results, seed=0) == (low, high)


@pytest.mark.parametrize(
  'name, bad, mentioned',
  [
    (
      MATH,
      row('x', 'wrong'),
      ['error_label', 'wrong', 'no_error'],
    ),
    (MATH, without(row('x', 'error'), 'error_label'), ['label']),
    (MATH, row('x', 'error') | {'input': 3}, ['input', 3]),
    ('tasks', row('x', 'error'), [MATH]),
  ],
)
def test_invalid_rows(tmp_path, name, bad, mentioned):
  path = write(tmp_path / name / 'f.jsonl', [bad])
  with pytest.raises(UserError, match=in_row('f.jsonl', 1, *mentioned)):
    realmistake.load(path)
