"""Advantages within groups, against numbers computed by hand."""

import numpy as np
import pytest

from grm_jax.training import advantages as lib
from tests.messages import naming

NAN = float('nan')


@pytest.mark.parametrize(
  'rewards, expected',
  [
    # Mean -1/2, variance 3/4: 1.5 and -0.5 times 2 / sqrt(3).
    ([1, -1, -1, -1], [1.7320, -0.5774, -0.5774, -0.5774]),
    ([-1, 1, 1, -1], [-1, 1, 1, -1]),
    # Mean 2, variance 8/3: not that of a sample, which is 4.
    ([0, 2, 4], [-1.2247, 0, 1.2247]),
    ([1, NAN, -1, NAN], [1, 0, -1, 0]),
    # The mean is that of three, -1/3; the variance 8/9.
    ([NAN, 1, -1, -1], [0, 1.4142, -0.7071, -0.7071]),
  ],
)
def test_with_division(rewards, expected):
  found = lib.advantages(np.array([rewards]))
  np.testing.assert_allclose(found, [expected], atol=6e-5)
  assert found.dtype == np.float32


@pytest.mark.parametrize(
  'rewards, expected',
  [
    ([1, -1, -1, -1], [1.5, -0.5, -0.5, -0.5]),
    ([0, 2, 4], [-2, 0, 2]),
    ([NAN, 3, -1, 1], [0, 2, -2, 0]),
  ],
)
def test_without_division(rewards, expected):
  found = lib.advantages(np.array([rewards]), std=False)
  assert found.tolist() == [expected]


@pytest.mark.parametrize(
  'rewards',
  [
    [-1, -1, -1, -1],
    [0.1, 0.1, 0.1, NAN],  # the float mean of these is not 0.1
    [NAN, 1, NAN, NAN],
    [NAN, NAN, NAN, NAN],
  ],
)
@pytest.mark.parametrize('std', [True, False])
def test_groups_without_spread_are_exactly_zero(rewards, std):
  rewards = np.array([rewards, [1, -1, 1, -1]])
  assert lib.no_spread(rewards).tolist() == [True, False]
  found = lib.advantages(rewards, std=std)
  assert found[0].tolist() == [0, 0, 0, 0]
  np.testing.assert_allclose(found[1], [1, -1, 1, -1], atol=2e-6)


def test_groups_do_not_see_each_other():
  rewards = np.array([[1, -1], [10, 30]])
  np.testing.assert_allclose(
    lib.advantages(rewards), [[1, -1], [-1, 1]], atol=2e-6
  )


def test_eps_is_added_to_the_deviation():
  found = lib.advantages(np.array([[1, -1]]), eps=0.25)
  np.testing.assert_allclose(found, [[0.8, -0.8]], atol=1e-6)


@pytest.mark.parametrize(
  'rewards, eps, words',
  [
    ([1, -1], 1e-6, ['(2,)']),
    ([[]], 1e-6, ['(1, 0)']),
    ([[1, 2], [3, np.inf]], 1e-6, ['generation', 'prompt', 1]),
    ([[1, 2]], 0.0, ['eps', 0.0]),
    ([[1, 2]], NAN, ['eps', 'nan']),
  ],
)
def test_mistakes(rewards, eps, words):
  with pytest.raises(ValueError, match=naming(*words)):
    lib.advantages(np.array(rewards), eps=eps)
