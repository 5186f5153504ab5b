"""Metrics of votes: accuracy, ROC-AUC, and 95 % bootstrap intervals.

The score of a suite is a weighted sum of means over its results. The suite
states it as a list of WeightedSection, from which both the score and its
interval are computed. A query without a vote (no generation parses) counts as
wrong; it is never dropped and never counts one half.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import voting
from grm_jax.judgement.example import JudgingExample

_CONFIDENCE = 0.95
_CHUNK = 100  # resamples at a time; bounds memory


@dataclasses.dataclass(frozen=True)
class Result:
  """The vote on an example.

  Attributes:
    example: the judged example.
    votes: combined score per response, in the order of the example; None if no
      generation parses.
  """

  example: JudgingExample
  votes: tuple[float, ...] | None

  def __post_init__(self):
    n = len(self.example.responses)
    if self.votes is not None and len(self.votes) != n:
      raise ValueError(
        f'example {self.example.id!r} has {n} responses, but there are '
        f'{len(self.votes)} votes'
      )


@dataclasses.dataclass(frozen=True)
class Score:
  """The score of a suite.

  Attributes:
    overall: the headline number of the suite.
    sections: scores of its sections, as its authors report them.
    subsets: scores of its subsets.
    counts: number of values in each subset.
    failures: number of results without a vote.
    ties: number of results whose best response shares the top vote.
  """

  overall: float
  sections: dict[str, float]
  subsets: dict[str, float]
  counts: dict[str, int]
  failures: int
  ties: int


@dataclasses.dataclass(frozen=True)
class ScoredItem:
  """A value in a mean.

  Attributes:
    subset: subset that reports the value.
    query: key of the query. All items of a query, in any section, are resampled
      together.
    value: the value, usually the correctness of the judge.
    groups: subsets across the sections that report the value too, one of each
      kind. Their score is the mean over their sections.
  """

  subset: str
  query: Hashable
  value: float
  groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class WeightedSection:
  """A mean and its weight in the score of a suite.

  A section may have several of them:

    section score = sum over its entries of weight * mean(items)
    suite score = sum over all entries of share * weight * mean(items)

  Attributes:
    section: name of the section.
    share: weight of the section in the suite.
    weight: weight of the mean in the section.
    items: the values.
  """

  section: str
  share: float
  weight: float
  items: tuple[ScoredItem, ...]


def correct(result: Result) -> float:
  """Returns the expected accuracy if a tied top vote is broken at random."""
  return voting.expected_correct(result.votes, _best(result))


def strictly_correct(result: Result) -> float:
  """Returns 1.0 if the best response has the only top vote, else 0.0."""
  if result.votes is None:
    return 0.0
  return float(voting.winners(result.votes) == (_best(result),))


def tied(result: Result) -> bool:
  """Returns whether the best response shares the top vote with another."""
  if result.example.best is None or result.votes is None:
    return False
  top = voting.winners(result.votes)
  return result.example.best in top and len(top) > 1


def _best(result):
  if result.example.best is None:
    raise UserError(
      f'example {result.example.id!r} has no best response; accuracy needs one'
    )
  return result.example.best


def query_of(example: JudgingExample) -> Hashable:
  """Returns a key that is equal for examples with the same query.

  It is tags['query'] if there is one, otherwise the text of the conversation.
  """
  tag = example.tags.get('query')
  return tag or tuple([turn.text for turn in example.query])


def items(
  results: Iterable[Result], value: Callable[[Result], float] = correct
) -> tuple[ScoredItem, ...]:
  """Returns an item per result, in the subset of tags['subset']."""
  return tuple(
    ScoredItem(r.example.tags['subset'], query_of(r.example), value(r))
    for r in results
  )


def by_subset(results: Iterable[Result]) -> dict[str, tuple[ScoredItem, ...]]:
  """Returns the items of each subset, by first occurrence."""
  groups = by_tag(results, 'subset')
  return {subset: items(members) for subset, members in groups.items()}


def by_tag(results: Iterable[Result], tag: str) -> dict[str, list[Result]]:
  """Returns the results of each value of a tag, by first occurrence."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    groups.setdefault(result.example.tags[tag], []).append(result)
  return groups


def mean(values: Iterable[float]) -> float:
  """Returns the arithmetic mean of at least one value."""
  return float(np.mean(list(values)))


