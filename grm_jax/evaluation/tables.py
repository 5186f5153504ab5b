"""Rows of a report's tables, as texts; for a page and for a terminal."""

from collections.abc import Sequence

from grm_jax.evaluation.generation_stats import GenerationStats
from grm_jax.evaluation.metrics import Score
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves

Rows = list[tuple[str, ...]]

BEHAVIOUR_NOTE = (
  'In percent, but for tokens. unparsed: generations without scores. no vote: '
  'queries none of whose generations parses. ties: parsed generations with '
  'several top scores. vote ties: the same of summed scores. first: how often '
  'the response shown first has the top score. chance: what that is without '
  'a preference. tokens: mean length. cut off: generations that ran out of '
  'room.'
)


def accuracy(curves: Sequence[tuple[str, Curves]]) -> Rows:
  """A head and a row for every title."""
  most = {own.voting[-1].k for _, own in curves if own.voting}
  k = str(*most) if len(most) == 1 else 'K'
  rows = [
    ('suite', 'queries', 'greedy', 'Voting@1', f'Voting@{k}', f'MetaRM@{k}')
  ]
  for title, own in curves:
    rows.append(
      (
        title,
        f'{own.num_queries:,}',
        _percent(own.greedy and own.greedy.value),
        _percent(own.voting[0].value if own.voting else None),
        _ranged(own.voting[-1] if own.voting else None),
        _ranged(own.meta[-1] if own.meta else None),
      )
    )
  return rows


def behaviour(summaries: Sequence[tuple[str, GenerationStats]]) -> Rows:
  """A head and a row for every title; see BEHAVIOUR_NOTE."""
  head = 'suite,unparsed,no vote,ties,vote ties,first,chance,tokens,cut off'
  rows = [tuple(head.split(','))]
  for title, own in summaries:
    rows.append(
      (
        title,
        _percent(own.parse_failure_rate),
        _percent(own.unvoted_rate),
        _percent(own.tie_rate),
        _percent(own.vote_tie_rate),
        _percent(own.first_rate),
        _percent(own.first_expected),
        '-' if own.mean_tokens is None else f'{own.mean_tokens:.0f}',
        _percent(own.truncated_rate),
      )
    )
  return rows


def over_k(curves: Curves) -> Rows:
  """Voting@k and MetaRM@k for every k, after the greedy generation."""
  metas = curves.meta or [None] * len(curves.voting)
  rows = [('k', 'Voting@k', 'MetaRM@k', 'subsets of k averaged')]
  if curves.greedy is not None:
    rows.append(('greedy', _ranged(curves.greedy), '', ''))
  for point, meta in zip(curves.voting, metas, strict=True):
    kind = 'all' if point.exact else 'random'
    drawn = f'{point.num_subsets:,} ({kind})'
    rows.append((str(point.k), _ranged(point), _ranged(meta), drawn))
  return rows


def meta_kept(curves: Curves) -> Rows:
  """MetaRM@K for every number of samples kept."""
  rows = [('k_meta', f'MetaRM@{curves.voting[-1].k}')]
  return rows + [(str(x.num_meta), _ranged(x)) for x in curves.meta_kept]


def by_subset(score: Score) -> Rows:
  """A suite's smallest parts."""
  rows = [('subset', 'counted', 'score')]
  for name, value in score.subsets.items():
    rows.append((name, f'{score.counts[name]:,}', _percent(value)))
  return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """The rows for a terminal: the first column at the left, others right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = [first.ljust(widths[0])]
    cells += [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
    lines.append('  '.join(cells).rstrip())
  return '\n'.join(lines)


def _percent(value: float | None) -> str:
  return '-' if value is None else f'{100 * value:.1f}'


def _ranged(point: CurvePoint | None) -> str:
  if point is None:
    return '-'
  ends = f'{_percent(point.low)}, {_percent(point.high)}'
  return f'{_percent(point.value)} [{ends}]'
