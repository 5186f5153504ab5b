"""What stands beside every accuracy: how the generations behaved."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from grm_jax.errors import UserError
from grm_jax.judgement import voting
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample, Judgement

# 0 is legal only for a single response with a label.
SCORES = range(11)


@dataclasses.dataclass(frozen=True)
class GenerationStats:
  """Rates of 0..1; None where nothing could be counted.

  Attributes:
    num_queries, num_generations: how many were counted.
    parse_failure_rate: generations without scores.
    unvoted_rate: queries none of whose generations has scores.
    tie_rate: parsed generations, n >= 2, with more than one top score.
    vote_tie_rate: queries, n >= 2, whose summed scores have such a tie.
    first_rate: how often the response shown first has the top score, of
      parsed generations with n >= 2; one of m tied counts 1/m.
    first_expected: what first_rate is without any preference: the mean of
      1/n over the same generations.
    mean_tokens: mean length of a generation, parsed or not.
    truncated_rate: generations that ended for want of room.
    scores, right, others: counts of the integer scores 0..10: all, those of
      the best (or right) response, and those of the other responses. A score
      whose response is not known to be either is only in the first. Values
      of a scalar reward model are no integers and not counted.
  """

  num_queries: int
  num_generations: int
  parse_failure_rate: float | None
  unvoted_rate: float | None
  tie_rate: float | None
  vote_tie_rate: float | None
  first_rate: float | None
  first_expected: float | None
  mean_tokens: float | None
  truncated_rate: float | None
  scores: tuple[int, ...]
  right: tuple[int, ...]
  others: tuple[int, ...]


def of_samples(judged: Iterable[JudgedExample]) -> GenerationStats:
  """The summary of all samples."""
  return _summary([(one.example, one.samples) for one in judged])


def of_greedy(judged: Iterable[JudgedExample]) -> GenerationStats:
  """The summary of the greedy generations, where there are any."""
  return _summary(
    [(one.example, (one.greedy,)) for one in judged if one.greedy is not None]
  )


def _summary(
  queries: Sequence[tuple[JudgingExample, Sequence[Judgement]]],
) -> GenerationStats:
  generations = [x for _, some in queries for x in some]
  compared = [x for x in generations if x.scores and len(x.scores) > 1]
  parsed = [[x.scores for x in some if x.scores] for _, some in queries if some]
  votes = [
    voting.sum_scores(scores, len(scores[0])) for scores in parsed if scores
  ]
  preferred, total = voting.first_position_preference(
    (x.order, x.scores) for x in generations
  )
  scores, right, others = _histograms(queries)
  return GenerationStats(
    num_queries=len(queries),
    num_generations=len(generations),
    parse_failure_rate=_mean(x.scores is None for x in generations),
    unvoted_rate=_mean(not scores for scores in parsed),
    tie_rate=_mean(_tied(x.scores) for x in compared),
    vote_tie_rate=_mean(_tied(vote) for vote in votes if len(vote) > 1),
    first_rate=preferred / total if total else None,
    first_expected=_mean(1 / len(x.scores) for x in compared),
    mean_tokens=_mean(x.num_tokens for x in generations),
    truncated_rate=_mean(x.finish == 'length' for x in generations),
    scores=scores,
    right=right,
    others=others,
  )


def _mean(values: Iterable[float]) -> float | None:
  values = list(values)
  return sum(values) / len(values) if values else None


def _tied(scores: Sequence[int]) -> bool:
  return len(voting.winners(scores)) > 1


def _histograms(queries) -> tuple[tuple[int, ...], ...]:
  """Counts of 0..10: of all scores, of right responses and of others."""
  counts = {True: Counter(), False: Counter(), None: Counter()}
  for example, generations in queries:
    right = _right(example)
    for generation in generations:
      if generation.scores is not None:
        for kind, score in zip(right, generation.scores, strict=True):
          if isinstance(score, int):
            counts[kind][score] += 1
  wrong = sorted(set().union(*counts.values()) - set(SCORES))
  if wrong:
    raise UserError(
      f'a score is {wrong[0]}; legal are {SCORES[0]} to {SCORES[-1]}'
    )
  everything = sum(counts.values(), Counter())
  return tuple(
    tuple(count[score] for score in SCORES)
    for count in (everything, counts[True], counts[False])
  )


def _right(example: JudgingExample) -> list[bool | None]:
  """Of each response whether it is the right one, None if nobody knows."""
  if example.best is not None:
    return [i == example.best for i in range(len(example.responses))]
  # Labels: one response that is right or wrong, or several right ones.
  if example.rewards is not None and set(example.rewards) <= {0, 1}:
    return [reward == 1 for reward in example.rewards]
  return [None] * len(example.responses)
