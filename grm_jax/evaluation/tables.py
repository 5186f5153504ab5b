"""Tables of a report as rows of texts, for the page and the terminal."""

from collections.abc import Sequence

from grm_jax.evaluation.generation_stats import GenerationStats
from grm_jax.evaluation.overall import Overall
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves

Rows = list[tuple[str, ...]]

BEHAVIOUR_NOTE = (
  'All columns except tokens are in percent. unparsed: generations without '
  'scores. no vote: queries without any parsed generation. ties: parsed '
  'generations whose top score is tied. vote ties: queries whose top vote is '
  'tied. first: how often the response shown first has the top score. chance: '
  'the same for a judge without position bias. tokens: mean length. truncated: '
  'generations that reached the token limit. shortened: number and share of '
  'generations for which long texts of the example were shortened. extraction: '
  'the same of generations whose scores differ between the strict parser and '
  'the example code of the released DeepSeek-GRM.'
)


def accuracy(
  curves: Sequence[tuple[str, Curves]],
  names: tuple[str, str] = ('suite', 'queries'),
) -> Rows:
  """Returns a header and a row of accuracies per (title, curves).

  Args:
    curves: the rows.
    names: header of the title and of the number of queries.
  """
  max_ks = {x.voting[-1].k for _, x in curves if x.voting}
  k = str(*max_ks) if len(max_ks) == 1 else 'K'
  rows: Rows = [(*names, 'greedy', 'Voting@1', f'Voting@{k}', f'MetaRM@{k}')]
  for title, suite_curves in curves:
    rows.append(
      (
        title,
        f'{suite_curves.num_queries:,}',
        _percent(_value(suite_curves.greedy)),
        _percent(_value(_get(suite_curves.voting, 0))),
        _with_interval(_get(suite_curves.voting, -1)),
        _with_interval(_get(suite_curves.meta, -1)),
      )
    )
  return rows


def overall(x: Overall) -> tuple[str, ...]:
  """Returns a row of the table of accuracies, without intervals."""
  last = x.max_k or 0
  return (
    x.label,
    f'{x.num_queries:,}',
    _percent(x.greedy),
    _percent(x.voting.get(1)),
    _percent(x.voting.get(last)),
    _percent(x.meta.get(last)),
  )


def by_section(curves: Curves) -> Rows:
  """Returns the scores of each section, a row for greedy and for each k."""
  # The paper's Tables 8 to 10 have these columns.
  columns = [*curves.sections.values(), curves]
  rows: Rows = [('method', *curves.sections, 'score')]
  if curves.greedy is not None:
    rows.append(('greedy', *(_percent(_value(x.greedy)) for x in columns)))
  for method, series in (
    ('Voting', [x.voting for x in columns]),
    ('MetaRM', [x.meta for x in columns]),
  ):
    for points in zip(*series, strict=True):
      values = (_percent(point.value) for point in points)
      rows.append((f'{method}@{points[0].k}', *values))
  return rows


def behaviour(stats: Sequence[tuple[str, GenerationStats]]) -> Rows:
  """Returns a header and a row per (title, stats); see BEHAVIOUR_NOTE."""
  rows: Rows = [
    (
      *('suite', 'unparsed', 'no vote', 'ties', 'vote ties', 'first', 'chance'),
      *('tokens', 'truncated', 'shortened', 'extraction'),
    )
  ]
  for title, x in stats:
    rows.append(
      (
        title,
        _percent(x.parse_failure_rate),
        _percent(x.unvoted_rate),
        _percent(x.tie_rate),
        _percent(x.vote_tie_rate),
        _percent(x.first_rate),
        _percent(x.first_expected),
        '-' if x.mean_tokens is None else f'{x.mean_tokens:.0f}',
        _percent(x.truncated_rate),
        _count_and_percent(x.num_shortened, x.num_generations),
        _count_and_percent(x.num_extraction_differs, x.num_generations),
      )
    )
  return rows


def _count_and_percent(count: int, total: int) -> str:
  return f'{count:,} ({_percent(count / total)})' if total else '-'


def over_k(curves: Curves) -> Rows:
  """Returns Voting@k and MetaRM@k for every k, after the greedy accuracy."""
  metas = curves.meta or [None] * len(curves.voting)
  rows: Rows = [('k', 'Voting@k', 'MetaRM@k', 'subsets of k averaged')]
  if curves.greedy is not None:
    rows.append(('greedy', _with_interval(curves.greedy), '', ''))
  for point, meta in zip(curves.voting, metas, strict=True):
    kind = 'all' if point.exact else 'random'
    subsets = f'{point.num_subsets:,} ({kind})'
    rows.append(
      (str(point.k), _with_interval(point), _with_interval(meta), subsets)
    )
  return rows


def meta_kept(curves: Curves) -> Rows:
  """Returns MetaRM@K for every number of selected samples."""
  rows: Rows = [('k_meta', f'MetaRM@{curves.voting[-1].k}')]
  return rows + [(str(x.num_meta), _with_interval(x)) for x in curves.meta_kept]


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Formats rows for a terminal; all columns but the first align right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *rest in rows:
    cells = [first.ljust(widths[0])]
    cells += [x.rjust(w) for x, w in zip(rest, widths[1:], strict=True)]
    lines.append('  '.join(cells).rstrip())
  return '\n'.join(lines)


def _get(points: Sequence[CurvePoint], index: int) -> CurvePoint | None:
  return points[index] if points else None


def _value(point: CurvePoint | None) -> float | None:
  return None if point is None else point.value


def _percent(value: float | None) -> str:
  return '-' if value is None else f'{100 * value:.1f}'


def _with_interval(point: CurvePoint | None) -> str:
  if point is None:
    return '-'
  interval = f'{_percent(point.low)}, {_percent(point.high)}'
  return f'{_percent(point.value)} [{interval}]'
