"""Pictures of a report, and their PNG files; no display, no global state.

Colours are those of Okabe and Ito, which colour-blind readers tell apart;
line styles and markers differ besides.
"""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from grm_jax.evaluation.calibration import Bin
from grm_jax.evaluation.generation_stats import SCORES, GenerationStats
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves

PAPER = 'DeepSeek-GRM-27B, arXiv 2504.02495'
_BLUE, _ORANGE, _GREEN = '#0072B2', '#D55E00', '#009E73'
_WIDTH = 8.0  # Inches; pages show a picture 800 pixels wide.
_DPI = 160
_PERCENT = FuncFormatter(lambda value, _: f'{100 * value:.4g}%')


@dataclasses.dataclass(frozen=True)
class PaperNumbers:
  """Published values to stand beside: accuracy by k."""

  label: str
  greedy: float | None
  voting: Mapping[int, float]
  meta: Mapping[int, float]


# arXiv 2504.02495, tables of main results and of inference-time scaling.
OVERALL = PaperNumbers(
  label=f'{PAPER}, overall',
  greedy=0.699,
  voting={1: 0.679, 8: 0.706, 32: 0.710},
  meta={8: 0.720, 32: 0.728},
)
REWARDBENCH = PaperNumbers(
  label=f'{PAPER}, RewardBench',
  greedy=0.860,
  voting={1: 0.852, 8: 0.877, 32: 0.885},
  meta={8: 0.898, 32: 0.904},
)
# Suite -> what to draw beside it, if not OVERALL. The score of realmistake is
# no accuracy; the judges of a whole run (spct) are measured on its own data.
REFERENCES = {
  'rewardbench': REWARDBENCH,
  'realmistake': None,
  'before': None,
  'sft': None,
  'rft': None,
  'grpo': None,
}


@dataclasses.dataclass(frozen=True)
class Bar:
  """A part of a suite: its accuracy, 95 % interval and number of queries."""

  name: str
  value: float
  low: float
  high: float
  count: int


def accuracy_over_k(
  curves: Curves,
  title: str,
  reference: PaperNumbers | None = None,
  measure: str = 'accuracy',
) -> Figure:
  """Voting@k and MetaRM@k with their intervals, greedy as a level line."""
  figure, axes = _figure(5.6)
  published = reference or PaperNumbers('', None, {}, {})
  # Ours and the published one in turn: columns of the legend.
  _line(axes, curves.voting, _BLUE, 'o', 'Voting@k')
  _dashes(axes, published.voting, _BLUE, 'o', 'Voting@k, published')
  _line(axes, curves.meta, _ORANGE, 's', 'MetaRM@k, half of k kept')
  _dashes(axes, published.meta, _ORANGE, 's', 'MetaRM@k, published')
  _level(axes, curves.greedy and curves.greedy.value, '-', 'greedy')
  _level(axes, published.greedy, '--', 'greedy, published')
  _axis_of_k(axes, curves, reference)
  _title(axes, title)
  axes.set_xlabel('k, generations voted on per query (logarithmic)')
  axes.set_ylabel(f'{measure}, with 95% interval')
  axes.yaxis.set_major_formatter(_PERCENT)
  _legend_below(
    figure,
    axes,
    reference and f'published (dashed): {reference.label}',
  )
  return figure


def accuracy_of_parts(
  bars: Sequence[Bar], title: str, measure: str = 'accuracy'
) -> Figure:
  """A bar and an interval for every section or subset, top to bottom."""
  figure, axes = _figure(1.1 + 0.42 * len(bars))
  places = range(len(bars))
  values = [bar.value for bar in bars]
  axes.barh(places, values, height=0.62, color=_BLUE, alpha=0.85)
  axes.errorbar(
    values,
    places,
    xerr=[
      [max(bar.value - bar.low, 0.0) for bar in bars],
      [max(bar.high - bar.value, 0.0) for bar in bars],
    ],
    fmt='none',
    ecolor='black',
    elinewidth=1.2,
    capsize=3,
  )
  for place, bar in zip(places, bars, strict=True):
    axes.annotate(
      f'{100 * bar.value:.1f}',
      (max(bar.high, bar.value), place),
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
    )
  names = [f'{_short(bar.name)} ({bar.count:,})' for bar in bars]
  axes.set_yticks(places, names, parse_math=False)
  axes.set_ylim(len(bars) - 0.4, -0.6)
  axes.set_xlim(0, 1.12)
  axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
  axes.xaxis.set_major_formatter(_PERCENT)
  axes.grid(axis='y', visible=False)
  _title(axes, title)
  axes.set_xlabel(f'{measure}, with 95% interval (queries in brackets)')
  return figure


def score_histogram(summary: GenerationStats, title: str) -> Figure:
  """How often each score is given, to right and to other responses."""
  figure, axes = _figure(4.5)
  kinds = [
    ('best response', summary.right, _BLUE, ''),
    ('other responses', summary.others, _ORANGE, '///'),
  ]
  kinds = [kind for kind in kinds if sum(kind[1])]
  if not kinds:
    kinds = [('all responses', summary.scores, _BLUE, '')]
  # 0 is legal for labels only; most suites never see it.
  shown = [score for score in SCORES if score or summary.scores[0]]
  width = 0.8 / len(kinds)
  for i, (label, counts, color, hatch) in enumerate(kinds):
    total = max(sum(counts), 1)
    axes.bar(
      [score + (i - (len(kinds) - 1) / 2) * width for score in shown],
      [counts[score] / total for score in shown],
      width=0.94 * width,
      color=color,
      hatch=hatch,
      edgecolor='white',
      label=f'{label} ({sum(counts):,} scores)',
    )
  axes.set_xticks(shown)
  axes.yaxis.set_major_formatter(_PERCENT)
  axes.grid(axis='x', visible=False)
  _title(axes, title)
  axes.set_xlabel('score that a generation gives to a response')
  axes.set_ylabel('share of the scores')
  _legend_below(figure, axes, None)
  return figure


