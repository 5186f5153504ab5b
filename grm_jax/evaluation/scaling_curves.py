"""Inference-time scaling curves: accuracy over the number of samples k.

Each query has K samples. Voting@k is the expected accuracy over all subsets of
k of them: exact if there are few subsets, otherwise a mean over seeded random
subsets. No sample is generated again. All subsets have equal weight, whatever
the response orders of their samples.

Q, K, C and M are those of vote_subsets.py.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
    sections: curves of the sections of a suite.
    subsets: curves of the subsets of a suite. Their num_queries is the number
      of values that a subset is a mean of.
  """

  num_queries: int
  voting: tuple[CurvePoint, ...]
  meta: tuple[CurvePoint, ...]
  meta_kept: tuple[CurvePoint, ...]
  greedy: CurvePoint | None
  sections: Mapping[str, 'Curves'] = dataclasses.field(default_factory=dict)
  subsets: Mapping[str, 'Curves'] = dataclasses.field(default_factory=dict)

  @property
  def last(self) -> CurvePoint | None:
    """Voting@K, or the greedy score if there are no samples."""
    return self.voting[-1] if self.voting else self.greedy


# What a score is of: ('', '') is the whole suite; ('sections', NAME) and
# ('subsets', NAME) are its parts.
Part = tuple[str, str]
SUITE: Part = ('', '')


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

  def estimate(values: np.ndarray) -> Estimates:  # values: [Q]
    pairs = zip(queries, values[known].tolist(), strict=True)
    items = tuple(
      metrics.ScoredItem('', query, value) for query, value in pairs
    )
    low, high = metrics.bootstrap(
      [WeightedSection('', 1.0, 1.0, items)], seed=seed
    )
    mean = float(np.mean(values[known]))
    return {SUITE: Estimate(mean, low, high, len(known))}

  def point(k, num_meta):
    members, exact = vote_subsets.choose(
      samples.num_samples, k, seed, MAX_SUBSETS, NUM_SUBSETS
    )
    estimates = estimate(vote_subsets.expected(samples, members, num_meta))
    return estimates, len(members), exact

  greedy = None
  if samples.has_greedy:
    greedy = estimate(vote_subsets.expected_greedy(samples))
  return _curves(samples, len(known), point, greedy)


Results = list[Result]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its 95 % interval, and its number of queries or values."""

  value: float
  low: float
  high: float
  count: int


Estimates = Mapping[Part, Estimate]


def suite_curves(
  judged: Sequence[JudgedExample],
  estimate: Callable[[Iterable[Results]], Estimates],
  seed: int = 0,
) -> Curves:
  """Returns the curves of the score of a suite.

  Args:
    judged: queries with K samples each.
    estimate: returns the mean scores and their intervals, given the results of
      each of several subsets of the samples. Made by `mean_of_terms` for a
      suite with terms, otherwise by `mean_of_scores`.
    seed: seed of the random subsets.

  Raises:
    UserError: the samples of the queries differ in number or kind; see
      `vote_subsets.gather`.
  """
  samples = vote_subsets.gather(judged)
  num = min(max(_SCORED_RESULTS // len(judged), LEAST_SCORED), MOST_SCORED)

  def point(k, num_meta):
    members, exact = vote_subsets.choose(samples.num_samples, k, seed, num, num)
    estimates = estimate(
      vote_subsets.results(judged, samples, member, num_meta)
      for member in members
    )
    return estimates, len(members), exact

  greedy = None
  if samples.has_greedy:
    results = [
      Result(x.example, x.greedy.scores) for x in judged if x.greedy is not None
    ]
    greedy = estimate([results])
  return _curves(samples, len(judged), point, greedy)


def mean_of_terms(
  terms: Callable[[Results], Sequence[WeightedSection]], seed: int = 0
) -> Callable[[Iterable[Results]], Estimates]:
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
    return _estimate_terms(results, averaged, seed)

  return estimate


def _estimate_terms(
  results: Results, terms: Sequence[WeightedSection], seed: int
) -> Estimates:
  """Returns the estimates of a suite and its parts from the suite's terms."""
  sections = Counter(r.example.tags['section'] for r in results)
  counts = {SUITE: len(results), **_of_kind('sections', sections)}
  parts = {
    SUITE: terms,
    **_of_kind('sections', metrics.section_terms(terms)),
    **_of_kind('subsets', metrics.subset_terms(terms)),
  }
  return {
    part: Estimate(
      metrics.weighted_mean(part_terms),
      *metrics.bootstrap(part_terms, seed=seed),
      counts.get(part, metrics.count_items(part_terms)),
    )
    for part, part_terms in parts.items()
  }


