r"""Accuracy after each stage of the pipeline, averaged over seeds.

  for seed in 0 1 2; do
    python -m grm_jax.main --config=configs/spct.py:tiny \
      --workdir=runs/method/$seed --config.seed=$seed
  done
  python -m benchmarks.pipeline_results runs/method/*

Prints Markdown tables: accuracy per stage on held-out examples with two or more
responses; strict accuracy on pairs, where a tie is wrong; parse failures, ties,
position bias and length; and the differences between stages and between numbers
of votes. All values are means over the runs. The 95 % intervals are bootstrap
intervals over the held-out queries, which all runs share. Differences are
paired by query.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from benchmarks import seed_runs
from grm_jax.evaluation import (
  generation_stats,
  judgement_io,
  metrics,
  pipeline_report,
)
from grm_jax.judgement import correctness
from grm_jax.judgement.judgement import JudgedExample

STAGES = {
  'before': 'before training',
  'sft': 'cold start',
  'rft': 'RFT',
  'grpo': 'GRPO',
}
KS = (1, 8, 32)
Estimate = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """Judgements after one stage, from several runs.

  Attributes:
    name: display name.
    runs: judged examples of each run.
    ks: numbers of votes.
  """

  name: str
  runs: Sequence[Sequence[JudgedExample]]
  ks: Sequence[int]

  @functools.cache  # noqa: B019 - a stage lives as long as the script
  def items(self, k: int, num_meta: int | None = None) -> seed_runs.Items:
    """Returns the mean over runs of Voting@k or MetaRM@k; k=0 is greedy."""
    runs = [pipeline_report.items(run, k, num_meta) for run in self.runs]
    return seed_runs.average(runs, self.name)

  @functools.cache  # noqa: B019 - as above
  def pairs(self, greedy: bool) -> seed_runs.Items:
    """Returns the strict accuracy of each pair; a tie is wrong."""
    runs = [_strict_accuracies(run, greedy) for run in self.runs]
    return seed_runs.average(runs, self.name)


def _strict_accuracies(
  run: Sequence[JudgedExample], greedy: bool
) -> seed_runs.Items:
  return {
    x.example.id: metrics.ScoredItem(
      '',
      metrics.query_of(x.example),
      _mean(correctness.is_correct(y.scores, x.example) for y in judgements),
    )
    for x in run
    if len(x.example.responses) == 2
    for judgements in [[x.greedy] if greedy else x.samples]
  }


def read(workdirs: Sequence[str], ks: Sequence[int] = KS) -> list[Stage]:
  """Reads the judgements of all evaluated stages.

  Args:
    workdirs: workdirs of the runs.
    ks: numbers of votes, ascending. A stage skips the numbers that exceed its
      number of samples.

  Raises:
    ValueError: no stage was evaluated, or only some runs evaluated a stage.
  """
  stages = []
  for key, name in STAGES.items():
    paths = [seed_runs.samples_path(workdir, key) for workdir in workdirs]
    missing = [path for path in paths if not os.path.exists(path)]
    if len(missing) == len(paths):
      continue
    if missing:
      raise ValueError(
        f'{missing[0]} does not exist, but other runs have this stage; finish '
        'the run first'
      )
    runs = [list(judgement_io.read(path)) for path in paths]
    num_samples = len(runs[0][0].samples)
    stages.append(Stage(name, runs, [k for k in ks if k <= num_samples]))
  if not stages:
    raise ValueError(
      f'{workdirs[0]} has no evaluated stage; give workdirs of finished runs '
      'of configs/spct.py'
    )
  return stages


def accuracies(stage: Stage) -> dict[str, Estimate]:
  """Returns accuracy in percent with its interval, by column."""
  columns = {'greedy': seed_runs.percent(stage.items(0))}
  for k in stage.ks:
    columns[f'Voting@{k}'] = seed_runs.percent(stage.items(k))
    if k > 1 and _has_meta_scores(stage):
      columns[f'MetaRM@{k}'] = seed_runs.percent(stage.items(k, k // 2))
  return columns


def _has_meta_scores(stage: Stage) -> bool:
  return stage.runs[0][0].samples[0].meta is not None


def strict_pairs(stage: Stage) -> dict[str, Estimate]:
  """Returns strict accuracy on pairs in percent; a tie is wrong."""
  return {
    'greedy': seed_runs.percent(stage.pairs(True)),
    'one sample': seed_runs.percent(stage.pairs(False)),
  }


def behaviour(stage: Stage) -> dict[str, float | None]:
  """Returns rates in percent and tokens; None if no judgement parsed."""
  pairs = [
    [x for x in run if len(x.example.responses) == 2] for run in stage.runs
  ]
  sampled = [generation_stats.of_samples(run) for run in stage.runs]
  greedy = [generation_stats.of_greedy(run) for run in stage.runs]
  pair_stats = [generation_stats.of_samples(run) for run in pairs]
  return {
    'parse failures, greedy': _percent(x.parse_failure_rate for x in greedy),
    'parse failures, samples': _percent(x.parse_failure_rate for x in sampled),
    'ties': _percent(x.tie_rate for x in sampled),
    'first position wins': _percent(x.first_rate for x in pair_stats),
    'tokens': _mean(x.mean_tokens for x in sampled),
  }


def _percent(rates: Iterable[float | None]) -> float | None:
  available = [x for x in rates if x is not None]
  return 100 * _mean(available) if available else None


def _mean(values: Iterable[float]) -> float:
  values = list(values)
  return sum(values) / len(values)


def differences(stages: Sequence[Stage]) -> Iterator[tuple[str, Estimate]]:
  """Yields (description, percent with its interval), paired by query."""
  for before, after in itertools.pairwise(stages):
    for k, mode in ((0, 'greedy'), (1, 'one sample')):
      items = pipeline_report.differences(after.items(k), before.items(k))
      yield f'{after.name} - {before.name}, {mode}', seed_runs.percent(items)
    for greedy, mode in ((True, 'greedy'), (False, 'one sample')):
      items = pipeline_report.differences(
        after.pairs(greedy), before.pairs(greedy)
      )
      description = f'{after.name} - {before.name}, pairs, strict, {mode}'
      yield description, seed_runs.percent(items)
  for stage in stages:
    for smaller, larger in itertools.pairwise(stage.ks):
      items = pipeline_report.differences(
        stage.items(larger), stage.items(smaller)
      )
      yield (
        f'{stage.name}: Voting@{larger} - @{smaller}',
        seed_runs.percent(items),
      )
    for k in (x for x in stage.ks if x > 1 and _has_meta_scores(stage)):
      items = pipeline_report.differences(
        stage.items(k, k // 2), stage.items(k)
      )
      yield f'{stage.name}: MetaRM@{k} - Voting@{k}', seed_runs.percent(items)


def markdown(stages: Sequence[Stage]) -> str:
  """Formats the four tables."""
  rows = {x.name: accuracies(x) for x in stages}
  columns = list(dict.fromkeys(key for row in rows.values() for key in row))
  pairs = {x.name: strict_pairs(x) for x in stages}
  behaviours = {x.name: behaviour(x) for x in stages}
  return '\n\n'.join(
    (
      seed_runs.markdown_table(
        ('stage', *columns),
        [
          (
            name,
            *(
              pipeline_report.format_estimate(row[x]) if x in row else ''
              for x in columns
            ),
          )
          for name, row in rows.items()
        ],
      ),
      seed_runs.markdown_table(
        ('pairs, strict', *pairs[stages[0].name]),
        [
          (name, *map(pipeline_report.format_estimate, row.values()))
          for name, row in pairs.items()
        ],
      ),
      seed_runs.markdown_table(
        ('stage', *behaviours[stages[0].name]),
        [
          (name, *('' if x is None else f'{x:.1f}' for x in row.values()))
          for name, row in behaviours.items()
        ],
      ),
      seed_runs.markdown_table(
        ('difference', 'percent [95 %]'),
        [
          (description, pipeline_report.format_estimate(x, '+'))
          for description, x in differences(stages)
        ],
      ),
    )
  )


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR')
  parser.add_argument(
    '--ks',
    type=int,
    nargs='+',
    default=KS,
    help='numbers of votes, ascending from 1 (default: %(default)s)',
  )
  parser.add_argument('--json', help='also write the numbers to this JSON file')
  options = parser.parse_args()
  try:
    stages = read(options.workdirs, options.ks)
    print(markdown(stages))
  except ValueError as error:
    sys.exit(f'error: {error}')
  if options.json:
    result = {
      'accuracies': {x.name: accuracies(x) for x in stages},
      'pairs, strict': {x.name: strict_pairs(x) for x in stages},
      'behaviour': {x.name: behaviour(x) for x in stages},
      'differences': dict(differences(stages)),
    }
    with open(options.json, 'w') as file:
      json.dump(result, file, indent=2)


if __name__ == '__main__':
  main()
