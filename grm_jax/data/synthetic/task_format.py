"""Questions and responses as short texts, and back; solving a question.

Reading a question back gives all that is needed to answer it, so that a
critique written from the prompt alone can be right.
"""

import dataclasses
import functools
import math
import re


@dataclasses.dataclass(frozen=True)
class Task:
  """What a question asks.

  Attributes:
    family: one of FORMS.
    items: what is summed, sorted, ...: as they are shown.
    asked: which of two ways round, which letter or which numbers; '' if there
      is no choice.
  """

  family: str
  items: tuple[str, ...]
  asked: str = ''


@dataclasses.dataclass(frozen=True)
class TaskFormat:
  """How a family's questions and answers look.

  Attributes:
    question: with slots for items and asked.
    between: what parts the items of a question.
    answer: what parts the items of an answer; None if it is one number.
  """

  question: str
  between: str
  answer: str | None = None


# Letters stand apart: a small model sees pieces of words, not letters.
FORMS = {
  'chain_sum': TaskFormat('What is {items}?', ' '),
  'number_format': TaskFormat('Which number is the {asked}: {items}?', ', '),
  'number_sorting': TaskFormat(
    'Sort the numbers, {asked} first: {items}', ', ', ', '
  ),
  'number_filtering': TaskFormat('Keep all {asked}: {items}', ', ', ', '),
  'letter_counting': TaskFormat('How many times is {asked} in: {items}?', ' '),
  'spell_backward': TaskFormat('Spell backward: {items}', ' ', ' '),
  'word_sorting': TaskFormat(
    'Sort the words, {asked} first: {items}', ', ', ', '
  ),
  'gcd': TaskFormat('What is the greatest common divisor of {items}?', ' and '),
}
# Families with few answers ask for these, each as often, and nobody answers
# anything else: otherwise small numbers would be right and large ones wrong
# in most examples, and a judge could do without the question.
ANSWERS = {
  'letter_counting': ('1', '2', '3', '4'),
  'gcd': ('1', '2', '3', '4', '5', '6'),
}


def question(task: Task) -> str:
  """The text that `read` reads."""
  form = FORMS[task.family]
  return form.question.format(
    items=form.between.join(task.items), asked=task.asked
  )


def read(family: str, text: str) -> Task:
  """The task of a question.

  Raises:
    ValueError: an unknown family, or no question of this family.
  """
  if family not in FORMS:
    raise ValueError(
      f'{family!r} is no practice family; there are {", ".join(FORMS)}'
    )
  match = _pattern(family).fullmatch(text)
  if match is None:
    raise ValueError(f'{text!r} is no practice question of {family}')
  found = match.groupdict()
  items = tuple(found['items'].split(FORMS[family].between))
  return Task(family, items, found.get('asked', ''))


@functools.cache
def _pattern(family):
  text = re.escape(FORMS[family].question)
  for slot, inner in (('items', '.+'), ('asked', '[a-z]+(?: [0-9]+)?')):
    text = text.replace(rf'\{{{slot}\}}', f'(?P<{slot}>{inner})')
  return re.compile(text)


def answer_in(response: str) -> str:
  """The answer that a response gives: practice responses say nothing else."""
  return response.strip()


def split_answer(task: Task, answer: str) -> list[str]:
  """The items of an answer; of a number, its characters."""
  between = FORMS[task.family].answer
  return list(answer) if between is None else answer.split(between)


def solve(task: Task) -> str:
  """The answer, worked out from the task alone."""
  return _SOLVERS[task.family](task)


def terms(task: Task) -> list[int]:
  """The numbers of a sum, each with its sign."""
  first, *rest = task.items
  pairs = zip(rest[::2], rest[1::2], strict=True)
  return [int(first), *(int(f'{sign}1') * int(x) for sign, x in pairs)]


def _sum(task):
  return str(sum(terms(task)))


def _extreme(task):
  pick = max if task.asked == 'largest' else min
  return pick(task.items, key=float)


def _sorted_numbers(task):
  falling = task.asked == 'largest'
  return ', '.join(sorted(task.items, key=float, reverse=falling))


def _kept(task):
  side, limit = task.asked.split(' ')
  above = side == 'above'
  kept = (x for x in task.items if (float(x) > float(limit)) == above)
  return ', '.join(kept)


def _count(task):
  return str(task.items.count(task.asked))


def _backward(task):
  return ' '.join(reversed(task.items))


def _sorted_words(task):
  return ', '.join(sorted(task.items, reverse=task.asked == 'z'))


def _gcd(task):
  return str(math.gcd(*map(int, task.items)))


_SOLVERS = {
  'chain_sum': _sum,
  'number_format': _extreme,
  'number_sorting': _sorted_numbers,
  'number_filtering': _kept,
  'letter_counting': _count,
  'spell_backward': _backward,
  'word_sorting': _sorted_words,
  'gcd': _gcd,
}
