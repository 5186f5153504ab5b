"""Tests of plots: plotted values, texts inside the figure, no pyplot."""

import dataclasses
import io
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from grm_jax.evaluation import paper_numbers, plots
from grm_jax.evaluation.generation_stats import GenerationStats
from grm_jax.evaluation.plots import Bar
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves

REWARDBENCH = paper_numbers.of_suite(
  'rewardbench', ['Chat', 'Chat Hard', 'Safety', 'Reasoning']
)


def point(k, value, num_meta=None):
  return CurvePoint(k, num_meta, value, value - 0.03, value + 0.02, 1, True)


CURVES = Curves(
  num_queries=10,
  voting=(point(1, 0.60), point(2, 0.64), point(4, 0.66)),
  meta=(point(1, 0.60, 1), point(2, 0.67, 1), point(4, 0.71, 2)),
  meta_kept=(),
  greedy=point(0, 0.62),
)
BARS = [
  Bar('Chat', 0.9, 0.85, 0.93, 358),
  Bar('x' * 90, 0.0, 0.0, 0.05, 12345),
  Bar('of $a$ _b_', 1.0, 1.0, 1.0, 1),
]
SUITE = dataclasses.replace(
  CURVES,
  sections={
    'Chat': CURVES,
    'of $a$ _b_': dataclasses.replace(CURVES, voting=(point(1, 0.1),), meta=()),
  },
)
NOTHING = (0,) * 11


def summary(scores, right=NOTHING, others=NOTHING):
  return GenerationStats(1, 1, *[0] * 10, scores, right, others)


def lines(figure):
  """Returns (x, y) of each line by its label in the legend."""
  return {
    line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
    for line in figure.axes[0].lines
    if not line.get_label().startswith('_')
  }


def test_lines_have_the_points_of_the_curves():
  plotted = lines(plots.accuracy_over_k(CURVES, 'title'))
  assert plotted['Voting@k'] == ([1, 2, 4], [0.60, 0.64, 0.66])
  assert plotted['MetaRM@k, half of k selected'] == (
    [1, 2, 4],
    [0.60, 0.67, 0.71],
  )
  assert plotted['greedy'][1] == [0.62, 0.62]
  assert len(plotted) == 3


def test_bands_have_the_intervals():
  axes = plots.accuracy_over_k(CURVES, 'title').axes[0]
  bands = [band.get_paths()[0].vertices for band in axes.collections]
  assert len(bands) == 2
  np.testing.assert_allclose(
    [(v[:, 1].min(), v[:, 1].max()) for v in bands],
    [(0.57, 0.68), (0.57, 0.73)],
  )


def test_published_values_are_dashed():
  figure = plots.accuracy_over_k(CURVES, 'title', REWARDBENCH)
  plotted = lines(figure)
  assert plotted['Voting@k, published'] == ([1, 8, 32], [0.852, 0.877, 0.885])
  assert plotted['MetaRM@k, published'] == ([8, 32], [0.898, 0.904])
  assert plotted['greedy, published'][1] == [0.86, 0.86]
  for line in figure.axes[0].lines:
    assert (line.get_linestyle() == '--') == ('publ' in line.get_label())
  (legend,) = figure.legends
  assert 'DeepSeek-GRM-27B, arXiv 2504.02495' in legend.get_title().get_text()


def test_k_axis_is_logarithmic():
  axes = plots.accuracy_over_k(CURVES, 'title', REWARDBENCH).axes[0]
  assert axes.get_xscale() == 'log'
  assert list(axes.get_xticks()) == [1, 2, 4, 8, 32]
  steps = np.diff(axes.transData.transform([(k, 0) for k in (1, 2, 4)])[:, 0])
  assert steps[0] == pytest.approx(steps[1])


def test_single_k_has_a_visible_interval():
  single_point = Curves(1, (point(1, 0.5),), (), (), None)
  axes = plots.accuracy_over_k(single_point, 'title').axes[0]
  (bar,) = axes.collections
  np.testing.assert_allclose(bar.get_paths()[0].vertices[:, 1], [0.47, 0.52])


