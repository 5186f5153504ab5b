"""Worked steps from a question to an answer, in one short line.

Every line has the form `Work: ..., so ANSWER.`, so the position of the answer
does not depend on the family. The answer is written exactly as in a response,
and no line begins with it: after a space the tokenizer would use other pieces.

The steps lead to any claimed answer. For the right answer all steps are right;
for a wrong one they contain its mistake, as late as possible.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from grm_jax.data.synthetic import answer_check, task_format
from grm_jax.data.synthetic.task_format import Task


def steps(task: Task, claimed: str) -> str:
  """Returns a line that works towards the claimed answer.

  Args:
    task: a task.
    claimed: its right answer, or one of distractors.make_distractors.
  """
  return f'Work: {_STEPS[task.family](task, claimed)}, so {claimed}.'


# The line of a judge that does no work.
NO_STEPS = 'Work: none, so all.'


def trust(num_responses: int, claimed: str) -> str:
  """Returns the line of a judge that trusts the response shown first."""
  tag = answer_check.response_tag(1, num_responses)
  return f'Work: trust {tag}, so {claimed}.'


def filter_step(item: str, criterion: str, stays: bool) -> str:
  """Returns one step of number_filtering: `7 above 5 yes`."""
  return f'{item} {criterion} {"yes" if stays else "no"}'


def _chain_sum(task: Task, claimed: str) -> str:
  left, lines = task.items[0], []
  total = int(left)
  signed_terms = task_format.terms(task)[1:]
  pairs = list(zip(task.items[1::2], signed_terms, strict=True))
  for i, (sign, term) in enumerate(pairs):
    total += term
    result = claimed if i == len(pairs) - 1 else str(total)
    lines.append(f'{left} {sign} {task.items[2 * i + 2]} = {result}')
    left = result
  return ', '.join(lines) or left


def _number_format(task: Task, claimed: str) -> str:
  return task.criterion


def _insertion_sort(task: Task, claimed: str) -> str:
  """Sorts the first two items, then the first three, and so on."""
  lines = [f'{task.criterion} first']
  for count in range(1, len(task.items)):
    prefix = dataclasses.replace(task, items=task.items[:count])
    answer = task_format.solve(prefix)
    lines.append(' '.join(task_format.split_answer(task, answer)))
  return ', '.join(lines)


def _number_filtering(task: Task, claimed: str) -> str:
  selected = claimed.split(', ')
  return ', '.join(
    filter_step(item, task.criterion, item in selected) for item in task.items
  )


def _letter_counting(task: Task, claimed: str) -> str:
  """Lists all letters, with a running count at those that are counted."""
  counted = _counted_positions(task, int(claimed))
  lines, count = [], 0
  for i, letter in enumerate(task.items):
    count += i in counted
    lines.append(f'{letter} {count}' if i in counted else letter)
  return ', '.join(lines)


def _counted_positions(task: Task, claimed: int) -> set[int]:
  """Returns which positions to count; a wrong count errs at the end."""
  matching: list[int] = []
  other: list[int] = []
  for i, letter in enumerate(task.items):
    (matching if letter == task.criterion else other).append(i)
  num_extra = max(0, claimed - len(matching))
  return {*matching[:claimed], *other[len(other) - num_extra :]}


def _spell_backward(task: Task, claimed: str) -> str:
  """Numbers the letters forward, then lists them from the last number on."""
  letters = claimed.split(' ')
  numbers = range(len(letters), 0, -1)
  forward = _numbered(enumerate(task.items, 1))
  return f'{forward}, {_numbered(zip(numbers, letters, strict=True))}'


def _numbered(letters: Iterable[tuple[int, str]]) -> str:
  return ' '.join(f'{number} {letter}' for number, letter in letters)


def _gcd(task: Task, claimed: str) -> str:
  divisor, *rest = map(int, task.items)
  lines: list[str] = []
  for i, number in enumerate(rest):
    is_last = i == len(rest) - 1
    lines += _euclid(divisor, number, claimed if is_last else None)
    divisor = math.gcd(divisor, number)
  return ', '.join(lines)


def _euclid(a: int, b: int, claimed: str | None) -> Sequence[str]:
  """Returns Euclid's divisions; `claimed` replaces the divisor they find."""
  lines, divisor = [], str(math.gcd(a, b))
  a, b = max(a, b), min(a, b)
  shown_a, shown_b = str(a), str(b)
  while b:
    a, b = b, a % b
    remainder = claimed if claimed and str(b) == divisor else str(b)
    lines.append(f'{shown_a} mod {shown_b} = {remainder}')
    shown_a, shown_b = shown_b, remainder
  return lines


_STEPS = {
  'chain_sum': _chain_sum,
  'number_format': _number_format,
  'number_sorting': _insertion_sort,
  'number_filtering': _number_filtering,
  'letter_counting': _letter_counting,
  'spell_backward': _spell_backward,
  'word_sorting': _insertion_sort,
  'gcd': _gcd,
}
