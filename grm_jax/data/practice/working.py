"""The steps from a question to an answer, in one short line.

Nothing begins the line that stands elsewhere in it or in a prompt: with a
space in front it would be another piece of a tokenizer, and to a small model
another thing.

The steps lead to whatever answer is claimed: to the right one they are right,
to a wrong one they have a slip where it is made, as late as possible.
"""

import math

from grm_jax.data.practice import tasks
from grm_jax.data.practice.tasks import Task


def steps(task: Task, claimed: str) -> str:
  """A line that works its way to the claimed answer.

  Args:
    task: a task.
    claimed: its answer, or one of `mistakes.slips`.
  """
  return f'Work: {_STEPS[task.family](task, claimed)}.'


def _sum(task, claimed):
  left, lines = task.items[0], []
  total = int(left)
  pairs = list(zip(task.items[1::2], tasks.terms(task)[1:], strict=True))
  for i, (sign, term) in enumerate(pairs):
    total += term
    result = claimed if i == len(pairs) - 1 else str(total)
    lines.append(f'{left} {sign} {task.items[2 * i + 2]} = {result}')
    left = result
  return ', '.join(lines) or claimed


def _extreme(task, claimed):
  return f'{task.asked} {claimed}'


def _sorted(task, claimed):
  sign = '<' if task.asked in ('smallest', 'a') else '>'
  return f' {sign} '.join(claimed.split(', '))


def _count(task, claimed):
  """Every letter, with the count behind those that are counted.

  Too low a count misses the last ones, too high a one takes the first of the
  other letters for the one that is asked for.
  """
  count = int(claimed)
  places = [i for i, x in enumerate(task.items) if x == task.asked]
  others = [i for i, x in enumerate(task.items) if x != task.asked]
  marked = sorted((places + others)[:count])
  numbers = {place: number for number, place in enumerate(marked, 1)}
  read = [
    f'{letter} {numbers[i]}' if i in numbers else letter
    for i, letter in enumerate(task.items)
  ]
  return f'{" ".join(read)}, so {claimed}'


def _backward(task, claimed):
  return claimed


def _gcd(task, claimed):
  lines, (first, *rest) = [], map(int, task.items)
  for i, number in enumerate(rest):
    last = i == len(rest) - 1
    lines += _divisions(first, number, claimed if last else None)
    first = math.gcd(first, number)
  return ', '.join([*lines, f'so {claimed}'])


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
  'number_format': _extreme,
  'number_sorting': _sorted,
  'letter_counting': _count,
  'spell_backward': _backward,
  'word_sorting': _sorted,
  'gcd': _gcd,
}
