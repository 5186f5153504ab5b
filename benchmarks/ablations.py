r"""The ablations of the paper's table, beside the paper's own figures.

  launch/ablations.sh
  python -m benchmarks.ablations --workdir=runs/ablations --seeds 0 1 2

Reads what the runs of launch/ablations.sh judged, and prints a table in
Markdown: means over seeds, with 95 % intervals from resampling the held-out
queries, which all runs share; the lowest and the highest seed; and the
difference from the full method, paired by query.

The paper's figures are of a 27B model over public benchmarks, ours of a tiny
one on its own held-out examples: only signs can be compared.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from benchmarks import seed_runs as seeds_lib
from grm_jax.evaluation import judgement_io, pipeline_report
from grm_jax.evaluation.metrics import ScoredItem


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of the table.

  Attributes:
    title: for people.
    run: the name of its run, a folder in WORKDIR.
    judge: the stage after which it is measured.
    paper: overall score, greedy; arXiv 2504.02495, table of ablations.
  """

  title: str
  run: str
  judge: str
  paper: float


# What the first row is compared with is itself.
VARIANTS = (
  Variant('full', 'full', 'grpo', 69.9),
  Variant('no principles', 'no_principles', 'grpo', 67.5),
  Variant(
    'no rejective sampling, then RL', 'no_rejective_sampling', 'grpo', 68.7
  ),
  Variant('RFT alone', 'full', 'rft', 68.8),
  Variant('RFT without hinted samples', 'no_hinted', 'rft', 68.0),
  Variant('RFT without unhinted samples', 'no_unhinted', 'rft', 67.4),
  Variant('RFT without either: the cold start', 'full', 'sft', 66.1),
  Variant('RFT without general data', 'no_general_data', 'rft', 63.3),
)


@dataclasses.dataclass(frozen=True)
class Row:
  """Greedy accuracy of a variant in percent.

  Attributes:
    variant: which.
    seeds: accuracy of each seed.
    mean, low, high: over seeds, and the interval over queries.
    gain: (difference from the full method, low, high); None for itself.
  """

  variant: Variant
  seeds: tuple[float, ...]
  mean: float
  low: float
  high: float
  gain: tuple[float, float, float] | None


def table(workdir: str, seeds: Sequence[int]) -> list[Row]:
  """Rows of the variants that were run with all of these seeds.

  Raises:
    ValueError: the full method was not, or runs were judged on other queries.
  """
  found = {}
  for variant in VARIANTS:
    paths = [_path(workdir, variant, seed) for seed in seeds]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing and not found:
      raise ValueError(
        f'{missing[0]} is not there; run launch/ablations.sh with the same '
        'WORKDIR and SEEDS first'
      )
    if missing:
      print(f'left out: {variant.title}: no {missing[0]}', file=sys.stderr)
      continue
    found[variant] = [_by_query(path) for path in paths]
  full = found[VARIANTS[0]]
  return [_row(variant, own, full) for variant, own in found.items()]


def _path(workdir: str, variant: Variant, seed: int) -> str:
  run = os.path.join(workdir, variant.run, str(seed))
  return seeds_lib.path_of(run, variant.judge)


def _by_query(path: str) -> dict[str, ScoredItem]:
  """By example id whether the greedy judgement is right."""
  return pipeline_report.items(list(judgement_io.read(path)))


def _row(variant, own, full) -> Row:
  seeds_lib.average([*own, *full], variant.title)  # the same examples?
  means = seeds_lib.average(own, variant.title)
  gain = None
  if own is not full:
    base = seeds_lib.average(full, 'full')
    gain = seeds_lib.percent(pipeline_report.differences(means, base))
  seeds = tuple(seeds_lib.percent(x)[0] for x in own)
  return Row(variant, seeds, *seeds_lib.percent(means), gain)


def markdown(rows: Sequence[Row]) -> str:
  """The table."""
  base = VARIANTS[0].paper
  head = (
    'variant',
    'greedy, mean of seeds [95 %]',
    'lowest, highest seed',
    'against full [95 %]',
    'paper',
    'against full',
  )
  lines = []
  for row in rows:
    gain, paper = '', ''
    if row.gain is not None:
      gain = pipeline_report.cell(row.gain, '+')
      paper = f'{row.variant.paper - base:+.1f}'
    cells = (
      row.variant.title,
      pipeline_report.cell((row.mean, row.low, row.high)),
      f'{min(row.seeds):.1f}, {max(row.seeds):.1f}',
      gain,
      f'{row.variant.paper:.1f}',
      paper,
    )
    lines.append(cells)
  return seeds_lib.markdown(head, lines)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='runs/ablations')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--json', help='a file for the numbers')
  arguments = parser.parse_args()
  try:
    rows = table(arguments.workdir, arguments.seeds)
  except ValueError as error:
    sys.exit(f'error: {error}')
  print(markdown(rows))
  if arguments.json:
    with open(arguments.json, 'w') as file:
      json.dump([dataclasses.asdict(row) for row in rows], file, indent=2)


if __name__ == '__main__':
  main()
