"""Tests of accuracies, ROC-AUC and bootstrap intervals."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.evaluation import metrics
from grm_jax.evaluation.metrics import Result, ScoredItem, WeightedSection
from grm_jax.judgement.example import JudgingExample, Turn
from tests.messages import naming


def result(votes, best=0, n=None, **tags):
  n = n or len(votes)
  example = JudgingExample(
    id='x',
    query=(Turn('user', 'q'),),
    responses=tuple('abcdef'[:n]),
    best=best,
    tags=tags,
  )
  return Result(example, votes)


@pytest.mark.parametrize(
  'votes, expected, strict, tied',
  [
    ((5, 3, 1), 1, 1, False),
    ((5, 5, 1), 0.5, 0, True),
    ((5, 5, 5), 1 / 3, 0, True),
    ((4, 5, 5), 0, 0, False),
    ((0.25, 0.125, -1.0), 1, 1, False),
    (None, 0, 0, False),
  ],
)
def test_correctness_of_a_vote(votes, expected, strict, tied):
  first = result(votes, n=3)
  assert metrics.correct(first) == pytest.approx(expected)
  assert metrics.strictly_correct(first) == strict
  assert metrics.tied(first) is tied


def test_number_of_votes_must_match():
  with pytest.raises(ValueError, match=naming("'x'", 2, 3)):
    result((1, 2), n=3)
  with pytest.raises(UserError, match=naming("'x'", 'best')):
    metrics.correct(result((1, 2), best=None))


def test_weighted_terms_skip_missing_subsets():
  groups = {
    s: (ScoredItem(s, s, v),) for s, v in [('a', 1.0), ('b', 0.0), ('d', 1)]
  }
  sections = {
    'one': {'a': 30, 'b': 10, 'c': 60},
    'two': {'d': 5},
    'three': {'e': 1},
  }
  terms = metrics.weighted_terms(sections, groups)
  score = metrics.score([result((1, 2), subset='a')], terms)
  assert score.sections == {'one': 0.75, 'two': 1}
  assert score.overall == pytest.approx((0.75 + 1) / 2)


def test_score_without_results_raises():
  with pytest.raises(UserError):
    metrics.score([], ())
  with pytest.raises(UserError):
    metrics.bootstrap([])


# ROC-AUC


def auc_by_definition(scores, labels):
  wins = [
    1.0 if p > n else 0.5 if p == n else 0.0
    for p, label in zip(scores, labels, strict=True)
    if label
    for n, other in zip(scores, labels, strict=True)
    if not other
  ]
  return sum(wins) / len(wins)


def test_auc_by_hand():
  # 8 and 5 against 5 and 2: 1, 1, 1/2, 1.
  assert metrics.auc([8, 5, 5, 2], [1, 1, 0, 0]) == 3.5 / 4
  assert metrics.auc([1, 2], [True, False]) == 0
  assert metrics.auc([-math.inf, 3, math.inf], [1, 1, 0]) == 0


@given(
  st.lists(
    st.tuples(
      st.sampled_from([-math.inf, -1.5, 0, 1, 2, 3, math.inf]), st.booleans()
    ),
    min_size=2,
    max_size=40,
  ).filter(lambda pairs: len({label for _, label in pairs}) == 2)
)
@settings(deadline=None, derandomize=True)
def test_auc_equals_its_definition(pairs):
  scores, labels = zip(*pairs, strict=True)
  expected = auc_by_definition(scores, labels)
  assert metrics.auc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_auc_rejects_invalid_input():
  with pytest.raises(UserError):
    metrics.auc([1, 2], [1, 1])
  with pytest.raises(ValueError):
    metrics.auc([1, math.nan], [1, 0])


# Intervals


def term(values, queries=None, share=1.0, weight=1.0, subset='s'):
  queries = range(len(values)) if queries is None else queries
  items = tuple(
    ScoredItem(subset, q, float(v))
    for q, v in zip(queries, values, strict=True)
  )
  return WeightedSection('section', share, weight, items)


def test_interval_of_a_mean_matches_normal_approximation():
  values = np.random.default_rng(0).random(1000) < 0.7
  low, high = metrics.bootstrap([term(values)])
  half = 1.96 * np.std(values) / math.sqrt(1000)
  assert low == pytest.approx(values.mean() - half, abs=0.004)
  assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_items_of_a_query_are_resampled_together():
  values = np.random.default_rng(1).random(200) < 0.5
  low, high = metrics.bootstrap([term(values)])
  five = metrics.bootstrap([term(np.repeat(values, 5))])
  same = metrics.bootstrap(
    [term(np.repeat(values, 5), np.repeat(np.arange(200), 5))]
  )
  assert same == pytest.approx((low, high))
  assert (five[1] - five[0]) < 0.6 * (high - low)


def test_query_with_more_items_has_more_weight():
  # Two queries: a alone is 1, b alone 0, both are 3/4.
  first = term([1, 1, 1, 0], queries=['a', 'a', 'a', 'b'])
  assert metrics.bootstrap([first], num=100) == (0, 1)
  other = term([1, 1, 1, 1, 0], queries=['a', 'b', 'c', 'd', 'd'])
  assert metrics.bootstrap([other], num=1000)[0] > 0.5


def test_query_key_is_tag_or_conversation():
  first, other = result((1, 2)), result((1, 2, 3))
  assert metrics.query_of(first.example) == metrics.query_of(other.example)
  tagged = result((1, 2), query='q7')
  assert metrics.query_of(tagged.example) == 'q7'
  assert metrics.query_of(tagged.example) != metrics.query_of(first.example)


def test_terms_of_a_query_are_resampled_together():
  values = np.random.default_rng(2).random(300)
  # The second term cancels the first if both resample the same queries.
  terms = [term(values), term(1 - values)]
  assert metrics.bootstrap(terms, num=50) == pytest.approx((1, 1))
  apart = [term(values), term(1 - values, queries=range(300, 600))]
  low, high = metrics.bootstrap(apart, num=50)
  assert high - low > 0.01


def test_interval_uses_weights_of_terms():
  rng = np.random.default_rng(3)
  small, large = rng.random(50), rng.random(400)
  terms = [
    term(small, share=0.5, weight=0.8),
    term(large, queries=range(50, 450), share=0.5, weight=0.2),
  ]
  low, high = metrics.bootstrap(terms, num=4000)
  means = np.empty(4000)
  for i in range(4000):
    drawn = rng.integers(450, size=450)
    s, b = small[drawn[drawn < 50]], large[drawn[drawn >= 50] - 50]
    means[i] = 0.4 * s.mean() + 0.1 * b.mean()
  assert (low, high) == pytest.approx(
    np.quantile(means, [0.025, 0.975]), abs=0.004
  )


def test_resamples_without_items_of_a_term_are_ignored():
  terms = [term([1.0]), term([0.5] * 3, queries=[7, 8, 9])]
  assert metrics.bootstrap(terms, num=200) == (1.5, 1.5)


def test_intervals_depend_only_on_the_seed():
  values = np.random.default_rng(4).random(100)
  first = metrics.bootstrap([term(values)], num=100)
  assert metrics.bootstrap([term(values)], num=100) == first
  assert metrics.bootstrap([term(values)], num=100, seed=1) != first


def test_auc_interval_matches_explicit_resampling():
  rng = np.random.default_rng(5)
  labels = rng.random(60) < 0.4
  scores = rng.integers(1, 6, 60) + 2 * labels
  queries = np.arange(60) // 2
  num, seed = 150, 11
  low, high = metrics.bootstrap_auc(scores, labels, list(queries), num, seed)
  again, aucs = np.random.default_rng(seed), []
  for size in (100, 50):
    for drawn in again.integers(30, size=(size, 30)):
      times = np.bincount(drawn, minlength=30)
      rows = np.repeat(np.arange(60), times[queries])
      aucs.append(auc_by_definition(scores[rows], labels[rows]))
  assert (low, high) == pytest.approx(np.quantile(aucs, [0.025, 0.975]))


def test_bootstrap_of_ten_thousand_queries_is_fast():
  rng = np.random.default_rng(6)
  values = rng.choice([0, 0.5, 1], 10_000)
  # CPU time, so other processes do not matter. A loop would take minutes.
  start = time.process_time()
  metrics.bootstrap([term(values)])
  assert time.process_time() - start < 30
