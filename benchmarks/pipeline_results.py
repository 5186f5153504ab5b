r"""What each stage of the method brings: runs of several seeds in one table.

  for seed in 0 1 2; do
    python -m grm_jax.main --config=configs/spct.py:tiny \
      --workdir=runs/method/$seed --config.seed=$seed
  done
  python -m benchmarks.pipeline_results runs/method/*

Prints tables in Markdown: accuracy on held-out examples of two responses or
more, stage by stage; on pairs alone, where a tie is wrong; how the judges
behave; the differences that the method promises. All are means over the runs.
95 % intervals resample the held-out queries, which all runs share; differences
are paired by query.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence

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
  """The judges after a stage, one of each run.

  Attributes:
    name: for people.
    runs: what each of them judged.
    ks: sizes of votes.
  """

  name: str
  runs: Sequence[Sequence[JudgedExample]]
  ks: Sequence[int]

  @functools.cache  # noqa: B019 - a stage lives as long as the script
  def items(self, k: int, num_meta: int | None = None) -> seed_runs.Items:
    """By example the mean over runs of Voting@k or MetaRM@k; 0 is greedy."""
    found = [pipeline_report.items(run, k, num_meta) for run in self.runs]
    return seed_runs.average(found, self.name)

  @functools.cache  # noqa: B019 - as above
  def pairs(self, greedy: bool) -> seed_runs.Items:
    """By pair the share of judgements that are right, and a tie is not."""
    found = [_strict(run, greedy) for run in self.runs]
    return seed_runs.average(found, self.name)


def _strict(run: Sequence[JudgedExample], greedy: bool) -> seed_runs.Items:
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
  """The stages that were evaluated in the first run, of all runs.

  Args:
    workdirs: of the runs.
    ks: sizes of votes in the tables, ascending; those of more samples than a
      stage has are left out of its row.

  Raises:
    ValueError: a run lacks what another has.
  """
  found = []
  for key, name in STAGES.items():
    paths = [seed_runs.path_of(workdir, key) for workdir in workdirs]
    there = [os.path.exists(path) for path in paths]
    if not any(there):
      continue
    if not all(there):
      raise ValueError(f'{paths[there.index(False)]} is not there: run it')
    runs = [list(judgement_io.read(path)) for path in paths]
    most = len(runs[0][0].samples)
    found.append(Stage(name, runs, [k for k in ks if k <= most]))
  if not found:
    raise ValueError(f'{workdirs[0]} is no finished run of configs/spct.py')
  return found


def accuracies(stage: Stage) -> dict[str, Estimate]:
  """Column -> percent with its interval."""
  found = {'greedy': seed_runs.percent(stage.items(0))}
  for k in stage.ks:
    found[f'Voting@{k}'] = seed_runs.percent(stage.items(k))
    if k > 1 and _has_metas(stage):
      found[f'MetaRM@{k}'] = seed_runs.percent(stage.items(k, k // 2))
  return found


def _has_metas(stage):
  return stage.runs[0][0].samples[0].meta is not None


def strict(stage: Stage) -> dict[str, Estimate]:
  """Column -> percent of pairs that are judged right; a tie is wrong."""
  return {
    'greedy': seed_runs.percent(stage.pairs(True)),
    'one sample': seed_runs.percent(stage.pairs(False)),
  }


def behaviour(stage: Stage) -> dict[str, float | None]:
  """Column -> percent, or tokens; None where no judgement parsed."""
  pairs = [
    [x for x in run if len(x.example.responses) == 2] for run in stage.runs
  ]
  sampled = [generation_stats.of_samples(run) for run in stage.runs]
  greedy = [generation_stats.of_greedy(run) for run in stage.runs]
  first = [generation_stats.of_samples(run) for run in pairs]
  return {
    'parse failures, greedy': _percent(x.parse_failure_rate for x in greedy),
    'of samples': _percent(x.parse_failure_rate for x in sampled),
    'ties': _percent(x.tie_rate for x in sampled),
    'first of two wins': _percent(x.first_rate for x in first),
    'tokens': _mean(x.mean_tokens for x in sampled),
  }


def _percent(rates) -> float | None:
  known = [x for x in rates if x is not None]
  return 100 * _mean(known) if known else None


def _mean(values) -> float:
  values = list(values)
  return sum(values) / len(values)


def differences(stages: Sequence[Stage]) -> Iterator[tuple[str, Estimate]]:
  """(what, percent with its interval), paired by query."""
  for before, after in itertools.pairwise(stages):
    for k, how in ((0, 'greedy'), (1, 'one sample')):
      items = pipeline_report.differences(after.items(k), before.items(k))
      yield f'{after.name} - {before.name}, {how}', seed_runs.percent(items)
    for greedy, how in ((True, 'greedy'), (False, 'one sample')):
      items = pipeline_report.differences(
        after.pairs(greedy), before.pairs(greedy)
      )
      what = f'{after.name} - {before.name}, pairs, strict, {how}'
      yield what, seed_runs.percent(items)
  for stage in stages:
    for few, many in itertools.pairwise(stage.ks):
      items = pipeline_report.differences(stage.items(many), stage.items(few))
      yield f'{stage.name}: Voting@{many} - @{few}', seed_runs.percent(items)
    for k in (x for x in stage.ks if x > 1 and _has_metas(stage)):
      items = pipeline_report.differences(
        stage.items(k, k // 2), stage.items(k)
      )
      yield f'{stage.name}: MetaRM@{k} - Voting@{k}', seed_runs.percent(items)


def markdown(stages: Sequence[Stage]) -> str:
  """The four tables."""
  rows = {x.name: accuracies(x) for x in stages}
  columns = list(dict.fromkeys(key for row in rows.values() for key in row))
  pairs = {x.name: strict(x) for x in stages}
  behaviours = {x.name: behaviour(x) for x in stages}
  return '\n\n'.join(
    (
      seed_runs.markdown(
        ('stage', *columns),
        [
          (
            name,
            *(
              pipeline_report.cell(row[x]) if x in row else '' for x in columns
            ),
          )
          for name, row in rows.items()
        ],
      ),
      seed_runs.markdown(
        ('pairs, strict', *pairs[stages[0].name]),
        [
          (name, *map(pipeline_report.cell, row.values()))
          for name, row in pairs.items()
        ],
      ),
      seed_runs.markdown(
        ('stage', *behaviours[stages[0].name]),
        [
          (name, *('' if x is None else f'{x:.1f}' for x in row.values()))
          for name, row in behaviours.items()
        ],
      ),
      seed_runs.markdown(
        ('difference', 'percent [95 %]'),
        [
          (what, pipeline_report.cell(x, '+'))
          for what, x in differences(stages)
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
    help='sizes of votes, the first 1 (default: %(default)s)',
  )
  parser.add_argument('--json', help='a file for the numbers')
  arguments = parser.parse_args()
  try:
    stages = read(arguments.workdirs, arguments.ks)
    print(markdown(stages))
  except ValueError as error:
    sys.exit(f'error: {error}')
  if arguments.json:
    found = {
      'accuracies': {x.name: accuracies(x) for x in stages},
      'pairs, strict': {x.name: strict(x) for x in stages},
      'behaviour': {x.name: behaviour(x) for x in stages},
      'differences': dict(differences(stages)),
    }
    with open(arguments.json, 'w') as file:
      json.dump(found, file, indent=2)


if __name__ == '__main__':
  main()
