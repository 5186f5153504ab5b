"""Judgements that state a known label, for an SFT cold start without a teacher.

They have the sections that the templates `pointwise` and `single` request, and
for each response they state whether it is the labelled one. They teach a model
the format of a judgement. They contain no reasoning: the model learns to judge
in the stages that follow, from rewards.
"""

from collections.abc import Iterable, Sequence

from grm_jax.data.synthetic import stateless_random
from grm_jax.errors import UserError
from grm_jax.judgement import correctness, response_order
from grm_jax.judgement.example import JudgingExample

BEST_SCORE, OTHER_SCORE = 8, 4


def write(example: JudgingExample, order: Sequence[int]) -> str:
  """Returns the judgement that states an example's label.

  Args:
    example: has a best response, or one response with label 0 or 1.
    order: order[position] is the index of the response shown there.

  Raises:
    UserError: the example has no label.
  """
  is_good = response_order.apply(_is_good(example), order)
  if len(is_good) == 1:
    bad, good, scores = 'wrong', 'right', (0, 1)
  else:
    bad, good, scores = 'worse', 'best', (OTHER_SCORE, BEST_SCORE)
  return format_judgement(
    'Correct and helpful',
    (f'{good if x else bad}.' for x in is_good),
    (scores[x] for x in is_good),
  )


def format_judgement(
  criterion: str, analyses: Iterable[str], scores: Iterable[int]
) -> str:
  """Returns the sections that the templates request, with one principle.

  Args:
    criterion: the principle.
    analyses: text about each response, in the order shown.
    scores: score of each response, in the order shown.
  """
  return '\n'.join(
    [
      'Specific Criteria:',
      f'1. {criterion} (100%)',
      '',
      'Analysis:',
      *(f'Response {i}: {text}' for i, text in enumerate(analyses, 1)),
      '',
      rf'Scores: \boxed{{{", ".join(map(str, scores))}}}',
    ]
  )


def random_order(example: JudgingExample, seed: int) -> tuple[int, ...]:
  """Returns a response order that depends on the example id and seed only."""
  indices = range(len(example.responses))
  return tuple(stateless_random.shuffled(indices, 'order', seed, example.id))


def _is_good(example: JudgingExample) -> list[bool]:
  """Returns whether each response is the best, or the only one is correct."""
  if not correctness.has_label(example):
    raise UserError(
      f'example {example.id!r} has no label; set `best`, or for a single '
      'response `rewards` to [0] or [1]'
    )
  if len(example.responses) == 1:
    assert example.rewards is not None  # has_label
    return [example.rewards[0] == 1]
  return [i == example.best for i in range(len(example.responses))]
