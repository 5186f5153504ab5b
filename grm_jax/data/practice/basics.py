"""Short texts that teach what a critique is made of, one piece at a time.

To work an answer out, to say whether two pieces are the same, and to hold
responses against an answer are the steps of a critique. Texts of one step each
are shorter than judgements and say more of it, and a small model learns from
them in minutes what it does not see in whole judgements for hours. They are the
general instruction data of practice runs.
"""

import itertools
from collections.abc import Iterator

from grm_jax.data.practice import draws, examples, holding, tasks, working
from grm_jax.judging.example import JudgingExample

_PAIRS = 6  # compared in one text
_SEVERAL = tuple(n for n in examples.NUM_RESPONSES if n > 1)

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
  for number, example in enumerate(stream):
    task = tasks.read(example.tags['family'], example.query[-1].text)
    yield _solve(example, task)
    # To solve is the hardest step: it comes as often as the others together.
    yield (_hold if number % 3 else _compare)(example, task)


def _solve(example, task) -> Basic:
  steps = working.steps(task, tasks.solve(task))
  return f'{example.id}/solve', example.query[-1].text, steps


def _compare(example, task) -> Basic:
  """Pieces of answers, in pairs; half of them or more the same twice."""
  name = f'{example.id}/compare'
  pieces = sorted(
    {x for text in example.responses for x in tasks.split_answer(task, text)}
  )
  pairs = []
  for i in range(_PAIRS):
    first, other = (
      draws.choice(pieces, side, i, name) for side in ('first', 'other')
    )
    same = draws.chance(0.5, 'same', i, name)
    pairs.append((first, first if same else other))
  asked = ', '.join(f'{a} {b}' for a, b in pairs)
  return name, f'Compare {asked}', f'Pairs: {holding.compared(pairs)}.'


def _hold(example: JudgingExample, task) -> Basic:
  """All responses against what is right, or what one of them says."""
  name = f'{example.id}/hold'
  said = [tasks.answer_in(x) for x in example.responses]
  # A critique holds responses against its own working, which may have a slip.
  due = draws.choice((tasks.solve(task), draws.choice(said, name)), 'due', name)
  n = len(said)
  shown = ''.join(
    f'{holding.mark(k, n)} {x}\n[End]\n' for k, x in enumerate(said, 1)
  )
  found = [holding.hold(task, x, due) for x in said]
  written = '\n'.join(holding.lines(found))
  return name, f'{shown}Hold against {due}', written
