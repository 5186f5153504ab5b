"""Metrics of several updates in one row."""

import pytest

from grm_jax.stages.grpo import update


def test_means_and_maxima_over_updates():
  metrics = [
    {'loss': 1.0, 'difference_max': 0.5, 'kl': 0.0},
    {'loss': -2.0, 'difference_max': 0.1, 'kl': 0.4},
  ]
  assert update.mean_metrics(metrics) == pytest.approx(
    {'loss': -0.5, 'difference_max': 0.5, 'kl': 0.2}
  )
