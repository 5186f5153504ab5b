"""Problems of reasoning-gym (0.1.25), in our words, and its verifiers.

The generators draw the numbers and words and know the answer; the question is
asked in fewer words (tasks.py), and an answer is put into the form that the
verifier reads. Words are those of one story that comes with reasoning-gym:
its dictionary has words that nobody wants to meet in a log.

What split a problem is in depends on its items alone, in whatever order: the
same numbers, words or letters are never asked about in two splits.
"""

import collections
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import reasoning_gym
from reasoning_gym.algorithmic.word_sorting import TextTransformation
from reasoning_gym.data import read_data_file

from grm_jax.data.synthetic import distractors, stateless_random, task_format
from grm_jax.data.synthetic.task_format import Task

_THREE_DIGITS = dict(
  min_numbers=3,
  max_numbers=3,
  min_decimals=0,
  max_decimals=0,
  min_value=0,
  max_value=9,
)
# Family -> what its generator is given: here difficulty is tuned.
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
# Those that are drawn unless others are asked for. Which of two words comes
# first, and what remains of a division, takes a tiny model too long to learn;
# and numbers with decimals are held against each other digit by digit, in the
# longest judgements of all.
_ASKED_FOR = ('number_format', 'word_sorting', 'gcd')
DEFAULTS = MappingProxyType(
  {
    family: settings
    for family, settings in FAMILIES.items()
    if family not in _ASKED_FOR
  }
)
SPLITS = ('train', 'validation', 'held_out')
_SHARES = ('train',) * 14 + ('validation',) * 3 + ('held_out',) * 3

_MOST_LETTERS = 12  # in which some are counted
_STORY = 'in_the_year_2889.txt'
# Draws in a row without a problem that can be used, after which those that
# were met come again.
_USED_UP = 10_000


