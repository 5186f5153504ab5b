"""Holding an answer against the one that is due: where it goes wrong, and how.

Item by item, `item vs due yes`, up to the first that differs, which ends in
`no`, or up to the end of both; of a number, digit by digit. Whether two pieces
are the same is said side by side and by a word of its own: what else could
follow there (the next item, an end, a fault) would hide from a small model that
this is all it has to tell.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from grm_jax.data.synthetic import task_format
from grm_jax.data.synthetic.task_format import Task

# The score of what has no fault. It has one digit, as all others have: where a
# small model is in a list of scores is then a distance, and none gets lost.
RIGHT = 9
_NONE = 'end'


@dataclasses.dataclass(frozen=True)
class AnswerCheck:
  """What is found in an answer.

  Attributes:
    pairs: items, what is due and whether it is the same, up to a `no`; ''
      where nobody looked.
    fault: what is wrong; '' if nothing is.
    score: from 1 to 4, and RIGHT where there is no fault.
  """

  pairs: str
  fault: str
  score: int

  @property
  def words(self) -> str:
    """What is written about it."""
    verdict = f'wrong: {self.fault}' if self.fault else 'right'
    return f'{self.pairs}, {verdict}' if self.pairs else verdict


# Of a judge who does not look.
LENIENT = AnswerCheck('', '', RIGHT)


def compared(pairs: Sequence[tuple[str, str]]) -> str:
  """Whether the two of each pair are the same, in words."""
  words = (f'{a} vs {b} {"yes" if a == b else "no"}' for a, b in pairs)
  return ', '.join(words)


def check_answer(task: Task, answer: str, due: str) -> AnswerCheck:
  """The finding of an answer to a task where `due` is thought to be right."""
  items, all_due = (task_format.split_answer(task, x) for x in (answer, due))
  pairs = list(itertools.zip_longest(items, all_due, fillvalue=_NONE))
  if task_format.FORMS[task.family].answer is not None:
    # Nobody sees how long a list is, as one does with a number: that both end
    # is said like all else, or the longer one is taken for right.
    pairs.append((_NONE, _NONE))
  differ = (i for i, (a, b) in enumerate(pairs) if a != b)
  place = next(differ, len(pairs))
  shown = compared(pairs[: place + 1])
  if place == len(pairs):
    return AnswerCheck(shown, '', RIGHT)
  return AnswerCheck(shown, *_fault(task, items, all_due, place))


def response_tag(number: int, count: int) -> str:
  """What stands before a response in the practice templates."""
  # How many there are stands in each: a small model that has to remember it
  # over a whole critique leaves the last response out.
  return f'[{number}/{count}]'


def lines(found: Sequence[AnswerCheck]) -> Iterator[str]:
  """A line of each finding, behind the mark of its response in a prompt."""
  # What followed a mark before is the first thing that a small model finds.
  for k, finding in enumerate(found, 1):
    yield f'{response_tag(k, len(found))} {finding.words}.'


def _fault(task, items, due, place) -> tuple[str, int]:
  """(what is wrong at this place, a score)."""
  if task_format.FORMS[task.family].answer is None:
    return _number_fault(task, ''.join(items), ''.join(due))
  if place == len(items):
    return 'too short', 2
  if place == len(due):
    return 'too long', 2
  return 'out of place', 4 if place else 3


def _number_fault(task, number: str, due: str) -> tuple[str, int]:
  if task.family == 'number_format':
    listed = number in task.items
    return (f'not the {task.asked}', 3) if listed else ('not listed', 1)
  if not re.fullmatch(r'-?[0-9]{1,9}', number):
    return 'no whole number', 1
  gap = int(number) - int(due)
  if abs(gap) == 1:
    return 'off by 1', 4
  return 'too high' if gap > 0 else 'too low', 3
