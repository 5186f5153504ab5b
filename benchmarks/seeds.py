"""Runs of several seeds that were judged on the same held-out examples."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from grm_jax.evaluation import spct_report
from grm_jax.evaluation.metrics import Item

Items = Mapping[str, Item]


def average(runs: Sequence[Items], what: str) -> dict[str, Item]:
  """Of each example the mean over runs.

  Args:
    runs: by example id.
    what: for the message.

  Raises:
    ValueError: runs were judged on other examples.
  """
  for run in runs:
    if run.keys() != runs[0].keys():
      raise ValueError(
        f'{what}: runs were judged on other examples; give all runs the same '
        'data'
      )
  return {
    name: dataclasses.replace(
      item, value=float(np.mean([run[name].value for run in runs]))
    )
    for name, item in runs[0].items()
  }


def percent(found: Items) -> tuple[float, float, float]:
  """(mean, low, high) in percent; the 95 % interval resamples queries."""
  value, low, high = spct_report.mean(found)
  return 100 * value, 100 * low, 100 * high


def cell(estimate: tuple[float, float, float], sign: str = '') -> str:
  """An estimate in a table."""
  value, low, high = (f'{x:{sign}.1f}' for x in estimate)
  return f'{value} [{low}, {high}]'
