"""Short texts that teach what a critique is made of, one piece at a time.

To work an answer out, beside other problems and above responses that may be
wrong, to add two digits, to say which of two is larger and whether two pieces
are the same, and to hold responses against an answer are the steps of a
critique. Texts of one step each
are shorter than judgements and say more of it, and a small model learns from
them in minutes what it does not see in whole judgements for hours. They are the
general instruction data of practice runs.
"""

import itertools
from collections.abc import Iterator

from grm_jax.data.synthetic import (
  answer_check,
  examples,
  problems,
  stateless_random,
  task_format,
  worked_steps,
)
from grm_jax.data.synthetic.problems import Problem
from grm_jax.judgement.example import JudgingExample

_PAIRS = 6  # compared, added or sifted in one text
_AMONG = 3  # problems that are solved in one text
_SEVERAL = tuple(n for n in examples.NUM_RESPONSES if n > 1)

# Two digits whose sum or difference is one, with the result.
_STEPS = tuple(
  (f'{a} {sign} {b}', str(result))
  for a, b in itertools.product(range(10), repeat=2)
  for sign, result in (('+', a + b), ('-', a - b))
  if 0 <= result <= 9
)
# One-digit numbers, what is asked of them, and whether they stay.
_SIFTED = tuple(
  (str(a), f'{side} {b}', (a > b) == (side == 'above'))
  for side in ('above', 'below')
  for a, b in itertools.permutations(range(10), 2)
)

# (id, what is asked, what is to be written)
Basic = tuple[str, str, str]


def basics(split: str, count: int, *, seed: int = 0) -> list[Basic]:
  """The first `count` texts of an endless stream.

  Args:
    split: of problems, as for judging examples: no problem is in two.
    count: how many.
    seed: another one is other texts.

  Raises:
    ValueError: an unknown split.
  """
  return list(itertools.islice(_stream(split, seed), count))


def _stream(split, seed) -> Iterator[Basic]:
  stream = examples.stream(split, seed=seed, num_responses=_SEVERAL)
  asked = problems.in_turn(split, seed)
  for number, example in enumerate(stream):
    task = task_format.read(example.tags['family'], example.query[-1].text)
    # To solve is the hardest step: it comes as often as the others together.
    if number % 3:
      yield _solve_beside(example, task)
      yield _hold(example, task)
    else:
      yield _solve(list(itertools.islice(asked, _AMONG)))
      yield (_compare, _sums, _sift)[number // 3 % 3](example, task)


def _solve(some: list[tuple[str, Problem]]) -> Basic:
  """Several problems, with marks that say which is which."""
  n = len(some)
  asked, written = [], []
  for k, (_, problem) in enumerate(some, 1):
    asked.append(f'{answer_check.response_tag(k, n)} {problem.question}')
    worked = worked_steps.steps(problem.task, task_format.solve(problem.task))
    written.append(f'{answer_check.response_tag(k, n)} {worked}')
  return f'{some[0][0]}/solve', '\n'.join(asked), '\n'.join(written)


def _solve_beside(example: JudgingExample, task) -> Basic:
  """A problem above responses to it, which are not to be copied."""
  asked = f'{example.query[-1].text}\n{_shown(example)}Solve'
  steps = worked_steps.steps(task, task_format.solve(task))
  return f'{example.id}/solve beside', asked, steps


def _shown(example) -> str:
  """The responses as the prompts of judges show them."""
  n = len(example.responses)
  return ''.join(
    f'{answer_check.response_tag(k, n)} {task_format.answer_in(x)}\n[End]\n'
    for k, x in enumerate(example.responses, 1)
  )


def _compare(example: JudgingExample, task) -> Basic:
  """Pieces of answers, in pairs; half of them or more the same twice."""
  name = f'{example.id}/compare'
  pieces = sorted(
    {
      x
      for text in example.responses
      for x in task_format.split_answer(task, text)
    }
  )
  pairs = []
  for i in range(_PAIRS):
    first, other = (
      stateless_random.choice(pieces, side, i, name)
      for side in ('first', 'other')
    )
    same = stateless_random.chance(0.5, 'same', i, name)
    pairs.append((first, first if same else other))
  asked = ', '.join(f'{a} {b}' for a, b in pairs)
  return name, f'Compare {asked}', f'Pairs: {answer_check.compared(pairs)}.'


def _sums(example: JudgingExample, task) -> Basic:
  """Steps of chain_sum, whose problems are sums of three numbers."""
  name = f'{example.id}/sums'
  found = [stateless_random.choice(_STEPS, i, name) for i in range(_PAIRS)]
  asked = ', '.join(step for step, _ in found)
  return name, f'Sums {asked}', ', '.join(f'{x} = {y}' for x, y in found) + '.'


def _sift(example: JudgingExample, task) -> Basic:
  """Steps of number_filtering."""
  name = f'{example.id}/sift'
  found = [stateless_random.choice(_SIFTED, i, name) for i in range(_PAIRS)]
  asked = ', '.join(f'{item} {side}' for item, side, _ in found)
  written = ', '.join(worked_steps.sifted(*step) for step in found)
  return name, f'Sift {asked}', f'{written}.'


def _hold(example: JudgingExample, task) -> Basic:
  """All responses against what is right, or what one of them says."""
  name = f'{example.id}/hold'
  said = [task_format.answer_in(x) for x in example.responses]
  # A critique holds responses against its own working, which may have a slip.
  due = stateless_random.choice(
    (task_format.solve(task), stateless_random.choice(said, name)), 'due', name
  )
  found = [answer_check.check_answer(task, x, due) for x in said]
  written = '\n'.join(answer_check.lines(found))
  return name, f'{_shown(example)}Hold against {due}', written
