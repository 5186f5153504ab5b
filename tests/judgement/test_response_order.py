"""Orders: fixed values, balance, and what an order may depend on."""

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


def test_values_that_must_never_change():
  # A change of these changes every vote that was ever reported.
  balanced = [(2, 0, 1), (0, 1, 2), (1, 2, 0), (2, 0, 1)]
  assert orders('balanced', 3, 4, 0, 'a') == balanced
  shuffled = [(1, 2, 3, 0), (2, 3, 0, 1), (0, 2, 3, 1)]
  assert orders('random', 4, 3, 0, 'a') == shuffled
  assert orders('fixed', 3, 2, 0, 'a') == [(0, 1, 2), (0, 1, 2)]


def test_another_process_draws_the_same():
  code = (
    'from grm_jax.judgement.response_order import orders\n'
    'print(orders("random", 5, 3, 7, "x"), orders("balanced", 5, 3, 7, "x"))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONHASHSEED': '1'},
    capture_output=True,
    text=True,
    check=True,
  )
  expected = [orders(kind, 5, 3, 7, 'x') for kind in ('random', 'balanced')]
  assert out.stdout.strip() == ' '.join(map(str, expected))


def test_an_unknown_kind():
  with pytest.raises(
    ValueError, match=naming('config.response_order', 'shuffled', *KINDS)
  ):
    orders('shuffled', 2, 2, 0, 'a')


def test_no_responses():
  with pytest.raises(ValueError, match=naming(0)):
    orders('fixed', 0, 1, 0, 'a')


@settings(deadline=None)
@given(KIND, st.integers(1, 9), st.integers(0, 9), st.integers(-5, 2**40), ID)
@example('random', 2, 1, 0, '\ud800')
def test_orders_are_orders(kind, n, k, seed, name):
  found = orders(kind, n, k, seed, name)
  assert len(found) == k
  for order in found:
    assert type(order) is tuple and sorted(order) == list(range(n))
  # Fewer samples are the first of more.
  assert orders(kind, n, k // 2, seed, name) == found[: k // 2]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 99), ID)
def test_balanced(n, k, seed, name):
  found = orders('balanced', n, k, seed, name)
  for place in range(n):
    counts = collections.Counter(order[place] for order in found)
    shown = [counts[i] for i in range(n)]
    assert max(shown) - min(shown) <= (1 if k % n else 0)
  assert len(set(found)) == min(n, k)


@pytest.mark.parametrize('kind', ['balanced', 'random'])
def test_the_first_sample_favours_no_response(kind):
  # 3000 draws of 1/3 each: 1000 with a standard deviation of 26.
  for names in (
    [(0, str(i)) for i in range(3000)],
    [(i, 'a') for i in range(3000)],
  ):
    first = collections.Counter(
      orders(kind, 3, 1, seed, name)[0][0] for seed, name in names
    )
    assert all(abs(first[i] - 1000) < 130 for i in range(3)), first


def test_every_order_is_as_likely_at_random():
  # 24 orders, 200 of each expected with a standard deviation of 14.
  found = orders('random', 4, 24 * 200, 0, 'a')
  counts = collections.Counter(found)
  assert len(counts) == math.factorial(4)
  assert all(abs(count - 200) < 75 for count in counts.values())


@pytest.mark.parametrize('kind', ['balanced', 'random'])
def test_seed_id_and_their_boundary_matter(kind):
  # Of so many places that none begins with the same by accident.
  keys = [(0, 'a'), (1, 'a'), (0, 'b'), (0, '0 a'), (1, '0 a'), (10, 'a')]
  found = {orders(kind, 997, 1, *key)[0] for key in keys}
  assert len(found) == len(keys)


@settings(deadline=None)
@given(PERMUTATION)
def test_restore_undoes_apply(order):
  responses = [f'r{i}' for i in range(len(order))]
  shown = apply(responses, order)
  assert [responses.index(text) for text in shown] == list(order)
  assert restore(shown, order) == tuple(responses)
  assert apply(restore(responses, order), order) == tuple(responses)


def test_restore_by_hand():
  # Response 2 was shown first and got 9, then 0 got 4 and 1 got 7.
  assert restore((9, 4, 7), (2, 0, 1)) == (4, 7, 9)
  assert apply(('a', 'b', 'c'), (2, 0, 1)) == ('c', 'a', 'b')


@pytest.mark.parametrize('move', [apply, restore])
def test_wrong_orders_are_refused(move):
  with pytest.raises(ValueError, match=naming(3, 2)):
    move((1, 2, 3), (0, 1))
  for order in (0, 0), (1, 2), (-1, 0):
    with pytest.raises(ValueError, match=naming(*order)):
      move((1, 2), order)
