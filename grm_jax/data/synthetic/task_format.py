"""Text form of synthetic questions and answers, parsing and solving them.

A question contains all that is needed to answer it, so a critique written from
the prompt alone can be correct.
"""

import dataclasses
import functools
import math
import re


@dataclasses.dataclass(frozen=True)
class Task:
  """A parsed question.

  Attributes:
    family: a key of FORMATS.
    items: the numbers, words or letters to process, as shown.
    criterion: the sort direction, the letter to count or the numbers to keep;
      '' for families without a choice.
  """

  family: str
  items: tuple[str, ...]
  criterion: str = ''


@dataclasses.dataclass(frozen=True)
class TaskFormat:
  """Text form of a family's questions and answers.

  Attributes:
    question: template with the fields items and criterion.
    separator: between the items of a question.
    answer_separator: between the items of an answer; None if the answer is one
      number.
  """

  question: str
  separator: str
  answer_separator: str | None = None


# Letters are separated by spaces: a model sees word pieces, not letters.
FORMATS = {
  'chain_sum': TaskFormat('What is {items}?', ' '),
  'number_format': TaskFormat(
    'Which number is the {criterion}: {items}?', ', '
  ),
  'number_sorting': TaskFormat(
    'Sort the numbers, {criterion} first: {items}', ', ', ', '
  ),
  'number_filtering': TaskFormat('Keep all {criterion}: {items}', ', ', ', '),
  'letter_counting': TaskFormat(
    'How many times is {criterion} in: {items}?', ' '
  ),
  'spell_backward': TaskFormat('Spell backward: {items}', ' ', ' '),
  'word_sorting': TaskFormat(
    'Sort the words, {criterion} first: {items}', ', ', ', '
  ),
  'gcd': TaskFormat('What is the greatest common divisor of {items}?', ' and '),
}
# Families with few answers use exactly these, equally often, for right and for
# wrong responses. Otherwise small numbers would be right in most examples, and
# a judge could do without the question.
ANSWERS = {
  'letter_counting': ('1', '2', '3', '4'),
  'gcd': ('1', '2', '3', '4', '5', '6'),
}


def question(task: Task) -> str:
  """Returns the text that `parse` reads as this task."""
  task_format = FORMATS[task.family]
  return task_format.question.format(
    items=task_format.separator.join(task.items), criterion=task.criterion
  )


def parse(family: str, text: str) -> Task:
  """Returns the task of a question.

  Raises:
    ValueError: the family is unknown, or the text is not one of its questions.
  """
  if family not in FORMATS:
    raise ValueError(
      f'unknown practice family {family!r}; use one of {", ".join(FORMATS)}'
    )
  match = _pattern(family).fullmatch(text)
  if match is None:
    raise ValueError(f'{text!r} is not a practice question of family {family}')
  fields = match.groupdict()
  items = tuple(fields['items'].split(FORMATS[family].separator))
  return Task(family, items, fields.get('criterion', ''))


@functools.cache
def _pattern(family: str) -> re.Pattern[str]:
  pattern = re.escape(FORMATS[family].question)
  for field, inner in (('items', '.+'), ('criterion', '[a-z]+(?: [0-9]+)?')):
    pattern = pattern.replace(rf'\{{{field}\}}', f'(?P<{field}>{inner})')
  return re.compile(pattern)


def answer_in(response: str) -> str:
  """Returns the answer in a response, which consists of the answer only."""
  return response.strip()


def split_answer(task: Task, answer: str) -> list[str]:
  """Returns the items of an answer; for a number, its characters."""
  separator = FORMATS[task.family].answer_separator
  return list(answer) if separator is None else answer.split(separator)


def solve(task: Task) -> str:
  """Returns the answer, computed from the task alone."""
  return _SOLVERS[task.family](task)


def terms(task: Task) -> list[int]:
  """Returns the signed terms of a chain_sum task."""
  first, *rest = task.items  # 'a', '+', 'b', '-', 'c'
  pairs = zip(rest[::2], rest[1::2], strict=True)
  return [int(first), *(int(f'{sign}1') * int(x) for sign, x in pairs)]


def _chain_sum(task: Task) -> str:
  return str(sum(terms(task)))


def _number_format(task: Task) -> str:
  pick = max if task.criterion == 'largest' else min
  return pick(task.items, key=float)


def _number_sorting(task: Task) -> str:
  descending = task.criterion == 'largest'
  return ', '.join(sorted(task.items, key=float, reverse=descending))


def _number_filtering(task: Task) -> str:
  side, limit = task.criterion.split(' ')
  above = side == 'above'
  return ', '.join(x for x in task.items if (float(x) > float(limit)) == above)


def _letter_counting(task: Task) -> str:
  return str(task.items.count(task.criterion))


def _spell_backward(task: Task) -> str:
  return ' '.join(reversed(task.items))


def _word_sorting(task: Task) -> str:
  return ', '.join(sorted(task.items, reverse=task.criterion == 'z'))


def _gcd(task: Task) -> str:
  return str(math.gcd(*map(int, task.items)))


_SOLVERS = {
  'chain_sum': _chain_sum,
  'number_format': _number_format,
  'number_sorting': _number_sorting,
  'number_filtering': _number_filtering,
  'letter_counting': _letter_counting,
  'spell_backward': _spell_backward,
  'word_sorting': _word_sorting,
  'gcd': _gcd,
}
