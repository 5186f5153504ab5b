"""Stateless random choices: stable values, uniformity, separate keys."""

import collections

import pytest

from grm_jax.data.synthetic import stateless_random


def test_values_are_stable():
  # Another value here means other practice examples.
  assert [stateless_random.integer(1000, 'a', i) for i in range(4)] == [
    957,
    704,
    645,
    108,
  ]
  assert stateless_random.shuffled('abcde', 'x', 1) == list('cbaed')


def test_parts_of_a_key_are_separated():
  keys = [('a', 'b c'), ('a b', 'c'), ('a', 'b', 'c'), ('a', 1), ('a', '1')]
  assert len({stateless_random.integer(1 << 60, *key) for key in keys}) == len(
    keys
  )


@pytest.mark.parametrize('below', [2, 3, 7])
def test_integers_are_uniform(below):
  counts = collections.Counter(
    stateless_random.integer(below, i) for i in range(7000)
  )
  assert sorted(counts) == list(range(below))
  # Five standard deviations.
  assert all(abs(n - 7000 / below) < 5 * 60 for n in counts.values())


def test_shuffles_are_uniform():
  counts = collections.Counter(
    ''.join(stateless_random.shuffled('abc', i)) for i in range(6000)
  )
  assert len(counts) == 6
  assert all(850 < n < 1150 for n in counts.values())


@pytest.mark.parametrize('probability', [0.0, 0.3, 1.0])
def test_bernoulli_has_its_probability(probability):
  hits = sum(stateless_random.bernoulli(probability, i) for i in range(4000))
  assert (
    abs(hits - 4000 * probability)
    <= 5 * (4000 * probability * (1 - probability)) ** 0.5
  )


def test_a_higher_probability_includes_the_lower_one():
  for i in range(200):
    assert stateless_random.bernoulli(0.6, i) or not stateless_random.bernoulli(
      0.2, i
    )


def test_choice_returns_every_option():
  assert {stateless_random.choice('ab', i) for i in range(20)} == {'a', 'b'}
