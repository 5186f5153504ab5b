r"""Tables of the paper (arXiv 2504.02495), measured and published side by side.

  launch/paper/table2.sh
  python -m benchmarks.paper_table --table=2 --workdir=runs/paper

Reads results.json of the evaluations that launch/paper/ runs, in
WORKDIR/JUDGE/SUITE, and prints a Markdown table: a row per judge, and in each
cell the measured score and the published one, in percent. '-': not measured.
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    title: title of the column.
    suite: name of the suite; '' for the mean of the other columns.
    part: 'sections' or 'subsets' with the name of the part; () for the suite.
  """

  title: str
  suite: str
  part: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    title: method in the paper.
    judge: folder of its runs.
    scores: 'greedy', 'Voting@K' (the sum of K samples), 'MetaRM@K' (of the half
      that the meta RM selects) or 'MetaRM@K/M' (of M).
    published: scores by column, in percent.
  """

  title: str
  judge: str
  scores: str
  published: tuple[float, ...]


def _section(suite: str, name: str, title: str = '') -> Column:
  return Column(title or name, suite, ('sections', name))


OVERALL = (
  Column('RewardBench', 'rewardbench'),
  _section('ppe', 'preference', 'PPE Preference'),
  _section('ppe', 'correctness', 'PPE Correctness'),
  Column('RMB', 'rmb'),
  Column('Overall', ''),
)
REWARDBENCH = (
  *(
    _section('rewardbench', name)
    for name in ('Chat', 'Chat Hard', 'Safety', 'Reasoning')
  ),
  Column('RewardBench', 'rewardbench'),
)
PRINCIPLES = (
  _section('rewardbench', 'Chat Hard'),
  Column('IFEval', 'ppe', ('subsets', 'IFEval')),
)
CORRECTNESS = (
  *(
    Column(name, 'ppe', ('subsets', name))
    for name in ('MMLU-Pro', 'MATH', 'GPQA', 'MBPP-Plus', 'IFEval')
  ),
  _section('ppe', 'correctness', 'PPE Correctness'),
)
BON = (
  _section('rmb', 'Helpfulness BoN_set', 'Helpfulness BoN'),
  _section('rmb', 'Harmlessness BoN_set', 'Harmlessness BoN'),
)
RMB = (
  BON[0],
  _section('rmb', 'Helpfulness Pairwise_set', 'Helpfulness Pairwise'),
  BON[1],
  _section('rmb', 'Harmlessness Pairwise_set', 'Harmlessness Pairwise'),
  Column('RMB', 'rmb'),
)
COLUMNS = {
  **dict.fromkeys((1, 14), PRINCIPLES),
  **dict.fromkeys((2, 3, 4), OVERALL),
  **dict.fromkeys((8, 15), REWARDBENCH),
  9: CORRECTNESS,
  10: RMB,
  11: BON,
  12: CORRECTNESS[-1:],
  13: (Column('ROC-AUC', 'realmistake'),),
}
# Columns table, method, judge, scores (see Row), published.
_ROWS = pathlib.Path(__file__).with_name('paper_tables.csv')


def read_rows(number: int) -> list[Row]:
  """Returns the rows of a table of the paper."""
  with _ROWS.open(encoding='utf-8', newline='') as file:
    return [
      Row(
        x['method'],
        x['judge'],
        x['scores'],
        tuple(map(float, x['published'].split())),
      )
      for x in csv.DictReader(file)
      if int(x['table']) == number
    ]


def read_results(workdir: str, judge: str, suite: str) -> dict[str, Any] | None:
  """Returns the curves of a suite, see evaluation/report.py; None for none."""
  path = os.path.join(workdir, judge, suite, 'results.json')
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as file:
    return json.load(file)['suites'][suite]['curves']


def value(curves: dict[str, Any] | None, column: Column, row: Row) -> Any:
  """Returns the score of a row in a column, from 0 to 1, or None."""
  if column.part:
    kind, name = column.part
    curves = curves and curves[kind].get(name)
  if not curves:
    return None
  if row.scores == 'greedy':
    return curves['greedy'] and curves['greedy']['value']
  kind, k, num_meta = re.split('[@/]', f'{row.scores}/')[:3]
  name = (
    'meta_kept' if num_meta else {'Voting': 'voting', 'MetaRM': 'meta'}[kind]
  )
  return next(
    (
      x['value']
      for x in curves[name]
      if x['k'] == int(k) and num_meta in ('', str(x['num_meta']))
    ),
    None,
  )


def measure(workdir: str, columns: Sequence[Column], row: Row) -> list[Any]:
  """Returns the scores of a row, from 0 to 1; None where there is none."""
  scores = [
    value(read_results(workdir, row.judge, x.suite), x, row)
    for x in columns
    if x.suite
  ]
  if len(scores) < len(columns):
    known = [x for x in scores if x is not None]
    scores.append(
      sum(known) / len(known) if len(known) == len(scores) else None
    )
  return scores


def format_table(workdir: str, number: int) -> str:
  """Returns a table as Markdown."""
  columns, rows = COLUMNS[number], read_rows(number)
  lines = [
    f'Table {number}: measured / published, in percent',
    '',
    f'| method | scores | {" | ".join(x.title for x in columns)} |',
    '| --- ' * (len(columns) + 2) + '|',
  ]
  for row in rows:
    pairs = zip(measure(workdir, columns, row), row.published, strict=True)
    cells = [f'{_percent(score)} / {x}' for score, x in pairs]
    lines.append(f'| {row.title} | {row.scores} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _percent(score: float | None) -> str:
  return '-' if score is None else f'{100 * score:.1f}'


def main() -> None:
  """Prints the table of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--table', type=int, required=True, choices=COLUMNS)
  parser.add_argument('--workdir', default='runs/paper')
  arguments = parser.parse_args()
  print(format_table(arguments.workdir, arguments.table))


if __name__ == '__main__':
  main()
