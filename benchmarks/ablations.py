r"""Table of the paper's ablations next to the paper's own numbers.

  launch/ablations.sh
  python -m benchmarks.ablations --workdir=runs/ablations --seeds 0 1 2

Reads the judgements of the runs of launch/ablations.sh and prints a Markdown
table: means over seeds with 95 % bootstrap intervals over the held-out queries,
which all runs share; the lowest and the highest seed; and the difference to the
full method, paired by query.

The paper measures a 27B model on public benchmarks. These runs measure a tiny
model on its own held-out examples, so only the signs are comparable.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from benchmarks import seed_runs
from grm_jax.evaluation import judgement_io, pipeline_report
from grm_jax.evaluation.metrics import ScoredItem


@dataclasses.dataclass(frozen=True)
class Variant:
  """Variant of the method, one row of the table.

  Attributes:
    title: display name.
    run: name of the run, a folder in WORKDIR.
    judge: stage after which the judge is measured.
    paper: overall greedy score in the ablation table of arXiv 2504.02495.
  """

  title: str
  run: str
  judge: str
  paper: float


# The first variant is the baseline of all differences.
VARIANTS = (
  Variant('full', 'full', 'grpo', 69.9),
  Variant('no principles', 'no_principles', 'grpo', 67.5),
  Variant(
    'no rejection sampling, then RL', 'no_rejective_sampling', 'grpo', 68.7
  ),
  Variant('RFT only', 'full', 'rft', 68.8),
  Variant('RFT without hinted samples', 'no_hinted', 'rft', 68.0),
  Variant('RFT without unhinted samples', 'no_unhinted', 'rft', 67.4),
  Variant('no RFT: cold start only', 'full', 'sft', 66.1),
  Variant('RFT without general data', 'no_general_data', 'rft', 63.3),
)


@dataclasses.dataclass(frozen=True)
class Row:
  """Greedy accuracy of a variant in percent.

  Attributes:
    variant: the measured variant.
    seeds: accuracy of each seed.
    mean: mean over seeds.
    low: lower end of the 95 % interval over queries.
    high: upper end of the interval.
    gain: (difference to the full method, low, high); None for the full method.
  """

  variant: Variant
  seeds: tuple[float, ...]
  mean: float
  low: float
  high: float
  gain: tuple[float, float, float] | None


def read_rows(workdir: str, seeds: Sequence[int]) -> list[Row]:
  """Reads the variants that have runs with all of these seeds.

  Raises:
    ValueError: the full method has none, or the runs have different queries.
  """
  runs_by_variant = {}
  for variant in VARIANTS:
    paths = [_path(workdir, variant, seed) for seed in seeds]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing and not runs_by_variant:
      raise ValueError(
        f'{missing[0]} does not exist; run launch/ablations.sh with the same '
        'WORKDIR and SEEDS first'
      )
    if missing:
      print(
        f'skipped: {variant.title}: {missing[0]} does not exist',
        file=sys.stderr,
      )
      continue
    runs_by_variant[variant] = [_by_query(path) for path in paths]
  full = runs_by_variant[VARIANTS[0]]
  return [
    _make_row(variant, runs, full) for variant, runs in runs_by_variant.items()
  ]


def _path(workdir: str, variant: Variant, seed: int) -> str:
  run = os.path.join(workdir, variant.run, str(seed))
  return seed_runs.samples_path(run, variant.judge)


def _by_query(path: str) -> dict[str, ScoredItem]:
  """Reads the accuracy of the greedy judgement by example id."""
  return pipeline_report.items(list(judgement_io.read(path)))


def _make_row(
  variant: Variant, runs: list[seed_runs.Items], full: list[seed_runs.Items]
) -> Row:
  # Averaging checks that the variant and the full method share all examples.
  seed_runs.average([*runs, *full], variant.title)
  means = seed_runs.average(runs, variant.title)
  gain = None
  if runs is not full:
    base = seed_runs.average(full, 'full')
    gain = seed_runs.percent(pipeline_report.differences(means, base))
  seeds = tuple(seed_runs.percent(x)[0] for x in runs)
  return Row(variant, seeds, *seed_runs.percent(means), gain)


def markdown(rows: Sequence[Row]) -> str:
  """Formats the table; the paper's numbers are the last two columns."""
  base = VARIANTS[0].paper
  head = (
    'variant',
    'greedy, mean of seeds [95 %]',
    'lowest, highest seed',
    'difference to full [95 %]',
    'paper',
    'difference to full',
  )
  lines = []
  for row in rows:
    gain, paper = '', ''
    if row.gain is not None:
      gain = pipeline_report.format_estimate(row.gain, '+')
      paper = f'{row.variant.paper - base:+.1f}'
    cells = (
      row.variant.title,
      pipeline_report.format_estimate((row.mean, row.low, row.high)),
      f'{min(row.seeds):.1f}, {max(row.seeds):.1f}',
      gain,
      f'{row.variant.paper:.1f}',
      paper,
    )
    lines.append(cells)
  return seed_runs.markdown_table(head, lines)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='runs/ablations')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--json', help='also write the numbers to this JSON file')
  options = parser.parse_args()
  try:
    rows = read_rows(options.workdir, options.seeds)
  except ValueError as error:
    sys.exit(f'error: {error}')
  print(markdown(rows))
  if options.json:
    with open(options.json, 'w') as file:
      json.dump([dataclasses.asdict(row) for row in rows], file, indent=2)


if __name__ == '__main__':
  main()
