"""Whether a generation's scores are right, and what reward they earn.

Equation 10 of arXiv 2504.02495. A parse failure is incorrect like any other
mistake: there is no format reward, the KL term keeps the format.
"""

from collections.abc import Sequence

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample


def correct(scores: Sequence[int] | None, best: int) -> bool:
  """Whether the best response's score is strictly above every other.

  Args:
    scores: [n] in the example's own order, n >= 2; None is a parse failure,
      which is incorrect. So is a tie at the top.
    best: index of the best response.

  Raises:
    ValueError: fewer than two scores, or a best that is none of them.
  """
  if scores is None:
    return False
  if len(scores) < 2:
    raise ValueError(f'{len(scores)} scores have no best: use correct_single')
  if not 0 <= best < len(scores):
    raise ValueError(f'best is {best}; there are {len(scores)} scores, from 0')
  return all(scores[best] > s for i, s in enumerate(scores) if i != best)


def correct_single(score: int | None, label: float) -> bool:
  """Whether the score of a single response is its label; None is not."""
  return score == label


def has_label(example: JudgingExample) -> bool:
  """Whether it is known what is right, and so whether a judgement is."""
  if len(example.responses) > 1:
    return example.best is not None
  return example.rewards is not None and example.rewards[0] in (0, 1)


def is_correct(scores: Sequence[int] | None, example: JudgingExample) -> bool:
  """`correct`, or for an example of one response `correct_single`.

  Args:
    scores: one per response in the example's own order, or None.
    example: with a best response, or for n == 1 with its label as reward.

  Raises:
    UserError: the example does not say what is right.
    ValueError: the example has another number of responses than there are
      scores.
  """
  n = len(example.responses)
  if scores is not None and len(scores) != n:
    raise ValueError(f'{example.id}: {len(scores)} scores for {n} responses')
  if n > 1:
    if example.best is None:
      raise UserError(f'{example.id}: none of {n} responses is marked best')
    return correct(scores, example.best)
  if example.rewards is None:
    raise UserError(f'{example.id}: a single response needs its label')
  return correct_single(
    None if scores is None else scores[0], example.rewards[0]
  )


def reward(scores: Sequence[int] | None, example: JudgingExample) -> float:
  """+1.0 if `is_correct`, else -1.0 (equation 10), parse failures included."""
  return 1.0 if is_correct(scores, example) else -1.0
