"""Draws: fixed values, evenness, and what they depend on."""

import collections

import pytest

from grm_jax.data.synthetic import stateless_random


def test_values_that_must_never_change():
  # A change of these changes every practice example that was ever made.
  assert [stateless_random.integer(1000, 'a', i) for i in range(4)] == [
    957,
    704,
    645,
    108,
  ]
  assert stateless_random.shuffled('abcde', 'x', 1) == list('cbaed')


def test_parts_of_a_key_do_not_run_together():
  keys = [('a', 'b c'), ('a b', 'c'), ('a', 'b', 'c'), ('a', 1), ('a', '1')]
  assert len({stateless_random.integer(1 << 60, *key) for key in keys}) == len(
    keys
  )


@pytest.mark.parametrize('below', [2, 3, 7])
def test_integers_are_even(below):
  counts = collections.Counter(
    stateless_random.integer(below, i) for i in range(7000)
  )
  assert sorted(counts) == list(range(below))
  # Five standard deviations.
  assert all(abs(n - 7000 / below) < 5 * 60 for n in counts.values())


def test_shuffles_are_even():
  counts = collections.Counter(
    ''.join(stateless_random.shuffled('abc', i)) for i in range(6000)
  )
  assert len(counts) == 6
  assert all(850 < n < 1150 for n in counts.values())


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_chance_is_the_share(share):
  hits = sum(stateless_random.bernoulli(share, i) for i in range(4000))
  assert abs(hits - 4000 * share) <= 5 * (4000 * share * (1 - share)) ** 0.5


def test_a_larger_chance_takes_nothing_away():
  for i in range(200):
    assert stateless_random.bernoulli(0.6, i) or not stateless_random.bernoulli(
      0.2, i
    )


def test_one_of_the_options():
  assert {stateless_random.choice('ab', i) for i in range(20)} == {'a', 'b'}
