"""Task formats: questions as text and back, answers and their items."""

import pytest

from grm_jax.data.synthetic import task_format
from grm_jax.data.synthetic.task_format import Task
from tests.messages import naming

# Family, question, items, criterion, answer.
TABLE = [
  ('chain_sum', 'What is 12 + 7 - 30?', '12 + 7 - 30', '', '-11'),
  ('chain_sum', 'What is 4 - -6?', '4 - -6', '', '10'),
  (
    'number_format',
    'Which number is the largest: 9.11, 9.90, 10.05?',
    '9.11 9.90 10.05',
    'largest',
    '10.05',
  ),
  (
    'number_format',
    'Which number is the smallest: 9.11, 9.90?',
    '9.11 9.90',
    'smallest',
    '9.11',
  ),
  (
    'number_sorting',
    'Sort the numbers, smallest first: 40, 7, 12',
    '40 7 12',
    'smallest',
    '7, 12, 40',
  ),
  (
    'number_sorting',
    'Sort the numbers, largest first: 7, 40, 12',
    '7 40 12',
    'largest',
    '40, 12, 7',
  ),
  ('number_filtering', 'Keep all above 5: 9, 2, 7', '9 2 7', 'above 5', '9, 7'),
  ('number_filtering', 'Keep all below 3: 9, 2, 7', '9 2 7', 'below 3', '2'),
  (
    'letter_counting',
    'How many times is e in: t h e r e?',
    't h e r e',
    'e',
    '2',
  ),
  ('spell_backward', 'Spell backward: l a m p', 'l a m p', '', 'p m a l'),
  (
    'word_sorting',
    'Sort the words, a first: plum, fig, pear',
    'plum fig pear',
    'a',
    'fig, pear, plum',
  ),
  (
    'word_sorting',
    'Sort the words, z first: fig, pear, plum',
    'fig pear plum',
    'z',
    'plum, pear, fig',
  ),
  (
    'gcd',
    'What is the greatest common divisor of 18 and 48?',
    '18 48',
    '',
    '6',
  ),
]


@pytest.mark.parametrize('family, question, items, criterion, answer', TABLE)
def test_questions_and_answers(family, question, items, criterion, answer):
  task = Task(family, tuple(items.split()), criterion)
  assert task_format.question(task) == question
  assert task_format.parse(family, question) == task
  assert task_format.solve(task) == answer


def test_split_answer():
  numbers = Task('number_sorting', ('7', '12'), 'largest')
  assert task_format.split_answer(numbers, '12, 7') == ['12', '7']
  letters = Task('spell_backward', ('l', 'a'))
  assert task_format.split_answer(letters, 'a l') == ['a', 'l']
  assert task_format.split_answer(Task('gcd', ('4', '6')), '12') == ['1', '2']


@pytest.mark.parametrize(
  'family, text, words',
  [
    ('chain_sum', 'Spell backward: l a m p', ['chain_sum', 'Spell backward']),
    ('gcd', 'What is the greatest common divisor of ?', ['gcd']),
    ('sums', 'What is 1 + 1?', ['sums', 'chain_sum']),
  ],
)
def test_text_that_is_not_a_question(family, text, words):
  with pytest.raises(ValueError, match=naming(*words)):
    task_format.parse(family, text)


def test_answer_in_a_response():
  assert task_format.answer_in(' first\nsecond. ') == 'first\nsecond.'