def test_sections_have_a_line_each():
  figure = plots.sections_over_k(SUITE, 'title')
  plotted = lines(figure)
  assert plotted['Chat'] == ([1, 2, 4], [0.60, 0.64, 0.66])
  assert plotted['of $a$ _b_'] == ([1], [0.1])
  first, first_meta, *_ = figure.axes[0].lines
  assert list(first_meta.get_ydata()) == [0.60, 0.67, 0.71]
  assert first_meta.get_linestyle() == '--'
  assert first_meta.get_color() == first.get_color()


def test_lengths_have_published_values_beside_them():
  bars = [Bar('Chat', 250, 240, 262, 10), Bar('Other', 100, 90, 110, 5)]
  published = {'Chat': 265, 'Safety': 218}
  figure = plots.mean_lengths(bars, 'title', published, 'paper')
  axes = figure.axes[0]
  assert [patch.get_width() for patch in axes.patches] == [250, 100]
  assert lines(figure) == {'paper': ([265], [0])}
  assert axes.get_xlim()[1] > 265
  assert lines(plots.mean_lengths(bars, 'title')) == {}


def test_bars_have_values_and_intervals():
  axes = plots.accuracy_of_parts(BARS, 'title').axes[0]
  assert [patch.get_width() for patch in axes.patches] == [0.9, 0.0, 1.0]
  names = [label.get_text() for label in axes.get_yticklabels()]
  assert names == ['Chat (358)', f'{"x" * 37}... (12,345)', 'of $a$ _b_ (1)']
  # The first one is at the top.
  assert axes.get_ylim()[0] > axes.get_ylim()[1]
  spans = axes.collections[0].get_segments()
  np.testing.assert_allclose(spans[0][:, 0], [0.85, 0.93])


def test_histogram_has_frequencies():
  right = (0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 3)
  others = (0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
  everything = tuple(a + b for a, b in zip(right, others, strict=True))
  axes = plots.score_histogram(summary(everything, right, others), 't').axes[0]
  heights = [patch.get_height() for patch in axes.patches]
  assert heights[:10] == [0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0.75]
  assert heights[10:] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
  assert list(axes.get_xticks()) == list(range(1, 11))
  # Bars of a score stand side by side.
  assert axes.patches[0].get_x() < axes.patches[10].get_x() < 1.1
  unknown = plots.score_histogram(summary((2, *everything[1:])), 't').axes[0]
  assert list(unknown.get_xticks()) == list(range(11))
  assert len(unknown.patches) == 11


@pytest.mark.parametrize(
  'figure',
  [
    plots.accuracy_over_k(CURVES, 'A long title $x$ ' * 8, REWARDBENCH),
    plots.accuracy_of_parts(BARS, 'title'),
    plots.accuracy_of_parts(BARS[:1], 'title'),
    plots.accuracy_of_parts(BARS * 8, 'title', 'ROC-AUC'),
    plots.sections_over_k(SUITE, 'title'),
    plots.sections_over_k(
      dataclasses.replace(
        SUITE, sections={'x' * i: CURVES for i in range(1, 99, 8)}
      ),
      'title',
    ),
    plots.mean_lengths(BARS, 'title', {'Chat': 1.5}, 'published'),
    plots.score_histogram(summary((9,) * 11, (9,) * 11), 'title'),
  ],
)
def test_no_text_exceeds_the_figure(figure):
  figure.canvas.draw()
  width, height = figure.bbox.size
  box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
  assert box.x0 >= 0 and box.y0 >= 0
  assert box.x1 <= width and box.y1 <= height


def test_png_is_deterministic():
  figure = plots.accuracy_of_parts(BARS, 'title')
  data = plots.png(figure)
  assert data[:8] == b'\x89PNG\r\n\x1a\n'
  assert matplotlib.image.imread(io.BytesIO(data)).shape[1] == 1280
  assert plots.png(plots.accuracy_of_parts(BARS, 'title')) == data
  assert plots.png(plots.accuracy_of_parts(BARS[::-1], 'title')) != data


def test_imports_neither_pyplot_nor_jax():
  code = (
    'import sys\n'
    'from grm_jax.evaluation import generation_stats, judgement_io, plots\n'
    'from grm_jax.evaluation import report, scaling_curves\n'
    'plots.png(plots.accuracy_of_parts([plots.Bar("a", 1, 1, 1, 1)], "t"))\n'
    'print([m for m in ("matplotlib.pyplot", "jax") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert out.stdout.strip() == '[]', out.stderr
