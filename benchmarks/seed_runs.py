"""Runs of several seeds that were judged on the same held-out examples."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from grm_jax.evaluation import pipeline_report
from grm_jax.evaluation.metrics import ScoredItem

Items = Mapping[str, ScoredItem]


def path_of(workdir: str, judge: str) -> str:
  """What the judge after this stage of configs/spct.py judged in a run."""
  return os.path.join(workdir, 'evaluation', f'{judge}.samples.jsonl')


def average(runs: Sequence[Items], what: str) -> dict[str, ScoredItem]:
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
  value, low, high = pipeline_report.mean(found)
  return 100 * value, 100 * low, 100 * high


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table."""
  lines = (head, ['---'] * len(head), *rows)
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
