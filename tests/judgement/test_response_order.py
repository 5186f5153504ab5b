"""Response orders: fixed values, balance, and what they depend on."""

import collections
import math
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grm_jax.judgement.response_order import KINDS, apply, orders, restore
from tests.messages import naming

ROOT = pathlib.Path(__file__).parents[2]
KIND = st.sampled_from(KINDS)
ID = st.text(st.characters(exclude_categories=[]), max_size=8)
PERMUTATION = st.integers(1, 8).flatmap(lambda n: st.permutations(range(n)))


def test_orders_are_stable():
  # A change of these values changes all reported votes.
  balanced = [(2, 0, 1), (0, 1, 2), (1, 2, 0), (2, 0, 1)]
  assert orders('balanced', 3, 4, 0, 'a') == balanced
  shuffled = [(1, 2, 3, 0), (2, 3, 0, 1), (0, 2, 3, 1)]
  assert orders('random', 4, 3, 0, 'a') == shuffled
  assert orders('fixed', 3, 2, 0, 'a') == [(0, 1, 2), (0, 1, 2)]


def test_orders_are_the_same_in_another_process():
  code = (
    'from grm_jax.judgement.response_order import orders\n'
    'print(orders("random", 5, 3, 7, "x"), orders("balanced", 5, 3, 7, "x"))'
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONHASHSEED': '1'},
    capture_output=True,
    text=True,
    check=True,
  )
  expected = [orders(kind, 5, 3, 7, 'x') for kind in ('random', 'balanced')]
  assert process.stdout.strip() == ' '.join(map(str, expected))


def test_unknown_kind():
  with pytest.raises(
    ValueError, match=naming('config.response_order', 'shuffled', *KINDS)
  ):
    orders('shuffled', 2, 2, 0, 'a')


def test_number_of_responses_must_be_positive():
  with pytest.raises(ValueError, match=naming(0)):
    orders('fixed', 0, 1, 0, 'a')


@settings(deadline=None)
@given(KIND, st.integers(1, 9), st.integers(0, 9), st.integers(-5, 2**40), ID)
@example('random', 2, 1, 0, '\ud800')
def test_orders_are_permutations(kind, n, k, seed, name):
  result = orders(kind, n, k, seed, name)
  assert len(result) == k
  for order in result:
    assert type(order) is tuple and sorted(order) == list(range(n))
  # Fewer samples get a prefix.
  assert orders(kind, n, k // 2, seed, name) == result[: k // 2]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 99), ID)
def test_balanced_orders(n, k, seed, name):
  result = orders('balanced', n, k, seed, name)
  for position in range(n):
    counter = collections.Counter(order[position] for order in result)
    counts = [counter[i] for i in range(n)]
    assert max(counts) - min(counts) <= (1 if k % n else 0)
  assert len(set(result)) == min(n, k)


@pytest.mark.parametrize('kind', ['balanced', 'random'])
def test_first_sample_has_no_preferred_response(kind):
  # 3000 samples of probability 1/3: mean 1000, standard deviation 26.
  for names in (
    [(0, str(i)) for i in range(3000)],
    [(i, 'a') for i in range(3000)],
  ):
    first = collections.Counter(
      orders(kind, 3, 1, seed, name)[0][0] for seed, name in names
    )
    assert all(abs(first[i] - 1000) < 130 for i in range(3)), first


def test_random_orders_are_uniform():
  # 24 permutations: 200 of each are expected, with a standard deviation of 14.
  result = orders('random', 4, 24 * 200, 0, 'a')
  counts = collections.Counter(result)
  assert len(counts) == math.factorial(4)
  assert all(abs(count - 200) < 75 for count in counts.values())


@pytest.mark.parametrize('kind', ['balanced', 'random'])
def test_order_depends_on_seed_and_id(kind):
  # With 997 responses a chance collision is unlikely.
  keys = [(0, 'a'), (1, 'a'), (0, 'b'), (0, '0 a'), (1, '0 a'), (10, 'a')]
  result = {orders(kind, 997, 1, *key)[0] for key in keys}
  assert len(result) == len(keys)


@settings(deadline=None)
@given(PERMUTATION)
def test_restore_undoes_apply(order):
  responses = [f'r{i}' for i in range(len(order))]
  reordered = apply(responses, order)
  assert [responses.index(text) for text in reordered] == list(order)
  assert restore(reordered, order) == tuple(responses)
  assert apply(restore(responses, order), order) == tuple(responses)


def test_restore_by_hand():
  # The prompt lists response 2 (score 9), then 0 (score 4), then 1 (score 7).
  assert restore((9, 4, 7), (2, 0, 1)) == (4, 7, 9)
  assert apply(('a', 'b', 'c'), (2, 0, 1)) == ('c', 'a', 'b')


@pytest.mark.parametrize('function', [apply, restore])
def test_invalid_orders(function):
  with pytest.raises(ValueError, match=naming(3, 2)):
    function((1, 2, 3), (0, 1))
  for order in (0, 0), (1, 2), (-1, 0):
    with pytest.raises(ValueError, match=naming(*order)):
      function((1, 2), order)
