r"""Answers of MATH solutions; the expected results are mathematics."""

import sys

import pytest

from grm_jax.data.datasets import math_answers
from grm_jax.errors import UserError
from tests.messages import naming


@pytest.mark.parametrize(
  'answer, right, wrong',
  [
    ('18', r'17, no: \boxed{18}.', r'18 seems right, but \boxed{17}'),
    ('18', 'The answer is 18.', 'I do not know.'),
    ('18', r'\boxed{17}? No. \boxed{18}', r'\boxed{18}? No. \boxed{17}'),
    (r'\frac{1}{2}', r'\boxed{0.5}', r'\boxed{0.2}'),
    (r'5\sqrt{2}', r'$\boxed{\sqrt{50}}$', r'$\boxed{\sqrt{52}}$'),
    ('x^2+2x+1', r'\boxed{(x+1)^2}', r'\boxed{(x-1)^2}'),
    (r'(3,\infty)', r'\boxed{(3, \infty)}', r'\boxed{[3, \infty)}'),
    ('1,2', r'\boxed{2, 1}', r'\boxed{1, 3}'),
    (r'\text{Evelyn}', r'\boxed{Evelyn}', r'\boxed{Debra}'),
  ],
)
def test_answers(answer, right, wrong):
  solution = rf'Because of it, the answer is $\boxed{{{answer}}}$.'
  assert math_answers.has_answer(solution)
  assert math_answers.is_correct(right, solution)
  assert not math_answers.is_correct(wrong, solution)


def test_only_the_last_box_of_a_solution_is_its_answer():
  solution = r'First $\boxed{3}$, so the sum is $\boxed{7}$.'
  assert math_answers.is_correct(r'\boxed{7}', solution)
  assert not math_answers.is_correct(r'\boxed{3, 7}', solution)


@pytest.mark.parametrize('solution', ['It is 18.', '', r'\boxed{}'])
def test_solutions_without_an_answer(solution):
  assert not math_answers.has_answer(solution)


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, 'math_verify', None)
  with pytest.raises(UserError, match=naming('pip install', 'math_verify')):
    math_answers.is_correct('18', r'\boxed{18}')
