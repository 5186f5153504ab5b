"""Tests of scaling curves, by hand and with the scores of suites."""

import dataclasses

import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import metrics, scaling_curves
from grm_jax.evaluation.metrics import Score, ScoredItem, WeightedSection
from grm_jax.evaluation.suites import (
  judgebench,
  pandalm,
  realmistake,
  rewardbench,
)
from tests.evaluation.fake import judged, query

# K = 4, n = 2; all numbers below are counted by hand over all subsets.
#   a: right in subsets of 1: 0 1 .5 0, of 2: 01 12 13 and half of 23, of 4
#   b: right in subsets of 1: 1 .5 0 1, of 2: 01 03 13
A = query(
  'a',
  0,
  [(3, 7), (8, 2), (5, 5), None],
  metas=[0.9, 0.1, 0.5, 2.0],
  greedy=[(6, 6)],
)
B = query(
  'b',
  1,
  [(1, 2), (4, 4), (9, 1), (2, 6)],
  metas=[0.2, 0.4, 0.4, 0.1],
  greedy=[(2, 9)],
)


def values(points):
  return [point.value for point in points]


def test_voting_curve_by_hand():
  curves = scaling_curves.curves([A, B])
  assert curves.num_queries == 2
  assert [point.k for point in curves.voting] == [1, 2, 4]
  assert values(curves.voting) == pytest.approx(
    [(1.5 / 4 + 2.5 / 4) / 2, (3.5 / 6 + 3 / 6) / 2, (1 + 0) / 2]
  )
  assert [point.num_subsets for point in curves.voting] == [4, 6, 1]
  assert all(point.exact for point in curves.voting)
  assert curves.greedy.value == pytest.approx((0.5 + 1) / 2)
  assert (curves.greedy.k, curves.greedy.num_meta) == (0, None)


def test_meta_rm_curve_by_hand():
  # The meta RM selects 0 0 0 2 1 2 from the pairs of a, 1 2 0 1 1 2 from those
  # of b; from all four samples, 0 and 2 of a, 1 and 2 of b. It never selects
  # the parse failure of a.
  curves = scaling_curves.curves([A, B])
  assert [(p.k, p.num_meta) for p in curves.meta] == [(1, 1), (2, 1), (4, 2)]
  assert values(curves.meta) == pytest.approx([0.5, (2 / 6 + 2.5 / 6) / 2, 0])
  kept = [(p.k, p.num_meta) for p in curves.meta_kept]
  assert kept == [(4, 1), (4, 2), (4, 4)]
  assert values(curves.meta_kept) == pytest.approx([(0 + 0.5) / 2, 0, 0.5])


def test_curves_without_data_are_empty():
  curves = scaling_curves.curves([query('a', 0, [(2, 1)])])
  assert values(curves.voting) == [1.0]
  assert (curves.meta, curves.meta_kept, curves.greedy) == ((), (), None)
  curves = scaling_curves.curves([query('a', 0, [], greedy=[(2, 1)])])
  assert (curves.voting, curves.greedy.value) == ((), 1.0)


def test_last_k_need_not_be_a_power_of_two():
  curves = scaling_curves.curves([query('a', 0, [(2, 1)] * 6, [0.0] * 6)])
  assert [point.k for point in curves.voting] == [1, 2, 4, 6]
  assert [point.num_meta for point in curves.meta] == [1, 1, 2, 3]


def test_examples_without_best_response_are_skipped():
  unknown = query('c', None, [(2, 1)] * 4, [0.0] * 4, greedy=[(2, 1)])
  curves, both = (
    scaling_curves.curves([A, unknown, B]),
    scaling_curves.curves([A, B]),
  )
  assert curves == both
  with pytest.raises(UserError, match='best'):
    scaling_curves.curves([unknown])


def test_intervals_contain_the_value_and_are_seeded():
  queries = judged(300, 4)
  curves = scaling_curves.curves(queries)
  for point in (*curves.voting, *curves.meta, *curves.meta_kept, curves.greedy):
    # Two standard errors of 300 queries, at most 1 / 2 each: 0.058.
    assert point.value - 0.07 < point.low < point.value
    assert point.value < point.high < point.value + 0.07
  assert scaling_curves.curves(queries) == curves
  assert scaling_curves.curves(queries, seed=1).voting[0] != curves.voting[0]
  few = scaling_curves.curves(queries[:30]).voting[-1]
  most = curves.voting[-1]
  assert few.high - few.low > 2 * (most.high - most.low)


