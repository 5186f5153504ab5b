"""The steps from a question to an answer, in one short line.

Every line begins and ends alike, `Work: ..., so ANSWER.`: where the answer is
found is one thing to learn, not one for each family. The answer has the form of
a response, and nothing begins the line that stands elsewhere: with a space in
front it would be another piece of a tokenizer.

The steps lead to whatever answer is claimed: to the right one they are right,
to a wrong one they have a slip where it is made, as late as possible.
"""

import dataclasses
import math

from grm_jax.data.synthetic import answer_check, task_format
from grm_jax.data.synthetic.task_format import Task


def steps(task: Task, claimed: str) -> str:
  """A line that works its way to the claimed answer.

  Args:
    task: a task.
    claimed: its answer, or one of `mistakes.slips`.
  """
  return f'Work: {_STEPS[task.family](task, claimed)}, so {claimed}.'


# Of a judge who does no work.
NONE = 'Work: none, so all.'


def trust(num_responses: int, claimed: str) -> str:
  """A line that takes the word of the response that is shown first."""
  return (
    f'Work: trust {answer_check.response_tag(1, num_responses)}, so {claimed}.'
  )


def _sum(task, claimed):
  left, lines = task.items[0], []
  total = int(left)
  pairs = list(zip(task.items[1::2], task_format.terms(task)[1:], strict=True))
  for i, (sign, term) in enumerate(pairs):
    total += term
    result = claimed if i == len(pairs) - 1 else str(total)
    lines.append(f'{left} {sign} {task.items[2 * i + 2]} = {result}')
    left = result
  return ', '.join(lines) or left


def _asked(task, claimed):
  return task.asked


def _placed(task, claimed):
  """Item after item put where it belongs among those before it."""
  lines = [f'{task.asked} first']
  for count in range(1, len(task.items)):
    among = dataclasses.replace(task, items=task.items[:count])
    lines.append(
      ' '.join(task_format.split_answer(task, task_format.solve(among)))
    )
  return ', '.join(lines)


def _kept(task, claimed):
  """Whether each one stays, with all that it depends on beside it."""
  kept = claimed.split(', ')
  return ', '.join(sifted(x, task.asked, x in kept) for x in task.items)


def sifted(item: str, asked: str, stays: bool) -> str:
  """A step of number_filtering: `7 above 5 yes`."""
  return f'{item} {asked} {"yes" if stays else "no"}'


def _count(task, claimed):
  """Letter by letter, those that are asked for with a number."""
  counted, lines, number = _counted(task, int(claimed)), [], 0
  for i, letter in enumerate(task.items):
    number += i in counted
    lines.append(f'{letter} {number}' if i in counted else letter)
  return ', '.join(lines)


def _counted(task, claimed):
  """The places that are counted; too few or too many at the end."""
  right, others = [], []
  for i, letter in enumerate(task.items):
    (right if letter == task.asked else others).append(i)
  more = max(0, claimed - len(right))
  return {*right[:claimed], *others[len(others) - more :]}


def _backward(task, claimed):
  """Letters with the places that they have, and these from the last one."""
  letters = claimed.split(' ')
  places = range(len(letters), 0, -1)
  forward = _numbered(enumerate(task.items, 1))
  return f'{forward}, {_numbered(zip(places, letters, strict=True))}'


def _numbered(letters):
  return ' '.join(f'{place} {letter}' for place, letter in letters)


def _gcd(task, claimed):
  lines, (first, *rest) = [], map(int, task.items)
  for i, number in enumerate(rest):
    last = i == len(rest) - 1
    lines += _divisions(first, number, claimed if last else None)
    first = math.gcd(first, number)
  return ', '.join(lines)


def _divisions(a, b, claimed):
  """Euclid's algorithm; the remainder that is the result is as claimed."""
  lines, divisor = [], str(math.gcd(a, b))
  a, b = max(a, b), min(a, b)
  shown = [str(a), str(b)]
  while b:
    a, b = b, a % b
    remainder = claimed if claimed and str(b) == divisor else str(b)
    lines.append(f'{shown[0]} mod {shown[1]} = {remainder}')
    shown = [shown[1], remainder]
  return lines


_STEPS = {
  'chain_sum': _sum,
  'number_format': _asked,
  'number_sorting': _placed,
  'number_filtering': _kept,
  'letter_counting': _count,
  'spell_backward': _backward,
  'word_sorting': _placed,
  'gcd': _gcd,
}
