"""Mixtures: exact rates at every draw, complete epochs, stable orders."""

import math

import numpy as np
import pytest

from grm_jax.data import mixture
from grm_jax.errors import UserError
from tests.messages import naming

GOLDEN = [1, 6, 5, 7, 2, 3, 4, 0]


def sources(draws):
  return ''.join(draw.source for draw in draws)


@pytest.mark.parametrize(
  'rates, expected',
  [
    ({'a': 1}, 'aaaa'),
    ({'a': 1, 'b': 1}, 'abababab'),
    ({'b': 0.5, 'a': 0.5}, 'abababab'),
    ({'a': 0.75, 'b': 0.25}, 'aaabaaab'),
    ({'a': 3, 'b': 0, 'c': 1}, 'aaacaaac'),
    # c is released at once, but its deadline is the sixth draw.
    ({'a': 3, 'b': 2, 'c': 1}, 'ababacababac'),
  ],
)
def test_order_of_sources(rates, expected):
  mixed = mixture.make_mixture(dict.fromkeys(rates, 5), rates, 0)
  assert sources(mixed.draw({}, len(expected))[0]) == expected


@pytest.mark.parametrize(
  'rates',
  [
    # Drawing the largest deficit lets one of these lag 1.1 draws behind.
    (1, 1, 1, 4, 4, 24, 24, 24),
    (1, 1, 2, 3, 3, 3, 3, 3, 24, 24, 24),
    (0.9, 0.1),
    (0.7, 0.2, 0.1),
    (1e-3, 1, 0.4999),
    (1, 1, 1, 1, 1, 1, 1),
    (1000, 1, 1),
  ],
)
def test_rates_are_exact_to_within_one_draw(rates):
  rates = {str(i): rate for i, rate in enumerate(rates)}
  mixed = mixture.make_mixture(dict.fromkeys(rates, 7), rates, 0)
  counts = dict.fromkeys(rates, 0)
  for number, draw in enumerate(mixed.draw({}, 2500)[0], 1):
    counts[draw.source] += 1
    for source, rate in rates.items():
      share = number * rate / sum(rates.values())
      assert math.floor(share + 1e-9) <= counts[source]
      assert counts[source] <= math.ceil(share - 1e-9)


def test_decimal_rates_are_exact():
  mixed = mixture.make_mixture(
    {'a': 1, 'b': 1, 'c': 1}, {'a': 0.9, 'b': 0.1, 'c': 0}, 0
  )
  assert mixed.weights == {'a': 9, 'b': 1}
  assert mixed.sizes == {'a': 1, 'b': 1}


def test_an_epoch_contains_every_example_once():
  mixed = mixture.make_mixture({'a': 12, 'b': 5}, {'a': 2, 'b': 1}, seed=3)
  draws, counts = mixed.draw({}, 3 * 24)
  assert counts == {'a': 48, 'b': 24}
  orders = {}
  for draw in draws:
    orders.setdefault((draw.source, draw.epoch), []).append(draw.index)
  assert [len(orders['b', e]) for e in range(5)] == [5, 5, 5, 5, 4]
  for (source, epoch), order in orders.items():
    if (source, epoch) != ('b', 4):
      assert sorted(order) == list(range(mixed.sizes[source]))
  assert len({tuple(orders['a', e]) for e in range(4)}) == 4
  assert orders['a', 0] != list(range(12))


def test_the_order_within_a_source_does_not_depend_on_other_sources():
  """Rates decide when a source is drawn, not which of its examples."""
  alone = mixture.make_mixture({'a': 9}, {'a': 1}, 5).draw({}, 18)[0]
  mixed = mixture.make_mixture({'a': 9, 'b': 4}, {'a': 0.3, 'b': 0.7}, 5)
  draws = [d for d in mixed.draw({}, 60)[0] if d.source == 'a']
  assert draws == alone
  other = mixture.make_mixture({'a': 9}, {'a': 1}, 6).draw({}, 9)[0]
  renamed = mixture.make_mixture({'c': 9}, {'c': 1}, 5).draw({}, 9)[0]
  indices = [[d.index for d in x] for x in (alone[:9], other, renamed)]
  assert len(set(map(tuple, indices))) == 3


def test_draws_continue_from_the_counts():
  mixed = mixture.make_mixture(
    {'a': 7, 'b': 3, 'c': 5}, {'a': 5, 'b': 3, 'c': 0.5}, 1
  )
  whole, end = mixed.draw({}, 60)
  counts, draws = {}, []
  for count in (0, 1, 2, 3, 5, 8, 13, 21, 7):
    more, counts = mixed.draw(counts, count)
    draws += more
  assert (draws, counts) == (whole, end)


def test_permutations_are_stable():
  """Runs resume after an upgrade, so no version of NumPy may change these."""
  np.testing.assert_array_equal(mixture.permutation(8, 0, 'x'), GOLDEN)
  assert mixture.permutation(1, 0).tolist() == [0]
  orders = [
    mixture.permutation(8, *names).tolist()
    for names in [(0, 'x'), (1, 'x'), ('0', 'x'), ('0, "x"',), (0, 'x', 0)]
  ]
  assert len(set(map(tuple, orders))) == 5
  # An id can contain a lone surrogate, which UTF-8 cannot encode.
  assert sorted(mixture.permutation(3, '\ud800')) == [0, 1, 2]


def test_passes():
  mixed = mixture.make_mixture({'a': 10, 'b': 4}, {'a': 3, 'b': 1}, 0)
  assert mixed.epochs({}) == {'a': 0.0, 'b': 0.0}
  assert mixed.epochs({'a': 15, 'b': 1}) == {'a': 1.5, 'b': 0.25}
  # 10 draws of a take ceil(40 / 3) draws of both; 4 draws of b take 16.
  assert mixed.draw({}, 14)[1]['a'] >= 10
  assert mixed.draw({}, 16)[1]['b'] == 4


@pytest.mark.parametrize(
  'sizes, rates, words',
  [
    ({'a': 1}, {'a': -1}, ["'a'", -1]),
    ({'a': 1}, {'a': math.nan}, ["'a'", 'nan']),
    ({'a': 1}, {'a': math.inf}, ["'a'", 'inf']),
    ({'a': 1}, {'a': '1'}, ["'a'", 1]),
    ({'a': 0}, {'a': 0.5}, ["'a'", 0.5, 'examples']),
    ({'a': 1}, {'a': 1, 'b': 2}, ["'b'", 2, 'examples']),
    ({'a': 1, 'b': 1}, {'a': 1}, ["'b'", 'rate']),
    ({'a': 1}, {'a': 0}, ["{'a': 0}"]),
  ],
)
def test_invalid_rates(sizes, rates, words):
  with pytest.raises(UserError, match=naming(*words)):
    mixture.make_mixture(sizes, rates, 0)
