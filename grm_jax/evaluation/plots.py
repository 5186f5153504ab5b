"""Plots of a report and their PNG files; no display and no pyplot state.

The colours are from the palette of Okabe and Ito, which colour-blind readers
can distinguish. Line styles and markers differ too.
"""

import dataclasses
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from grm_jax.evaluation.calibration import Bin
from grm_jax.evaluation.generation_stats import SCORES, GenerationStats
from grm_jax.evaluation.paper_numbers import PaperNumbers
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves

_BLUE, _ORANGE, _GREEN = '#0072B2', '#D55E00', '#009E73'
# Of sections: the palette without black, and a marker for each colour.
_PALETTE = (
  *(_BLUE, _ORANGE, _GREEN),
  *('#CC79A7', '#E69F00', '#56B4E9', '#F0E442'),
)
_MARKERS = 'os^Dv<>'
_WIDTH = 8.0  # inches; pages show a plot 800 pixels wide
_DPI = 160
_PERCENT = FuncFormatter(lambda value, _: f'{100 * value:.4g}%')


@dataclasses.dataclass(frozen=True)
class Bar:
  """A bar of a plot: value, 95 % interval and number of queries."""

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
  """Plots Voting@k and MetaRM@k with intervals, and the greedy score.

  Args:
    curves: the scores.
    title: title of the plot.
    reference: published numbers to compare with.
    measure: name of the score.
  """
  figure, axes = _figure(5.6)
  # Measured and published alternate, so each pair is a legend column.
  _plot_points(axes, curves.voting, _BLUE, 'o', 'Voting@k')
  if reference:
    _plot_published(axes, reference.voting, _BLUE, 'o', 'Voting@k, published')
  _plot_points(axes, curves.meta, _ORANGE, 's', 'MetaRM@k, half of k selected')
  if reference:
    _plot_published(axes, reference.meta, _ORANGE, 's', 'MetaRM@k, published')
  greedy = None if curves.greedy is None else curves.greedy.value
  _plot_level(axes, greedy, '-', 'greedy')
  if reference:
    _plot_level(axes, reference.greedy, '--', 'greedy, published')
  _set_k_axis(axes, curves, reference)
  _set_title(axes, title)
  axes.set_xlabel('k, number of sampled judgements per query (log scale)')
  axes.set_ylabel(f'{measure}, with 95% interval')
  axes.yaxis.set_major_formatter(_PERCENT)
  _legend_below(
    figure,
    axes,
    f'published (dashed): {reference.label}' if reference else None,
  )
  return figure


def sections_over_k(
  curves: Curves, title: str, measure: str = 'accuracy'
) -> Figure:
  """Plots Voting@k and MetaRM@k of each section.

  Args:
    curves: the curves of a suite.
    title: title of the plot.
    measure: name of the score.
  """
  figure, axes = _figure(5.4 + 0.1 * len(curves.sections))
  styles = itertools.cycle(zip(_PALETTE, _MARKERS, strict=True))
  sections = zip(curves.sections.items(), styles, strict=False)
  for (name, section), (color, marker) in sections:
    for points, line, label in (
      (section.voting, '-', _shorten(name)),
      (section.meta, '--', None),
    ):
      ks, values = [x.k for x in points], [x.value for x in points]
      axes.plot(
        ks, values, color=color, marker=marker, linestyle=line, label=label
      )
  if curves.meta:
    axes.plot([], color='black', linestyle='--', label='MetaRM@k (dashed)')
  _set_k_axis(axes, curves, None)
  _set_title(axes, title)
  axes.set_xlabel('k, number of sampled judgements per query (log scale)')
  axes.set_ylabel(measure)
  axes.yaxis.set_major_formatter(_PERCENT)
  _legend_below(figure, axes, None)
  return figure


def accuracy_of_parts(
  bars: Sequence[Bar], title: str, measure: str = 'accuracy'
) -> Figure:
  """Plots a horizontal bar with an interval for each section or subset."""
  figure, axes = _figure(1.1 + 0.42 * len(bars))
  _plot_bars(axes, bars, [f'{100 * bar.value:.1f}' for bar in bars])
  axes.set_xlim(0, 1.12)
  axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
  axes.xaxis.set_major_formatter(_PERCENT)
  _set_title(axes, title)
  axes.set_xlabel(
    f'{measure}, with 95% interval (number of queries in brackets)'
  )
  return figure