def weighted_terms(
  sections: Mapping[str, Mapping[str, float]],
  groups: Mapping[str, tuple[ScoredItem, ...]],
) -> tuple[WeightedSection, ...]:
  """Returns the terms of a mean over sections of weighted subset means.

  Args:
    sections: weights of the subsets of each section, of any sum.
    groups: items of each subset. Subsets and sections without items are left
      out, so that a part of a benchmark can be scored.
  """
  available = {
    section: {s: w for s, w in weights.items() if s in groups}
    for section, weights in sections.items()
  }
  available = {s: weights for s, weights in available.items() if weights}
  return tuple(
    WeightedSection(
      section, 1 / len(available), w / sum(weights.values()), groups[subset]
    )
    for section, weights in available.items()
    for subset, w in weights.items()
  )


def pooled_terms(results: Sequence[Result]) -> tuple[WeightedSection, ...]:
  """Returns the terms of a mean in which all results have equal weight."""
  return tuple(
    WeightedSection(section, len(members) / len(results), 1.0, items(members))
    for section, members in by_tag(results, 'section').items()
  )


def section_terms(
  terms: Sequence[WeightedSection],
) -> dict[str, list[WeightedSection]]:
  """Returns the terms of the score of each section."""
  sections: dict[str, list[WeightedSection]] = {}
  for term in terms:
    whole_term = dataclasses.replace(term, share=1.0)
    sections.setdefault(term.section, []).append(whole_term)
  return sections


def subset_terms(
  terms: Sequence[WeightedSection],
) -> dict[str, list[WeightedSection]]:
  """Returns the terms of the score of each subset, then of each group."""
  subsets: dict[str, list[ScoredItem]] = {}
  for term in terms:
    for item in term.items:
      subsets.setdefault(item.subset, []).append(item)
  kinds = zip(*(x.groups for term in terms for x in term.items), strict=True)
  groups = dict.fromkeys(name for kind in kinds for name in kind)
  return {
    **{
      k: [WeightedSection('', 1.0, 1.0, tuple(v))] for k, v in subsets.items()
    },
    **{name: _group_terms(terms, name) for name in groups},
  }


def _group_terms(
  terms: Sequence[WeightedSection], group: str
) -> list[WeightedSection]:
  sections: dict[str, list[ScoredItem]] = {}
  for term in terms:
    members = [item for item in term.items if group in item.groups]
    if members:
      sections.setdefault(term.section, []).extend(members)
  return [
    WeightedSection(name, 1 / len(sections), 1.0, tuple(members))
    for name, members in sections.items()
  ]


def weighted_mean(terms: Iterable[WeightedSection]) -> float:
  """Returns the score of the terms, without an interval."""
  return sum(
    term.share * (term.weight * mean(item.value for item in term.items))
    for term in terms
  )


def score(results: Sequence[Result], terms: Sequence[WeightedSection]) -> Score:
  """Returns the score of results; `terms` are the suite's terms of them."""
  if not results:
    raise UserError('no results to score; the data has no examples')
  subsets = subset_terms(terms)
  return Score(
    overall=weighted_mean(terms),
    sections={k: weighted_mean(v) for k, v in section_terms(terms).items()},
    subsets={k: weighted_mean(v) for k, v in subsets.items()},
    counts={k: count_items(v) for k, v in subsets.items()},
    failures=failures(results),
    ties=ties(results),
  )


def count_items(terms: Iterable[WeightedSection]) -> int:
  """Returns the number of values in the terms."""
  return sum(len(term.items) for term in terms)


def failures(results: Iterable[Result]) -> int:
  """Returns the number of results without a vote."""
  return sum(result.votes is None for result in results)


def ties(results: Iterable[Result]) -> int:
  """Returns the number of results whose best response shares the top vote."""
  return sum(map(tied, results))


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
  """Returns the area under the ROC curve.

  AUC = P(positive scores higher than negative) + P(equal) / 2, which is the
  Mann-Whitney U statistic divided by the number of pairs. Exact, from one sort.

  Args:
    scores: [N] scores.
    labels: [N], True for a positive.

  Raises:
    UserError: all labels are equal.
  """
  is_positive = np.asarray(labels, bool)
  if is_positive.all() or not is_positive.any():
    raise UserError(
      f'all {is_positive.size} results have the same label; ROC-AUC needs both '
      'positive and negative ones'
    )
  order, starts = _sort_levels(scores)
  weights = np.ones((1, is_positive.size))
  return float(_auc(weights, is_positive[order], starts)[0])


