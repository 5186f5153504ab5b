"""Tests of calibration against values computed by hand."""

import math

import numpy as np
import pytest

from grm_jax.evaluation import calibration, plots

LN3 = math.log(3)  # of probability 3/4
# Probabilities 1/4, 3/4, 3/4 and 1/2.
VALUES, LABELS = [-LN3, LN3, LN3, 0.0], [0, 1, 0, 1]
ALIKE = [1, 1, 1, 1]


def test_bins_by_hand():
  low, middle, high = calibration.bins(VALUES, LABELS, ALIKE, num=3)
  assert (low.low, low.high, high.high) == (0.0, 1 / 3, 1.0)
  assert (low.share, low.observed) == (0.25, 0.0)
  assert low.probability == pytest.approx(1 / 4)
  assert (middle.share, middle.observed, middle.probability) == (0.25, 1, 0.5)
  assert (high.share, high.observed) == (0.5, 0.5)
  assert high.probability == pytest.approx(3 / 4)
  error = calibration.expected_error([low, middle, high])
  # 1/4 * 1/4 + 1/4 * 1/2 + 1/2 * 1/4.
  assert error == pytest.approx(5 / 16)


def test_weights_equal_repetitions():
  weights = [2, 1, 3, 1]
  bins = calibration.bins(VALUES, LABELS, weights, num=4)
  repeat = [np.repeat(x, weights) for x in (VALUES, LABELS)]
  again = calibration.bins(*repeat, np.ones(7), num=4)
  for weighted, repeated in zip(bins, again, strict=True):
    np.testing.assert_allclose(
      [weighted.share, weighted.probability, weighted.observed],
      [repeated.share, repeated.probability, repeated.observed],
    )
  for figure in (calibration.log_loss, calibration.accuracy):
    expected = figure(*repeat, np.ones(7))
    assert figure(VALUES, LABELS, weights) == pytest.approx(expected)


def test_empty_bins_and_extreme_probabilities():
  bins = calibration.bins([-1e3, 1e3], [0, 1], [1, 1])
  assert len(bins) == calibration.NUM_BINS
  assert [x.share for x in bins] == [0.5] + [0.0] * 8 + [0.5]
  assert math.isnan(bins[4].probability) and math.isnan(bins[4].observed)
  assert calibration.expected_error(bins) == 0
  # A bin includes its lower end.
  assert calibration.bins([0.0], [1], [1], num=2)[1].share == 1


def test_log_loss_and_accuracy_by_hand():
  # -log of 3/4, 3/4, 1/4 and 1/2.
  expected = -math.log(3 / 4 * 3 / 4 * 1 / 4 * 1 / 2) / 4
  assert calibration.log_loss(VALUES, LABELS, ALIKE) == pytest.approx(expected)
  # A probability of 1/2 predicts 0, which is wrong.
  assert calibration.accuracy(VALUES, LABELS, ALIKE) == 2 / 4
  assert calibration.accuracy(VALUES, LABELS, [0, 0, 3, 1]) == 0
  assert calibration.log_loss([-1e4], [1], [2]) == pytest.approx(1e4)


@pytest.mark.parametrize('values, weights', [([math.nan], [1]), ([1.0], [0])])
def test_nan_or_zero_weights_raise(values, weights):
  for figure in (
    calibration.bins,
    calibration.log_loss,
    calibration.accuracy,
  ):
    with pytest.raises(ValueError):
      figure(values, [1], weights)


def test_plot_shows_the_bins():
  bins = calibration.bins(VALUES, LABELS, ALIKE, num=3)
  axes = plots.calibration(bins, 'of $x$', 'fraction correct').axes[0]
  plotted = {x.get_label(): x.get_xydata().tolist() for x in axes.lines}
  expected = [[1 / 4, 0], [1 / 2, 1], [3 / 4, 1 / 2]]
  np.testing.assert_allclose(plotted['observed'], expected)
  assert plotted['perfect calibration'] == [[0, 0], [1, 1]]
  bars = [(x.get_height(), x.get_x() + x.get_width() / 2) for x in axes.patches]
  np.testing.assert_allclose(bars, [(0.25, 1 / 6), (0.25, 1 / 2), (0.5, 5 / 6)])
  assert axes.get_ylabel() == 'fraction correct'


def test_plot_omits_empty_bins():
  bins = calibration.bins([5.0], [1], [1])
  figure = plots.calibration(bins, 'title', 'right')
  line = figure.axes[0].lines[1]
  assert len(line.get_xdata()) == 1
  assert plots.png(figure).startswith(b'\x89PNG')
