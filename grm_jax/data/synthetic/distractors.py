"""Near misses: wrong answers of the kinds that people and models give."""

import dataclasses
import itertools
from collections.abc import Iterator

from grm_jax.data.synthetic import task_format
from grm_jax.data.synthetic.task_format import Task


@dataclasses.dataclass(frozen=True)
class Distractor:
  """A wrong answer and what went wrong."""

  kind: str
  answer: str


def make_distractors(task: Task, answer: str) -> list[Distractor]:
  """What one slip makes of an answer: no text twice, never the answer.

  A verifier may let one pass: `problems.near_misses` asks it.

  Args:
    task: a task.
    answer: the right answer to it.
  """
  found = {}
  for kind, text in _KINDS[task.family](task, answer):
    if text and text != answer:
      found.setdefault(text, kind)
  return [Distractor(kind, text) for text, kind in found.items()]


Kinds = Iterator[tuple[str, str]]


def _sum(task: Task, answer: str) -> Kinds:
  total, terms = int(answer), task_format.terms(task)
  for term in terms[1:]:
    yield 'sign turned', str(total - 2 * term)
  for term in terms[1:]:
    yield 'term left out', str(total - term)
  yield from _swapped_digits(answer)
  yield from _off(total, 1, 'off by one')
  yield from _off(total, 10, 'off by ten')


def _extreme(task: Task, answer: str) -> Kinds:
  pick = min if task.asked == 'largest' else max
  yield 'other end', pick(task.items, key=float)
  for item in task.items:
    yield 'another number', item
  yield from _swapped_digits(answer)
  yield 'point moved', f'{float(answer) * 10:.1f}'


def _sorted_numbers(task: Task, answer: str) -> Kinds:
  yield from _disordered(task, answer)
  items = answer.split(', ')
  for i, item in enumerate(items):
    for kind, text in _swapped_digits(item):
      yield kind, ', '.join([*items[:i], text, *items[i + 1 :]])


def _kept(task: Task, answer: str) -> Kinds:
  kept = answer.split(', ')
  others = [x for x in task.items if x not in kept]
  yield 'the others', ', '.join(others)
  for item in others:
    more = (x for x in task.items if x in kept or x == item)
    yield 'one too many', ', '.join(more)
  for i in range(len(kept)):
    yield 'one left out', ', '.join(kept[:i] + kept[i + 1 :])
  yield 'as given', ', '.join(task.items)
  yield from _neighbours(kept, ', ', 'neighbours swapped')


def _count(task: Task, answer: str) -> Kinds:
  for other in task_format.ANSWERS[task.family]:
    gap = abs(int(other) - int(answer))
    yield ('', 'off by one', 'off by two', 'off by three')[gap], other


def _backward(task: Task, answer: str) -> Kinds:
  letters = answer.split(' ')
  yield 'not turned', ' '.join(task.items)
  yield from _neighbours(letters, ' ', 'letters swapped')
  for i in range(len(letters)):
    yield 'letter dropped', ' '.join(letters[:i] + letters[i + 1 :])


def _sorted_words(task: Task, answer: str) -> Kinds:
  yield from _disordered(task, answer)
  words = answer.split(', ')
  for i in range(1, len(words)):
    yield 'word twice', ', '.join([*words[:i], words[i - 1], *words[i + 1 :]])


def _divisor(task: Task, answer: str) -> Kinds:
  divisor = int(answer)
  for other in task_format.ANSWERS[task.family]:
    if divisor % int(other) == 0:
      yield 'factor left out', other
    elif int(other) % divisor == 0:
      yield 'factor too many', other
    elif abs(int(other) - divisor) == 1:
      yield 'off by one', other
    else:
      yield 'another number', other


def _disordered(task: Task, answer: str) -> Kinds:
  items = answer.split(', ')
  yield 'other direction', ', '.join(reversed(items))
  yield 'as given', ', '.join(task.items)
  yield from _neighbours(items, ', ', 'neighbours swapped')
  for i in range(len(items)):
    yield 'one left out', ', '.join(items[:i] + items[i + 1 :])


def _neighbours(items: list[str], between: str, kind: str) -> Kinds:
  for i in range(len(items) - 1):
    swapped = [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
    yield kind, between.join(swapped)


def _swapped_digits(number: str) -> Kinds:
  """Two digits side by side exchanged; no zero comes to the front."""
  for i, (a, b) in enumerate(itertools.pairwise(number)):
    front = not number[:i].strip('-')
    if a.isdigit() and b.isdigit() and a != b and not (front and b == '0'):
      yield 'digits swapped', f'{number[:i]}{b}{a}{number[i + 2 :]}'


def _off(number: int, by: int, kind: str) -> Kinds:
  for other in (number - by, number + by):
    yield kind, str(other)


_KINDS = {
  'chain_sum': _sum,
  'number_format': _extreme,
  'number_sorting': _sorted_numbers,
  'number_filtering': _kept,
  'letter_counting': _count,
  'spell_backward': _backward,
  'word_sorting': _sorted_words,
  'gcd': _divisor,
}
