"""Voting: the example of the paper, samples by hand, and invariances."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.judgement import voting
from tests.messages import naming

PAPER = [(1, 5), (5, 6), (4, 8), (7, 6)]
INF, NAN = math.inf, math.nan


@st.composite
def sample_sets(draw, min_size=0):
  """Returns (samples, metas, number of responses)."""
  n = draw(st.integers(1, 5))
  scores = st.tuples(*[st.integers(1, 10)] * n)
  metas = st.floats(allow_nan=True)
  rows = draw(
    st.lists(
      st.tuples(st.none() | scores, metas), min_size=min_size, max_size=9
    )
  )
  return [s for s, _ in rows], [m for _, m in rows], n


def all_votes(samples, metas, n):
  return {
    'sum': voting.sum_scores(samples, n),
    'mean': voting.mean_scores(samples, n),
    'majority': voting.majority(samples, n),
    'best of k': voting.meta_rm_vote(samples, metas, n, k_meta=1),
    'guided': voting.meta_rm_vote(samples, metas, n),
  }


def test_example_of_the_paper():
  assert voting.sum_scores(PAPER, 2) == (17, 25)
  metas = [0.9, 0.2, 0.8, 0.1]
  assert voting.meta_rm_vote(PAPER, metas, 2) == (5, 13)
  assert voting.meta_rm_vote(PAPER, metas, 2, k_meta=2) == (5, 13)
  assert voting.meta_rm_vote(PAPER, metas, 2, k_meta=4) == (17, 25)
  assert voting.meta_rm_vote(PAPER, metas, 2, k_meta=1) == (1, 5)
  assert voting.mean_scores(PAPER, 2) == (4.25, 6.25)
  assert voting.majority(PAPER, 2) == (0.0, 1.0)


def test_three_responses():
  samples = [(9, 1, 5), None, (2, 3, 2), (4, 5, 4)]
  assert voting.sum_scores(samples, 3) == (15, 9, 11)
  assert voting.mean_scores(samples, 3) == (5.0, 3.0, 11 / 3)
  # Two of three samples prefer 1 to 0 and to 2. One prefers 0 to 2; two tie.
  assert voting.majority(samples, 3) == (1.0, 2.0, 0.0)
  assert voting.majority([(9, 1, 5), (1, 2, 5)], 3) == (1.0, 0.5, 1.5)
  assert voting.majority([(7,)], 1) == (0.0,)


@pytest.mark.parametrize('samples', [[], [None], [None, None, None]])
def test_no_sample_parses(samples):
  metas = [1.0] * len(samples)
  assert set(all_votes(samples, metas, 2).values()) == {None}
  assert voting.num_parsed(samples) == 0


def test_parse_failures_do_not_count_for_k_meta():
  samples = [None, (1, 2), None, (3, 4), (5, 6)]
  metas = [9.0, 1.0, None, 2.0, 3.0]
  # Half of 5, rounded up, is 3; three samples parse.
  assert voting.meta_rm_vote(samples, metas, 2) == (9, 12)
  assert voting.meta_rm_vote(samples, metas, 2, k_meta=2) == (8, 10)
  assert voting.meta_rm_vote(samples, metas, 2, k_meta=5) == (9, 12)
  assert voting.meta_rm_vote(samples, metas, 2, k_meta=1) == (5, 6)
  assert voting.num_parsed(samples) == 3


@pytest.mark.parametrize(
  'k, expected', [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)]
)
def test_default_k_meta_is_half_of_k(k, expected):
  vote = voting.meta_rm_vote([(1, 1)] * k, [0.0] * k, 2)
  assert vote == (expected, expected)


@pytest.mark.parametrize(
  'metas, expected',
  [
    ([1.0, 1.0, 1.0], 1),  # the first of equal metas
    ([1.0, 2.0, 2.0], 2),
    ([NAN, 1.0, 0.0], 2),
    ([NAN, NAN, -INF], 4),
    ([-INF, NAN, NAN], 1),
    ([NAN, NAN, NAN], 1),
    ([0.0, -0.0, NAN], 1),
    ([0.0, 1.0, INF], 4),
  ],
)
def test_sample_with_the_highest_meta(metas, expected):
  assert voting.meta_rm_vote([(1,), (2,), (4,)], metas, 1, k_meta=1) == (
    expected,
  )


def test_nan_ranks_below_all_numbers():
  samples = [(1,), (2,), (4,), (8,)]
  metas = [NAN, 0.0, NAN, -INF]
  totals = [voting.meta_rm_vote(samples, metas, 1, k) for k in (1, 2, 3, 4)]
  assert totals == [(2,), (10,), (11,), (15,)]


def test_wrong_numbers_are_refused():
  wrong = [(1, 2), None, (1, 2, 3)]
  for vote in voting.sum_scores, voting.mean_scores, voting.majority:
    with pytest.raises(ValueError, match=naming('sample', 2, 3)):
      vote(wrong, 2)
  with pytest.raises(ValueError, match=naming('sample', 2, 3)):
    voting.meta_rm_vote(wrong, [0.0] * 3, 2)
  with pytest.raises(ValueError, match=naming(3, 4)):
    voting.meta_rm_vote(PAPER, [0.0] * 3, 2, k_meta=1)
  for k_meta in 0, 5:
    with pytest.raises(UserError, match=naming(k_meta, 4)):
      voting.meta_rm_vote(PAPER, [0.0] * 4, 2, k_meta)
  with pytest.raises(ValueError, match=naming('sample', 3, 'meta')):
    voting.meta_rm_vote(PAPER, [0.0, 0.0, 0.0, None], 2)


@pytest.mark.parametrize(
  'vote, expected',
  [
    ((17, 25), [0.0, 1.0]),
    ((5, 5), [0.5, 0.5]),
    ((5, 5, 4), [0.5, 0.5, 0.0]),
    ((5, 5, 5), [1 / 3] * 3),
    ((5,), [1.0]),
  ],
)
def test_expected_correct(vote, expected):
  assert [
    voting.expected_correct(vote, i) for i in range(len(vote))
  ] == expected


def test_missing_vote_is_incorrect():
  assert voting.expected_correct(None, 0) == 0.0
  with pytest.raises(ValueError, match=naming('best', 2)):
    voting.expected_correct((1, 2), 2)
  with pytest.raises(ValueError, match=naming('best', -1)):
    voting.expected_correct((1, 2), -1)


def test_winners():
  assert voting.winners((3, 1, 3)) == (0, 2)
  assert voting.winners((1.5, 2.0)) == (1,)


def test_first_position_preference():
  pairs = [
    ((0, 1), (8, 3)),  # the first response is preferred
    ((1, 0), (8, 3)),  # the second one is preferred
    ((1, 0), (3, 8)),
    ((1, 2, 0), (9, 9, 9)),  # counts a third
    ((2, 0, 1), (5, 1, 5)),  # counts a half
    ((0, 1), None),
    ((0,), (7,)),
  ]
  preferred, total = voting.first_position_preference(iter(pairs))
  assert (preferred, total) == (pytest.approx(1 + 1 + 1 / 3 + 1 / 2), 5)
  assert voting.first_position_preference([]) == (0.0, 0)
  with pytest.raises(ValueError, match=naming(3, 2)):
    voting.first_position_preference([((0, 1), (1, 2, 3))])


@settings(deadline=None, max_examples=200)
@given(sample_sets(), st.randoms(use_true_random=False))
def test_votes_are_equivariant_to_the_response_order(sample_set, random):
  samples, metas, n = sample_set
  order = list(range(n))
  random.shuffle(order)

  def permuted(scores):
    return None if scores is None else tuple(scores[i] for i in order)

  votes = all_votes(samples, metas, n)
  permuted_votes = all_votes([permuted(s) for s in samples], metas, n)
  assert permuted_votes == {name: permuted(x) for name, x in votes.items()}
  for name, vote in votes.items():
    probabilities = [voting.expected_correct(vote, i) for i in range(n)]
    total = 0.0 if vote is None else 1.0
    assert sum(probabilities) == pytest.approx(total), name


@settings(deadline=None, max_examples=200)
@given(sample_sets(), st.randoms(use_true_random=False))
def test_sample_order_matters_only_for_equal_metas(sample_set, random):
  samples, metas, n = sample_set
  metas = [float(i) for i in range(len(metas))]
  rows = list(zip(samples, metas, strict=True))
  random.shuffle(rows)
  votes = all_votes([s for s, _ in rows], [m for _, m in rows], n)
  assert votes == all_votes(samples, metas, n)


@settings(deadline=None, max_examples=200)
@given(sample_sets(min_size=1))
def test_relations_between_votes(sample_set):
  samples, metas, n = sample_set
  k = len(samples)
  total, mean = voting.sum_scores(samples, n), voting.mean_scores(samples, n)
  assert voting.meta_rm_vote(samples, metas, n, k_meta=k) == total
  assert voting.meta_rm_vote(samples, metas, n) == voting.meta_rm_vote(
    samples, metas, n, k_meta=max(1, math.ceil(k / 2))
  )
  if total is None:
    assert voting.num_parsed(samples) == 0
    return
  assert voting.winners(mean) == voting.winners(total)
  pairs = n * (n - 1) / 2
  assert sum(voting.majority(samples, n)) == pairs
  parsed = [s for s in samples if s is not None]
  assert voting.sum_scores(parsed, n) == total
  assert voting.majority(parsed, n) == voting.majority(samples, n)
  assert voting.meta_rm_vote(samples, metas, n, k_meta=1) in parsed
