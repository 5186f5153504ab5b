"""Holding an answer against the one that is due: where it goes wrong, and how.

Item by item, `item vs due`, up to the first that differs. Side by side, since
whether two texts that stand far apart are the same is what a small model learns
last.
"""

import dataclasses
import itertools
import re

from grm_jax.data.practice import tasks
from grm_jax.data.practice.tasks import Task

_NONE = '-'


@dataclasses.dataclass(frozen=True)
class Finding:
  """What is found in an answer.

  Attributes:
    pairs: items and what is due, up to where they differ.
    fault: what is wrong; '' if nothing is.
    score: from 1 to 4, and 10 where there is no fault.
  """

  pairs: str
  fault: str
  score: int

  @property
  def words(self) -> str:
    """What is written about it."""
    verdict = f'wrong: {self.fault}' if self.fault else 'right'
    return f'{self.pairs}, {verdict}'


def hold(task: Task, answer: str, due: str) -> Finding:
  """The finding of an answer to a task where `due` is thought to be right."""
  items, all_due = (tasks.split_answer(task, x) for x in (answer, due))
  pairs = list(itertools.zip_longest(items, all_due, fillvalue=_NONE))
  differ = (i for i, (a, b) in enumerate(pairs) if a != b)
  place = next(differ, len(pairs))
  shown = ', '.join(f'{a} vs {b}' for a, b in pairs[: place + 1])
  if place == len(pairs):
    return Finding(shown, '', 10)
  return Finding(shown, *_fault(task, items, all_due, place))


def _fault(task, items, due, place) -> tuple[str, int]:
  """(what is wrong at this place, a score)."""
  if place == len(items):
    return 'too short', 2
  if place == len(due):
    return 'too long', 2
  if tasks.FORMS[task.family].answer is not None:
    return 'out of place', 4 if place else 3
  if task.family == 'number_format':
    listed = items[0] in task.items
    return (f'not the {task.asked}', 3) if listed else ('not listed', 1)
  if not re.fullmatch(r'-?[0-9]{1,9}', items[0]):
    return 'no whole number', 1
  gap = int(items[0]) - int(due[0])
  if abs(gap) == 1:
    return 'off by 1', 4
  return 'too high' if gap > 0 else 'too low', 3
