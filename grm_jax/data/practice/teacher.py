"""A teacher that judges practice examples, with as many slips as asked for.

What it writes has the sections that the templates pointwise and single ask
for. It reads the prompt's texts only, works the answer out itself, step by
step, and holds every response against what came out, so that a model can
learn to do the same. Its mistakes are slips in the working: what follows is
faithful to the slip. It needs no reasoning-gym.
"""

import re
from collections.abc import Sequence

from grm_jax.data.practice import draws, tasks, working
from grm_jax.data.practice.mistakes import slips
from grm_jax.data.practice.tasks import Task
from grm_jax.judging import orders
from grm_jax.judging.example import JudgingExample

# The first principle, the family's own ones, and one about the form.
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
_FORM = ('Plain form', 'Nothing more')
# Four principles to compare responses, as pointwise asks for; two for one.
_WEIGHTS = ((50, 20, 20, 10), (40, 30, 20, 10), (60, 20, 15, 5))
_WEIGHTS_SINGLE = ((80, 20), (70, 30), (60, 40))
# What is said of a right and of a wrong response.
_VERDICTS = (
  ('Response {k} says {a}: right.', 'Response {k} says {a}: wrong, {how}.'),
  ('Response {k}: {a}, as it should be.', 'Response {k}: {a}, but {how}.'),
  ('{a} in Response {k} is right.', '{a} in Response {k} is wrong, {how}.'),
)


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
  found = [_score(task, response, claimed, len(shown)) for response in shown]
  return '\n'.join(
    [
      'Specific Criteria:',
      *_principles(task.family, len(shown), key),
      '',
      'Analysis:',
      working.steps(task, claimed),
      *_verdicts(task, claimed, shown, key),
      '',
      rf'Scores: \boxed{{{", ".join(map(str, found))}}}',
    ]
  )


def scores(
  example: JudgingExample, *, mistakes: float = 0.0, seed: int = 0
) -> tuple[int, ...]:
  """The scores that `write` ends in, in the example's own order.

  Without a slip the right response's is 9 or 10 and all others' are 1 to 4;
  a single response's is 1 or 0.

  Raises:
    ValueError: as `write`.
  """
  task, claimed = _work(example, mistakes, seed)
  n = len(example.responses)
  return tuple(_score(task, text, claimed, n) for text in example.responses)


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


def _score(task, response, claimed, n):
  answer = tasks.answer_in(response)
  if n == 1:
    return int(answer == claimed)
  if answer != claimed:
    return _fault(task, answer, claimed)[1]
  # Nothing more than the answer was asked for.
  return 10 if response == answer else 9


def _fault(task: Task, answer: str, claimed: str) -> tuple[str, int]:
  """(what is wrong with an answer, its score: 1 to 4)."""
  if tasks.FORMS[task.family].answer is not None:
    return _list_fault(
      tasks.split_answer(task, answer), tasks.split_answer(task, claimed)
    )
  if task.family == 'number_format':
    if answer in task.items:
      return f'not the {task.asked}', 3
    return 'not in the list', 1
  if not re.fullmatch(r'-?[0-9]{1,9}', answer):
    return 'not a whole number', 1
  gap = abs(int(answer) - int(claimed))
  return f'off by {gap}', 4 if gap == 1 else 3 if gap <= 5 else 2


def _list_fault(items, claimed):
  more = len(items) - len(claimed)
  if more:
    return f'{abs(more)} too {"many" if more > 0 else "few"}', 2
  pairs = zip(items, claimed, strict=True)
  differ = sum(item != other for item, other in pairs)
  what = '1 place differs' if differ == 1 else f'{differ} places differ'
  return what, min(4, max(1, 6 - differ))


def _verdicts(task, claimed, shown, key):
  right, wrong = draws.choice(_VERDICTS, 'verdict', *key)
  for k, answer in enumerate(map(tasks.answer_in, shown), 1):
    how, _ = _fault(task, answer, claimed)
    text = right if answer == claimed else wrong
    yield text.format(k=k, a=answer, how=how)


def _principles(family, n, key):
  own = draws.shuffled(_OWN[family], 'own', *key)
  names = [draws.choice(_FIRST, 'first', *key), *own[: 2 if n > 1 else 1]]
  if n > 1:
    names.append(draws.choice(_FORM, 'form', *key))
  table = _WEIGHTS if n > 1 else _WEIGHTS_SINGLE
  weights = draws.choice(table, 'weights', *key)
  return [
    f'{i}. {name} ({weight}%)'
    for i, (name, weight) in enumerate(zip(names, weights, strict=True), 1)
  ]
