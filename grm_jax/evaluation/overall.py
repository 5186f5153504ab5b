"""The paper's overall score: the mean over four benchmark columns.

Tables 2, 3, 6 and 7 of arXiv 2504.02495 have the columns RewardBench, PPE
Preference, PPE Correctness and RMB. Their Overall is the unweighted mean:
(86.0 + 64.7 + 59.8 + 69.0) / 4 = 69.9 for DeepSeek-GRM-27B, greedy. ReaLMistake
is not part of it (Table 13).
"""

import dataclasses
from collections.abc import Mapping, Sequence

from grm_jax.evaluation import paper_numbers
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves

NOTE = (
  'Overall is that of arXiv 2504.02495: the mean of RewardBench, PPE '
  'Preference, PPE Correctness and RMB, each run as a whole. Without all of '
  'them, the row is the mean of the named ones.'
)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the paper's tables.

  Attributes:
    suite: name of the suite.
    section: section of the suite that is the column; '' for the suite itself.
    min_queries: number of queries from which on the column is whole.
  """

  suite: str
  section: str
  min_queries: int


COLUMNS = (
  Column('rewardbench', '', 2985),
  # 16038 rows. Ties are not judged, and their number is not published.
  Column('ppe', 'preference', 16_038 // 2),
  Column('ppe', 'correctness', 5 * 2555),  # pairs of 2555 questions
  # Its published files; three of them, with more pairs, were not counted.
  Column('rmb', '', 18_329),
)


@dataclasses.dataclass(frozen=True)
class Overall:
  """The mean over the columns that have results.

  Attributes:
    label: 'Overall', or the columns if some of them are missing or incomplete.
    is_complete: whether it is the mean of all columns, each of them whole.
    num_queries: number of queries of all columns.
    max_k: number of samples per query; None if the columns differ in it.
    greedy: score of the greedy generations, None if a column has none.
    voting: Voting@k by k, for each k that all columns have.
    meta: MetaRM@k likewise.
  """

  label: str
  is_complete: bool
  num_queries: int
  max_k: int | None
  greedy: float | None
  voting: Mapping[int, float]
  meta: Mapping[int, float]


def columns_of(suite: str, curves: Curves) -> dict[str, Curves]:
  """Returns the curves of the sections of a suite that are columns."""
  names = [column.section for column in COLUMNS if column.suite == suite]
  return {x: curves.sections[x] for x in names if x in curves.sections}


def overall(suites: Mapping[str, Curves]) -> Overall | None:
  """Returns the mean over the columns of several suites, or None.

  Args:
    suites: curves by name of the suite.
  """
  columns = {
    column: suites[column.suite].sections[column.section]
    if column.section
    else suites[column.suite]
    for column in COLUMNS
    if column.suite in suites
    and column.section in ('', *suites[column.suite].sections)
  }
  if len({column.suite for column in columns}) < 2:
    return None
  are_whole = {c: _is_whole(c, curves) for c, curves in columns.items()}
  is_complete = len(columns) == len(COLUMNS) and all(are_whole.values())
  names = [
    f'{c.suite} {c.section}'.strip() + ('' if are_whole[c] else ' (part)')
    for c in columns
  ]
  return _mean_of_columns(
    'Overall' if is_complete else f'mean of {", ".join(names)}',
    is_complete,
    list(columns.values()),
  )


def _is_whole(column: Column, curves: Curves) -> bool:
  """Returns whether a column has all its sections, and enough queries."""
  sections = [column.section] if column.section else list(curves.sections)
  published = paper_numbers.of_suite(column.suite, sections)
  return published is not None and curves.num_queries >= column.min_queries


def _mean_of_columns(
  label: str, is_complete: bool, columns: Sequence[Curves]
) -> Overall:
  greedy = [x.greedy.value for x in columns if x.greedy]
  max_ks = {x.voting[-1].k if x.voting else None for x in columns}
  return Overall(
    label=label,
    is_complete=is_complete,
    num_queries=sum(x.num_queries for x in columns),
    max_k=max_ks.pop() if len(max_ks) == 1 else None,
    greedy=_mean(greedy) if len(greedy) == len(columns) else None,
    voting=_mean_by_k([x.voting for x in columns]),
    meta=_mean_by_k([x.meta for x in columns]),
  )


def _mean_by_k(columns: Sequence[Sequence[CurvePoint]]) -> dict[int, float]:
  values = [{point.k: point.value for point in points} for points in columns]
  common_ks = sorted(set.intersection(*map(set, values)))
  return {k: _mean([x[k] for x in values]) for k in common_ks}


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)
