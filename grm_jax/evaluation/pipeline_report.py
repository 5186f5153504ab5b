"""The report of a pipeline run: accuracy after each stage, training curves.

It is a page of report.py with three parts in front: a table of the stages, the
same numbers as bars, and the training curves.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grm_jax.evaluation import html as report_html
from grm_jax.evaluation import (
  metrics,
  plots,
  report,
  scaling_curves,
  tables,
  vote_subsets,
)
from grm_jax.evaluation.metrics import ScoredItem
from grm_jax.evaluation.plots import Bar, Series
from grm_jax.evaluation.report import SuiteReport
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves
from grm_jax.judgement import voting
from grm_jax.judgement.judgement import JudgedExample

MetricRows = Sequence[Mapping[str, Any]]  # rows of metrics.jsonl

# Stage -> (panel title, series label -> key of metrics.jsonl).
_PANELS = {
  'base': ('Base', {'loss': 'loss'}),
  'sft': ('Cold start', {'loss': 'loss'}),
  'rft': ('RFT', {'loss': 'loss'}),
  'grpo': (
    'GRPO',
    {
      'mean reward': 'rollout/reward',
      'held-out greedy accuracy': 'eval/accuracy',
    },
  ),
  'meta_rm': ('Meta RM', {'loss': 'loss', 'held-out AUC': 'eval/auc'}),
}
_NOTE = (
  'Accuracy on held-out examples with at least two responses, in percent, with '
  '95% intervals over queries. An m-fold tie at the top counts 1/m; a parse '
  'failure counts as wrong. Voting@k sums the scores of k samples; MetaRM@k '
  'sums those of the half with the highest meta-RM scores.'
)
_GAINS = (
  'Difference to the accuracy of the previous stage, in percent, paired by '
  'query. Paired differences vary less than the accuracies. One sample is '
  'Voting@1, the mean over the samples of a query.'
)
_SINGLES = (
  'Examples with a single response and a 0/1 label: fraction of correct '
  'verdicts, in percent. Votes are the mean of all samples.'
)


@dataclasses.dataclass(frozen=True)
class SingleResponseStats:
  """Accuracy on examples with a single response.

  Attributes:
    count: number of examples.
    greedy: accuracy of the greedy generations.
    voting: accuracy of the mean score of all samples.
  """

  count: int
  greedy: float
  voting: float


@dataclasses.dataclass(frozen=True)
class StageResult:
  """The evaluation of the GRM after one stage.

  Attributes:
    suite: curves, generation statistics and example generations.
    singles: accuracy on single responses, None if there are none.
    greedy: greedy accuracy of each example with several responses, by id.
    one_sample: the same for Voting@1, the mean over all samples.
  """

  suite: SuiteReport
  singles: SingleResponseStats | None
  greedy: Mapping[str, ScoredItem]
  one_sample: Mapping[str, ScoredItem]

  @classmethod
  def from_judged(
    cls, title: str, judged: Sequence[JudgedExample], seed: int
  ) -> 'StageResult':
    """Returns the evaluation of judged examples.

    Args:
      title: title of the stage.
      judged: examples with greedy generation and samples.
      seed: seed of subsets and resampling.

    Raises:
      UserError: see scaling_curves.curves.
    """
    curves = scaling_curves.curves(judged, seed)
    suite = report.suite_report(title, judged, curves)
    return cls(suite, _single_stats(judged), items(judged), items(judged, 1))

  @property
  def curves(self) -> Curves:
    """Accuracy over the number of samples."""
    return self.suite.curves


def items(
  judged: Sequence[JudgedExample], k: int = 0, num_meta: int | None = None
) -> dict[str, ScoredItem]:
  """Returns the accuracy of each example with a best response, by id.

  Args:
    judged: the judged examples; those without a best response are skipped.
    k: number of samples of Voting@k, the mean over subsets; 0 for greedy.
    num_meta: number of the k samples that the meta RM selects; None for all.
  """
  known = [x for x in judged if x.example.best is not None]
  samples = vote_subsets.gather(known)
  if k:
    members, _ = vote_subsets.choose(
      samples.num_samples,
      k,
      seed=0,
      max_exact=scaling_curves.MAX_SUBSETS,
      num_random=scaling_curves.NUM_SUBSETS,
    )
    values = vote_subsets.expected(samples, members, num_meta)
  else:
    values = vote_subsets.expected_greedy(samples)
  return {
    x.example.id: ScoredItem('', metrics.query_of(x.example), value)
    for x, value in zip(known, values.tolist(), strict=True)
  }


def _single_stats(
  judged: Sequence[JudgedExample],
) -> SingleResponseStats | None:
  singles = [x for x in judged if len(x.example.responses) == 1]
  if not singles:
    return None
  greedy, votes = [], []
  for x in singles:
    (label,) = x.example.rewards or (None,)
    # A parse failure is never correct.
    greedy.append(x.greedy is not None and x.greedy.scores == (label,))
    mean = voting.mean_scores([sample.scores for sample in x.samples], 1)
    votes.append(mean is not None and (mean[0] > 0.5) == label)
  count = len(singles)
  return SingleResponseStats(count, sum(greedy) / count, sum(votes) / count)


def summary(
  stages: Mapping[str, StageResult], k: int, facts: Mapping[str, str]
) -> dict[str, Any]:
  """Returns all numbers as JSON values.

  Args:
    stages: results by stage, in the order of the run.
    k: number of samples in the table of stages; all curves include it.
    facts: settings to show at the top of the report.
  """
  greedy_gains = _gains([stage.greedy for stage in stages.values()])
  sample_gains = _gains([stage.one_sample for stage in stages.values()])
  return {
    'facts': dict(facts),
    'at': k,
    'judges': {
      name: {
        'title': stage.suite.title,
        'queries': stage.curves.num_queries,
        'greedy': _point(stage.curves.greedy),
        'greedy_gain': greedy_gain,
        'one_sample_gain': sample_gain,
        'voting': {str(x.k): _point(x) for x in stage.curves.voting},
        'meta': {str(x.k): _point(x) for x in stage.curves.meta},
        'meta_kept': {
          str(x.num_meta): _point(x) for x in stage.curves.meta_kept
        },
        'singles': _asdict(stage.singles),
        'behaviour': _asdict(stage.suite.samples),
        'greedy_behaviour': _asdict(stage.suite.greedy),
      }
      for (name, stage), greedy_gain, sample_gain in zip(
        stages.items(), greedy_gains, sample_gains, strict=True
      )
    },
  }


def _asdict(stats: Any) -> dict[str, Any] | None:
  return None if stats is None else dataclasses.asdict(stats)


def _gains(
  stage_items: Sequence[Mapping[str, ScoredItem]],
) -> list[dict[str, float] | None]:
  """Returns the difference of each stage to the one before, None for first."""
  gains: list[dict[str, float] | None] = [None]
  for before, after in itertools.pairwise(stage_items):
    value, low, high = mean_with_interval(differences(after, before))
    gains.append({'value': value, 'low': low, 'high': high})
  return gains


def differences(
  after: Mapping[str, ScoredItem], before: Mapping[str, ScoredItem]
) -> dict[str, ScoredItem]:
  """Returns the difference of each example; both have the same examples."""
  return {
    name: dataclasses.replace(item, value=item.value - before[name].value)
    for name, item in after.items()
  }


def mean_with_interval(
  items: Mapping[str, ScoredItem],
) -> tuple[float, float, float]:
  """Returns (mean, low, high) with a 95 % interval over queries."""
  values = tuple(items.values())
  low, high = metrics.bootstrap([metrics.WeightedSection('', 1.0, 1.0, values)])
  return sum(item.value for item in values) / len(values), low, high


def _point(point: CurvePoint | None) -> dict[str, float] | None:
  if point is None:
    return None
  return {'value': point.value, 'low': point.low, 'high': point.high}


def stage_rows(stage_summary: Mapping[str, Any]) -> tables.Rows:
  """Returns the table of stages: a header, then a row per stage.

  If the last stage has more samples than the others, it has a second row.

  Args:
    stage_summary: returned by `summary`.
  """
  k = str(stage_summary['at'])
  rows: tables.Rows = [
    ('stage', 'greedy', 'one sample', f'Voting@{k}', f'MetaRM@{k}')
  ]
  stages = list(stage_summary['judges'].values())
  for stage in stages:
    votes = stage['voting']
    points = stage['greedy'], votes['1'], votes[k], stage['meta'].get(k)
    rows.append((stage['title'], *map(_format_point, points)))
  last = stages[-1]
  max_k = max(last['voting'], key=int)
  if max_k != k:
    last_points = last['voting'][max_k], last['meta'].get(max_k)
    title = f'the same, {max_k} samples'
    rows.append((title, '', '', *map(_format_point, last_points)))
  return rows


def _format_point(point: Mapping[str, float] | None, sign: str = '') -> str:
  if point is None:
    return '-'
  percent = [100 * point[x] for x in ('value', 'low', 'high')]
  return format_estimate(percent, sign)


def format_estimate(percent: Sequence[float], sign: str = '') -> str:
  """Formats (value, low, high) as 'value [low, high]'.

  Args:
    percent: value and ends of its interval, in percent.
    sign: '+' to show the sign of positive numbers.
  """
  value, low, high = (f'{x:{sign}.1f}' for x in percent)
  return f'{value} [{low}, {high}]'


def stage_table(stage_summary: Mapping[str, Any]) -> str:
  """Returns the table of stages for a terminal."""
  queries = next(iter(stage_summary['judges'].values()))['queries']
  head = f'{queries} held-out queries, accuracy in percent [95% interval]'
  return f'\n{head}\n{tables.aligned(stage_rows(stage_summary))}\n'


def write(
  folder: str,
  stages: Mapping[str, StageResult],
  stage_summary: Mapping[str, Any],
  training: Mapping[str, MetricRows],
  write_file: Callable[[str, bytes], None],
) -> None:
  """Writes the page, its plots and results.json.

  Args:
    folder: folder of the report.
    stages: results by stage.
    stage_summary: returned by `summary` for them.
    training: rows of metrics.jsonl by stage.
    write_file: `write` of report.write_report.
  """
  pngs = {'stages': plots.png(_stage_bars(stages, stage_summary['at']))}
  training_panels = panels(training)
  if training_panels:
    figure = plots.training(training_panels, 'Training curves')
    pngs['training'] = plots.png(figure)
  for name, png in pngs.items():
    write_file(os.path.join(folder, f'{name}.png'), png)
  front = [
    report_html.heading(2, 'Accuracy by stage'),
    report_html.table(stage_rows(stage_summary), 'Held-out accuracy'),
    report_html.note(_NOTE),
    *_gains_table(stage_summary),
    *_singles_table(stages),
    report_html.image(pngs['stages'], 'Accuracy by stage'),
  ]
  if 'training' in pngs:
    front.append(report_html.image(pngs['training'], 'Training curves'))
  suites = {name: stage.suite for name, stage in stages.items()}
  report.write_report(folder, suites, stage_summary['facts'], write_file, front)


def _gains_table(stage_summary: Mapping[str, Any]) -> list[str]:
  rows: tables.Rows = [('stage', 'greedy', 'one sample')]
  for stage in stage_summary['judges'].values():
    gains = stage['greedy_gain'], stage['one_sample_gain']
    if None not in gains:
      rows.append((stage['title'], *(_format_point(x, '+') for x in gains)))
  if len(rows) == 1:
    return []
  return [
    report_html.table(rows, 'Gain of each stage'),
    report_html.note(_GAINS),
  ]


def _singles_table(stages: Mapping[str, StageResult]) -> list[str]:
  rows: tables.Rows = [('stage', 'examples', 'greedy', 'votes')]
  for stage in stages.values():
    stats = stage.singles
    if stats is not None:
      values = (f'{100 * x:.1f}' for x in (stats.greedy, stats.voting))
      rows.append((stage.suite.title, f'{stats.count:,}', *values))
  if len(rows) == 1:
    return []
  return [
    report_html.table(rows, 'Single responses'),
    report_html.note(_SINGLES),
  ]


def _stage_bars(stages: Mapping[str, StageResult], k: int):
  bars = []
  for stage in stages.values():
    curves = stage.curves
    points = {
      'greedy': curves.greedy,
      f'Voting@{k}': _find_k(curves.voting, k),
      f'MetaRM@{k}': _find_k(curves.meta, k),
    }
    bars += [
      Bar(
        f'{stage.suite.title}: {name}',
        x.value,
        x.low,
        x.high,
        curves.num_queries,
      )
      for name, x in points.items()
      if x is not None
    ]
  return plots.accuracy_of_parts(bars, 'Held-out accuracy by stage')


def _find_k(points: Sequence[CurvePoint], k: int) -> CurvePoint | None:
  return next((x for x in points if x.k == k), None)


def panels(training: Mapping[str, MetricRows]) -> dict[str, list[Series]]:
  """Returns the series to plot of each stage, by panel title."""
  result = {}
  for stage, rows in training.items():
    title, keys = _PANELS[stage]
    series = [Series(label, _points(rows, key)) for label, key in keys.items()]
    series = [x for x in series if x.points]
    if series:
      result[title] = series
  return result


def _points(rows: MetricRows, key: str) -> list[tuple[int, float]]:
  # metrics.jsonl stores numbers that are not finite as texts; skip them.
  points = ((row['step'], row.get(key)) for row in rows)
  return [(step, x) for step, x in points if isinstance(x, int | float)]
