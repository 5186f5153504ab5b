"""Tests that vectorized votes equal those of judgement.voting."""

import itertools
import math

import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import vote_subsets
from grm_jax.judgement import voting
from tests.evaluation.fake import query
from tests.messages import naming

# Computed by hand: the votes are 17 and 25. The meta RM selects the first and
# the third sample: 5 and 13.
BY_HAND = query(
  'paper', 1, [(1, 5), (5, 6), (4, 8), (7, 6)], metas=[0.9, 0.2, 0.8, 0.1]
)


def random_queries(num=60, k=5):
  rng = np.random.default_rng(3)
  actual = []
  for i in range(num):
    n = int(rng.integers(1, 5))
    scores = [
      None if rng.random() < 0.3 else tuple(map(int, rng.integers(1, 5, n)))
      for _ in range(k)
    ]
    metas = [
      float(rng.choice([-math.inf, -1, 0.5, 2, math.nan])) for _ in scores
    ]
    actual.append(query(str(i), int(rng.integers(n)), scores, metas, n=n))
  return actual


def test_expected_correct_by_hand():
  samples = vote_subsets.gather([BY_HAND])
  everything = np.ones((1, 4), bool)
  votes, has_vote = vote_subsets.votes(samples.groups[0], everything)
  assert votes.tolist() == [[[17, 25]]] and has_vote.tolist() == [[True]]
  votes, _ = vote_subsets.votes(samples.groups[0], everything, num_meta=2)
  assert votes.tolist() == [[[5, 13]]]


@pytest.mark.parametrize('num_meta', [None, 1, 2, 3])
@pytest.mark.parametrize('k', [1, 3, 4, 5])
def test_matches_voting_of_one_subset_at_a_time(k, num_meta):
  if num_meta is not None and num_meta > k:
    return
  queries = random_queries()
  members, exact = vote_subsets.choose(
    5, k, seed=0, max_exact=100, num_random=1
  )
  assert exact and len(members) == math.comb(5, k)
  samples = vote_subsets.gather(queries)
  actual = vote_subsets.expected(samples, members, num_meta)
  for one, value in zip(queries, actual, strict=True):
    n = len(one.example.responses)
    correct = []
    for chosen in itertools.combinations(one.samples, k):
      scores = [sample.scores for sample in chosen]
      metas = [sample.meta for sample in chosen]
      if num_meta is None:
        vote = voting.sum_scores(scores, n)
      else:
        vote = voting.meta_rm_vote(scores, metas, n, num_meta)
      correct.append(voting.expected_correct(vote, one.example.best))
    assert value == pytest.approx(np.mean(correct))
  assert 0 < np.mean(actual) < 1


def test_results_have_the_votes_of_a_subset():
  queries = random_queries()
  samples = vote_subsets.gather(queries)
  member = np.array([True, False, True, True, False])
  for num_meta in (None, 2):
    actual = vote_subsets.results(queries, samples, member, num_meta)
    for one, result in zip(queries, actual, strict=True):
      chosen = [one.samples[i] for i in (0, 2, 3)]
      scores, metas = [x.scores for x in chosen], [x.meta for x in chosen]
      expected = voting.meta_rm_vote(
        scores, metas, len(one.example.responses), num_meta or 3
      )
      assert result.example is one.example and result.votes == expected


def test_chunks_do_not_change_the_result(monkeypatch):
  queries = random_queries()
  samples = vote_subsets.gather(queries)
  members, _ = vote_subsets.choose(5, 2, seed=0, max_exact=100, num_random=1)
  whole = vote_subsets.expected(samples, members, 1)
  monkeypatch.setattr(vote_subsets, '_CHUNK', 7)
  np.testing.assert_array_equal(
    vote_subsets.expected(samples, members, 1), whole
  )