def test_repeated_query_is_one_unit_of_resampling():
  # All rows of the same query are resampled together, so there is no spread.
  same = dict(tags={'query': 'the same'})
  rows = [query(str(i), 0, [(1 + i % 2, 2)], **same) for i in range(50)]
  point = scaling_curves.curves(rows).voting[0]
  assert point.value == point.low == point.high == 0.25


def test_examples_are_resampled_with_their_query():
  # Four right rows about one query, four wrong ones about four: without the
  # one query, which a third of the resamples lack, everything is wrong.
  same = dict(tags={'query': 'the same'})
  right = [query(str(i), 0, [(2, 1)], **same) for i in range(4)]
  wrong = [query(str(i), 0, [(1, 2)]) for i in range(4, 8)]
  point = scaling_curves.curves(right + wrong).voting[0]
  assert (point.value, point.low) == (0.5, 0)
  assert 0.5 < point.high < 1


def test_random_subsets_approximate_all_subsets(monkeypatch):
  queries = judged(200, 8)
  exact = scaling_curves.curves(queries)
  monkeypatch.setattr(scaling_curves, 'MAX_SUBSETS', 10)
  monkeypatch.setattr(scaling_curves, 'NUM_SUBSETS', 32)
  approximate = scaling_curves.curves(queries)
  assert [p.num_subsets for p in exact.voting] == [8, 28, 70, 1]
  assert [p.num_subsets for p in approximate.voting] == [8, 32, 32, 1]
  assert [p.exact for p in approximate.voting] == [True, False, False, True]
  for x, other in zip(
    (*exact.voting, *exact.meta),
    (*approximate.voting, *approximate.meta),
    strict=True,
  ):
    assert x.value == pytest.approx(other.value, abs=0.02)
  assert approximate.voting[1].value != exact.voting[1].value


def tagged(queries):
  return [
    dataclasses.replace(
      x,
      example=dataclasses.replace(
        x.example, tags={'section': 's', 'subset': 's'}
      ),
    )
    for x in queries
  ]


def test_suite_curve_of_accuracy_equals_accuracy_curve():
  queries = tagged(judged(100, 4))
  curves = scaling_curves.suite_curves(
    queries, scaling_curves.mean_of_terms(pandalm.terms)
  )
  plain = scaling_curves.curves(queries)
  assert values(curves.voting) == pytest.approx(values(plain.voting))
  assert values(curves.meta) == pytest.approx(values(plain.meta))
  assert values(curves.meta_kept) == pytest.approx(values(plain.meta_kept))
  assert curves.greedy == pytest.approx(plain.greedy)
  for x, other in zip(curves.voting, plain.voting, strict=True):
    assert x.low == pytest.approx(other.low)
    assert x.high == pytest.approx(other.high)


def test_curves_of_sections_and_subsets_by_hand():
  def chat(name, subset, scores, metas, greedy):
    tags = {'section': 'Chat', 'subset': subset}
    return query(name, 0, scores, metas, greedy=[greedy], tags=tags)

  right, wrong = (2, 1), (1, 2)
  queries = [
    chat('a', 'alpacaeval-easy', [right, wrong], [1.0, 0.0], right),
    chat('b', 'mt-bench-easy', [wrong, wrong], [0.0, 1.0], wrong),
    chat('c', 'mt-bench-easy', [right, right], [0.0, 1.0], wrong),
    query(
      'd',
      0,
      [wrong, None],
      [1.0, 0.0],
      greedy=[right],
      tags={'section': 'Safety', 'subset': 'donotanswer'},
    ),
  ]
  curves = scaling_curves.suite_curves(
    queries, scaling_curves.mean_of_terms(rewardbench.terms)
  )
  assert list(curves.sections) == ['Chat', 'Safety']
  # Weights of the subsets are 100 and 28. a: 1/2 of one, a tie of two, and the
  # meta RM selects the right one; b and c: a mean of 1/2.
  easy, mt_bench = 100 / 128, 28 / 128
  section = curves.sections['Chat']
  assert values(section.voting) == pytest.approx([0.5, 0.5])
  assert values(section.meta) == pytest.approx([0.5, easy + mt_bench / 2])
  assert section.greedy.value == pytest.approx(easy)
  assert section.num_queries == 3
  subset = curves.subsets['mt-bench-easy']
  assert (subset.num_queries, subset.greedy.value) == (2, 0)
  assert values(subset.voting) == values(subset.meta) == [0.5, 0.5]
  assert values(curves.sections['Safety'].voting) == [0, 0]
  # The suite is the mean of its sections.
  assert values(curves.voting) == pytest.approx([0.25, 0.25])
  for x in (*section.voting, *subset.meta):
    assert x.low <= x.value <= x.high


