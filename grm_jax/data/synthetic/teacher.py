"""A synthetic teacher that judges practice examples, with optional mistakes.

It writes the sections that the templates `pointwise` and `single` request. It
uses only what the prompt shows: it works the answer out step by step and
compares every response with the result, so that a model can learn to do the
same. It does not need reasoning-gym.

Its mistakes are typical of cold-start judgements:
  lenient  it does no work and calls every response right
  trust    it takes the answer of the response shown first as the right one
  slip     it makes one mistake in its work
The rest of the judgement is consistent with the mistake. A model trained on the
teacher copies the mistakes, too. A lenient judgement is a tie, which is never
rewarded, so rejective fine-tuning removes it. Trust is sometimes right; it
remains for reinforcement learning to remove.
"""

from collections.abc import Sequence

from grm_jax.data.synthetic import (
  answer_check,
  stateless_random,
  task_format,
  worked_steps,
)
from grm_jax.data.synthetic.answer_check import AnswerCheck
from grm_jax.data.synthetic.distractors import make_distractors
from grm_jax.judgement import response_order
from grm_jax.judgement.example import JudgingExample

_FIRST_PRINCIPLES = ('Correct result', 'Right answer')
_SECOND_PRINCIPLES = {
  'chain_sum': ('Every term counts', 'Signs are kept', 'Digits in place'),
  'number_format': ('All compared', 'Decimals are read', 'Copied exactly'),
  'number_sorting': ('Order as asked', 'None is lost', 'Copied exactly'),
  'number_filtering': ('All looked at', 'None is lost', 'Copied exactly'),
  'letter_counting': ('Every letter read', 'None is missed', 'None twice'),
  'spell_backward': ('From the end', 'None is lost', 'None twice'),
  'word_sorting': ('Order as asked', 'None is lost', 'None twice'),
  'gcd': ('Divides all', 'None is larger', 'Each step holds'),
}
# A uniform choice: 3 in 9 mistakes are leniency, 5 are trust, 1 is a slip.
_MISTAKES = ('lenient',) * 3 + ('trust',) * 5 + ('slip',)
_WEIGHTS = ((80, 20), (70, 30), (60, 40))


def write(
  example: JudgingExample,
  *,
  error_rate: float = 0.0,
  seed: int = 0,
  order: Sequence[int] | None = None,
) -> str:
  """Returns the judgement that a GRM should write about a practice example.

  Args:
    example: from examples.stream.
    error_rate: probability of a mistake. The verdict of a judgement with a
      mistake is mostly, but not always, wrong.
    seed: decides, with the example's id, wording and mistakes; the mistakes at
      a lower `error_rate` are a subset of those at a higher one.
    order: order[position] is the index of the response shown there; None for
      the example's own order.

  Returns:
    Principles, analysis and boxed scores, in the order shown. Without a mistake
    the right response has score 9 and all others 1 to 4; a single response has
    1 or 0.

  Raises:
    ValueError: the query or the family is not from this package, or `order` is
      not a permutation.
  """
  n = len(example.responses)
  responses = response_order.apply(
    example.responses, range(n) if order is None else order
  )
  work, checks = _analysis(example, responses, error_rate, seed)
  scores = [int(not x.error) if n == 1 else x.score for x in checks]
  return '\n'.join(
    [
      'Specific Criteria:',
      *_principles(example, seed),
      '',
      'Analysis:',
      work,
      *answer_check.check_lines(checks),
      '',
      rf'Scores: \boxed{{{", ".join(map(str, scores))}}}',
    ]
  )


def _analysis(
  example: JudgingExample,
  responses: Sequence[str],
  error_rate: float,
  seed: int,
) -> tuple[str, list[AnswerCheck]]:
  """Returns the line of work and the check of each response."""
  family = example.tags.get('family', '')
  task = task_format.parse(family, example.query[-1].text)
  answers = [task_format.answer_in(response) for response in responses]
  claimed = task_format.solve(task)
  work = worked_steps.steps(task, claimed)
  key = ('slip', seed, example.id)
  if stateless_random.bernoulli(error_rate, *key):
    mistake = stateless_random.choice(_MISTAKES, 'kind', *key)
    if mistake == 'lenient':
      return worked_steps.NO_STEPS, [answer_check.LENIENT] * len(answers)
    if mistake == 'trust':
      claimed = answers[0]
      work = worked_steps.trust(len(answers), claimed)
    else:
      options = [x.answer for x in make_distractors(task, claimed)]
      claimed = stateless_random.choice(options, 'which', *key)
      work = worked_steps.steps(task, claimed)
  checks = [answer_check.check_answer(task, x, claimed) for x in answers]
  return work, checks


def _principles(example: JudgingExample, seed: int) -> list[str]:
  key = ('teacher', seed, example.id)
  family = example.tags['family']
  names = (
    stateless_random.choice(_FIRST_PRINCIPLES, 'first', *key),
    stateless_random.choice(_SECOND_PRINCIPLES[family], 'own', *key),
  )
  weights = stateless_random.choice(_WEIGHTS, 'weights', *key)
  return [
    f'{i}. {name} ({weight}%)'
    for i, (name, weight) in enumerate(zip(names, weights, strict=True), 1)
  ]
