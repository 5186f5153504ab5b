"""What a benchmark says about votes: accuracy, ROC-AUC, 95 % intervals.

A suite's score is a sum of weighted means over its results; its terms say
which. The score and its interval are both computed from the terms. A query
without a vote, because nothing parsed, is wrong; it is never left out and
never half right.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import voting
from grm_jax.judgement.example import JudgingExample

_LEVEL = 0.95
_CHUNK = 100  # resamples at a time, to bound memory


@dataclasses.dataclass(frozen=True)
class Result:
  """What a judge said about an example.

  Attributes:
    example: what was judged.
    votes: combined scores, one per response in the example's own order; None
      if no generation parsed.
  """

  example: JudgingExample
  votes: tuple[float, ...] | None

  def __post_init__(self):
    n = len(self.example.responses)
    if self.votes is not None and len(self.votes) != n:
      name = self.example.id
      raise ValueError(f'{name!r}: {len(self.votes)} votes for {n} responses')


@dataclasses.dataclass(frozen=True)
class Score:
  """A suite's result.

  Attributes:
    overall: the suite's one number.
    sections: of its parts, as its authors report them.
    subsets: of the smallest parts.
    counts: number of values behind each of subsets.
    failures: results without a vote.
    ties: results whose best response is one of several maxima.
  """

  overall: float
  sections: dict[str, float]
  subsets: dict[str, float]
  counts: dict[str, int]
  failures: int
  ties: int


@dataclasses.dataclass(frozen=True)
class ScoredItem:
  """One value that goes into a mean.

  Attributes:
    subset: where it is reported.
    query: what it is about; items with the same query, whether or not of one
      term, are resampled together.
    value: mostly whether the judge was right.
  """

  subset: str
  query: Hashable
  value: float


@dataclasses.dataclass(frozen=True)
class WeightedSection:
  """A mean and its place in the score.

  A section is the sum of weight * mean over its terms, the score the sum of
  share * weight * mean over all terms.
  """

  section: str
  share: float
  weight: float
  items: tuple[ScoredItem, ...]


def correct(result: Result) -> float:
  """Expected accuracy when a tie at the top is broken at random."""
  return voting.expected_correct(result.votes, _best(result))


def strictly_correct(result: Result) -> float:
  """1.0 if the best response's vote is above every other, else 0.0."""
  if result.votes is None:
    return 0.0
  return float(voting.winners(result.votes) == (_best(result),))


def tied(result: Result) -> bool:
  """Whether the best response is one of several maxima."""
  if result.example.best is None or result.votes is None:
    return False
  top = voting.winners(result.votes)
  return result.example.best in top and len(top) > 1


def _best(result):
  if result.example.best is None:
    raise UserError(f'example {result.example.id!r} has no best response')
  return result.example.best


def query_of(example: JudgingExample) -> Hashable:
  """Equal for examples that are about the same query.

  It is the text of the conversation, unless tags['query'] says otherwise.
  """
  name = example.tags.get('query')
  return name or tuple([turn.text for turn in example.query])


def items(
  results: Iterable[Result], value: Callable[[Result], float] = correct
) -> tuple[ScoredItem, ...]:
  """An item per result, in the subset that its example's tags name."""
  return tuple(
    ScoredItem(r.example.tags['subset'], query_of(r.example), value(r))
    for r in results
  )


def by_subset(results: Iterable[Result]) -> dict[str, tuple[ScoredItem, ...]]:
  """Items of results, by subset, in the order met."""
  groups = by_tag(results, 'subset')
  return {subset: items(found) for subset, found in groups.items()}


def by_tag(results: Iterable[Result], tag: str) -> dict[str, list[Result]]:
  """Results by a tag of their examples, in the order met."""
  groups = {}
  for result in results:
    groups.setdefault(result.example.tags[tag], []).append(result)
  return groups


def mean(values: Iterable[float]) -> float:
  """The arithmetic mean of at least one value."""
  return float(np.mean(list(values)))


def weighted_terms(
  sections: Mapping[str, Mapping[str, float]],
  groups: Mapping[str, tuple[ScoredItem, ...]],
) -> tuple[WeightedSection, ...]:
  """Terms of a score that is the mean of sections, each weighted by subset.

  Args:
    sections: weights of the subsets of each section; only their ratios count.
    groups: items by subset. What has none is left out, so that a part of a
      benchmark can be scored.
  """
  kept = {
    section: {s: w for s, w in weights.items() if s in groups}
    for section, weights in sections.items()
  }
  kept = {section: weights for section, weights in kept.items() if weights}
  return tuple(
    WeightedSection(
      section, 1 / len(kept), w / sum(weights.values()), groups[subset]
    )
    for section, weights in kept.items()
    for subset, w in weights.items()
  )


