"""Aggregation over runs of several seeds with the same held-out examples."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from grm_jax.evaluation import pipeline_report
from grm_jax.evaluation.metrics import ScoredItem

Items = Mapping[str, ScoredItem]


def samples_path(workdir: str, judge: str) -> str:
  """Returns the file of a judge's judgements in a run of configs/spct.py."""
  return os.path.join(workdir, 'evaluation', f'{judge}.samples.jsonl')


def average(runs: Sequence[Items], description: str) -> dict[str, ScoredItem]:
  """Averages the value of each example over runs.

  Args:
    runs: scored items by example id, one mapping per run.
    description: name of the runs, for the error message.

  Raises:
    ValueError: the runs have different examples.
  """
  for run in runs:
    if run.keys() != runs[0].keys():
      raise ValueError(
        f'{description}: the runs have different held-out examples; use the '
        'same data for all runs'
      )
  return {
    name: dataclasses.replace(
      item, value=float(np.mean([run[name].value for run in runs]))
    )
    for name, item in runs[0].items()
  }


def percent(items: Items) -> tuple[float, float, float]:
  """Returns (mean, low, high) in percent; 95 % bootstrap over queries."""
  value, low, high = pipeline_report.mean_with_interval(items)
  return 100 * value, 100 * low, 100 * high


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Formats a Markdown table."""
  lines = (head, ['---'] * len(head), *rows)
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