# Streams of this process, with what was drawn of them: to find a problem whose
# answer's turn it is takes thousands of draws, and stages read the same ones.
_DRAWN: dict[Any, tuple[list['Problem'], Iterator['Problem']]] = {}


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem.

  Attributes:
    task: what is asked.
    answer: the right one, as the generator has it.
    entry: what the verifier needs.
  """

  task: Task
  answer: str
  entry: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)

  @property
  def family(self) -> str:
    return self.task.family

  @property
  def question(self) -> str:
    return task_format.question(self.task)

  @property
  def split(self) -> str:
    return split_of(self.task)


def split_of(task: Task) -> str:
  """The one split that all problems with these items are in."""
  return stateless_random.choice(
    _SHARES, 'split', task.family, *sorted(task.items)
  )


def problems(
  family: str,
  split: str,
  seed: int = 0,
  settings: Mapping[str, Any] | None = None,
) -> Iterator[Problem]:
  """An endless stream of a split's problems.

  When no new problem has been met for long, those that were met come again. Of
  the families in tasks.ANSWERS each answer comes as often.

  Args:
    family: one of FAMILIES.
    split: one of SPLITS.
    seed: another one is another order.
    settings: of the family's generator; None is those in FAMILIES.

  Raises:
    ValueError: an unknown family or split, or settings that the generator
      refuses or that leave no problem in this split.
  """
  if family not in FAMILIES:
    raise ValueError(
      f'{family!r} is no practice family; there are {", ".join(FAMILIES)}'
    )
  if split not in SPLITS:
    raise ValueError(f'split {split!r} is none of {", ".join(SPLITS)}')
  settings = dict(FAMILIES[family] if settings is None else settings)
  key = (family, split, seed, tuple(sorted(settings.items())))
  if key not in _DRAWN:
    dataset = _dataset(family, seed, settings)
    _DRAWN[key] = [], _stream(family, split, dataset, settings)
  return _replayed(key)


def in_turn(
  split: str, seed: int, families: Mapping[str, Mapping[str, Any]] = DEFAULTS
) -> Iterator[tuple[str, Problem]]:
  """(id, problem) without end, the families in turn; see `problems`.

  Args:
    split, seed: of the problems.
    families: family -> settings of its generator.
  """
  streams = [
    enumerate(problems(family, split, seed, settings))
    for family, settings in families.items()
  ]
  return _in_turn(streams, split, seed)


def _in_turn(streams, split, seed):
  for source in itertools.cycle(streams):
    place, problem = next(source)
    yield f'practice/{problem.family}/{split}/{seed}/{place}', problem


def _replayed(key) -> Iterator[Problem]:
  """The stream from its begin; what was drawn before is not drawn again."""
  found, stream = _DRAWN[key]
  for number in itertools.count():
    if number == len(found):
      try:
        found.append(next(stream))
      except ValueError:
        _DRAWN.pop(key, None)  # a stream that failed has ended
        raise
    yield found[number]


def _stream(family, split, dataset, settings):
  pools: dict[str, dict[Task, Problem]] = collections.defaultdict(dict)
  seen, made, idle = set(), collections.Counter(), 0
  # A dataset has more items than its length says: an item is what its number
  # and the seed make it.
  for index in itertools.count():
    problem = _problem(family, dataset[index])
    turn = problem and _turn(problem, split)
    if turn is not None:
      pools[turn].setdefault(problem.task, problem)
      if made[turn] == _fewest(family, made) and problem.task not in seen:
        seen.add(problem.task)
        made[turn] += 1
        idle = 0
        yield problem
        continue
    idle += 1
    if idle == _USED_UP:
      break
  turns = task_format.ANSWERS.get(family, ('',))
  if not _fewest(family, made):
    raise ValueError(
      f'practice family {family}: no problem for {split} in {idle} draws '
      f'with {settings}: other sizes are needed'
    )
  # To draw on would take long and find little. First this round's rest.
  again = {turn: _again(list(pools[turn].values()), turn) for turn in turns}
  rest = [turn for turn in turns if made[turn] == _fewest(family, made)]
  for turn in itertools.chain(rest, itertools.cycle(turns)):
    yield next(again[turn])


def _turn(problem, split) -> str | None:
  """Its answer, if each comes as often, or ''; None if it is of no use."""
  if problem.split != split:
    return None
  answers = task_format.ANSWERS.get(problem.family)
  if answers is None:
    return ''
  return problem.answer if problem.answer in answers else None


def _fewest(family, made) -> int:
  return min(made[turn] for turn in task_format.ANSWERS.get(family, ('',)))


def _again(pool, turn) -> Iterator[Problem]:
  """All of them in one order after the other."""
  for number in itertools.count():
    yield from stateless_random.shuffled(pool, 'again', turn, number)


def _dataset(family, seed, settings):
  # Item i of seed s is item i - 1 of seed s + 1: seeds must be far apart.
  settings['seed'] = stateless_random.integer(1 << 62, 'problems', family, seed)
  if family == 'word_sorting':
    settings['transformation'] = TextTransformation.LOWERCASE
  try:
    dataset = reasoning_gym.create_dataset(family, **settings)
  except (TypeError, AssertionError) as error:
    raise ValueError(f'practice family {family}: {error}') from None
  if family == 'spell_backward':
    config = dataset.config
    dataset.words = _words(family, config.min_word_len, config.max_word_len)
  elif family == 'word_sorting':
    config = dataset.config
    dataset.words = _words(
      family, config.min_word_length, config.max_word_length
    )
  return dataset


def _words(family, shortest, longest):
  words = [word for word in _story() if shortest <= len(word) <= longest]
  if len(words) < 20:
    raise ValueError(
      f'practice family {family}: {len(words)} words of {shortest} to '
      f'{longest} letters are too few'
    )
  return words


@functools.cache
def _story():
  """The story's words, each once, in the order of the alphabet."""
  text = read_data_file(_STORY).lower()
  return sorted(set(re.findall(r'\b[a-z]+\b', text)))


