"""A teacher that judges practice examples, with as many slips as asked for.

What it writes has the sections that the templates pointwise and single ask
for. It reads the prompt's texts only, works the answer out itself, step by
step, and holds every response against what came out, so that a model can
learn to do the same. Its mistakes are slips in the working: what follows is
faithful to the slip. It needs no reasoning-gym.
"""

from collections.abc import Sequence

from grm_jax.data.practice import draws, holding, tasks, working
from grm_jax.data.practice.mistakes import slips
from grm_jax.judging import orders
from grm_jax.judging.example import JudgingExample

# The first principle, and the family's own ones.
_FIRST = ('Correct result', 'Right answer')
_OWN = {
  'chain_sum': ('Every term counts', 'Signs are kept', 'Digits in place'),
  'number_format': ('All compared', 'Decimals are read', 'Copied exactly'),
  'number_sorting': ('Order as asked', 'None is lost', 'Copied exactly'),
  'letter_counting': ('Every letter read', 'None is missed', 'None twice'),
  'spell_backward': ('From the end', 'None is lost', 'None twice'),
  'word_sorting': ('Order as asked', 'None is lost', 'None twice'),
  'gcd': ('Divides all', 'None is larger', 'Each step holds'),
}
_WEIGHTS = ((80, 20), (70, 30), (60, 40))


def write(
  example: JudgingExample,
  *,
  mistakes: float = 0.0,
  seed: int = 0,
  order: Sequence[int] | None = None,
) -> str:
  """What a GRM should write about an example of this package.

  Args:
    example: of `examples.stream`.
    mistakes: chance of a slip in the working. The verdict is then wrong most
      of the time, not always.
    seed: with the example's id it decides the wording and the slips; a larger
      `mistakes` adds slips and takes none away.
    order: order[place] is the response shown there; None is as they are.

  Returns:
    Principles, analysis and the boxed scores of `scores`, in the order shown.

  Raises:
    ValueError: a query or a family that is not of this package, an order
      that is none, or `mistakes` outside of 0 to 1.
  """
  task, claimed = _work(example, mistakes, seed)
  key = ('teacher', seed, example.id)
  order = range(len(example.responses)) if order is None else order
  shown = orders.apply(example.responses, order)
  found = _findings(task, shown, claimed)
  numbers = (_score(finding, len(shown)) for finding in found)
  return '\n'.join(
    [
      'Specific Criteria:',
      *_principles(task.family, key),
      '',
      'Analysis:',
      working.steps(task, claimed),
      *holding.lines(found),
      '',
      rf'Scores: \boxed{{{", ".join(map(str, numbers))}}}',
    ]
  )


def scores(
  example: JudgingExample, *, mistakes: float = 0.0, seed: int = 0
) -> tuple[int, ...]:
  """The scores that `write` ends in, in the example's own order.

  Without a slip the right response's is 10 and all others' are 1 to 4;
  a single response's is 1 or 0.

  Raises:
    ValueError: as `write`.
  """
  task, claimed = _work(example, mistakes, seed)
  n = len(example.responses)
  found = _findings(task, example.responses, claimed)
  return tuple(_score(finding, n) for finding in found)


def _work(example, mistakes, seed):
  """The task, and the answer that the teacher arrives at."""
  if not 0 <= mistakes <= 1:
    raise ValueError(f'mistakes is {mistakes}: it is a share, from 0 to 1')
  family = example.tags.get('family', '')
  task = tasks.read(family, example.query[-1].text)
  right = tasks.solve(task)
  key = ('slip', seed, example.id)
  if not draws.chance(mistakes, *key):
    return task, right
  options = [slip.answer for slip in slips(task, right)]
  answers = [tasks.answer_in(response) for response in example.responses]
  # Half of the slips are those of believing what somebody says.
  said = [option for option in options if option in answers]
  if said and draws.integer(2, 'believes', *key):
    options = said
  return task, draws.choice(options, 'which', *key)


def _findings(task, responses, claimed):
  answers = map(tasks.answer_in, responses)
  return [holding.hold(task, answer, claimed) for answer in answers]


def _score(finding, n):
  return int(not finding.fault) if n == 1 else finding.score


def _principles(family, key):
  names = (
    draws.choice(_FIRST, 'first', *key),
    draws.choice(_OWN[family], 'own', *key),
  )
  weights = draws.choice(_WEIGHTS, 'weights', *key)
  return [
    f'{i}. {name} ({weight}%)'
    for i, (name, weight) in enumerate(zip(names, weights, strict=True), 1)
  ]