def test_random_subsets_are_seeded():
  members, exact = vote_subsets.choose(
    12, 5, seed=1, max_exact=100, num_random=40
  )
  assert not exact and members.shape == (40, 12)
  assert members.sum(axis=1).tolist() == [5] * 40
  again, _ = vote_subsets.choose(12, 5, seed=1, max_exact=100, num_random=40)
  np.testing.assert_array_equal(members, again)
  other, _ = vote_subsets.choose(12, 5, seed=2, max_exact=100, num_random=40)
  assert (members != other).any()
  # Every sample is in a subset with probability 5 / 12: 667 times of 1600,
  # give or take 20.
  many, _ = vote_subsets.choose(12, 5, seed=1, max_exact=100, num_random=1600)
  assert np.abs(many.sum(axis=0) - 1600 * 5 / 12).max() < 80


def test_few_subsets_are_exact():
  members, exact = vote_subsets.choose(4, 2, seed=0, max_exact=6, num_random=1)
  assert exact and members.astype(int).tolist() == [
    [1, 1, 0, 0],
    [1, 0, 1, 0],
    [1, 0, 0, 1],
    [0, 1, 1, 0],
    [0, 1, 0, 1],
    [0, 0, 1, 1],
  ]
  assert not vote_subsets.choose(4, 2, seed=0, max_exact=5, num_random=1)[1]
  # k = 1 and k = K always have few subsets.
  assert vote_subsets.choose(40, 1, seed=0, max_exact=5, num_random=1)[
    0
  ].shape == (40, 40)
  assert vote_subsets.choose(40, 40, seed=0, max_exact=5, num_random=3)[
    0
  ].shape == (1, 40)
  with pytest.raises(ValueError, match=naming('k', 5, 4)):
    vote_subsets.choose(4, 5, seed=0, max_exact=6, num_random=1)


def test_unknown_best_is_nan_and_no_vote_is_zero():
  queries = [
    query('unknown', None, [(1, 2)], greedy=[(1, 2)]),
    query('failed', 0, [None], greedy=[None]),
    query('single', None, [(7,)], greedy=[(7,)], n=1),
    query('right', 1, [(1, 2)], greedy=[(2, 1)]),
  ]
  samples = vote_subsets.gather(queries)
  actual = vote_subsets.expected(samples, np.ones((1, 1), bool))
  np.testing.assert_array_equal(actual, [np.nan, 0, np.nan, 1])
  np.testing.assert_array_equal(
    vote_subsets.expected_greedy(samples), [np.nan, 0, np.nan, 0]
  )
  votes = [
    x.votes for x in vote_subsets.results(queries, samples, np.ones(1, bool))
  ]
  assert votes == [(1, 2), None, (7,), (1, 2)]


def test_float_scores_are_not_rounded():
  scores = (0.30000000000000004, 0.3)
  one = query('a', 0, [scores], greedy=[scores])
  samples = vote_subsets.gather([one])
  (result,) = vote_subsets.results([one], samples, np.ones(1, bool))
  assert result.votes == scores
  assert vote_subsets.expected(samples, np.ones((1, 1), bool)) == [1]
  assert vote_subsets.expected_greedy(samples) == [1]


@pytest.mark.parametrize(
  'other, mentioned',
  [
    (query('b', 0, [(1, 2)] * 2), ['a', 'b', 'samples', 2, 1]),
    (query('b', 0, [(1, 2)], greedy=[(1, 2)]), ['a', 'b', 'greedy']),
    (query('b', 0, [(1, 2)], n=3), ['b', 'scores', 2, 3]),
    (query('b', 0, [(1, 2)], [0.5]), ['a', 'meta', 1]),
  ],
)
def test_inconsistent_queries_are_rejected(other, mentioned):
  with pytest.raises(UserError, match=naming(*mentioned)):
    vote_subsets.gather([query('a', 0, [(1, 2)]), other])


def test_parse_failures_need_no_meta():
  one = query('a', 0, [None, (1, 2)], [None, 0.5])
  assert vote_subsets.gather([one]).has_metas
  assert not vote_subsets.gather([query('a', 0, [None, None])]).has_metas
  with pytest.raises(UserError):
    vote_subsets.gather([])
