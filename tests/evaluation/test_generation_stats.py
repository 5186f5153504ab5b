"""Tests of generation statistics against counts by hand."""

import dataclasses

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import generation_stats
from grm_jax.evaluation.scaling_curves import Estimate
from grm_jax.judgement.judgement import Judgement
from tests.evaluation.fake import query
from tests.messages import naming


def judgement(order, scores, num_tokens, finish='stop'):
  return Judgement(order, 'text', num_tokens, finish, scores)


def with_samples(judged_query, *samples, greedy=None):
  return dataclasses.replace(judged_query, samples=samples, greedy=greedy)


PAIR = with_samples(
  query('pair', 0, []),
  judgement((0, 1), (8, 3), 100),  # The first one is on top.
  judgement((1, 0), (8, 3), 200, 'string'),  # The second one.
  judgement((1, 0), (5, 5), 300),  # A tie: the first one is half on top.
  judgement((0, 1), None, 400, 'length'),
  greedy=judgement((1, 0), (2, 9), 50, 'string'),
)
FOUR = with_samples(
  query('four', 3, [], n=4),
  judgement((2, 0, 1, 3), (7, 7, 7, 1), 100),  # First of three: 1/3.
  judgement((3, 2, 1, 0), (1, 1, 2, 8), 100),
  judgement((0, 1, 2, 3), (1, 1, 8, 2), 100),
  judgement((0, 1, 2, 3), None, 100),
  greedy=judgement((0, 1, 2, 3), None, 70, 'length'),
)
FAILED = with_samples(
  query('failed', 0, []), *[judgement((0, 1), None, 500, 'length')] * 4
)


def test_rates_by_hand():
  stats = generation_stats.of_samples([PAIR, FOUR, FAILED])
  assert (stats.num_queries, stats.num_generations) == (3, 12)
  assert stats.parse_failure_rate == 6 / 12
  assert stats.unvoted_rate == 1 / 3
  assert stats.tie_rate == 2 / 6
  # Sums are 21, 11 and 9, 9, 17, 11.
  assert stats.vote_tie_rate == 0
  assert stats.first_rate == pytest.approx((1 + 0 + 1 / 2 + 1 / 3 + 1 + 0) / 6)
  assert stats.first_expected == pytest.approx((3 / 2 + 3 / 4) / 6)
  assert stats.mean_tokens == (1000 + 400 + 2000) / 12
  assert stats.truncated_rate == 5 / 12
  assert stats.num_shortened == 0
  short = dataclasses.replace(PAIR.samples[0], shortened=True)
  pair = dataclasses.replace(PAIR, samples=(short, *PAIR.samples[1:]))
  assert generation_stats.of_samples([pair, FOUR]).num_shortened == 1


def test_vote_ties_by_hand():
  tied = query('tied', 0, [(3, 8), (9, 4), None])
  clear = query('clear', 0, [(3, 3), (9, 4), None])
  assert generation_stats.of_samples([tied, clear]).vote_tie_rate == 1 / 2
  assert generation_stats.of_samples([tied, clear]).tie_rate == 1 / 4


def test_histograms_by_hand():
  stats = generation_stats.of_samples([PAIR, FOUR, FAILED])
  #                        0  1  2  3  4  5  6  7  8  9 10
  assert stats.scores == (0, 5, 2, 2, 0, 2, 0, 3, 4, 0, 0)
  assert stats.right == (0, 1, 1, 0, 0, 1, 0, 0, 3, 0, 0)
  assert stats.others == (0, 4, 1, 2, 0, 1, 0, 3, 1, 0, 0)


def test_stats_of_greedy_generations():
  stats = generation_stats.of_greedy([PAIR, FOUR, FAILED])
  assert (stats.num_queries, stats.num_generations) == (2, 2)
  assert stats.parse_failure_rate == stats.unvoted_rate == 1 / 2
  assert stats.first_rate == 1
  assert stats.mean_tokens == 60
  assert stats.others[9] == 1 and sum(stats.scores) == 2


def test_labels_define_correct_responses():
  single = query('good', None, [(9,)], n=1, rewards=(1.0,))
  wrong = query('bad', None, [(2,)], n=1, rewards=(0.0,))
  several = query('ties', None, [(7, 8, 3)], n=3, rewards=(1.0, 1.0, 0.0))
  unknown = query('unknown', None, [(4, 4)], rewards=(0.3, 0.9))
  stats = generation_stats.of_samples([single, wrong, several, unknown])
  assert [s for s, count in enumerate(stats.right) if count] == [7, 8, 9]
  assert [s for s, count in enumerate(stats.others) if count] == [2, 3]
  assert sum(stats.scores) == 7 and stats.scores[4] == 2
  # A single response has no position and no tie.
  assert generation_stats.of_samples([single]).first_rate is None
  assert generation_stats.of_samples([single]).tie_rate is None
  assert generation_stats.of_samples([single]).vote_tie_rate is None


def test_stats_without_generations():
  stats = generation_stats.of_samples([query('a', 0, [])])
  assert (stats.num_queries, stats.num_generations) == (1, 0)
  assert stats.parse_failure_rate is None and stats.unvoted_rate is None
  assert stats.mean_tokens is None and stats.scores == (0,) * 11
  assert (
    generation_stats.of_greedy([query('a', 0, [(1, 2)])]).num_generations == 0
  )


def test_score_out_of_range_raises():
  with pytest.raises(UserError, match=naming(11, 0, 10)):
    generation_stats.of_samples([query('a', 0, [(1, 11)])])


def test_float_scores_are_not_in_the_histogram():
  stats = generation_stats.of_samples([query('a', 0, [(2.0, -0.5)])])
  assert stats.scores == stats.right == stats.others == (0,) * 11
  assert (stats.first_rate, stats.tie_rate) == (1, 0)


def test_mean_lengths_of_sections():
  def tagged(section, *lengths, greedy=None):
    samples = [judgement((0, 1), None, length) for length in lengths]
    tags = {'section': section}
    judged_query = query(f'{section} {lengths}', 0, [], tags=tags)
    return with_samples(judged_query, *samples, greedy=greedy)

  short = judgement((0, 1), (2, 1), 10)
  queries = [
    tagged('a', 100, 200, greedy=short),
    tagged('b', 50, 50),
    tagged('a', 300, 400, greedy=short),
  ]
  actual = generation_stats.mean_lengths(queries, ['b', 'a'])
  assert list(actual) == ['b', 'a']
  assert actual['b'] == Estimate(50, 50, 50, 1)
  # Resampling two queries gives means of 150, 250 and 350.
  assert actual['a'] == Estimate(250, 150, 350, 2)
  greedy = [tagged('a', greedy=short)]
  assert generation_stats.mean_lengths(greedy, ['a'])['a'].value == 10
  assert generation_stats.mean_lengths([tagged('a', 0, 0)], ['a']) == {}
  assert generation_stats.mean_lengths([PAIR], []) == {}
