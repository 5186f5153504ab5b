"""Compares a response's answer with the expected one, as critiques write it.

The comparison goes item by item, `item vs expected yes`, up to the first
difference, which ends in `no`, or to the end of both; for a number it goes
digit by digit. The two items stand side by side and a separate word states
whether they are equal. If the next item, the end or the error followed instead,
a small model would not learn that equality is what it has to decide.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from grm_jax.data.synthetic import task_format
from grm_jax.data.synthetic.task_format import Task

# Score of a response without an error. It has one digit, as all other scores:
# a small model then finds a score in the list by its distance alone.
RIGHT_SCORE = 9
_END = 'end'


@dataclasses.dataclass(frozen=True)
class AnswerCheck:
  """Result of comparing an answer with the expected one.

  Attributes:
    comparison: item pairs with `yes` or `no`, up to the first `no`; '' if the
      judge did not compare.
    error: what is wrong; '' if nothing is.
    score: 1 to 4, or RIGHT_SCORE without an error.
  """

  comparison: str
  error: str
  score: int

  @property
  def text(self) -> str:
    """The sentence about the response in a critique."""
    verdict = f'wrong: {self.error}' if self.error else 'right'
    return f'{self.comparison}, {verdict}' if self.comparison else verdict


# The check of a judge that accepts every response without a comparison.
LENIENT = AnswerCheck('', '', RIGHT_SCORE)


def compare(pairs: Sequence[tuple[str, str]]) -> str:
  """Returns a text that states for each pair whether both are equal."""
  return ', '.join(f'{a} vs {b} {"yes" if a == b else "no"}' for a, b in pairs)


def check_answer(task: Task, answer: str, expected: str) -> AnswerCheck:
  """Checks an answer against the one that the judge expects."""
  items = task_format.split_answer(task, answer)
  expected_items = task_format.split_answer(task, expected)
  pairs = list(itertools.zip_longest(items, expected_items, fillvalue=_END))
  if task_format.FORMATS[task.family].answer_separator is not None:
    # The length of a list is not visible, unlike that of a number. Without an
    # explicit pair of ends the model accepts lists that are too long.
    pairs.append((_END, _END))
  difference = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
  if difference is None:
    return AnswerCheck(compare(pairs), '', RIGHT_SCORE)
  error, score = _error(task, items, expected_items, difference)
  return AnswerCheck(compare(pairs[: difference + 1]), error, score)


def response_tag(number: int, count: int) -> str:
  """Returns the tag of response `number` of `count` in practice prompts."""
  # Every tag states the count: a small model that has to remember it over a
  # whole critique leaves out the last response.
  return f'[{number}/{count}]'


def check_lines(checks: Sequence[AnswerCheck]) -> Iterator[str]:
  """Yields one line per response: its tag and the result of its check."""
  # The line repeats the tag that precedes the response in the prompt: copying
  # what followed the same tokens is the first thing that a small model learns.
  for number, check in enumerate(checks, 1):
    yield f'{response_tag(number, len(checks))} {check.text}.'


def _error(
  task: Task, items: Sequence[str], expected: Sequence[str], position: int
) -> tuple[str, int]:
  """Returns (error, score) for the first difference at `position`."""
  if task_format.FORMATS[task.family].answer_separator is None:
    return _number_error(task, ''.join(items), ''.join(expected))
  if position == len(items):
    return 'too short', 2
  if position == len(expected):
    return 'too long', 2
  return 'out of place', 4 if position else 3


def _number_error(task: Task, number: str, expected: str) -> tuple[str, int]:
  if task.family == 'number_format':
    if number in task.items:
      return f'not the {task.criterion}', 3
    return 'not listed', 1
  if not re.fullmatch(r'-?[0-9]{1,9}', number):
    return 'no whole number', 1
  difference = int(number) - int(expected)
  if abs(difference) == 1:
    return 'off by 1', 4
  return 'too high' if difference > 0 else 'too low', 3
