"""Synthetic examples: one right response, balance, splits, determinism."""

import collections
import os
import pathlib
import subprocess
import sys

import pytest

from grm_jax.data.synthetic import examples as practice
from grm_jax.data.synthetic import problems, task_format
from grm_jax.judgement import prompt_builder, template
from tests.messages import naming

ROOT = pathlib.Path(__file__).parents[3]
EXAMPLES = practice.examples('train', 2800)
WIDE = practice.examples('train', 2800, num_responses=(1, 2, 3, 4))


def right_responses(example):
  """Returns whether each response is right, from solving the query."""
  task = task_format.parse(example.tags['family'], example.query[-1].text)
  answer = task_format.solve(task)
  return [task_format.answer_in(text) == answer for text in example.responses]


def test_exactly_one_response_is_right():
  for example in EXAMPLES + WIDE:
    is_right = right_responses(example)
    assert example.rewards == tuple(map(float, is_right))
    if len(is_right) == 1:
      assert example.best is None
    else:
      assert sum(is_right) == 1 and is_right[example.best]
    assert len(set(map(task_format.answer_in, example.responses))) == len(
      is_right
    )


def test_numbers_of_responses():
  counts = collections.Counter(len(e.responses) for e in EXAMPLES)
  # Eighths of 2800; five standard deviations of the largest are 132.
  assert sorted(counts) == [1, 2, 3, 4]
  for n, expected in {1: 350, 2: 1400, 3: 700, 4: 350}.items():
    assert abs(counts[n] - expected) < 132
  twos = practice.examples('train', 300, num_responses=(2, 2, 3))
  counts = collections.Counter(len(e.responses) for e in twos)
  assert sorted(counts) == [2, 3] and 160 < counts[2] < 240


@pytest.mark.parametrize('n', [2, 3, 4])
def test_positions_of_the_right_response_are_balanced(n):
  positions = [e.best for e in WIDE if len(e.responses) == n]
  expected = len(positions) / n
  counts = collections.Counter(positions)
  square = sum((counts[i] - expected) ** 2 / expected for i in range(n))
  # 99.9 % quantiles of chi-square with n - 1 degrees of freedom.
  assert square < {2: 10.8, 3: 13.8, 4: 16.3}[n]


def test_labels_of_single_responses_are_balanced():
  labels = [e.rewards[0] for e in EXAMPLES if len(e.responses) == 1]
  assert abs(sum(labels) / len(labels) - 0.5) < 0.07


@pytest.mark.parametrize('family', task_format.ANSWERS)
def test_the_size_of_an_answer_does_not_predict_its_label(family):
  only = {family: problems.FAMILIES[family]}
  pairs = practice.examples('train', 1200, num_responses=(2,), families=only)
  counts = {True: collections.Counter(), False: collections.Counter()}
  for example in pairs:
    for text, good in zip(
      example.responses, right_responses(example), strict=True
    ):
      counts[good][task_format.answer_in(text)] += 1
  for answer in task_format.ANSWERS[family]:
    good, bad = counts[True][answer], counts[False][answer]
    assert 0.38 < good / (good + bad) < 0.62, answer


def test_families_take_turns_and_tags():
  names = [example.tags['family'] for example in EXAMPLES]
  assert names[:5] == [
    'chain_sum',
    'number_sorting',
    'number_filtering',
    'letter_counting',
    'spell_backward',
  ]
  counts = collections.Counter(names)
  assert [counts[name] for name in names[:5]] == [560] * 5
  assert {example.tags['split'] for example in EXAMPLES} == {'train'}
  only = {'number_sorting': {'min_value': 70, 'max_value': 90}}
  some = practice.examples('held_out', 20, families=only)
  for example in some:
    assert example.tags['family'] == 'number_sorting'
    assert example.tags['subset'] == 'number_sorting'
    assert example.tags['split'] == example.tags['section'] == 'held_out'
    items = task_format.parse('number_sorting', example.query[0].text).items
    assert all(70 <= float(item) <= 90 for item in items)


def test_ids_are_unique_and_no_reference_leaks():
  assert len({example.id for example in EXAMPLES}) == len(EXAMPLES)
  assert not any(example.reference for example in EXAMPLES)
  for name in ('pointwise', 'meta'):
    text = prompt_builder.render(template.load(name), EXAMPLES[1], [0])
    assert 'Reference' not in text


def test_splits_do_not_share_queries():
  queries = {
    split: {
      e.query[0].text
      for seed in (0, 1)
      for e in practice.examples(split, 350, seed=seed)
    }
    for split in problems.SPLITS
  }
  assert not queries['train'] & queries['held_out']
  assert not queries['train'] & queries['validation']
  assert not queries['validation'] & queries['held_out']


def test_a_smaller_count_is_a_prefix():
  assert practice.examples('train', 100) == EXAMPLES[:100]
  assert practice.examples('train', 0) == []


def test_seeds_and_splits_differ():
  for other in (
    practice.examples('train', 70, seed=1),
    practice.examples('held_out', 70),
  ):
    same = [
      a.query == b.query for a, b in zip(other, EXAMPLES[:70], strict=True)
    ]
    assert sum(same) < 10
    assert not {e.id for e in other} & {e.id for e in EXAMPLES}


def test_examples_do_not_depend_on_the_process():
  code = (
    'from grm_jax.data.synthetic.examples import examples\n'
    'print(examples("validation", 14, seed=3))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONHASHSEED': '1'},
    capture_output=True,
    text=True,
    check=True,
  )
  expected = practice.examples('validation', 14, seed=3)
  assert out.stdout.strip() == str(expected)


@pytest.mark.parametrize(
  'split, changes, message',
  [
    ('test', {}, naming('split', 'test', 'train')),
    ('train', {'families': {}}, 'family'),
    ('train', {'families': {'sums': {}}}, 'sums'),
    ('train', {'num_responses': ()}, 'num_responses'),
    ('train', {'num_responses': (2, 0)}, naming('num_responses', '(2, 0)')),
    ('train', {'num_responses': (99,)}, naming('responses', 98)),
  ],
)
def test_invalid_arguments(split, changes, message):
  with pytest.raises(ValueError, match=message):
    practice.examples(split, 1, **changes)


def test_texts_are_short():
  for example in EXAMPLES:
    assert len(example.query[0].text) < 80
    assert max(map(len, example.responses)) < 30
