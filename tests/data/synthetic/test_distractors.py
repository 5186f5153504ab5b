"""Distractors: expected ones per family, and the verifier rejects all."""

import collections
import itertools

import pytest

from grm_jax.data.synthetic import distractors, problems
from grm_jax.data.synthetic.problems import FAMILIES
from grm_jax.data.synthetic.task_format import Task


def sum_task(text):
  return Task('chain_sum', tuple(text.split()))


def kinds_of(task, answer):
  by_kind = collections.defaultdict(set)
  for distractor in distractors.make_distractors(task, answer):
    by_kind[distractor.kind].add(distractor.answer)
  return dict(by_kind)


# An answer has the first kind that yields it.
BY_HAND = [
  (
    sum_task('23 + 19 - 7'),
    '35',
    {
      'sign turned': {'-3', '49'},
      'term left out': {'16', '42'},
      'digits swapped': {'53'},
      'off by one': {'34', '36'},
      'off by ten': {'25', '45'},
    },
  ),
  (
    Task('number_format', ('9.11', '9.90', '10.05'), 'largest'),
    '10.05',
    {
      'other end': {'9.11'},
      'another number': {'9.90'},
      'digits swapped': {'10.50'},
      'point moved': {'100.5'},
    },
  ),
  (
    Task('number_sorting', ('40', '7', '12'), 'smallest'),
    '7, 12, 40',
    {
      'other direction': {'40, 12, 7'},
      'as given': {'40, 7, 12'},
      'neighbours swapped': {'12, 7, 40', '7, 40, 12'},
      'one left out': {'12, 40', '7, 40', '7, 12'},
      'digits swapped': {'7, 21, 40'},
    },
  ),
  (
    Task('number_filtering', ('9', '2', '7'), 'above 5'),
    '9, 7',
    {
      'the others': {'2'},
      'one too many': {'9, 2, 7'},
      'one left out': {'9', '7'},
      'neighbours swapped': {'7, 9'},
    },
  ),
  (
    Task('letter_counting', tuple('there'), 'e'),
    '2',
    {
      'off by one': {'1', '3'},
      'off by two': {'4'},
    },
  ),
  (
    Task('spell_backward', tuple('tap')),
    'p a t',
    {
      'not turned': {'t a p'},
      'letters swapped': {'a p t', 'p t a'},
      'letter dropped': {'a t', 'p t', 'p a'},
    },
  ),
  (
    Task('word_sorting', ('plum', 'fig', 'pear'), 'a'),
    'fig, pear, plum',
    {
      'other direction': {'plum, pear, fig'},
      'as given': {'plum, fig, pear'},
      'neighbours swapped': {'pear, fig, plum', 'fig, plum, pear'},
      'one left out': {'pear, plum', 'fig, plum', 'fig, pear'},
      'word twice': {'fig, fig, plum', 'fig, pear, pear'},
    },
  ),
  (
    Task('gcd', ('18', '48')),
    '6',
    {
      'factor left out': {'1', '2', '3'},
      'off by one': {'5'},
      'another number': {'4'},
    },
  ),
]


@pytest.mark.parametrize(
  'task, answer, expected', BY_HAND, ids=[row[0].family for row in BY_HAND]
)
def test_distractors_of_each_family(task, answer, expected):
  assert kinds_of(task, answer) == expected


def test_distractors_of_small_numbers():
  task = Task('letter_counting', tuple('tap'), 'a')
  assert kinds_of(task, '1') == {
    'off by one': {'2'},
    'off by two': {'3'},
    'off by three': {'4'},
  }
  assert kinds_of(Task('gcd', ('4', '6')), '2') == {
    'factor left out': {'1'},
    'off by one': {'3'},
    'factor too many': {'4', '6'},
    'another number': {'5'},
  }


def test_swapped_digits_have_no_leading_zero():
  task = sum_task('20 + 20')
  assert 'digits swapped' not in kinds_of(task, '40')
  task = sum_task('20 - 65')
  assert kinds_of(task, '-45')['digits swapped'] == {'-54'}


# A single digit has no neighbour to swap with.
ABSENT_KINDS = {
  ('chain_sum', None): {'digits swapped'},
  ('number_sorting', None): {'digits swapped'},
}


@pytest.mark.parametrize(
  'family, larger',
  [*((family, None) for family in FAMILIES), ('number_sorting', 99)],
)
def test_every_kind_occurs_and_is_rejected(family, larger):
  kinds = collections.Counter()
  settings = FAMILIES[family] | ({'max_value': larger} if larger else {})
  stream = problems.problems(family, 'train', 3, settings)
  for problem in itertools.islice(stream, 300):
    answers = [
      distractor.answer for distractor in problems.rejected_distractors(problem)
    ]
    assert len(answers) == len(set(answers)) >= 3
    assert problem.answer not in answers
    assert not any(problems.verify(problem, answer) for answer in answers)
    kinds.update(
      {distractor.kind for distractor in problems.rejected_distractors(problem)}
    )
  expected = {
    kind for row in BY_HAND if row[0].family == family for kind in row[2]
  }
  expected -= ABSENT_KINDS.get((family, larger), set())
  assert len(kinds) >= 3
  assert expected <= set(kinds)
  assert min(kinds[kind] for kind in expected) >= 10


def test_distractors_that_the_verifier_accepts_are_removed():
  task = Task('number_sorting', ('7', '3.12'), 'smallest')
  entry = {'answer': "['3.12', '7']", 'metadata': {'direction': 'ascending'}}
  problem = problems.Problem(task, '3.12, 7', entry)
  distractor_answers = {
    distractor.answer
    for distractor in distractors.make_distractors(task, '3.12, 7')
  }
  rejected = {
    distractor.answer for distractor in problems.rejected_distractors(problem)
  }
  assert rejected == {'7, 3.12', '7', '3.12'}
  # Sorted, and within the verifier's tolerance of 1.
  assert distractor_answers - rejected == {'3.21, 7'}
