"""Statistics of generations: parse failures, ties, position bias, lengths."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from grm_jax.errors import UserError
from grm_jax.evaluation import metrics
from grm_jax.evaluation.metrics import ScoredItem, WeightedSection
from grm_jax.evaluation.scaling_curves import Estimate
from grm_jax.judgement import voting
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample, Judgement

# A score of 0 is valid only for a single response with a label.
SCORES = range(11)


@dataclasses.dataclass(frozen=True)
class GenerationStats:
  """Statistics of generations. Rates are in 0 to 1, None without data.

  n is the number of responses of a query.

  Attributes:
    num_queries: number of queries.
    num_generations: number of generations.
    parse_failure_rate: fraction of generations without scores.
    unvoted_rate: fraction of queries without any parsed generation.
    tie_rate: fraction of parsed generations, n >= 2, whose top score is tied.
    vote_tie_rate: fraction of queries, n >= 2, whose top vote is tied.
    first_rate: fraction of parsed generations, n >= 2, whose first shown
      response has the top score; an m-fold tie counts 1/m.
    first_expected: first_rate of a judge without position bias: the mean of
      1/n over the same generations.
    mean_tokens: mean length of all generations, in tokens.
    truncated_rate: fraction of generations that reached the token limit.
    num_shortened: number of generations whose prompt lacks text of the example,
      because it was too long.
    num_extraction_differs: number of generations with other scores by the other
      extraction, see judgement/prompt_format.py.
    scores: number of scores with the values 0 to 10. Values of a scalar reward
      model are not integers and are not counted.
    right: the same, of the best or correct responses only.
    others: the same, of the responses known not to be best or correct.
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
  num_shortened: int
  num_extraction_differs: int
  scores: tuple[int, ...]
  right: tuple[int, ...]
  others: tuple[int, ...]


def of_samples(judged: Iterable[JudgedExample]) -> GenerationStats:
  """Returns the statistics of all samples."""
  return _stats([(x.example, x.samples) for x in judged])


def of_greedy(judged: Iterable[JudgedExample]) -> GenerationStats:
  """Returns the statistics of the greedy generations."""
  return _stats(
    [(x.example, (x.greedy,)) for x in judged if x.greedy is not None]
  )


def samples_or_greedy(judged: JudgedExample) -> tuple[Judgement, ...]:
  """Returns the samples, or the greedy generation if there are none."""
  if judged.samples or judged.greedy is None:
    return judged.samples
  return (judged.greedy,)


def mean_lengths(
  judged: Sequence[JudgedExample], sections: Iterable[str], seed: int = 0
) -> dict[str, Estimate]:
  """Returns the mean length of the generations of each section, in tokens.

  They are the samples, or the greedy generations if there are none. The result
  is empty if no generation has tokens, as with a judge that writes no text.

  Args:
    judged: the judged examples.
    sections: the sections, values of tags['section'].
    seed: seed of the intervals, which resample the queries.
  """
  lengths = {}
  for name in sections:
    members = [x for x in judged if x.example.tags['section'] == name]
    items = tuple(
      ScoredItem('', metrics.query_of(x.example), generation.num_tokens)
      for x in members
      for generation in samples_or_greedy(x)
    )
    terms = [WeightedSection('', 1.0, 1.0, items)]
    low, high = metrics.bootstrap(terms, seed=seed)
    mean = metrics.weighted_mean(terms)
    lengths[name] = Estimate(mean, low, high, len(members))
  return lengths if any(x.value for x in lengths.values()) else {}


def _stats(
  queries: Sequence[tuple[JudgingExample, Sequence[Judgement]]],
) -> GenerationStats:
  generations = [x for _, judgements in queries for x in judgements]
  # Scores of each query's parsed generations.
  parsed = [
    [x.scores for x in judgements if x.scores]
    for _, judgements in queries
    if judgements
  ]
  multi_response = [x for scores in parsed for x in scores if len(x) > 1]
  votes = [
    voting.sum_scores(scores, len(scores[0])) for scores in parsed if scores
  ]
  preferred, total = voting.first_position_preference(
    (x.order, x.scores) for x in generations
  )
  scores, right_scores, other_scores = _histograms(queries)
  return GenerationStats(
    num_queries=len(queries),
    num_generations=len(generations),
    parse_failure_rate=_mean(x.scores is None for x in generations),
    unvoted_rate=_mean(not scores for scores in parsed),
    tie_rate=_mean(_is_tied(scores) for scores in multi_response),
    vote_tie_rate=_mean(
      _is_tied(vote) for vote in votes if vote and len(vote) > 1
    ),
    first_rate=preferred / total if total else None,
    first_expected=_mean(1 / len(scores) for scores in multi_response),
    mean_tokens=_mean(x.num_tokens for x in generations),
    truncated_rate=_mean(x.finish == 'length' for x in generations),
    num_shortened=sum(x.shortened for x in generations),
    num_extraction_differs=sum(x.extraction_differs for x in generations),
    scores=scores,
    right=right_scores,
    others=other_scores,
  )


def _mean(values: Iterable[float]) -> float | None:
  values = list(values)
  return sum(values) / len(values) if values else None


def _is_tied(scores: Sequence[float]) -> bool:
  return len(voting.winners(scores)) > 1


def _histograms(queries) -> tuple[tuple[int, ...], ...]:
  """Counts the scores 0 to 10: of all, of correct and of other responses."""
  counts: dict[bool | None, Counter] = {
    True: Counter(),
    False: Counter(),
    None: Counter(),
  }
  for example, generations in queries:
    is_correct = _is_correct(example)
    for generation in generations:
      if generation.scores is not None:
        for kind, score in zip(is_correct, generation.scores, strict=True):
          if isinstance(score, int):
            counts[kind][score] += 1
  invalid = sorted(set().union(*counts.values()) - set(SCORES))
  if invalid:
    raise UserError(
      f'a score is {invalid[0]}; it must be from {SCORES[0]} to {SCORES[-1]}'
    )
  all_counts = sum(counts.values(), Counter())
  return tuple(
    tuple(count[score] for score in SCORES)
    for count in (all_counts, counts[True], counts[False])
  )


def _is_correct(example: JudgingExample) -> list[bool | None]:
  """Returns for each response whether it is correct; None if unknown."""
  if example.best is not None:
    return [i == example.best for i in range(len(example.responses))]
  # 0/1 labels: a single response, or several correct responses.
  if example.rewards is not None and set(example.rewards) <= {0, 1}:
    return [reward == 1 for reward in example.rewards]
  return [None] * len(example.responses)
