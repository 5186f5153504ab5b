"""The report of a whole run: its judges stage by stage, and how it trained.

A page of report.py with parts of its own in front: the table of stages, the
same as bars, and the curves of training.
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

Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl

# Stage -> title of its panel, and label -> key in metrics.jsonl.
_PANELS = {
  'base': ('Base', {'loss': 'loss'}),
  'sft': ('Cold start', {'loss': 'loss'}),
  'rft': ('RFT', {'loss': 'loss'}),
  'grpo': (
    'GRPO',
    {
      'mean reward': 'rollout/reward',
      'held out, greedy accuracy': 'held_out/accuracy',
    },
  ),
  'meta_rm': ('Meta RM', {'loss': 'loss', 'held-out AUC': 'held_out/auc'}),
}
_NOTE = (
  'Accuracy on held-out examples of two responses or more, in percent, with '
  '95% intervals over queries. A tie at the top counts one over the number of '
  'tied responses, what does not parse is wrong. Voting@k sums the scores of '
  'k samples; MetaRM@k sums those of the half that the meta RM likes most.'
)
_GAINS = (
  'Accuracy against that of the stage before, in percent: differences query by '
  'query, which vary less than the accuracies themselves. One sample is '
  'Voting@1, the mean over the samples of a query.'
)
_SINGLES = (
  'Examples of one response, asked for 0 or 1: share of right verdicts, of '
  'votes by the mean of all samples.'
)


@dataclasses.dataclass(frozen=True)
class SingleResponseStats:
  """Accuracy on examples of one response; the votes are of all samples."""

  count: int
  greedy: float
  voting: float


@dataclasses.dataclass(frozen=True)
class StageResult:
  """What a GRM judged, and what it is worth.

  Attributes:
    suite: curves, behaviour, generations to read.
    singles: of examples of one response, None if there are none.
    greedy: of examples of several, by id, whether the greedy judgement is
      right, and the query.
    one_sample: the same of one sample, the mean over all of them.
  """

  suite: SuiteReport
  singles: SingleResponseStats | None
  greedy: Mapping[str, ScoredItem]
  one_sample: Mapping[str, ScoredItem]

  @classmethod
  def of(
    cls, title: str, judged: Sequence[JudgedExample], seed: int
  ) -> 'StageResult':
    """The figures of what was judged, greedily and by samples.

    Raises:
      UserError: see curves.curves.
    """
    found = scaling_curves.curves(judged, seed)
    suite = report.suite_report(title, judged, found)
    return cls(suite, _singles(judged), items(judged), items(judged, 1))

  @property
  def curves(self) -> Curves:
    return self.suite.curves


def items(
  judged: Sequence[JudgedExample], k: int = 0, num_meta: int | None = None
) -> dict[str, ScoredItem]:
  """By id of each example with a best response, how often it is judged right.

  Args:
    k: of Voting@k, the mean over subsets of the samples; 0 is greedy.
    num_meta: of MetaRM@k, how many of the k it keeps.
  """
  known = [x for x in judged if x.example.best is not None]
  samples = vote_subsets.gather(known)
  if k:
    members, _ = vote_subsets.choose(
      samples.num_samples,
      k,
      seed=0,
      most=scaling_curves.MAX_SUBSETS,
      num=scaling_curves.NUM_SUBSETS,
    )
    values = vote_subsets.expected(samples, members, num_meta)
  else:
    values = vote_subsets.expected_greedy(samples)
  return {
    one.example.id: ScoredItem('', metrics.query_of(one.example), value)
    for one, value in zip(known, values.tolist(), strict=True)
  }


def _singles(judged: Sequence[JudgedExample]) -> SingleResponseStats | None:
  own = [x for x in judged if len(x.example.responses) == 1]
  if not own:
    return None
  greedy, votes = [], []
  for one in own:
    label = one.example.rewards[0]
    # Without a score there is no verdict, which is wrong.
    greedy.append(one.greedy.scores == (label,))
    mean = voting.mean([x.scores for x in one.samples], 1)
    votes.append(mean is not None and (mean[0] > 0.5) == label)
  return SingleResponseStats(
    len(own), sum(greedy) / len(own), sum(votes) / len(own)
  )


def summary(
  judges: Mapping[str, StageResult], at: int, facts: Mapping[str, str]
) -> dict[str, Any]:
  """All numbers as JSON values.

  Args:
    judges: by stage, in the order of the run.
    at: k of the table's columns; all curves have it.
    facts: what the report says at its top.
  """
  greedy = _gains([judge.greedy for judge in judges.values()])
  one_sample = _gains([judge.one_sample for judge in judges.values()])
  return {
    'facts': dict(facts),
    'at': at,
    'judges': {
      name: {
        'title': judge.suite.title,
        'queries': judge.curves.num_queries,
        'greedy': _point(judge.curves.greedy),
        'greedy_gain': gain,
        'one_sample_gain': sampled,
        'voting': {str(x.k): _point(x) for x in judge.curves.voting},
        'meta': {str(x.k): _point(x) for x in judge.curves.meta},
        'meta_kept': {
          str(x.num_meta): _point(x) for x in judge.curves.meta_kept
        },
        'singles': judge.singles and dataclasses.asdict(judge.singles),
        'behaviour': dataclasses.asdict(judge.suite.samples),
        'greedy_behaviour': dataclasses.asdict(judge.suite.greedy),
      }
      for (name, judge), gain, sampled in zip(
        judges.items(), greedy, one_sample, strict=True
      )
    },
  }


def _gains(
  judges: Sequence[Mapping[str, ScoredItem]],
) -> list[dict[str, float] | None]:
  """Of each judge the difference from the one before, paired by query."""
  found: list[dict[str, float] | None] = [None]
  for before, after in itertools.pairwise(judges):
    value, low, high = mean(differences(after, before))
    found.append({'value': value, 'low': low, 'high': high})
  return found


def differences(
  after: Mapping[str, ScoredItem], before: Mapping[str, ScoredItem]
) -> dict[str, ScoredItem]:
  """Example by example; both have the same ones."""
  return {
    name: dataclasses.replace(item, value=item.value - before[name].value)
    for name, item in after.items()
  }


def mean(found: Mapping[str, ScoredItem]) -> tuple[float, float, float]:
  """(mean, low, high): the 95 % interval resamples queries."""
  values = tuple(found.values())
  low, high = metrics.bootstrap([metrics.WeightedSection('', 1.0, 1.0, values)])
  return sum(item.value for item in values) / len(values), low, high


def _point(point: CurvePoint | None) -> dict[str, float] | None:
  if point is None:
    return None
  return {'value': point.value, 'low': point.low, 'high': point.high}


def rows_of(found: Mapping[str, Any]) -> tables.Rows:
  """The table of stages of a `summary`: a head, then a row for each judge.

  Where the last judge has more samples than the others it has one more row.
  """
  at = str(found['at'])
  rows = [('stage', 'greedy', 'one sample', f'Voting@{at}', f'MetaRM@{at}')]
  last = None
  for last in found['judges'].values():
    voting = last['voting']
    cells = (last['greedy'], voting['1'], voting[at], last['meta'].get(at))
    rows.append((last['title'], *map(_cell, cells)))
  most = max(last['voting'], key=int)
  if most != at:
    cells = (last['voting'][most], last['meta'].get(most))
    title = f'the same, of {most} samples'
    rows.append((title, '', '', *map(_cell, cells)))
  return rows


def _cell(point: Mapping[str, float] | None, sign: str = '') -> str:
  if point is None:
    return '-'
  return cell([100 * point[x] for x in ('value', 'low', 'high')], sign)


def cell(percent: Sequence[float], sign: str = '') -> str:
  """A value with its interval, (value, low, high), as tables show it."""
  value, low, high = (f'{x:{sign}.1f}' for x in percent)
  return f'{value} [{low}, {high}]'


def table_of(found: Mapping[str, Any]) -> str:
  """What a terminal shows of a `summary`."""
  queries = next(iter(found['judges'].values()))['queries']
  head = f'held out, {queries} queries, accuracy in percent [95% interval]'
  return f'\n{head}\n{tables.aligned(rows_of(found))}\n'


def write(
  folder: str,
  judges: Mapping[str, StageResult],
  found: Mapping[str, Any],
  training: Mapping[str, Rows],
  write_file: Callable[[str, bytes], None],
) -> None:
  """Writes the page, its pictures and results.json.

  Args:
    folder: where to.
    judges: by stage.
    found: their `summary`.
    training: rows of metrics.jsonl by stage.
    write_file: see report.write_report.
  """
  pictures = {'stages': plots.png(_bars(judges, found['at']))}
  shown = panels(training)
  if shown:
    figure = plots.training(shown, 'Training, stage by stage')
    pictures['training'] = plots.png(figure)
  for name, picture in pictures.items():
    write_file(os.path.join(folder, f'{name}.png'), picture)
  front = [
    report_html.heading(2, 'Stage by stage'),
    report_html.table(rows_of(found), 'Held-out accuracy'),
    report_html.note(_NOTE),
    *_gains_table(found),
    *_singles_table(judges),
    report_html.image(pictures['stages'], 'Accuracy stage by stage'),
  ]
  if 'training' in pictures:
    front.append(report_html.image(pictures['training'], 'Curves of training'))
  suites = {name: judge.suite for name, judge in judges.items()}
  report.write_report(folder, suites, found['facts'], write_file, front)


def _gains_table(found: Mapping[str, Any]) -> list[str]:
  rows = [('stage', 'greedy', 'one sample')]
  for judge in found['judges'].values():
    gains = judge['greedy_gain'], judge['one_sample_gain']
    if None not in gains:
      rows.append((judge['title'], *(_cell(gain, '+') for gain in gains)))
  if len(rows) == 1:
    return []
  return [
    report_html.table(rows, 'What each stage gains'),
    report_html.note(_GAINS),
  ]


def _singles_table(judges: Mapping[str, StageResult]) -> list[str]:
  rows = [('stage', 'examples', 'greedy', 'votes')]
  for judge in judges.values():
    own = judge.singles
    if own is not None:
      values = (f'{100 * x:.1f}' for x in (own.greedy, own.voting))
      rows.append((judge.suite.title, f'{own.count:,}', *values))
  if len(rows) == 1:
    return []
  return [
    report_html.table(rows, 'Single responses'),
    report_html.note(_SINGLES),
  ]


def _bars(judges: Mapping[str, StageResult], at: int):
  bars = []
  for judge in judges.values():
    own = judge.curves
    points = {
      'greedy': own.greedy,
      f'Voting@{at}': _at(own.voting, at),
      f'MetaRM@{at}': _at(own.meta, at),
    }
    bars += [
      Bar(
        f'{judge.suite.title}: {name}', x.value, x.low, x.high, own.num_queries
      )
      for name, x in points.items()
      if x is not None
    ]
  return plots.accuracy_of_parts(bars, 'Held-out accuracy stage by stage')


def _at(points: Sequence[CurvePoint], k: int) -> CurvePoint | None:
  return next((x for x in points if x.k == k), None)


def panels(training: Mapping[str, Rows]) -> dict[str, list[Series]]:
  """Title -> what is drawn of each stage's rows of metrics.jsonl."""
  found = {}
  for stage, rows in training.items():
    title, keys = _PANELS[stage]
    series = [Series(label, _points(rows, key)) for label, key in keys.items()]
    series = [x for x in series if x.points]
    if series:
      found[title] = series
  return found


def _points(rows: Rows, key: str) -> list[tuple[int, float]]:
  # A number that is not finite is a text there.
  found = ((row['step'], row.get(key)) for row in rows)
  return [(step, x) for step, x in found if isinstance(x, int | float)]
