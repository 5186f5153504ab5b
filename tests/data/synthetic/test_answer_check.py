"""Answer checks: comparison, error and score of wrong and right answers."""

import pytest

from grm_jax.data.synthetic import answer_check
from grm_jax.data.synthetic.answer_check import AnswerCheck
from grm_jax.data.synthetic.task_format import Task

SUM = Task('chain_sum', ('4', '+', '5'))
COUNT = Task('letter_counting', tuple('there'), 'e')
GCD = Task('gcd', ('18', '48'))
NUMBERS = Task('number_sorting', ('8', '5', '3'), 'smallest')
BACKWARD = Task('spell_backward', tuple('lamp'))
WORDS = Task('word_sorting', ('plum', 'fig', 'pear'), 'a')
FORMAT = Task('number_format', ('9.11', '9.90', '9.09'), 'largest')

# Task, answer, expected answer, comparison, error, score.
TABLE = [
  # Right.
  (SUM, '9', '9', '9 vs 9 yes', '', 9),
  (SUM, '-9', '-9', '- vs - yes, 9 vs 9 yes', '', 9),
  (
    FORMAT,
    '9.90',
    '9.90',
    '9 vs 9 yes, . vs . yes, 9 vs 9 yes, 0 vs 0 yes',
    '',
    9,
  ),
  (
    NUMBERS,
    '3, 5, 8',
    '3, 5, 8',
    '3 vs 3 yes, 5 vs 5 yes, 8 vs 8 yes, end vs end yes',
    '',
    9,
  ),
  (
    BACKWARD,
    'p m a l',
    'p m a l',
    'p vs p yes, m vs m yes, a vs a yes, l vs l yes, end vs end yes',
    '',
    9,
  ),
  # The expected answer can itself be wrong.
  (NUMBERS, '3, 8', '3, 8', '3 vs 3 yes, 8 vs 8 yes, end vs end yes', '', 9),
  # Too short: all items are equal until the answer ends.
  (
    BACKWARD,
    'p m a',
    'p m a l',
    'p vs p yes, m vs m yes, a vs a yes, end vs l no',
    'too short',
    2,
  ),
  (NUMBERS, '3', '3, 5, 8', '3 vs 3 yes, end vs 5 no', 'too short', 2),
  # Too long.
  (
    BACKWARD,
    'p m a l l',
    'p m a l',
    'p vs p yes, m vs m yes, a vs a yes, l vs l yes, l vs end no',
    'too long',
    2,
  ),
  (NUMBERS, '3, 5, 8', '3', '3 vs 3 yes, 5 vs end no', 'too long', 2),
  # The first item is out of place, whatever follows.
  (
    WORDS,
    'pear, fig, plum',
    'fig, pear, plum',
    'pear vs fig no',
    'out of place',
    3,
  ),
  (NUMBERS, '5, 8', '3, 5, 8', '5 vs 3 no', 'out of place', 3),
  (NUMBERS, '5, 3, 5, 8', '3, 5, 8', '5 vs 3 no', 'out of place', 3),
  (NUMBERS, '', '3, 5, 8', ' vs 3 no', 'out of place', 3),
  # A later item is out of place; the lengths may differ.
  (NUMBERS, '3, 8, 5', '3, 5, 8', '3 vs 3 yes, 8 vs 5 no', 'out of place', 4),
  (NUMBERS, '3, 8', '3, 5, 8', '3 vs 3 yes, 8 vs 5 no', 'out of place', 4),
  (
    BACKWARD,
    'p m m a l',
    'p m a l',
    'p vs p yes, m vs m yes, m vs a no',
    'out of place',
    4,
  ),
  (
    WORDS,
    'fig, pear, pear',
    'fig, pear, plum',
    'fig vs fig yes, pear vs pear yes, pear vs plum no',
    'out of place',
    4,
  ),
  # Numbers.
  (SUM, '8', '9', '8 vs 9 no', 'off by 1', 4),
  (SUM, '10', '9', '1 vs 9 no', 'off by 1', 4),
  (SUM, '0', '-1', '0 vs - no', 'off by 1', 4),
  (COUNT, '2', '1', '2 vs 1 no', 'off by 1', 4),
  (SUM, '11', '9', '1 vs 9 no', 'too high', 3),
  (SUM, '-1', '-9', '- vs - yes, 1 vs 9 no', 'too high', 3),
  (GCD, '6', '2', '6 vs 2 no', 'too high', 3),
  (SUM, '7', '9', '7 vs 9 no', 'too low', 3),
  (SUM, '-9', '9', '- vs 9 no', 'too low', 3),
  (COUNT, '1', '3', '1 vs 3 no', 'too low', 3),
  # Not integers.
  (SUM, 'nine', '9', 'n vs 9 no', 'no whole number', 1),
  (SUM, '9.0', '9', '9 vs 9 yes, . vs end no', 'no whole number', 1),
  (SUM, '8, 9', '9', '8 vs 9 no', 'no whole number', 1),
  (SUM, '', '9', 'end vs 9 no', 'no whole number', 1),
  (SUM, '--9', '9', '- vs 9 no', 'no whole number', 1),
  (SUM, '1' * 10, '9', '1 vs 9 no', 'no whole number', 1),
  (SUM, '٨', '9', '٨ vs 9 no', 'no whole number', 1),
  # A wrong number from the list, and a number that is not listed.
  (
    FORMAT,
    '9.11',
    '9.90',
    '9 vs 9 yes, . vs . yes, 1 vs 9 no',
    'not the largest',
    3,
  ),
  (FORMAT, '9.1', '9.90', '9 vs 9 yes, . vs . yes, 1 vs 9 no', 'not listed', 1),
]


@pytest.mark.parametrize(
  'task, answer, expected, comparison, error, score', TABLE
)
def test_check_answer(task, answer, expected, comparison, error, score):
  assert answer_check.check_answer(task, answer, expected) == AnswerCheck(
    comparison, error, score
  )


def test_the_error_names_the_criterion():
  task = Task('number_format', ('9.11', '9.90'), 'smallest')
  assert (
    answer_check.check_answer(task, '9.90', '9.11').error == 'not the smallest'
  )


@pytest.mark.parametrize(
  'check, text',
  [
    (
      AnswerCheck('3 vs 3 yes, 5 vs 5 yes', '', 9),
      '3 vs 3 yes, 5 vs 5 yes, right',
    ),
    (
      AnswerCheck('3 vs 3 yes, end vs 5 no', 'too short', 2),
      '3 vs 3 yes, end vs 5 no, wrong: too short',
    ),
  ],
)
def test_text_of_a_check(check, text):
  assert check.text == text
