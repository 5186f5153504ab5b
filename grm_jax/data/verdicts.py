"""Judgements that state a known verdict, for a cold start without a teacher.

They have the sections that the templates pointwise and single ask for and say
of each response whether it is the one that is known to be right. They teach a
model the form of a judgement. They hold no reasoning, so that what a model
learns of judging it learns afterwards, by rewards.
"""

from collections.abc import Sequence

from grm_jax.judging import orders, outcome
from grm_jax.judging.example import JudgingExample

BEST, OTHERS = 8, 4  # scores


def write(example: JudgingExample, order: Sequence[int]) -> str:
  """The known verdict in the form of a judgement.

  Args:
    example: with a best response, or of one response with its label 0 or 1.
    order: order[place] is the response that is shown there.

  Raises:
    ValueError: it is not known what is right.
  """
  right = _right(example)
  n, shown = len(right), orders.apply(right, order)
  words = ('wrong', 'right') if n == 1 else ('worse', 'best')
  scores = (0, 1) if n == 1 else (OTHERS, BEST)
  boxed = ', '.join(str(scores[x]) for x in shown)
  return '\n'.join(
    [
      'Specific Criteria:',
      '1. Correct and helpful (100%)',
      '',
      'Analysis:',
      *(f'Response {i}: {words[x]}.' for i, x in enumerate(shown, 1)),
      '',
      rf'Scores: \boxed{{{boxed}}}',
    ]
  )


def _right(example: JudgingExample) -> list[bool]:
  if not outcome.is_told(example):
    raise ValueError(
      f'example {example.id!r} does not say what is right; needed is the best '
      'response, or of a single one the label 0 or 1 in rewards'
    )
  n = len(example.responses)
  if n == 1:
    return [example.rewards[0] == 1]
  return [i == example.best for i in range(n)]
