"""Advantages: how much better a generation did than its group.

A group is the generations of one prompt. GRPO (DeepSeekMath, arXiv 2402.03300,
section 4.1.2) takes (reward - mean) / std of the group; Dr. GRPO (arXiv
2503.20783) leaves the division out, because it weighs groups that are nearly
always right or wrong more than the others.

Letters: P prompts, R generations of each.
"""

import numpy as np


def advantages(
  rewards: np.ndarray, *, std: bool = True, eps: float = 1e-6
) -> np.ndarray:
  """(reward - mean) / (std + eps), each over the group.

  The standard deviation is that of the population: of R, not R - 1. A group
  without spread has advantage 0 exactly, whatever rounding does to its mean.

  Args:
    rewards: [P, R] numbers; NaN where a group has fewer than R generations:
      these have no part in the statistics, and advantage 0.
    std: False leaves out the division.
    eps: added to the standard deviation.

  Returns:
    float32 [P, R].

  Raises:
    ValueError: rewards that are not [P, R] or are infinite; eps not above 0.
  """
  if not 0 < eps < np.inf:
    raise ValueError(f'eps is {eps}; it must be above 0, like 1e-6')
  rewards, there = _checked(rewards)
  count = np.maximum(there.sum(axis=1, keepdims=True), 1)
  values = np.where(there, rewards, 0.0)
  centred = values - values.sum(axis=1, keepdims=True) / count
  used = there & ~no_spread(rewards)[:, None]
  centred = np.where(used, centred, 0.0)
  if std:
    variance = np.square(centred).sum(axis=1, keepdims=True) / count
    centred = centred / (np.sqrt(variance) + eps)
  return centred.astype(np.float32)


def no_spread(rewards: np.ndarray) -> np.ndarray:
  """Which groups teach nothing: all their rewards are the same.

  So are those of a group of one generation, or of none.

  Args:
    rewards: [P, R] numbers; NaN where there is no generation.

  Returns:
    bool [P].

  Raises:
    ValueError: rewards that are not [P, R] or are infinite.
  """
  rewards, there = _checked(rewards)
  top = np.where(there, rewards, -np.inf).max(axis=1)
  bottom = np.where(there, rewards, np.inf).min(axis=1)
  return top <= bottom


def _checked(rewards):
  """(float64 rewards, where they are there), both [P, R]."""
  rewards = np.asarray(rewards, np.float64)
  if rewards.ndim != 2 or 0 in rewards.shape:
    raise ValueError(
      f'rewards have shape {rewards.shape}, expected [prompts, generations]'
    )
  if np.isinf(rewards).any():
    prompt, generation = np.argwhere(np.isinf(rewards))[0]
    raise ValueError(
      f'the reward of generation {generation} of prompt {prompt} is infinite; '
      'a missing one is NaN'
    )
  return rewards, ~np.isnan(rewards)