def mean_lengths(
  bars: Sequence[Bar],
  title: str,
  published: Mapping[str, float] | None = None,
  label: str = '',
) -> Figure:
  """Plots the mean length of the generations of each section.

  Args:
    bars: mean lengths in tokens.
    title: title of the plot.
    published: lengths to compare with, by name of the bar.
    label: source of these lengths.
  """
  figure, axes = _figure(1.5 + 0.42 * len(bars))
  _plot_bars(axes, bars, [f'{bar.value:,.0f}' for bar in bars])
  published = published or {}
  positions = [i for i, bar in enumerate(bars) if bar.name in published]
  if positions:
    lengths = [published[bars[i].name] for i in positions]
    axes.plot(lengths, positions, 'D', color=_ORANGE, label=label)
    _legend_below(figure, axes, None)
  axes.set_xlim(
    0, 1.12 * max([bar.high for bar in bars] + [*published.values()])
  )
  _set_title(axes, title)
  axes.set_xlabel('tokens, with 95% interval (number of queries in brackets)')
  return figure


def _plot_bars(axes: Axes, bars: Sequence[Bar], texts: Sequence[str]) -> None:
  """Plots bars with intervals, and a text to the right of each."""
  positions = range(len(bars))
  values = [bar.value for bar in bars]
  axes.barh(positions, values, height=0.62, color=_BLUE, alpha=0.85)
  axes.errorbar(
    values,
    positions,
    xerr=[
      [max(bar.value - bar.low, 0.0) for bar in bars],
      [max(bar.high - bar.value, 0.0) for bar in bars],
    ],
    fmt='none',
    ecolor='black',
    elinewidth=1.2,
    capsize=3,
  )
  for position, bar, text in zip(positions, bars, texts, strict=True):
    axes.annotate(
      text,
      (max(bar.high, bar.value), position),
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
    )
  names = [f'{_shorten(bar.name)} ({bar.count:,})' for bar in bars]
  axes.set_yticks(positions, names, parse_math=False)
  axes.set_ylim(len(bars) - 0.4, -0.6)
  axes.grid(axis='y', visible=False)


def score_histogram(stats: GenerationStats, title: str) -> Figure:
  """Plots how often correct and other responses get each score."""
  figure, axes = _figure(4.5)
  series = [
    ('best response', stats.right, _BLUE, ''),
    ('other responses', stats.others, _ORANGE, '///'),
  ]
  series = [x for x in series if sum(x[1])]
  if not series:
    series = [('all responses', stats.scores, _BLUE, '')]
  # A score of 0 is for single responses only; most suites have none.
  values = [score for score in SCORES if score or stats.scores[0]]
  width = 0.8 / len(series)
  for i, (label, counts, color, hatch) in enumerate(series):
    total = max(sum(counts), 1)
    axes.bar(
      [score + (i - (len(series) - 1) / 2) * width for score in values],
      [counts[score] / total for score in values],
      width=0.94 * width,
      color=color,
      hatch=hatch,
      edgecolor='white',
      label=f'{label} ({sum(counts):,} scores)',
    )
  axes.set_xticks(values)
  axes.yaxis.set_major_formatter(_PERCENT)
  axes.grid(axis='x', visible=False)
  _set_title(axes, title)
  axes.set_xlabel('score')
  axes.set_ylabel('fraction of the scores')
  _legend_below(figure, axes, None)
  return figure


