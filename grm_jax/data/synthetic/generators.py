"""Problem generators and verifiers of reasoning-gym (0.1.25), per family.

reasoning-gym draws the numbers and words and knows the answer. Questions are
phrased in fewer words here (task_format.py), and answers are converted to the
form that the verifier reads. All words come from one story that is part of
reasoning-gym, because its dictionary contains offensive words.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import reasoning_gym
from reasoning_gym.algorithmic.word_sorting import TextTransformation
from reasoning_gym.data import read_data_file

from grm_jax.data.synthetic import task_format
from grm_jax.data.synthetic.task_format import Task

# An item of a reasoning-gym dataset.
Entry = Mapping[str, Any]

_THREE_DIGITS = dict(
  min_numbers=3,
  max_numbers=3,
  min_decimals=0,
  max_decimals=0,
  min_value=0,
  max_value=9,
)
# Family -> settings of its generator, which decide the difficulty.
FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
  {
    'chain_sum': dict(min_terms=3, max_terms=3, min_digits=1, max_digits=1),
    'number_format': dict(
      min_num_candidates=3,
      max_num_candidates=3,
      min_n=4,
      max_n=8,
      max_delta=3,
    ),
    'number_sorting': _THREE_DIGITS,
    'number_filtering': _THREE_DIGITS,
    'letter_counting': dict(min_words=2, max_words=2),
    'spell_backward': dict(min_word_len=3, max_word_len=4),
    'word_sorting': dict(
      min_words=3, max_words=3, min_word_length=3, max_word_length=4
    ),
    'gcd': dict(min_value=2, max_value=60),
  }
)
_MAX_LETTERS = 12  # of a letter_counting text
_STORY_FILE = 'in_the_year_2889.txt'
_MIN_WORDS = 20


def make_dataset(family: str, seed: int, settings: Mapping[str, Any]) -> Any:
  """Returns the reasoning-gym dataset of a family.

  Args:
    family: a key of FAMILIES.
    seed: seed of the dataset. Item i of seed s is item i - 1 of seed s + 1, so
      different datasets need seeds that are far apart.
    settings: settings of the generator.

  Raises:
    ValueError: the generator rejects its settings, or too few words remain.
  """
  settings = {**settings, 'seed': seed}
  if family == 'word_sorting':
    settings['transformation'] = TextTransformation.LOWERCASE
  try:
    dataset = reasoning_gym.create_dataset(family, **settings)
  except (TypeError, AssertionError) as error:
    raise ValueError(f'practice family {family}: {error}') from None
  config = dataset.config
  if family == 'spell_backward':
    dataset.words = _words(family, config.min_word_len, config.max_word_len)
  elif family == 'word_sorting':
    dataset.words = _words(
      family, config.min_word_length, config.max_word_length
    )
  return dataset


def _words(family: str, min_length: int, max_length: int) -> list[str]:
  lexicon = [w for w in _story_words() if min_length <= len(w) <= max_length]
  if len(lexicon) < _MIN_WORDS:
    raise ValueError(
      f'practice family {family}: the story has {len(lexicon)} words of '
      f'{min_length} to {max_length} letters, fewer than {_MIN_WORDS}; allow '
      'more lengths'
    )
  return lexicon


@functools.cache
def _story_words() -> Sequence[str]:
  """Returns the distinct words of the story in alphabetical order."""
  text = read_data_file(_STORY_FILE).lower()
  return sorted(set(re.findall(r'\b[a-z]+\b', text)))


def parse_entry(family: str, entry: Entry) -> tuple[Task, str] | None:
  """Returns the task and the answer of an entry; None if it is unsuitable."""
  task, answer = _PARSERS[family](entry, entry['metadata'])
  return (task, answer) if _is_suitable(task) else None


def verify(family: str, entry: Entry, answer: str) -> bool:
  """Returns whether reasoning-gym's verifier gives full marks.

  The verifier has tolerances: in a sorted list each number may differ by up to
  1, and 16.0 equals 16.

  Args:
    family: a key of FAMILIES.
    entry: the item that the question comes from.
    answer: an answer in the form of task_format.
  """
  if family == 'number_filtering':
    answer = str(answer.split(', '))  # the form in which the generator writes
  elif family == 'number_sorting':
    answer = json.dumps(answer.split(', '))
  elif family == 'spell_backward':
    answer = answer.replace(' ', '')
  return _verifier(family)(answer, entry) == 1.0


@functools.cache
def _verifier(family: str) -> Callable[[str, Entry], float]:
  return reasoning_gym.get_score_answer_fn(family)


def _is_suitable(task: Task) -> bool:
  if task.family == 'chain_sum':
    # Partial sums of one digit: few enough to memorize in minutes.
    partial_sums = itertools.accumulate(task_format.terms(task))
    return all(0 <= x <= 9 for x in partial_sums)
  if task.family == 'letter_counting':
    text = ''.join(task.items)
    # The worked steps list every letter, and each of ANSWERS must be possible.
    num_answers = len(task_format.ANSWERS[task.family])
    fits = num_answers <= len(text) <= _MAX_LETTERS
    return fits and text.isascii() and text.isalpha()
  if task.family == 'number_filtering':
    # Without the limit itself: whether 5 is "above 5" need not be learned.
    _, limit = task.criterion.split(' ')
    answer = task_format.solve(task)
    return bool(answer) and limit not in task.items and _distinct(task.items)
  if task.family == 'number_format':
    integer_parts = [item.partition('.')[0] for item in task.items]
    return _distinct(integer_parts) and all(map(_distinct, task.items))
  return len(task.items) > 1 and _distinct(task.items)


def _distinct(items: Sequence[str]) -> bool:
  """Returns whether no item occurs twice.

  Equal items have no order and no interesting divisor. Also, a small model that
  copies an answer finds its place by the item that it copied last.
  """
  return len(set(items)) == len(items)


_Metadata = Mapping[str, Any]


def _chain_sum(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  items = tuple(metadata['expression'].split())
  return Task('chain_sum', items), entry['answer']


def _number_format(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  # Rounding to two decimals is within the verifier's tolerance.
  items = tuple(f'{x:.2f}' for x in metadata['candidates'])
  task = Task('number_format', items, metadata['size'])
  return task, f'{metadata["solution"]:.2f}'


def _number_sorting(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  items = tuple(f'{float(x):g}' for x in metadata['original_numbers'])
  answer = ', '.join(f'{float(x):g}' for x in metadata['sorted_numbers'])
  ascending = metadata['direction'] == 'ascending'
  return Task(
    'number_sorting', items, 'smallest' if ascending else 'largest'
  ), answer


def _number_filtering(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  # "Remove smaller" is "keep larger".
  above = metadata['operation'] in ('keep_larger', 'remove_smaller')
  criterion = f'{"above" if above else "below"} {metadata["filter_value"]}'
  items = tuple(metadata['original_numbers'])
  task = Task('number_filtering', items, criterion)
  return task, ', '.join(metadata['result'])


def _letter_counting(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  letters = tuple(''.join(metadata['span']).lower())
  task = Task('letter_counting', letters, metadata['target_letter'])
  return task, entry['answer']


def _spell_backward(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  task = Task('spell_backward', tuple(metadata['word']))
  return task, ' '.join(entry['answer'])


def _word_sorting(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  ascending = metadata['direction'] == 'ascending'
  items = tuple(metadata['transformed_words'])
  return Task('word_sorting', items, 'a' if ascending else 'z'), entry['answer']


def _gcd(entry: Entry, metadata: _Metadata) -> tuple[Task, str]:
  return Task('gcd', tuple(map(str, metadata['numbers']))), entry['answer']


_PARSERS: Mapping[str, Callable[[Entry, _Metadata], tuple[Task, str]]] = {
  'chain_sum': _chain_sum,
  'number_format': _number_format,
  'number_sorting': _number_sorting,
  'number_filtering': _number_filtering,
  'letter_counting': _letter_counting,
  'spell_backward': _spell_backward,
  'word_sorting': _word_sorting,
  'gcd': _gcd,
}
