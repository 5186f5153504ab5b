"""Calibration, log loss and accuracy of predicted probabilities.

Each prediction is a logit: sigmoid(logit) is the probability that its label is
1. Predictions are weighted, as in training; use weights of 1 for plain means.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

NUM_BINS = 10


@dataclasses.dataclass(frozen=True)
class Bin:
  """A bin of predictions with similar probabilities.

  Attributes:
    low: lower end of the bin, included.
    high: upper end of the bin, excluded except in the last bin.
    share: fraction of the total weight that is in the bin.
    probability: weighted mean probability, NaN in an empty bin.
    observed: weighted fraction of label 1, NaN in an empty bin.
  """

  low: float
  high: float
  share: float
  probability: float
  observed: float


def probabilities(values: ArrayLike) -> np.ndarray:
  """Returns the sigmoid of logits as float64."""
  # exp would overflow for large negative logits; tanh does not.
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(values, np.float64)))


def bins(
  values: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike,
  num: int = NUM_BINS,
) -> tuple[Bin, ...]:
  """Returns the points of a calibration plot: predictions by probability.

  Args:
    values: [N] logits.
    labels: [N] labels, 0 or 1.
    weights: [N] weights, not all 0.
    num: number of equally wide bins.

  Raises:
    ValueError: a logit is NaN, or all weights are 0.
  """
  probs = probabilities(values)
  labels, weights = (np.asarray(x, np.float64) for x in (labels, weights))
  _check(probs, weights)
  # A probability of 1 belongs to the last bin.
  bin_indices = np.minimum((probs * num).astype(int), num - 1)
  total = np.sum(weights)
  result = []
  for i in range(num):
    bin_weights = weights * (bin_indices == i)
    weight = np.sum(bin_weights)
    probability = observed = float('nan')
    if weight:
      probability = float(bin_weights @ probs / weight)
      observed = float(bin_weights @ labels / weight)
    low, high = i / num, (i + 1) / num
    result.append(Bin(low, high, float(weight / total), probability, observed))
  return tuple(result)


def expected_error(bins: Sequence[Bin]) -> float:
  """Returns the expected calibration error (ECE).

  ECE = sum over bins of share * |observed - probability|.

  Source: Guo et al., "On Calibration of Modern Neural Networks",
  arXiv 1706.04599, equation 3.
  """
  return float(
    sum(x.share * abs(x.observed - x.probability) for x in bins if x.share)
  )


def log_loss(values: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
  """Returns the weighted mean of -log p(label), in nats.

  Raises:
    ValueError: see `bins`.
  """
  values, labels, weights = (
    np.asarray(x, np.float64) for x in (values, labels, weights)
  )
  _check(values, weights)
  # -log sigmoid(x) = log(1 + exp(-x)); x changes its sign for label 0.
  losses = np.logaddexp(0.0, np.where(labels > 0.5, -values, values))
  return float(weights @ losses / np.sum(weights))


def accuracy(values: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
  """Returns the weighted fraction of correct predictions.

  A prediction is 1 if its probability is above 1/2, otherwise 0.

  Raises:
    ValueError: see `bins`.
  """
  values, labels, weights = (
    np.asarray(x, np.float64) for x in (values, labels, weights)
  )
  _check(values, weights)
  hits = (values > 0) == (labels > 0.5)
  return float(weights @ hits / np.sum(weights))


def _check(values, weights):
  if np.isnan(values).any():
    raise ValueError('a logit is NaN')
  if not np.sum(weights) > 0:
    raise ValueError('all weights are 0; at least one must be positive')
