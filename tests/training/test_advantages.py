"""Group-normalized advantages against hand-computed numbers."""

import numpy as np
import pytest

from grm_jax.training.advantages import advantages, zero_std
from tests.messages import naming

NAN = float('nan')


@pytest.mark.parametrize(
  'rewards, expected',
  [
    # Mean -1/2, variance 3/4: 1.5 and -0.5 times 2 / sqrt(3).
    ([1, -1, -1, -1], [1.7320, -0.5774, -0.5774, -0.5774]),
    ([-1, 1, 1, -1], [-1, 1, 1, -1]),
    # Mean 2, population variance 8/3 (the sample variance would be 4).
    ([0, 2, 4], [-1.2247, 0, 1.2247]),
    ([1, NAN, -1, NAN], [1, 0, -1, 0]),
    # Three present rewards: mean -1/3, variance 8/9.
    ([NAN, 1, -1, -1], [0, 1.4142, -0.7071, -0.7071]),
  ],
)
def test_normalized_by_std(rewards, expected):
  result = advantages(np.array([rewards]))
  np.testing.assert_allclose(result, [expected], atol=6e-5)
  assert result.dtype == np.float32


@pytest.mark.parametrize(
  'rewards, expected',
  [
    ([1, -1, -1, -1], [1.5, -0.5, -0.5, -0.5]),
    ([0, 2, 4], [-2, 0, 2]),
    ([NAN, 3, -1, 1], [0, 2, -2, 0]),
  ],
)
def test_not_normalized_by_std(rewards, expected):
  result = advantages(np.array([rewards]), std=False)
  assert result.tolist() == [expected]


@pytest.mark.parametrize(
  'rewards',
  [
    [-1, -1, -1, -1],
    [0.1, 0.1, 0.1, NAN],  # the float mean of the three is not 0.1
    [NAN, 1, NAN, NAN],
    [NAN, NAN, NAN, NAN],
  ],
)
@pytest.mark.parametrize('std', [True, False])
def test_groups_with_equal_rewards_are_exactly_zero(rewards, std):
  rewards = np.array([rewards, [1, -1, 1, -1]])
  assert zero_std(rewards).tolist() == [True, False]
  result = advantages(rewards, std=std)
  assert result[0].tolist() == [0, 0, 0, 0]
  np.testing.assert_allclose(result[1], [1, -1, 1, -1], atol=2e-6)


def test_groups_are_independent():
  rewards = np.array([[1, -1], [10, 30]])
  np.testing.assert_allclose(advantages(rewards), [[1, -1], [-1, 1]], atol=2e-6)


def test_eps_is_added_to_the_standard_deviation():
  result = advantages(np.array([[1, -1]]), eps=0.25)
  np.testing.assert_allclose(result, [[0.8, -0.8]], atol=1e-6)


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
def test_invalid_arguments_are_rejected(rewards, eps, words):
  with pytest.raises(ValueError, match=naming(*words)):
    advantages(np.array(rewards), eps=eps)
