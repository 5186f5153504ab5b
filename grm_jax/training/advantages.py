"""Group-normalized advantages.

A group is the R generations of one prompt. GRPO (DeepSeekMath, arXiv
2402.03300, section 4.1.2) uses (reward - mean) / std of the group. Dr. GRPO
(arXiv 2503.20783) omits the division, because it gives more weight to groups
that are nearly always correct or nearly always incorrect.
"""

import numpy as np


def advantages(
  rewards: np.ndarray, *, std: bool = True, eps: float = 1e-6
) -> np.ndarray:
  """Computes (reward - mean) / (std + eps) within each group.

  The standard deviation is that of the population: it divides by R, not by
  R - 1. A group with equal rewards has advantages of exactly 0, whatever the
  rounding of its mean.

  Args:
    rewards: [P, R] numbers. NaN marks a missing generation: it is left out of
      the statistics and gets advantage 0.
    std: divide by the standard deviation.
    eps: added to the standard deviation.

  Returns:
    float32 [P, R].

  Raises:
    ValueError: rewards are not [P, R] or are infinite; eps is not positive.
  """
  if not 0 < eps < np.inf:
    raise ValueError(f'eps is {eps}; it must be positive, such as 1e-6')
  rewards, present = _checked(rewards)
  count = np.maximum(present.sum(axis=1, keepdims=True), 1)
  values = np.where(present, rewards, 0.0)
  centred = values - values.sum(axis=1, keepdims=True) / count  # [P, R]
  varies = present & ~zero_std(rewards)[:, None]
  centred = np.where(varies, centred, 0.0)
  if std:
    variance = np.square(centred).sum(axis=1, keepdims=True) / count
    centred = centred / (np.sqrt(variance) + eps)
  return centred.astype(np.float32)


def zero_std(rewards: np.ndarray) -> np.ndarray:
  """Returns which groups have equal rewards, so that nothing is learned.

  Groups of one generation, or of none, are among them.

  Args:
    rewards: [P, R] numbers. NaN marks a missing generation.

  Returns:
    bool [P].

  Raises:
    ValueError: rewards are not [P, R] or are infinite.
  """
  rewards, present = _checked(rewards)
  highest = np.where(present, rewards, -np.inf).max(axis=1)
  lowest = np.where(present, rewards, np.inf).min(axis=1)
  return highest <= lowest


def _checked(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rewards as float64, and which of them are present; both [P, R]."""
  rewards = np.asarray(rewards, np.float64)
  if rewards.ndim != 2 or 0 in rewards.shape:
    raise ValueError(
      f'rewards have shape {rewards.shape}; expected [prompts, generations]'
    )
  if np.isinf(rewards).any():
    prompt, generation = np.argwhere(np.isinf(rewards))[0]
    raise ValueError(
      f'the reward of generation {generation} of prompt {prompt} is infinite; '
      'use NaN for a missing reward'
    )
  return rewards, ~np.isnan(rewards)