def score(results: Sequence[Result], terms: Sequence[WeightedSection]) -> Score:
  """The Score that `terms`, made from `results`, describe."""
  if not results:
    raise UserError('there are no results to score')
  sections, overall, subsets = {}, 0.0, {}
  for term in terms:
    part = term.weight * mean(item.value for item in term.items)
    sections[term.section] = sections.get(term.section, 0.0) + part
    overall += term.share * part
    for item in term.items:
      subsets.setdefault(item.subset, []).append(item.value)
  return Score(
    overall=overall,
    sections=sections,
    subsets={name: mean(values) for name, values in subsets.items()},
    counts={name: len(values) for name, values in subsets.items()},
    failures=failures(results),
    ties=ties(results),
  )


def failures(results: Iterable[Result]) -> int:
  """How many have no vote."""
  return sum(result.votes is None for result in results)


def ties(results: Iterable[Result]) -> int:
  """How many have the best response among several maxima."""
  return sum(map(tied, results))


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
  """Area under the ROC curve: P(positive above negative), ties 1/2.

  Mann and Whitney's U over the number of pairs; exact, from one sort.

  Raises:
    UserError: all labels are the same.
  """
  labels = np.asarray(labels, bool)
  if labels.all() or not labels.any():
    raise UserError('ROC-AUC needs results with and without the label')
  order, starts = _levels(scores)
  return float(_auc(np.ones((1, labels.size)), labels[order], starts)[0])


def bootstrap(
  terms: Sequence[WeightedSection], num: int = 1000, seed: int = 0
) -> tuple[float, float]:
  """The 95 % interval of the score of `terms`, resampling its queries.

  A mean of drawn items depends only on their sum and number, so queries with
  the same sums and numbers are drawn together, as one multinomial cell.

  Args:
    terms: see Term.
    num: how often all queries are drawn with replacement.
    seed: of the draws.

  Raises:
    UserError: there is nothing to resample.
  """
  units = _indices(item.query for term in terms for item in term.items)
  if not units:
    raise UserError('there are no results to resample')
  table = np.zeros((len(units), 2 * len(terms)))
  for t, term in enumerate(terms):
    rows = [units[item.query] for item in term.items]
    np.add.at(table[:, 2 * t], rows, [item.value for item in term.items])
    np.add.at(table[:, 2 * t + 1], rows, 1)
  cells, times = np.unique(table, axis=0, return_counts=True)
  rng = np.random.default_rng(seed)
  drawn = rng.multinomial(len(units), times / len(units), size=num) @ cells
  with np.errstate(invalid='ignore', divide='ignore'):
    means = drawn[:, ::2] / drawn[:, 1::2]
  return _interval(means @ np.array([t.share * t.weight for t in terms]))


def bootstrap_auc(
  scores: Sequence[float],
  labels: Sequence[bool],
  queries: Sequence[Hashable],
  num: int = 1000,
  seed: int = 0,
) -> tuple[float, float]:
  """The 95 % interval of `auc`, resampling the queries."""
  units = _indices(queries)
  order, starts = _levels(scores)
  unit = np.array([units[query] for query in queries])[order]
  labels = np.asarray(labels, bool)[order]
  rng = np.random.default_rng(seed)
  found = []
  for first in range(0, num, _CHUNK):
    drawn = _drawn(rng, len(units), min(_CHUNK, num - first))
    found.append(_auc(drawn[:, unit].astype(float), labels, starts))
  return _interval(np.concatenate(found))


def _indices(keys):
  """Key -> index, in the order met."""
  return {key: i for i, key in enumerate(dict.fromkeys(keys))}


def _drawn(rng, n, size):
  """How often each of n is among n draws, [size, n]."""
  draws = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
  return np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)


def _levels(scores):
  """The order that sorts scores, and where in it each new score starts."""
  scores = np.asarray(scores, float)
  if np.isnan(scores).any():
    raise ValueError('a score is not a number')
  order = np.argsort(scores, kind='stable')
  ranked = scores[order]
  new = np.concatenate([[True], ranked[1:] != ranked[:-1]])
  return order, np.flatnonzero(new)


def _auc(weights, labels, starts):
  """AUC of every row of weights [num, n]; labels and columns are sorted."""
  positive = np.add.reduceat(weights * labels, starts, axis=1)
  negative = np.add.reduceat(weights * ~labels, starts, axis=1)
  below = np.cumsum(negative, axis=1) - negative / 2
  won = (positive * below).sum(axis=1)
  with np.errstate(invalid='ignore'):
    return won / (positive.sum(axis=1) * negative.sum(axis=1))


def _interval(values):
  # A resample without any item of a mean, or of one class, says nothing.
  tail = (1 - _LEVEL) / 2
  low, high = np.nanquantile(values, [tail, 1 - tail])
  return float(low), float(high)