def calibration(bins: Sequence[Bin], title: str, observed: str) -> Figure:
  """Plots observed frequencies over predicted probabilities.

  Args:
    bins: bins of predictions, made by calibration.bins.
    title: title of the plot.
    observed: name of the observed frequency, for the axis.
  """
  figure, axes = _figure(5.6)
  axes.bar(
    [(x.low + x.high) / 2 for x in bins],
    [x.share for x in bins],
    width=[0.94 * (x.high - x.low) for x in bins],
    color=_ORANGE,
    alpha=0.35,
    label='fraction of predictions',
  )
  axes.plot(
    [0, 1], [0, 1], color=_GREEN, linestyle='--', label='perfect calibration'
  )
  filled = [x for x in bins if x.share]
  axes.plot(
    [x.probability for x in filled],
    [x.observed for x in filled],
    color=_BLUE,
    marker='o',
    linewidth=2,
    label='observed',
  )
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.02)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(_PERCENT)
  _set_title(axes, title)
  axes.set_xlabel('predicted probability')
  axes.set_ylabel(observed)
  _legend_below(figure, axes, None)
  return figure


@dataclasses.dataclass(frozen=True)
class Series:
  """A metric of a training run: (step, value) points, and a label."""

  label: str
  points: Sequence[tuple[int, float]]


def training(panels: Mapping[str, Sequence[Series]], title: str) -> Figure:
  """Plots metrics over training steps, two panels per row.

  A series with many points is drawn lightly, with its running mean on top.

  Args:
    panels: series of each panel, by panel title.
    title: title of the figure.
  """
  rows = -(-len(panels) // 2)
  figure = Figure((_WIDTH, 0.5 + 2.6 * rows), dpi=_DPI, layout='constrained')
  FigureCanvasAgg(figure)
  figure.suptitle(textwrap.fill(title, 72), parse_math=False)
  for position, (name, panel) in enumerate(panels.items(), 1):
    axes = figure.add_subplot(rows, 2, position)
    for series, color in zip(panel, (_BLUE, _ORANGE, _GREEN), strict=False):
      _plot_series(axes, series, color)
    axes.grid(color='#DDDDDD', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(name, fontsize='medium', parse_math=False)
    axes.set_xlabel('step')
    axes.legend(frameon=False, fontsize='small')
  return figure


def _plot_series(axes: Axes, series: Series, color: str) -> None:
  steps = [step for step, _ in series.points]
  values = [value for _, value in series.points]
  window = len(values) // 20
  if window < 2:
    axes.plot(steps, values, color=color, marker='.', label=series.label)
    return
  axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
  means = [
    sum(recent) / len(recent)
    for i in range(len(values))
    if (recent := values[max(0, i - window) : i + 1])
  ]
  axes.plot(steps, means, color=color, linewidth=1.8, label=series.label)


def png(figure: Figure) -> bytes:
  """Returns the figure as a PNG file, 1280 pixels wide."""
  file = io.BytesIO()
  # Without the version of matplotlib, equal numbers give equal bytes.
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


def _set_title(axes: Axes, title: str) -> None:
  # A $ in the name of a suite is not a formula.
  axes.set_title(textwrap.fill(title, 72), parse_math=False)


def _shorten(name: str, max_length: int = 40) -> str:
  if len(name) <= max_length:
    return name
  return f'{name[: max_length - 3]}...'


def _plot_points(
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
  else:  # a band over a single k would have no width
    axes.vlines(ks, lows, highs, color=color, alpha=0.4, linewidth=3)


def _plot_published(
  axes: Axes, values: Mapping[int, float], color, marker, label
):
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


def _plot_level(axes: Axes, value: float | None, style, label) -> None:
  if value is not None:
    axes.axhline(
      value, color=_GREEN, linestyle=style, linewidth=1.6, label=label
    )


def _set_k_axis(
  axes: Axes, curves: Curves, reference: PaperNumbers | None
) -> None:
  all_ks = {point.k for point in (*curves.voting, *curves.meta)}
  if reference is not None:
    all_ks |= {*reference.voting, *reference.meta}
  ks = sorted(all_ks or {1})
  axes.set_xscale('log', base=2)
  axes.set_xlim(ks[0] / 1.15, ks[-1] * 1.15)
  axes.set_xticks(ks, [str(k) for k in ks])
  axes.minorticks_off()


def _legend_below(figure: Figure, axes: Axes, title: str | None) -> None:
  handles, labels = axes.get_legend_handles_labels()
  legend = figure.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=3 if max(map(len, labels)) <= 30 else 2,
    frameon=False,
    title=title,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
