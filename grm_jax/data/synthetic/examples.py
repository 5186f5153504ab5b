"""Judging examples made from problems: one right response, near misses."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grm_jax.data.synthetic import problems, stateless_random
from grm_jax.data.synthetic.problems import DEFAULTS, Problem
from grm_jax.judgement.example import JudgingExample, Turn

# Pairs are what most data is made of, and what a small model reads best.
NUM_RESPONSES = (1, 2, 2, 2, 2, 3, 3, 4)


def examples(
  split: str,
  count: int,
  *,
  seed: int = 0,
  num_responses: Sequence[int] = NUM_RESPONSES,
  families: Mapping[str, Mapping[str, Any]] = DEFAULTS,
) -> list[JudgingExample]:
  """The first `count` examples of `stream`; see there."""
  endless = stream(
    split, seed=seed, num_responses=num_responses, families=families
  )
  return list(itertools.islice(endless, count))


def stream(
  split: str,
  *,
  seed: int = 0,
  num_responses: Sequence[int] = NUM_RESPONSES,
  families: Mapping[str, Mapping[str, Any]] = DEFAULTS,
) -> Iterator[JudgingExample]:
  """Endless examples, the families in turn.

  With two responses or more exactly one is right: it is `best`, rewards are 1
  and 0, and it stands at each place equally often. A single response is right
  half of the time; its reward is the label. The right answer is no
  `reference`, which a prompt would show.

  Args:
    split: 'train', 'validation' or 'held_out': no problem is in two.
    seed: another one is other examples of the same split.
    num_responses: n is drawn from these; one that stands here twice is drawn
      twice as often.
    families: family -> settings of its generator, as problems.FAMILIES.

  Raises:
    ValueError: an unknown split or family, settings that a generator refuses,
      n below 1 or more than there are near misses.
  """
  if not families:
    raise ValueError('practice examples of no family: name at least one')
  if not num_responses or min(num_responses) < 1:
    raise ValueError(f'num_responses is {num_responses}: each at least 1')
  named = problems.in_turn(split, seed, families)
  return _examples(named, tuple(num_responses))


def _examples(named, num_responses):
  for name, problem in named:
    n = stateless_random.choice(num_responses, 'n', name)
    yield _example(problem, name, n)


def _example(problem: Problem, name: str, n: int) -> JudgingExample:
  best = stateless_random.integer(n, 'best', name)
  if n == 1:
    label = stateless_random.integer(2, 'label', name)
    answers = [problem.answer] if label else _wrong(problem, name, 1)
    rewards = (float(label),)
  else:
    answers = _wrong(problem, name, n - 1)
    answers.insert(best, problem.answer)
    rewards = tuple(float(i == best) for i in range(n))
  return JudgingExample(
    id=name,
    query=(Turn('user', problem.question),),
    responses=tuple(answers),
    best=None if n == 1 else best,
    rewards=rewards,
    tags={
      'suite': 'practice',
      'section': problem.split,
      'subset': problem.family,
      'family': problem.family,
      'split': problem.split,
    },
  )


def _wrong(problem, name, count):
  """Near misses, of as many kinds as there are."""
  kinds: dict[str, list[str]] = {}
  for miss in problems.near_misses(problem):
    kinds.setdefault(miss.kind, []).append(miss.answer)
  rows = [stateless_random.shuffled(kinds[kind], kind, name) for kind in kinds]
  rows = stateless_random.shuffled(rows, 'kinds', name)
  ranks = itertools.zip_longest(*rows)
  found = [answer for rank in ranks for answer in rank if answer is not None]
  if len(found) < count:
    raise ValueError(
      f'{name}: {len(found)} near misses are too few for {count} wrong '
      'responses; choose fewer responses or larger problems'
    )
  return found[:count]