def _of_kind(kind: str, parts: Mapping[str, Any]) -> dict[Part, Any]:
  return {(kind, name): value for name, value in parts.items()}


def _with_values(
  terms: Sequence[WeightedSection], values: Iterable[float]
) -> list[WeightedSection]:
  """Returns the terms with other values of their items."""
  remaining = iter(values)
  return [
    dataclasses.replace(
      term,
      items=tuple(
        dataclasses.replace(item, value=next(remaining)) for item in term.items
      ),
    )
    for term in terms
  ]


def mean_of_scores(
  score: Callable[[Results], Score],
  interval: Callable[[Results], tuple[float, float]],
) -> Callable[[Iterable[Results]], Estimates]:
  """Returns an estimate that averages score and interval over the subsets.

  It is for scores that are not sums of means. The interval is slightly too wide
  for k < K, where the mean over subsets varies less than the score of one.
  """

  def estimate(subset_results):
    estimates = [_estimate_parts(score, interval, x) for x in subset_results]
    return {
      part: Estimate(
        *np.mean(
          [(x[part].value, x[part].low, x[part].high) for x in estimates],
          axis=0,
        ).tolist(),
        first.count,
      )
      for part, first in estimates[0].items()
    }

  return estimate


def _estimate_parts(
  score: Callable[[Results], Score],
  interval: Callable[[Results], tuple[float, float]],
  results: Results,
) -> Estimates:
  """Returns the estimates of one vote; a part is scored from its results."""
  suite_score = score(results)
  values = {
    SUITE: suite_score.overall,
    **_of_kind('sections', suite_score.sections),
    **_of_kind('subsets', suite_score.subsets),
  }
  members = {
    SUITE: results,
    **_of_kind('sections', metrics.by_tag(results, 'section')),
    **_of_kind('subsets', metrics.by_tag(results, 'subset')),
  }
  return {
    part: Estimate(value, *interval(members[part]), len(members[part]))
    for part, value in values.items()
  }


def _curves(
  samples: vote_subsets.SampleArrays,
  num_queries: int,
  point: Callable[[int, int | None], tuple[Estimates, int, bool]],
  greedy: Estimates | None,
) -> Curves:
  """Returns the curves of a score and of its parts.

  Args:
    samples: the samples of all queries.
    num_queries: number of queries of the score.
    point: returns the estimates for (k, num_meta), the number of subsets they
      are means over, and whether these are all subsets.
    greedy: the estimates of the greedy generations, if there are any.
  """
  cached_point = functools.cache(point)

  def points(part, selections):
    return tuple(
      # Selecting all k samples is the same as no selection: compute it once.
      _point(part, k, num, *cached_point(k, None if num == k else num))
      for k, num in selections
    )

  num_samples = samples.num_samples
  ks = _powers_of_two(num_samples)
  meta_ks = ks if samples.has_metas else []
  estimates = cached_point(num_samples, None)[0] if ks else greedy or {}

  def curves_of(part: Part, count: int) -> Curves:
    return Curves(
      num_queries=count,
      voting=points(part, [(k, None) for k in ks]),
      meta=points(part, [(k, (k + 1) // 2) for k in meta_ks]),
      meta_kept=points(part, [(num_samples, num) for num in meta_ks]),
      greedy=None if greedy is None else _point(part, 0, None, greedy, 1, True),
    )

  def curves_of_kind(kind: str) -> dict[str, Curves]:
    return {
      part[1]: curves_of(part, x.count)
      for part, x in estimates.items()
      if part[0] == kind
    }

  return dataclasses.replace(
    curves_of(SUITE, num_queries),
    sections=curves_of_kind('sections'),
    subsets=curves_of_kind('subsets'),
  )


def _point(
  part: Part,
  k: int,
  num_meta: int | None,
  estimates: Estimates,
  num_subsets: int,
  exact: bool,
) -> CurvePoint:
  x = estimates[part]
  return CurvePoint(k, num_meta, x.value, x.low, x.high, num_subsets, exact)


def _powers_of_two(maximum: int) -> list[int]:
  """Returns 1, 2, 4, ... below the maximum, and the maximum; [] for 0."""
  ks = [1 << i for i in range(maximum.bit_length()) if 1 << i < maximum]
  return [*ks, maximum] if maximum else []