def bootstrap(
  terms: Sequence[WeightedSection], num: int = 1000, seed: int = 0
) -> tuple[float, float]:
  """Returns the 95 % percentile bootstrap interval of a suite score.

  Queries are resampled with replacement. The mean of the resampled items of a
  term depends only on their sum and number. Queries with equal sums and numbers
  in all terms are therefore one cell of a multinomial distribution.

  Args:
    terms: the terms of the score.
    num: number of resamples.
    seed: seed of the resampling.

  Raises:
    UserError: there are no items.

  Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.
  """
  units = _indices(item.query for term in terms for item in term.items)
  if not units:
    raise UserError('no results to resample; the data has no examples')
  # Columns 2t and 2t + 1: sum and number of a query's items in term t.
  table = np.zeros((len(units), 2 * len(terms)))
  for t, term in enumerate(terms):
    rows = [units[item.query] for item in term.items]
    # Unlike table[rows] += ..., add.at adds repeated rows.
    np.add.at(table[:, 2 * t], rows, [item.value for item in term.items])
    np.add.at(table[:, 2 * t + 1], rows, 1)
  cells, cell_counts = np.unique(table, axis=0, return_counts=True)
  rng = np.random.default_rng(seed)
  cell_draws = rng.multinomial(len(units), cell_counts / len(units), size=num)
  totals = cell_draws @ cells  # [num, 2 * len(terms)]
  with np.errstate(invalid='ignore', divide='ignore'):
    means = totals[:, ::2] / totals[:, 1::2]
  return _interval(means @ np.array([t.share * t.weight for t in terms]))


def bootstrap_auc(
  scores: Sequence[float],
  labels: Sequence[bool],
  queries: Sequence[Hashable],
  num: int = 1000,
  seed: int = 0,
) -> tuple[float, float]:
  """Returns the 95 % percentile bootstrap interval of `auc`.

  Args:
    scores: [N] scores.
    labels: [N], True for a positive.
    queries: [N] keys; all results of a query are resampled together.
    num: number of resamples.
    seed: seed of the resampling.
  """
  units = _indices(queries)
  order, starts = _sort_levels(scores)
  unit = np.array([units[query] for query in queries])[order]  # [N]
  is_positive = np.asarray(labels, bool)[order]
  rng = np.random.default_rng(seed)
  aucs = []
  for start in range(0, num, _CHUNK):
    counts = _resample_counts(rng, len(units), min(_CHUNK, num - start))
    aucs.append(_auc(counts[:, unit].astype(float), is_positive, starts))
  return _interval(np.concatenate(aucs))


def _indices(keys):
  """Returns the index of each distinct key, by first occurrence."""
  return {key: i for i, key in enumerate(dict.fromkeys(keys))}


def _resample_counts(rng, n, size):
  """Returns how often each of n units is in a resample, [size, n]."""
  # Each row has its own range of indices, so one bincount counts all rows.
  draws = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
  return np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)


def _sort_levels(scores):
  """Returns the sorting order, and the start of each run of equal scores."""
  scores = np.asarray(scores, float)
  if np.isnan(scores).any():
    raise ValueError('a score is NaN')
  order = np.argsort(scores, kind='stable')
  sorted_scores = scores[order]
  is_start = np.concatenate([[True], sorted_scores[1:] != sorted_scores[:-1]])
  return order, np.flatnonzero(is_start)


def _auc(weights, labels, starts):
  """Returns the weighted AUC of each row of weights, [num].

  Args:
    weights: [num, N]; columns are in the order of increasing scores.
    labels: bool [N], in the same order.
    starts: [levels] start of each run of equal scores.
  """
  positive = np.add.reduceat(weights * labels, starts, axis=1)
  negative = np.add.reduceat(weights * ~labels, starts, axis=1)
  # Negatives with a lower score, plus half of those with an equal score.
  below = np.cumsum(negative, axis=1) - negative / 2
  won = (positive * below).sum(axis=1)
  with np.errstate(invalid='ignore'):
    return won / (positive.sum(axis=1) * negative.sum(axis=1))


def _interval(values):
  # NaN: a resample without items of a term, or with one class only.
  tail = (1 - _CONFIDENCE) / 2
  low, high = np.nanquantile(values, [tail, 1 - tail])
  return float(low), float(high)