def verify(problem: Problem, answer: str) -> bool:
  """Whether the verifier of reasoning-gym finds nothing wrong.

  It is not stricter than the real one: a sorted list passes if each number is
  within 1 of the right one, and 16.0 is 16. Part of the points is no pass.
  """
  family = problem.family
  if family == 'number_filtering':
    answer = str(answer.split(', '))  # as the generator writes it
  elif family == 'number_sorting':
    answer = json.dumps(answer.split(', '))
  elif family == 'spell_backward':
    answer = answer.replace(' ', '')
  return _verifier(family)(answer, problem.entry) == 1.0


def near_misses(problem: Problem) -> list[distractors.Distractor]:
  """The slips that the verifier rejects."""
  slips = distractors.make_distractors(problem.task, problem.answer)
  return [slip for slip in slips if not verify(problem, slip.answer)]


@functools.cache
def _verifier(family) -> Callable[[str, Mapping[str, Any]], float]:
  return reasoning_gym.get_score_answer_fn(family)


def _problem(family, entry):
  """The problem of an entry, or None if it cannot be asked in our form."""
  task, answer = _READERS[family](entry, entry['metadata'])
  if not _suits(task):
    return None
  return Problem(task, answer, entry)


def _suits(task):
  if task.family == 'chain_sum':
    # Few enough sums and differences to be learnt by heart in minutes.
    totals = itertools.accumulate(task_format.terms(task))
    return all(0 <= total <= 9 for total in totals)
  if task.family == 'letter_counting':
    text = ''.join(task.items)
    # Its working has one step for each, and a number for each answer.
    fits = len(task_format.ANSWERS[task.family]) <= len(text) <= _MOST_LETTERS
    return fits and text.isascii() and text.isalpha()
  if task.family == 'number_filtering':
    # Above 5 or below: where 5 stays would be one thing more to know.
    _, limit = task.asked.split(' ')
    kept = task_format.solve(task)
    return kept and limit not in task.items and _differ(task.items)
  if task.family == 'number_format':
    wholes = {item.partition('.')[0] for item in task.items}
    return len(wholes) == len(task.items) and all(map(_differ, task.items))
  return len(task.items) > 1 and _differ(task.items)


def _differ(items):
  """Whether each is there once.

  The same one twice has no order and no interesting divisor; and a small model
  that copies an answer knows where it is by what it copied last.
  """
  return len(set(items)) == len(items)


def _chain_sum(entry, data):
  items = tuple(data['expression'].split())
  return Task('chain_sum', items), entry['answer']


def _number_format(entry, data):
  # Two decimals are within what the verifier allows.
  items = tuple(f'{x:.2f}' for x in data['candidates'])
  return Task('number_format', items, data['size']), f'{data["solution"]:.2f}'


def _number_sorting(entry, data):
  items = tuple(f'{float(x):g}' for x in data['original_numbers'])
  answer = ', '.join(f'{float(x):g}' for x in data['sorted_numbers'])
  asked = 'smallest' if data['direction'] == 'ascending' else 'largest'
  return Task('number_sorting', items, asked), answer


def _number_filtering(entry, data):
  # What is not removed is kept.
  above = data['operation'] in ('keep_larger', 'remove_smaller')
  asked = f'{"above" if above else "below"} {data["filter_value"]}'
  task = Task('number_filtering', tuple(data['original_numbers']), asked)
  return task, ', '.join(data['result'])


def _letter_counting(entry, data):
  text = tuple(''.join(data['span']).lower())
  return Task('letter_counting', text, data['target_letter']), entry['answer']


def _spell_backward(entry, data):
  return Task('spell_backward', tuple(data['word'])), ' '.join(entry['answer'])


def _word_sorting(entry, data):
  asked = 'a' if data['direction'] == 'ascending' else 'z'
  task = Task('word_sorting', tuple(data['transformed_words']), asked)
  return task, entry['answer']


def _gcd(entry, data):
  return Task('gcd', tuple(map(str, data['numbers']))), entry['answer']


_READERS = {
  'chain_sum': _chain_sum,
  'number_format': _number_format,
  'number_sorting': _number_sorting,
  'number_filtering': _number_filtering,
  'letter_counting': _letter_counting,
  'spell_backward': _spell_backward,
  'word_sorting': _word_sorting,
  'gcd': _gcd,
}
