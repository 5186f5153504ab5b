"""Tests of PPE: human preference, and pairs from 32 responses."""

import dataclasses

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import ppe
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def battle(i, winner):
  return {
    'question_id': f'q{i}',
    'model_a': 'm',
    'model_b': 'n',
    'winner': winner,
    'prompt': f'prompt {i}',
    'response_1': f'{i} first',
    'response_2': f'{i} second',
    'language': 'English',
    'conv_metadata': {'turns': 1},
  }


def best_of_k(dataset, right, pairs, i=0):
  responses = {f'response_{n}': f'{dataset} {i} {n}' for n in range(1, 33)}
  return {
    'question_id': f'q{i}',
    'model_name': 'm',
    'parsed_outputs': ['A'] * 32,
    'scores': [n in right for n in range(32)],
    'mean_score': len(right) / 32,
    'prompt': f'{dataset} prompt {i}',
    **responses,
    'conflict_pairs': pairs,
    'sampled_conflict_pairs': pairs,
  }


BATTLES = [
  battle(0, 'model_a'),
  battle(1, 'model_b'),
  battle(2, 'tie'),
  battle(3, 'tie (bothbad)'),
]
MATH = [best_of_k('MATH', {0, 31}, [[0, 1], [2, 31]])]
GPQA = [best_of_k('GPQA', {5}, [[5, 4], [6, 5]])]
VOTES = {
  '0 first': 8,
  '0 second': 2,
  '1 first': 5,
  '1 second': 5,
  'MATH 0 1': 9,
  'MATH 0 2': 3,
  'MATH 0 3': 4,
  'MATH 0 32': 2,
  'GPQA 0 6': 1,
  'GPQA 0 5': 2,
  'GPQA 0 7': None,
}


@pytest.fixture
def folder(tmp_path):
  names = {
    'PPE-Human-Preference-V1/data/test-00000-of-00001.parquet': BATTLES,
    'PPE-MATH-Best-of-K/data/train-00000-of-00001.parquet': MATH,
    'PPE-GPQA-Best-of-K/train.jsonl': GPQA,
    'other/train.jsonl': [{'x': 1}],
  }
  for name, rows in names.items():
    write(tmp_path / name, rows)
  return tmp_path


def test_pairs_are_zero_based_and_labelled_by_scores(folder):
  examples = ppe.load(str(folder / 'PPE-MATH-Best-of-K'))
  assert [e.id for e in examples] == [
    'ppe/MATH/1/q0/0:0-1',
    'ppe/MATH/1/q0/1:2-31',
  ]
  assert [e.responses[e.best] for e in examples] == ['MATH 0 1', 'MATH 0 32']
  assert {frozenset(e.responses) for e in examples} == {
    frozenset(['MATH 0 1', 'MATH 0 2']),
    frozenset(['MATH 0 3', 'MATH 0 32']),
  }
  assert examples[0].query[0].text == 'MATH prompt 0'


# Dataset -> (fields with the correct answer, the answer that a prompt shows).
ANSWERS = {
  'MMLU-Pro': ({'options': ['x', 'y'], 'answer_index': 1}, 'B. y'),
  'GPQA': ({'choices': ['x', 'y'], 'correct_choice_index': 0}, 'A. x'),
  'MATH': ({'solution': 'It is 7.'}, 'It is 7.'),
  'MBPP-Plus': ({'code': 'x = 7'}, 'x = 7'),
  'IFEval': ({}, ''),
}


@pytest.mark.parametrize('dataset', ANSWERS)
def test_references(tmp_path, dataset):
  fields, answer = ANSWERS[dataset]
  rows = [best_of_k(dataset, {0}, [[0, 1]]) | fields]
  path = write(tmp_path / f'PPE-{dataset}-Best-of-K.jsonl', rows)
  (without_reference,) = ppe.load(path)
  (example,) = ppe.load(path, references=True)
  assert without_reference.reference == ''
  assert example == dataclasses.replace(without_reference, reference=answer)


def test_references_of_preferences_are_empty(folder):
  path = str(folder / 'PPE-Human-Preference-V1')
  assert ppe.load(path, references=True) == ppe.load(path)


@pytest.mark.parametrize(
  'dataset, fields, mentioned',
  [
    ('MATH', {}, ['solution']),
    ('GPQA', {'choices': ['x']}, ['correct_choice_index']),
    (
      'GPQA',
      {'choices': ['x'], 'correct_choice_index': 1},
      ['correct_choice_index', 1, 'choices'],
    ),
  ],
)
def test_invalid_references(tmp_path, dataset, fields, mentioned):
  row = best_of_k(dataset, {0}, [[0, 1]]) | fields
  path = write(tmp_path / f'PPE-{dataset}-Best-of-K.jsonl', [row])
  with pytest.raises(UserError, match=in_row('.jsonl', 1, *mentioned)):
    ppe.load(path, references=True)


def test_ties_are_not_judged(folder):
  examples = ppe.load(str(folder / 'PPE-Human-Preference-V1'))
  assert [e.responses[e.best] for e in examples] == ['0 first', '1 second']


def test_score_by_hand(folder):
  score = ppe.score(judged(ppe.load(str(folder)), VOTES))
  assert score.subsets == {'Human-Preference-V1': 0.75, 'MATH': 0.5, 'GPQA': 0}
  assert score.sections == {'preference': 0.75, 'correctness': 0.25}
  assert score.overall == 0.5
  assert score.counts == {'Human-Preference-V1': 2, 'MATH': 2, 'GPQA': 2}
  assert (score.failures, score.ties) == (1, 1)


def test_score_of_one_section(folder):
  results = judged(ppe.load(str(folder / 'PPE-MATH-Best-of-K')), VOTES)
  score = ppe.score(results)
  assert (score.overall, score.sections) == (0.5, {'correctness': 0.5})
  # Both pairs are one question's: there is nothing to resample.
  assert ppe.interval(results) == (0.5, 0.5)


@pytest.mark.parametrize(
  'name, bad, mentioned',
  [
    (
      'PPE-Human-Preference-V1',
      battle(9, 'model_c'),
      ['winner', 'model_c', 'model_a', 'model_b'],
    ),
    (
      'PPE-Human-Preference-V1',
      without(battle(9, 'tie'), 'winner'),
      ['winner'],
    ),
    ('x', battle(9, 'model_a'), ['PPE-Human-Preference-V1']),
    (
      'PPE-IFEval-Best-of-K',
      best_of_k('x', {0}, [[1, 2]]),
      ['sampled_conflict_pairs', '[1, 2]', 'scores'],
    ),
    (
      'PPE-IFEval-Best-of-K',
      best_of_k('x', {0}, [[0, 32]]),
      ['sampled_conflict_pairs', '[0, 32]', 32],
    ),
    (
      'PPE-IFEval-Best-of-K',
      best_of_k('x', {0}, [[0]]),
      ['sampled_conflict_pairs', '[0]'],
    ),
    (
      'PPE-IFEval-Best-of-K',
      best_of_k('x', {0}, [[0, 1]]) | {'scores': ['1'] * 32},
      ['scores'],
    ),
    (
      'PPE-IFEval-Best-of-K',
      without(best_of_k('x', {0}, [[0, 1]]), 'response_2'),
      ['response_2'],
    ),
  ],
)
def test_invalid_rows(tmp_path, name, bad, mentioned):
  path = write(tmp_path / f'{name}.jsonl', [bad])
  with pytest.raises(UserError, match=in_row('.jsonl', 1, *mentioned)):
    ppe.load(path)
