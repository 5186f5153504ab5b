"""Accuracy over the number of samples, from one set of K samples per query.

Nothing is sampled again: Voting@k is the expectation over subsets of k of the
K samples, exact where there are few of them and averaged over seeded random
ones otherwise. Every subset counts alike, whatever orders its samples were
shown in. Letters as in subsets.py.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.evaluation import metrics, vote_subsets
from grm_jax.evaluation.metrics import Result, Score, WeightedSection
from grm_jax.judgement.judgement import JudgedExample

MAX_SUBSETS = 256  # If there are no more, all are used.
NUM_SUBSETS = 64  # Drawn at random if there are more.
# Both for a suite's own score, which is slower: what makes _SCORED results.
LEAST_SCORED, MOST_SCORED = 4, 16
_SCORED = 40_000


@dataclasses.dataclass(frozen=True)
class CurvePoint:
  """One value of a curve, with its 95 % interval over queries.

  Attributes:
    k: samples voted on; 0 for the greedy generation.
    num_meta: samples kept of them by the meta RM, None without one.
    num_subsets: how many subsets of k the value is a mean over.
    exact: whether these were all subsets.
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
  """Accuracies over k; what there is no data for is empty or None.

  Attributes:
    num_queries: that the values are over: those with a known best response,
      or all of them for a suite's own score.
    voting: Voting@k for k = 1, 2, 4, ..., K.
    meta: MetaRM@k, keeping half of k.
    meta_kept: MetaRM@K, keeping 1, 2, 4, ..., K.
    greedy: the greedy generation alone.
  """

  num_queries: int
  voting: tuple[CurvePoint, ...]
  meta: tuple[CurvePoint, ...]
  meta_kept: tuple[CurvePoint, ...]
  greedy: CurvePoint | None


def curves(judged: Sequence[JudgedExample], seed: int = 0) -> Curves:
  """The mean accuracy over the queries whose best response is known.

  Intervals resample the queries. For a suite whose score is something else
  see `suite_curves`.

  Args:
    seed: of the random subsets and of the resampling.

  Raises:
    UserError: see `subsets.gather`; or no best response is known.
  """
  samples = vote_subsets.gather(judged)
  known = [i for i, x in enumerate(judged) if x.example.best is not None]
  if not known:
    raise UserError(
      'no query says which response is best; its suite has to score it'
    )
  queries = [metrics.query_of(judged[i].example) for i in known]

  def estimate(values):
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
    found = estimate(vote_subsets.expected(samples, members, num_meta))
    return CurvePoint(k, num_meta, *found, len(members), exact)

  greedy = None
  if samples.has_greedy:
    greedy = CurvePoint(
      0, None, *estimate(vote_subsets.expected_greedy(samples)), 1, True
    )
  return _curves(samples, len(known), point, greedy)


Results = list[Result]
Estimate = tuple[float, float, float]  # Value, low, high.


def suite_curves(
  judged: Sequence[JudgedExample],
  estimate: Callable[[Iterable[Results]], Estimate],
  seed: int = 0,
) -> Curves:
  """The curves of a suite's own score, whatever it is.

  Args:
    estimate: given the results of each of several subsets of the samples,
      the mean score over the subsets and its interval; by `mean_of_terms`
      for a suite that has terms, else by `mean_of_scores`.
    seed: of the random subsets.

  Raises:
    UserError: see `subsets.gather`.
  """
  samples = vote_subsets.gather(judged)
  num = min(max(_SCORED // len(judged), LEAST_SCORED), MOST_SCORED)

  def point(k, num_meta):
    members, exact = vote_subsets.choose(samples.num_samples, k, seed, num, num)
    found = estimate(
      vote_subsets.results(judged, samples, member, num_meta)
      for member in members
    )
    return CurvePoint(k, num_meta, *found, len(members), exact)

  greedy = None
  if samples.has_greedy:
    own = [Result(x.example, x.greedy.scores) for x in judged]
    greedy = CurvePoint(0, None, *estimate([own]), 1, True)
  return _curves(samples, len(judged), point, greedy)


def mean_of_terms(
  terms: Callable[[Results], Sequence[WeightedSection]], seed: int = 0
) -> Callable[[Iterable[Results]], Estimate]:
  """Averages every item over the subsets, then scores and resamples once.

  Args:
    terms: a suite's; its items must not depend on the votes but in value.
    seed: of the resampling.
  """

  def estimate(draws):
    values, last = [], None
    for draw in draws:
      last = draw, terms(draw)
      values.append([x.value for term in last[1] for x in term.items])
    averaged = _with_values(last[1], np.mean(values, axis=0).tolist())
    value = metrics.score(last[0], averaged).overall
    return value, *metrics.bootstrap(averaged, seed=seed)

  return estimate


def _with_values(
  terms: Sequence[WeightedSection], values: Iterable[float]
) -> list[WeightedSection]:
  """The terms with the values in place of their items' own."""
  values = iter(values)
  return [
    dataclasses.replace(
      term,
      items=tuple(
        metrics.ScoredItem(item.subset, item.query, next(values))
        for item in term.items
      ),
    )
    for term in terms
  ]


def mean_of_scores(
  score: Callable[[Results], Score],
  interval: Callable[[Results], tuple[float, float]],
) -> Callable[[Iterable[Results]], Estimate]:
  """Averages the suite's score, and the ends of its interval, over subsets.

  For a score that is no sum of means. The interval is a little too wide below
  K samples, where the mean varies less than the score of one subset does.
  """

  def estimate(draws):
    found = [(score(draw).overall, *interval(draw)) for draw in draws]
    value, low, high = np.mean(found, axis=0).tolist()
    return value, low, high

  return estimate


def _curves(
  samples: vote_subsets.SampleArrays,
  num_queries: int,
  point: Callable[[int, int | None], CurvePoint],
  greedy: CurvePoint | None,
) -> Curves:
  most = samples.num_samples
  ks = _powers(most)
  metas = ks if samples.has_metas else []
  found = {}

  def kept(k, num_meta):
    # To keep all is not to choose: the same number, computed once.
    key = k, None if num_meta == k else num_meta
    if key not in found:
      found[key] = point(*key)
    return dataclasses.replace(found[key], num_meta=num_meta)

  return Curves(
    num_queries=num_queries,
    voting=tuple(kept(k, None) for k in ks),
    meta=tuple(kept(k, (k + 1) // 2) for k in metas),
    meta_kept=tuple(kept(most, num) for num in metas),
    greedy=greedy,
  )


def _powers(most: int) -> list[int]:
  """1, 2, 4, ... below most, and most itself."""
  ks = [1 << i for i in range(most.bit_length()) if 1 << i < most]
  return [*ks, most] if most else []
