"""How far probabilities can be taken at their word, and how good they are.

A value is a logit: sigmoid(value) is how likely its label is 1. Results may be
weighted, as training weighs them; without a difference give weights of 1.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

NUM_BINS = 10


@dataclasses.dataclass(frozen=True)
class Bin:
  """The results whose probability is in one of the equal parts of 0..1.

  Attributes:
    low, high: the part; it has its low end, the last one both.
    share: of the weight of all results.
    probability: weighted mean, NaN in an empty bin.
    observed: weighted share of label 1, NaN in an empty bin.
  """

  low: float
  high: float
  share: float
  probability: float
  observed: float


def probabilities(values: ArrayLike) -> np.ndarray:
  """Sigmoid of logits, float64."""
  # By tanh, which overflows nowhere.
  return 0.5 * (1 + np.tanh(0.5 * np.asarray(values, np.float64)))


def bins(
  values: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike,
  num: int = NUM_BINS,
) -> tuple[Bin, ...]:
  """Results by probability: the points of a calibration plot.

  Args:
    values: [N] logits.
    labels: [N], 0 or 1.
    weights: [N], not all 0.
    num: how many equal parts 0..1 has.

  Raises:
    ValueError: a value is NaN; no weight.
  """
  found = probabilities(values)
  labels, weights = (np.asarray(x, np.float64) for x in (labels, weights))
  _check(found, weights)
  places = np.minimum((found * num).astype(int), num - 1)
  total = np.sum(weights)
  made = []
  for i in range(num):
    own = weights * (places == i)
    weight = np.sum(own)
    means = [float('nan')] * 2
    if weight:
      means = [float(own @ x / weight) for x in (found, labels)]
    made.append(Bin(i / num, (i + 1) / num, float(weight / total), *means))
  return tuple(made)


def expected_error(found: Sequence[Bin]) -> float:
  """ECE: the mean of |observed - probability| over bins by their share.

  Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
  """
  return float(
    sum(x.share * abs(x.observed - x.probability) for x in found if x.share)
  )


def log_loss(values: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
  """Weighted mean of -log of the probability of each label, in nats.

  Raises:
    ValueError: see `bins`.
  """
  values, labels, weights = (
    np.asarray(x, np.float64) for x in (values, labels, weights)
  )
  _check(values, weights)
  # -log sigmoid(v) where the label is 1, of -v where it is 0.
  losses = np.logaddexp(0.0, np.where(labels > 0.5, -values, values))
  return float(weights @ losses / np.sum(weights))


def accuracy(values: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> float:
  """Weighted share of labels on whose side of 1/2 the probability is.

  Exactly 1/2 is on the side of 0.

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
    raise ValueError('a value is not a number')
  if not np.sum(weights) > 0:
    raise ValueError('there is no result with a weight')
