"""Judging examples from synthetic problems: one right response, distractors."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grm_jax.data.synthetic import problems, stateless_random
from grm_jax.data.synthetic.problems import DEFAULT_FAMILIES, Problem
from grm_jax.judgement.example import JudgingExample, Turn

# Most preference data are pairs, and a small model reads pairs best.
NUM_RESPONSES = (1, 2, 2, 2, 2, 3, 3, 4)


def examples(
  split: str,
  count: int,
  *,
  seed: int = 0,
  num_responses: Sequence[int] = NUM_RESPONSES,
  families: Mapping[str, Mapping[str, Any]] = DEFAULT_FAMILIES,
) -> list[JudgingExample]:
  """Returns the first `count` examples of `stream`; see there."""
  endless = stream(
    split, seed=seed, num_responses=num_responses, families=families
  )
  return list(itertools.islice(endless, count))


def stream(
  split: str,
  *,
  seed: int = 0,
  num_responses: Sequence[int] = NUM_RESPONSES,
  families: Mapping[str, Mapping[str, Any]] = DEFAULT_FAMILIES,
) -> Iterator[JudgingExample]:
  """Returns an endless iterator over examples, one family after the other.

  With two or more responses exactly one is right: `best` is its index, its
  reward is 1 and all others are 0, and it is in each position equally often. A
  single response is right half of the time, and its reward is the label. The
  right answer is not a `reference`, because a prompt would show that.

  Args:
    split: one of problems.SPLITS; no problem is in two splits.
    seed: other seeds yield other examples of the same split.
    num_responses: choices of n with their multiplicities as weights.
    families: family -> settings of its generator, see problems.FAMILIES.

  Raises:
    ValueError: the split or a family is unknown, a generator rejects its
      settings, or n is below 1 or exceeds the number of distractors.
  """
  if not families:
    raise ValueError('families is empty; give at least one family')
  if not num_responses or min(num_responses) < 1:
    raise ValueError(f'num_responses is {num_responses}; each must be >= 1')
  named_problems = problems.round_robin(split, seed, families)
  return (
    _example(problem, id, stateless_random.choice(num_responses, 'n', id))
    for id, problem in named_problems
  )


def _example(problem: Problem, id: str, n: int) -> JudgingExample:
  best: int | None
  if n == 1:
    label = stateless_random.integer(2, 'label', id)
    responses = [problem.answer] if label else _wrong_answers(problem, id, 1)
    best, rewards = None, [float(label)]
  else:
    best = stateless_random.integer(n, 'best', id)
    responses = _wrong_answers(problem, id, n - 1)
    responses.insert(best, problem.answer)
    rewards = [float(i == best) for i in range(n)]
  return JudgingExample(
    id=id,
    query=(Turn('user', problem.question),),
    responses=tuple(responses),
    best=best,
    rewards=tuple(rewards),
    tags={
      'suite': 'practice',
      'section': problem.split,
      'subset': problem.family,
      'family': problem.family,
      'split': problem.split,
    },
  )


def _wrong_answers(problem: Problem, id: str, count: int) -> list[str]:
  """Returns distractors of as many different kinds as possible."""
  by_kind: dict[str, list[str]] = {}
  for distractor in problems.rejected_distractors(problem):
    by_kind.setdefault(distractor.kind, []).append(distractor.answer)
  kinds = [
    stateless_random.shuffled(answers, kind, id)
    for kind, answers in by_kind.items()
  ]
  kinds = stateless_random.shuffled(kinds, 'kinds', id)
  # One answer of each kind, then the second of each kind, and so on.
  rounds = itertools.zip_longest(*kinds)
  answers = [x for items in rounds for x in items if x is not None]
  if len(answers) < count:
    raise ValueError(
      f'{id}: {len(answers)} distractors are too few for {count} wrong '
      'responses; choose fewer responses or larger problems'
    )
  return answers[:count]
