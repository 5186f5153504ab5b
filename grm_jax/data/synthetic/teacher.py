"""A teacher that judges practice examples, with as many slips as asked for.

What it writes has the sections that the templates pointwise and single ask
for. It reads the prompt's texts only, works the answer out itself, step by
step, and holds every response against what came out, so that a model can
learn to do the same. It needs no reasoning-gym.

Its mistakes are those of judges whose texts cold starts are made of: it does no
work and is lenient with all responses, or trusts the one that is shown first,
or works with a slip. What follows is faithful to the mistake. A model that
copies the teacher copies these, too. Leniency is a tie and never rewarded, so
that rejective fine-tuning drops it; trust is right now and then, and is left
to reinforcement learning.
"""

from collections.abc import Sequence

from grm_jax.data.synthetic import (
  answer_check,
  stateless_random,
  task_format,
  worked_steps,
)
from grm_jax.data.synthetic.distractors import make_distractors
from grm_jax.errors import UserError
from grm_jax.judgement import response_order
from grm_jax.judgement.example import JudgingExample

# The first principle, and the family's own ones.
_FIRST = ('Correct result', 'Right answer')
_OWN = {
  'chain_sum': ('Every term counts', 'Signs are kept', 'Digits in place'),
  'number_format': ('All compared', 'Decimals are read', 'Copied exactly'),
  'number_sorting': ('Order as asked', 'None is lost', 'Copied exactly'),
  'number_filtering': ('All looked at', 'None is lost', 'Copied exactly'),
  'letter_counting': ('Every letter read', 'None is missed', 'None twice'),
  'spell_backward': ('From the end', 'None is lost', 'None twice'),
  'word_sorting': ('Order as asked', 'None is lost', 'None twice'),
  'gcd': ('Divides all', 'None is larger', 'Each step holds'),
}
# Drawn from: 3 in 9 are leniency, 5 are trust.
_MISTAKES = ('lenient',) * 3 + ('trust',) * 5 + ('slip',)
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
    mistakes: chance of one. The verdict is then wrong most of the time, not
      always.
    seed: with the example's id it decides the wording and the mistakes; a
      larger `mistakes` adds some and takes none away.
    order: order[place] is the response shown there; None is as they are.

  Returns:
    Principles, analysis and boxed scores, in the order shown. Without a mistake
    the right response's score is 9 and all others' are 1 to 4; a single
    response's is 1 or 0.

  Raises:
    UserError: `mistakes` outside of 0 to 1.
    ValueError: a query or a family that is not of this package, or an order
      that is none.
  """
  key = ('teacher', seed, example.id)
  n = len(example.responses)
  shown = response_order.apply(
    example.responses, range(n) if order is None else order
  )
  work, found = _findings(example, shown, mistakes, seed)
  numbers = [_score(finding, n) for finding in found]
  return '\n'.join(
    [
      'Specific Criteria:',
      *_principles(example.tags['family'], key),
      '',
      'Analysis:',
      work,
      *answer_check.lines(found),
      '',
      rf'Scores: \boxed{{{", ".join(map(str, numbers))}}}',
    ]
  )


def _findings(example, shown, mistakes, seed):
  """(a line of work, a Finding of each response), mistakes included."""
  if not 0 <= mistakes <= 1:
    raise UserError(f'mistakes is {mistakes}: it is a share, from 0 to 1')
  family = example.tags.get('family', '')
  task = task_format.read(family, example.query[-1].text)
  said = [task_format.answer_in(response) for response in shown]
  claimed = task_format.solve(task)
  work = worked_steps.steps(task, claimed)
  key = ('slip', seed, example.id)
  if stateless_random.chance(mistakes, *key):
    kind = stateless_random.choice(_MISTAKES, 'kind', *key)
    if kind == 'lenient':
      return worked_steps.NONE, [answer_check.LENIENT] * len(said)
    if kind == 'trust':
      claimed = said[0]
      work = worked_steps.trust(len(said), claimed)
    else:
      options = [slip.answer for slip in make_distractors(task, claimed)]
      claimed = stateless_random.choice(options, 'which', *key)
      work = worked_steps.steps(task, claimed)
  return work, [
    answer_check.check_answer(task, answer, claimed) for answer in said
  ]


def _score(finding, n):
  return int(not finding.fault) if n == 1 else finding.score


def _principles(family, key):
  names = (
    stateless_random.choice(_FIRST, 'first', *key),
    stateless_random.choice(_OWN[family], 'own', *key),
  )
  weights = stateless_random.choice(_WEIGHTS, 'weights', *key)
  return [
    f'{i}. {name} ({weight}%)'
    for i, (name, weight) in enumerate(zip(names, weights, strict=True), 1)
  ]
