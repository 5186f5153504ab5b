"""Inference-time scaling curves: accuracy over the number of samples k.

Each query has K samples. Voting@k is the expected accuracy over all subsets of
k of them: exact if there are few subsets, otherwise a mean over seeded random
subsets. No sample is generated again. All subsets have equal weight, whatever
the response orders of their samples.

Q, K, C and M are those of vote_subsets.py.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.evaluation import metrics, vote_subsets
from grm_jax.evaluation.metrics import Result, Score, WeightedSection
from grm_jax.judgement.judgement import JudgedExample

MAX_SUBSETS = 256  # up to this number, all subsets are used
NUM_SUBSETS = 64  # otherwise, this many random ones
# The score of a suite is slower. It uses fewer subsets: between these bounds,
# about _SCORED_RESULTS results in total.
LEAST_SCORED, MOST_SCORED = 4, 16
_SCORED_RESULTS = 40_000


@dataclasses.dataclass(frozen=True)
class CurvePoint:
  """A point of a curve, with its 95 % interval over queries.

  Attributes:
    k: number of samples that vote; 0 for the greedy generation.
    num_meta: number of them that the meta RM selects; None without a meta RM.
    value: mean score.
    low: lower end of the interval.
    high: upper end of the interval.
    num_subsets: number of subsets the value is a mean over.
    exact: whether these are all subsets.
  """

  k: int
  num_meta: int | None
  value: float
  low: float
  high: float
  num_subsets: int
  exact: bool


@dataclasses.dataclass(frozen=True)
class Curves:
  """Scores over k. A curve without data is empty or None.

  Attributes:
    num_queries: number of queries: those with a known best response, or all
      queries for the score of a suite.
    voting: Voting@k for k = 1, 2, 4, ..., K.
    meta: MetaRM@k for the same k; the meta RM selects half of k, rounded up.
    meta_kept: MetaRM@K; the meta RM selects 1, 2, 4, ..., K.
    greedy: score of the greedy generation.
  """

  num_queries: int
  voting: tuple[CurvePoint, ...]
  meta: tuple[CurvePoint, ...]
  meta_kept: tuple[CurvePoint, ...]
  greedy: CurvePoint | None


def curves(judged: Sequence[JudgedExample], seed: int = 0) -> Curves:
  """Returns accuracy curves over the queries with a known best response.

  Intervals resample the queries. `suite_curves` has the curves of other scores.

  Args:
    judged: queries with K samples each.
    seed: seed of the random subsets and of the resampling.

  Raises:
    UserError: no best response is known, or the samples of the queries differ
      in number or kind; see `vote_subsets.gather`.
  """
  samples = vote_subsets.gather(judged)
  known = [i for i, x in enumerate(judged) if x.example.best is not None]
  if not known:
    raise UserError('no example has a best response; accuracy needs one')
  queries = [metrics.query_of(judged[i].example) for i in known]

  def estimate(values: np.ndarray) -> Estimate:  # values: [Q]
    pairs = zip(queries, values[known].tolist(), strict=True)
    items = tuple(
      metrics.ScoredItem('', query, value) for query, value in pairs
    )
    low, high = metrics.bootstrap(
      [WeightedSection('', 1.0, 1.0, items)], seed=seed
    )
    return float(np.mean(values[known])), low, high

  def point(k, num_meta):
    members, exact = vote_subsets.choose(
      samples.num_samples, k, seed, MAX_SUBSETS, NUM_SUBSETS
    )
    value, low, high = estimate(
      vote_subsets.expected(samples, members, num_meta)
    )
    return CurvePoint(k, num_meta, value, low, high, len(members), exact)

  greedy = None
  if samples.has_greedy:
    greedy = CurvePoint(
      0, None, *estimate(vote_subsets.expected_greedy(samples)), 1, True
    )
  return _curves(samples, len(known), point, greedy)


Results = list[Result]
Estimate = tuple[float, float, float]  # value, low, high


def suite_curves(
  judged: Sequence[JudgedExample],
  estimate: Callable[[Iterable[Results]], Estimate],
  seed: int = 0,
) -> Curves:
  """Returns the curves of the score of a suite.

  Args:
    judged: queries with K samples each.
    estimate: returns the mean score and its interval, given the results of each
      of several subsets. Made by `mean_of_terms` for a suite with terms,
      otherwise by `mean_of_scores`.
    seed: seed of the random subsets.

  Raises:
    UserError: the samples of the queries differ in number or kind; see
      `vote_subsets.gather`.
  """
  samples = vote_subsets.gather(judged)
  num = min(max(_SCORED_RESULTS // len(judged), LEAST_SCORED), MOST_SCORED)

  def point(k, num_meta):
    members, exact = vote_subsets.choose(samples.num_samples, k, seed, num, num)
    value, low, high = estimate(
      vote_subsets.results(judged, samples, member, num_meta)
      for member in members
    )
    return CurvePoint(k, num_meta, value, low, high, len(members), exact)

  greedy = None
  if samples.has_greedy:
    results = [
      Result(x.example, x.greedy.scores) for x in judged if x.greedy is not None
    ]
    greedy = CurvePoint(0, None, *estimate([results]), 1, True)
  return _curves(samples, len(judged), point, greedy)


def mean_of_terms(
  terms: Callable[[Results], Sequence[WeightedSection]], seed: int = 0
) -> Callable[[Iterable[Results]], Estimate]:
  """Returns an estimate that averages each item over the subsets.

  The averaged items are scored and resampled once.

  Args:
    terms: returns the terms of results. Only the values of its items may depend
      on the votes.
    seed: seed of the resampling.
  """

  def estimate(subset_results):
    item_values = []  # of each subset
    for results in subset_results:
      result_terms = terms(results)
      item_values.append([x.value for term in result_terms for x in term.items])
    # The subsets differ in the values only; take the rest from the last one.
    averaged = _with_values(result_terms, np.mean(item_values, axis=0).tolist())
    value = metrics.score(results, averaged).overall
    return value, *metrics.bootstrap(averaged, seed=seed)

  return estimate


def _with_values(
  terms: Sequence[WeightedSection], values: Iterable[float]
) -> list[WeightedSection]:
  """Returns the terms with other values of their items."""
  remaining = iter(values)
  return [
    dataclasses.replace(
      term,
      items=tuple(
        metrics.ScoredItem(item.subset, item.query, next(remaining))
        for item in term.items
      ),
    )
    for term in terms
  ]


def mean_of_scores(
  score: Callable[[Results], Score],
  interval: Callable[[Results], tuple[float, float]],
) -> Callable[[Iterable[Results]], Estimate]:
  """Returns an estimate that averages score and interval over the subsets.

  It is for scores that are not sums of means. The interval is slightly too wide
  for k < K, where the mean over subsets varies less than the score of one.
  """

  def estimate(subset_results):
    estimates = [(score(x).overall, *interval(x)) for x in subset_results]
    value, low, high = np.mean(estimates, axis=0).tolist()
    return value, low, high

  return estimate


def _curves(
  samples: vote_subsets.SampleArrays,
  num_queries: int,
  point: Callable[[int, int | None], CurvePoint],
  greedy: CurvePoint | None,
) -> Curves:
  num_samples = samples.num_samples
  ks = _powers_of_two(num_samples)
  meta_ks = ks if samples.has_metas else []
  points: dict[tuple[int, int | None], CurvePoint] = {}

  def cached_point(k, num_meta):
    """Returns a point of a curve; computes equal selections once."""
    # Selecting all k samples is the same as no selection: compute it once.
    key = k, None if num_meta == k else num_meta
    if key not in points:
      points[key] = point(*key)
    return dataclasses.replace(points[key], num_meta=num_meta)

  return Curves(
    num_queries=num_queries,
    voting=tuple(cached_point(k, None) for k in ks),
    meta=tuple(cached_point(k, (k + 1) // 2) for k in meta_ks),
    meta_kept=tuple(cached_point(num_samples, num) for num in meta_ks),
    greedy=greedy,
  )


def _powers_of_two(maximum: int) -> list[int]:
  """Returns 1, 2, 4, ... below the maximum, and the maximum; [] for 0."""
  ks = [1 << i for i in range(maximum.bit_length()) if 1 << i < maximum]
  return [*ks, maximum] if maximum else []