def test_seeds_of_intervals_and_subsets():
  queries = judged(200, 16)

  def last(seed, k):
    estimate = scaling_curves.mean_of_terms(rewardbench.terms, seed)
    curves = scaling_curves.suite_curves(queries, estimate, seed)
    return curves.sections['Chat'].voting[k]

  assert last(0, -1) == last(0, -1)
  # All samples vote: the seed changes the interval only.
  assert last(0, -1).value == last(1, -1).value
  assert last(0, -1) != last(1, -1)
  assert last(0, 2).value != last(1, 2).value


def test_suite_curve_of_terms_by_hand():
  # A pair is right if its games, +1, 0 or -1 each, add up to more than 0.
  # One sample: ab + - +, ba + + -, so only the first. Two samples, 01 02 12:
  # ab 0 + 0, ba + 0 0, so the first two. All three: both games are +.
  tags = {'section': 'Math', 'subset': 'livebench-math', 'pair': 'p'}
  games = [
    query('ab', 0, [(2, 1), (1, 2), (2, 1)], tags=tags),
    query('ba', 1, [(1, 2), (1, 2), (2, 1)], tags=tags),
  ]
  curves = scaling_curves.suite_curves(
    games, scaling_curves.mean_of_terms(judgebench.terms)
  )
  assert values(curves.voting) == pytest.approx([1 / 3, 2 / 3, 1])
  assert [point.num_subsets for point in curves.voting] == [3, 3, 1]
  assert curves.num_queries == 2


def test_score_without_terms_is_averaged():
  # AUC of (wrong, right) by sample: 7 < 9 is 1, 8 > 3 is 0, 5 = 5 is 1/2.
  wrong = query('w', None, [(7,), (8,), (5,)], n=1, rewards=(0.0,))
  right = query('r', None, [(9,), (3,), (5,)], n=1, rewards=(1.0,))
  rows = tagged([wrong, right])
  curves = scaling_curves.suite_curves(
    rows,
    scaling_curves.mean_of_scores(
      realmistake.score, lambda results: (0.1, 0.9)
    ),
  )
  # Of two: 15 > 12 is 0, 12 < 14 is 1, 13 > 8 is 0; of three: 20 > 17 is 0.
  assert values(curves.voting) == pytest.approx([0.5, 1 / 3, 0])
  for point in curves.voting:
    assert (point.low, point.high) == pytest.approx((0.1, 0.9))


def test_interval_ends_are_averaged():
  rows = tagged([query('a', 0, [(1, 2), (3, 2)])])
  score = Score(0.5, {}, {}, {}, 0, 0)

  def interval(results):
    vote = results[0].votes
    return vote[0] / 100, vote[1] / 10

  curves = scaling_curves.suite_curves(
    rows, scaling_curves.mean_of_scores(lambda results: score, interval)
  ).voting[0]
  assert (curves.low, curves.high) == pytest.approx((0.02, 0.2))


def test_number_of_scored_subsets_decreases_with_queries(monkeypatch):
  def terms(results):
    items = tuple(
      ScoredItem('', r.example.id, metrics.correct(r)) for r in results
    )
    return [WeightedSection('', 1.0, 1.0, items)]

  queries = judged(40, 8)
  estimate = scaling_curves.mean_of_terms(terms)
  curves = scaling_curves.suite_curves(queries, estimate)
  assert [p.num_subsets for p in curves.voting] == [8, 16, 16, 1]
  monkeypatch.setattr(scaling_curves, '_SCORED_RESULTS', 40 * 5)
  curves = scaling_curves.suite_curves(queries, estimate)
  assert [p.num_subsets for p in curves.voting] == [8, 5, 5, 1]
  monkeypatch.setattr(scaling_curves, '_SCORED_RESULTS', 1)
  curves = scaling_curves.suite_curves(queries, estimate)
  assert [p.num_subsets for p in curves.voting] == [8, 4, 4, 1]
  assert np.all([0.3 < value < 1 for value in values(curves.voting)])
