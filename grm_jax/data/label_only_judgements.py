"""Judgements that state a known verdict, for a cold start without a teacher.

They have the sections that the templates pointwise and single ask for and say
of each response whether it is the one that is known to be right. They teach a
model the form of a judgement. They hold no reasoning, so that what a model
learns of judging it learns afterwards, by rewards.
"""

from collections.abc import Iterable, Sequence

from grm_jax.data.synthetic import stateless_random
from grm_jax.errors import UserError
from grm_jax.judgement import correctness, response_order
from grm_jax.judgement.example import JudgingExample

BEST, OTHERS = 8, 4  # scores


def write(example: JudgingExample, order: Sequence[int]) -> str:
  """The known verdict in the form of a judgement.

  Args:
    example: with a best response, or of one response with its label 0 or 1.
    order: order[place] is the response that is shown there.

  Raises:
    UserError: it is not known what is right.
  """
  right = _right(example)
  n, shown = len(right), response_order.apply(right, order)
  words = ('wrong', 'right') if n == 1 else ('worse', 'best')
  scores = (0, 1) if n == 1 else (OTHERS, BEST)
  return judgement(
    'Correct and helpful',
    (f'{words[x]}.' for x in shown),
    (scores[x] for x in shown),
  )


def judgement(
  criterion: str, said: Iterable[str], scores: Iterable[int]
) -> str:
  """The sections that the templates ask for, with one principle.

  Args:
    criterion: the principle.
    said: of each response, in the order in which they are shown.
    scores: of each, in the same order.
  """
  return '\n'.join(
    [
      'Specific Criteria:',
      f'1. {criterion} (100%)',
      '',
      'Analysis:',
      *(f'Response {i}: {text}' for i, text in enumerate(said, 1)),
      '',
      rf'Scores: \boxed{{{", ".join(map(str, scores))}}}',
    ]
  )


def order_of(example: JudgingExample, seed: int) -> tuple[int, ...]:
  """The order in which a text shows the responses; by id and seed alone."""
  places = range(len(example.responses))
  return tuple(stateless_random.shuffled(places, 'order', seed, example.id))


def _right(example: JudgingExample) -> list[bool]:
  if not correctness.has_label(example):
    raise UserError(
      f'example {example.id!r} does not say what is right; needed is the best '
      'response, or of a single one the label 0 or 1 in rewards'
    )
  n = len(example.responses)
  if n == 1:
    return [example.rewards[0] == 1]
  return [i == example.best for i in range(n)]