def calibration(bins: Sequence[Bin], title: str, observed: str) -> Figure:
  """Observed shares over probabilities, above how often these are said.

  Args:
    bins: of results, see evaluation/calibration.py.
    title: of the picture.
    observed: what is observed, for the axis.
  """
  figure, axes = _figure(5.6)
  axes.bar(
    [(x.low + x.high) / 2 for x in bins],
    [x.share for x in bins],
    width=[0.94 * (x.high - x.low) for x in bins],
    color=_ORANGE,
    alpha=0.35,
    label='how often it does',
  )
  axes.plot(
    [0, 1], [0, 1], color=_GREEN, linestyle='--', label='as it should be'
  )
  seen = [x for x in bins if x.share]
  axes.plot(
    [x.probability for x in seen],
    [x.observed for x in seen],
    color=_BLUE,
    marker='o',
    linewidth=2,
    label='observed',
  )
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.02)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(_PERCENT)
  _title(axes, title)
  axes.set_xlabel('probability that the model gives')
  axes.set_ylabel(observed)
  _legend_below(figure, axes, None)
  return figure


@dataclasses.dataclass(frozen=True)
class Series:
  """Numbers of a training run: (step, value), with a name for people."""

  label: str
  points: Sequence[tuple[int, float]]


def training(panels: Mapping[str, Sequence[Series]], title: str) -> Figure:
  """Series over training steps, one panel for each title, two beside another.

  A series of many points is drawn faintly, under its running mean.
  """
  rows = -(-len(panels) // 2)
  figure = Figure((_WIDTH, 0.5 + 2.6 * rows), dpi=_DPI, layout='constrained')
  FigureCanvasAgg(figure)
  figure.suptitle(textwrap.fill(title, 72), parse_math=False)
  for place, (name, series) in enumerate(panels.items(), 1):
    axes = figure.add_subplot(rows, 2, place)
    for own, color in zip(series, (_BLUE, _ORANGE, _GREEN), strict=False):
      _over_steps(axes, own, color)
    axes.grid(color='#DDDDDD', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(name, fontsize='medium', parse_math=False)
    axes.set_xlabel('step')
    axes.legend(frameon=False, fontsize='small')
  return figure


def _over_steps(axes: Axes, series: Series, color: str) -> None:
  steps = [step for step, _ in series.points]
  values = [value for _, value in series.points]
  window = len(values) // 20
  if window < 2:
    axes.plot(steps, values, color=color, marker='.', label=series.label)
    return
  axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
  means = [
    sum(own) / len(own)
    for i in range(len(values))
    if (own := values[max(0, i - window) : i + 1])
  ]
  axes.plot(steps, means, color=color, linewidth=1.8, label=series.label)


def png(figure: Figure) -> bytes:
  """The picture as a file, 1280 pixels wide."""
  file = io.BytesIO()
  # No version or date in the file: the same numbers are the same bytes.
  figure.savefig(file, format='png', metadata={'Software': None})
  return file.getvalue()


def _figure(height: float) -> tuple[Figure, Axes]:
  figure = Figure((_WIDTH, height), dpi=_DPI, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.grid(color='#DDDDDD', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _title(axes: Axes, title: str) -> None:
  # A $ of a suite's name begins no formula.
  axes.set_title(textwrap.fill(title, 72), parse_math=False)


def _short(name: str, most: int = 40) -> str:
  return name if len(name) <= most else f'{name[: most - 3]}...'


def _line(
  axes: Axes, points: Sequence[CurvePoint], color, marker, label
) -> None:
  if not points:
    return
  ks = [point.k for point in points]
  lows, highs = [p.low for p in points], [p.high for p in points]
  values = [point.value for point in points]
  axes.plot(ks, values, color=color, marker=marker, label=label, linewidth=2)
  if len(points) > 1:
    axes.fill_between(ks, lows, highs, color=color, alpha=0.15, linewidth=0)
  else:  # A band over one k has no width.
    axes.vlines(ks, lows, highs, color=color, alpha=0.4, linewidth=3)


def _dashes(axes: Axes, values: Mapping[int, float], color, marker, label):
  if values:
    axes.plot(
      list(values),
      list(values.values()),
      color=color,
      marker=marker,
      markerfacecolor='white',
      linestyle='--',
      linewidth=1.3,
      label=label,
    )


def _level(axes: Axes, value: float | None, style, label) -> None:
  if value is not None:
    axes.axhline(
      value, color=_GREEN, linestyle=style, linewidth=1.6, label=label
    )


def _axis_of_k(
  axes: Axes, curves: Curves, reference: PaperNumbers | None
) -> None:
  ks = {point.k for point in (*curves.voting, *curves.meta)}
  if reference is not None:
    ks |= {*reference.voting, *reference.meta}
  ks = sorted(ks or {1})
  axes.set_xscale('log', base=2)
  axes.set_xlim(ks[0] / 1.15, ks[-1] * 1.15)
  axes.set_xticks(ks, [str(k) for k in ks])
  axes.minorticks_off()


def _legend_below(figure: Figure, axes: Axes, title: str | None) -> None:
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=3,
    frameon=False,
    title=title,
  )
