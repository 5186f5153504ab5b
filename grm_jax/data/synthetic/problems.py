"""Endless streams of synthetic problems, split into train and evaluation.

The split of a problem depends on its items alone, in any order: no two splits
ask about the same numbers, words or letters.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from grm_jax.data.synthetic import (
  distractors,
  generators,
  stateless_random,
  task_format,
)
from grm_jax.data.synthetic.generators import FAMILIES
from grm_jax.data.synthetic.task_format import Task

# A tiny model takes too long to learn alphabetical order and remainders, and
# decimals make the longest judgements, so examples use these only on request.
_OPTIONAL_FAMILIES = ('number_format', 'word_sorting', 'gcd')
DEFAULT_FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
  {
    family: settings
    for family, settings in FAMILIES.items()
    if family not in _OPTIONAL_FAMILIES
  }
)
SPLITS = ('train', 'validation', 'held_out')
_SPLIT_OF_20 = ('train',) * 14 + ('validation',) * 3 + ('held_out',) * 3

# After this many draws in a row without a new problem, a stream repeats the
# problems that it has seen.
_MAX_IDLE_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its answer.

  Attributes:
    task: the parsed question.
    answer: the right answer, from the generator.
    entry: the generator's item, which the verifier needs.
  """

  task: Task
  answer: str
  entry: generators.Entry = dataclasses.field(repr=False, compare=False)

  @property
  def family(self) -> str:
    """The family of the task."""
    return self.task.family

  @property
  def question(self) -> str:
    """The text of the question."""
    return task_format.question(self.task)

  @property
  def split(self) -> str:
    """The split that the problem belongs to."""
    return split_of(self.task)


# (family, split, seed, settings) -> (problems so far, stream of further ones).
# Some problems take thousands of draws to find, and several stages of a process
# read the same streams.
_Key = tuple[str, str, int, tuple[tuple[str, Any], ...]]
_CACHE: dict[_Key, tuple[list[Problem], Iterator[Problem]]] = {}


def split_of(task: Task) -> str:
  """Returns the split of all problems with these items."""
  return stateless_random.choice(
    _SPLIT_OF_20, 'split', task.family, *sorted(task.items)
  )


def problems(
  family: str,
  split: str,
  seed: int = 0,
  settings: Mapping[str, Any] | None = None,
) -> Iterator[Problem]:
  """Returns an endless iterator over the problems of a split.

  Once new problems are exhausted, the earlier ones repeat. For families in
  task_format.ANSWERS all answers occur equally often.

  Args:
    family: a key of FAMILIES.
    split: one of SPLITS.
    seed: other seeds yield another order.
    settings: settings of the family's generator; None for FAMILIES[family].

  Raises:
    ValueError: the family or the split is unknown, or the generator rejects
      the settings. During the iteration: no problem of the split exists.
  """
  if family not in FAMILIES:
    raise ValueError(
      f'unknown practice family {family!r}; use one of {", ".join(FAMILIES)}'
    )
  if split not in SPLITS:
    raise ValueError(f'unknown split {split!r}; use one of {", ".join(SPLITS)}')
  settings = FAMILIES[family] if settings is None else settings
  key = (family, split, seed, tuple(sorted(settings.items())))
  if key not in _CACHE:
    generator_seed = stateless_random.integer(1 << 62, 'problems', family, seed)
    dataset = generators.make_dataset(family, generator_seed, settings)
    _CACHE[key] = [], _stream(family, split, dataset, settings)
  return _replay(key)


def round_robin(
  split: str,
  seed: int,
  families: Mapping[str, Mapping[str, Any]] = DEFAULT_FAMILIES,
) -> Iterator[tuple[str, Problem]]:
  """Returns an endless iterator over (id, problem), cycling through families.

  Args:
    split: see `problems`.
    seed: see `problems`.
    families: family -> settings of its generator.
  """
  streams = [
    enumerate(problems(family, split, seed, settings))
    for family, settings in families.items()
  ]
  return _round_robin(streams, split, seed)


def _round_robin(
  streams: Sequence[Iterator[tuple[int, Problem]]], split: str, seed: int
) -> Iterator[tuple[str, Problem]]:
  for stream in itertools.cycle(streams):
    number, problem = next(stream)
    # Part of many hash inputs: ids must not change.
    yield f'practice/{problem.family}/{split}/{seed}/{number}', problem


def rejected_distractors(problem: Problem) -> list[distractors.Distractor]:
  """Returns the distractors that the verifier rejects."""
  candidates = distractors.make_distractors(problem.task, problem.answer)
  return [x for x in candidates if not verify(problem, x.answer)]


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether the verifier accepts an answer; see generators.verify."""
  return generators.verify(problem.family, problem.entry, answer)


def _replay(key: _Key) -> Iterator[Problem]:
  """Yields the cached problems from the beginning, then further ones."""
  cached, stream = _CACHE[key]
  for number in itertools.count():
    if number == len(cached):
      try:
        cached.append(next(stream))
      except ValueError:
        _CACHE.pop(key, None)  # a generator that raised has ended
        raise
    yield cached[number]


def _stream(
  family: str, split: str, dataset: Any, settings: Mapping[str, Any]
) -> Iterator[Problem]:
  """Yields new problems, then repeats of them, equally often per answer."""
  # One group per answer if answers must be balanced, otherwise one group ''.
  groups = task_format.ANSWERS.get(family, ('',))
  pools: dict[str, dict[Task, Problem]] = {group: {} for group in groups}
  num_yielded = dict.fromkeys(groups, 0)
  yielded: set[Task] = set()
  num_idle = 0
  # An item is a function of its index and the seed; the dataset computes items
  # beyond its nominal length.
  for index in itertools.count():
    problem = _parse_problem(family, dataset[index])
    group = None if problem is None else _group(problem, split)
    if problem is not None and group is not None:
      pools[group].setdefault(problem.task, problem)
      is_turn = num_yielded[group] == min(num_yielded.values())
      if is_turn and problem.task not in yielded:
        yielded.add(problem.task)
        num_yielded[group] += 1
        num_idle = 0
        yield problem
        continue
    num_idle += 1
    if num_idle == _MAX_IDLE_DRAWS:
      break
  if not min(num_yielded.values()):
    raise ValueError(
      f'practice family {family}: no problem for {split} in {num_idle} draws '
      f'with {dict(settings)}; choose other settings'
    )
  repeats = {
    group: _repeat(list(pool.values()), group) for group, pool in pools.items()
  }
  # First complete the current round over the groups.
  unfinished = [
    x for x in groups if num_yielded[x] == min(num_yielded.values())
  ]
  for group in itertools.chain(unfinished, itertools.cycle(groups)):
    yield next(repeats[group])


def _parse_problem(family: str, entry: generators.Entry) -> Problem | None:
  parsed = generators.parse_entry(family, entry)
  return parsed and Problem(*parsed, entry)


def _group(problem: Problem, split: str) -> str | None:
  """Returns the answer if answers are balanced, else ''; None to discard."""
  if problem.split != split:
    return None
  answers = task_format.ANSWERS.get(problem.family)
  if answers is None:
    return ''
  return problem.answer if problem.answer in answers else None


def _repeat(pool: Sequence[Problem], group: str) -> Iterator[Problem]:
  """Yields all problems of a pool again and again, each time shuffled."""
  for number in itertools.count():
    yield from stateless_random.shuffled(pool, 'again', group, number)
