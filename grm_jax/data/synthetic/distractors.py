"""Distractors: wrong answers of the kinds that people and models give."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from grm_jax.data.synthetic import task_format
from grm_jax.data.synthetic.task_format import Task


@dataclasses.dataclass(frozen=True)
class Distractor:
  """A wrong answer and the kind of mistake behind it."""

  kind: str
  answer: str


def make_distractors(task: Task, answer: str) -> list[Distractor]:
  """Returns the answers that one mistake turns `answer` into.

  Texts are distinct and differ from `answer`. A verifier may accept some of
  them: problems.rejected_distractors filters these out.

  Args:
    task: a task.
    answer: its right answer.
  """
  kind_of_text: dict[str, str] = {}
  for kind, text in _GENERATORS[task.family](task, answer):
    if text and text != answer:
      kind_of_text.setdefault(text, kind)
  return [Distractor(kind, text) for text, kind in kind_of_text.items()]


# Pairs (kind, wrong answer). Kinds and their order decide which distractors
# examples use (see examples.py): both must not change.
_Distractors = Iterator[tuple[str, str]]


def _chain_sum(task: Task, answer: str) -> _Distractors:
  total, terms = int(answer), task_format.terms(task)
  for term in terms[1:]:
    yield 'sign turned', str(total - 2 * term)
  for term in terms[1:]:
    yield 'term left out', str(total - term)
  yield from _swapped_digits(answer)
  yield from _off_by(total, 1, 'off by one')
  yield from _off_by(total, 10, 'off by ten')


def _number_format(task: Task, answer: str) -> _Distractors:
  pick = min if task.criterion == 'largest' else max
  yield 'other end', pick(task.items, key=float)
  for item in task.items:
    yield 'another number', item
  yield from _swapped_digits(answer)
  yield 'point moved', f'{float(answer) * 10:.1f}'


def _number_sorting(task: Task, answer: str) -> _Distractors:
  yield from _wrong_order(task, answer)
  items = answer.split(', ')
  for i, item in enumerate(items):
    for kind, text in _swapped_digits(item):
      yield kind, ', '.join([*items[:i], text, *items[i + 1 :]])


def _number_filtering(task: Task, answer: str) -> _Distractors:
  selected = answer.split(', ')
  removed = [x for x in task.items if x not in selected]
  yield 'the others', ', '.join(removed)
  for item in removed:
    yield (
      'one too many',
      ', '.join(x for x in task.items if x in selected or x == item),
    )
  for i in range(len(selected)):
    yield 'one left out', ', '.join(selected[:i] + selected[i + 1 :])
  yield 'as given', ', '.join(task.items)
  yield from _swapped_neighbours(selected, ', ', 'neighbours swapped')


def _letter_counting(task: Task, answer: str) -> _Distractors:
  for other in task_format.ANSWERS[task.family]:
    difference = abs(int(other) - int(answer))
    yield ('', 'off by one', 'off by two', 'off by three')[difference], other


def _spell_backward(task: Task, answer: str) -> _Distractors:
  letters = answer.split(' ')
  yield 'not turned', ' '.join(task.items)
  yield from _swapped_neighbours(letters, ' ', 'letters swapped')
  for i in range(len(letters)):
    yield 'letter dropped', ' '.join(letters[:i] + letters[i + 1 :])


def _word_sorting(task: Task, answer: str) -> _Distractors:
  yield from _wrong_order(task, answer)
  items = answer.split(', ')
  for i in range(1, len(items)):
    yield 'word twice', ', '.join([*items[:i], items[i - 1], *items[i + 1 :]])


def _gcd(task: Task, answer: str) -> _Distractors:
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


def _wrong_order(task: Task, answer: str) -> _Distractors:
  items = answer.split(', ')
  yield 'other direction', ', '.join(reversed(items))
  yield 'as given', ', '.join(task.items)
  yield from _swapped_neighbours(items, ', ', 'neighbours swapped')
  for i in range(len(items)):
    yield 'one left out', ', '.join(items[:i] + items[i + 1 :])


def _swapped_neighbours(
  items: Sequence[str], separator: str, kind: str
) -> _Distractors:
  for i in range(len(items) - 1):
    swapped = [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
    yield kind, separator.join(swapped)


def _swapped_digits(number: str) -> _Distractors:
  """Yields the number with two adjacent digits swapped; no leading zeros."""
  for i, (a, b) in enumerate(itertools.pairwise(number)):
    is_leading = not number[:i].strip('-')
    if a.isdigit() and b.isdigit() and a != b and not (is_leading and b == '0'):
      yield 'digits swapped', f'{number[:i]}{b}{a}{number[i + 2 :]}'


def _off_by(number: int, difference: int, kind: str) -> _Distractors:
  for other in (number - difference, number + difference):
    yield kind, str(other)


_GENERATORS = {
  'chain_sum': _chain_sum,
  'number_format': _number_format,
  'number_sorting': _number_sorting,
  'number_filtering': _number_filtering,
  'letter_counting': _letter_counting,
  'spell_backward': _spell_backward,
  'word_sorting': _word_sorting,
  'gcd': _gcd,
}
