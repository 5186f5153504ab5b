"""The report of an evaluation: a folder of files, and tables for a terminal.

The folder has these files for every suite NAME, as far as there are data:

  NAME-accuracy-over-k.png, NAME-sections-over-k.png: scores by k
  NAME-SECTION-accuracy-over-k.png: of sections that are columns in the paper
  NAME-parts.png, NAME-lengths.png: scores and mean lengths of the sections
  NAME-scores.png: frequency of each score

results.json has the numbers of all suites, and report.html has everything on
one self-contained page. Texts of users and models are escaped.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grm_jax.evaluation import generation_stats, paper_numbers, plots, tables
from grm_jax.evaluation import html as report_html
from grm_jax.evaluation import overall as paper_overall
from grm_jax.evaluation.generation_stats import GenerationStats
from grm_jax.evaluation.overall import Overall
from grm_jax.evaluation.plots import Bar
from grm_jax.evaluation.scaling_curves import Curves, Estimate
from grm_jax.io import atomic_io
from grm_jax.judgement import correctness
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample, Judgement

# Files of a report, besides the pictures.
RESULTS, PAGE = 'results.json', 'report.html'
# Kinds of example generations, and their CSS classes.
KINDS = {
  'right': 'right',
  'wrong': 'wrong',
  'parse failure': 'failure',
  'without a known best response': '',
}


@dataclasses.dataclass(frozen=True)
class ReportExample:
  """A generation that the report shows; `kind` is a key of KINDS."""

  kind: str
  example: JudgingExample
  judgement: Judgement


@dataclasses.dataclass(frozen=True)
class SuiteReport:
  """The report of a suite.

  Attributes:
    title: title of the suite.
    measure: name of its score: 'accuracy', 'ROC-AUC', ...
    curves: scores over the number of samples, also of sections and subsets.
    samples: statistics of the samples.
    greedy: statistics of the greedy generations, None if there are none.
    lengths: mean length of the generations of each section, in tokens.
    examples: a generation of each kind.
  """

  title: str
  measure: str
  curves: Curves
  samples: GenerationStats
  greedy: GenerationStats | None
  lengths: Mapping[str, Estimate]
  examples: tuple[ReportExample, ...]


def suite_report(
  title: str,
  judged: Sequence[JudgedExample],
  curves: Curves,
  measure: str = 'accuracy',
  seed: int = 0,
) -> SuiteReport:
  """Returns the report of a suite, or of other data, which has no sections.

  Args:
    title: title of the suite.
    judged: the judged examples.
    curves: scores over the number of samples.
    measure: name of the score.
    seed: seed of the intervals of lengths.
  """
  greedy = generation_stats.of_greedy(judged)
  return SuiteReport(
    title=title,
    measure=measure,
    curves=curves,
    samples=generation_stats.of_samples(judged),
    greedy=greedy if greedy.num_generations else None,
    lengths=generation_stats.mean_lengths(judged, curves.sections, seed),
    examples=_pick_examples(judged),
  )


def _pick_examples(
  judged: Sequence[JudgedExample],
) -> tuple[ReportExample, ...]:
  """Returns a generation of each kind, of different queries if possible."""
  candidates: dict[str, list[ReportExample]] = {kind: [] for kind in KINDS}
  for x in judged:
    for generation in generation_stats.samples_or_greedy(x):
      kind = _kind(x.example, generation)
      candidates[kind].append(ReportExample(kind, x.example, generation))
  picked: dict[str, ReportExample] = {}
  # The rarest kind first: it has the fewest queries to pick from.
  for kind in sorted(KINDS, key=lambda kind: len(candidates[kind])):
    used_examples = [x.example for x in picked.values()]
    unused = (x for x in candidates[kind] if x.example not in used_examples)
    if candidates[kind]:
      picked[kind] = next(unused, candidates[kind][0])
  return tuple(picked[kind] for kind in KINDS if kind in picked)


def _kind(example: JudgingExample, generation: Judgement) -> str:
  if generation.scores is None:
    return 'parse failure'
  if example.best is None or len(example.responses) == 1:
    return 'without a known best response'
  is_right = correctness.prefers_best(generation.scores, example.best)
  return 'right' if is_right else 'wrong'


def write_report(
  directory: str | os.PathLike[str],
  suites: Mapping[str, SuiteReport],
  facts: Mapping[str, str] | None = None,
  write: Callable[[str, bytes], None] | None = None,
  front: Sequence[str] = (),
) -> None:
  """Writes the files of a report, each atomically.

  All files are rendered before the first one is written. report.html is written
  last.

  Args:
    directory: local or gs:// folder.
    suites: reports by name; the name is a prefix of file names.
    facts: settings to show at the top: model, temperature, seed, ...
    write: writes a file, given path and content; with several processes it is
      `atomic_io.write_file`.
    front: parts of the page (see html.py) in front of the suites.

  Raises:
    UserError: a file cannot be written.
    ValueError: there are no suites, or a name is not valid in a file name.
  """
  write = write or _write_file
  for name, content in render(suites, facts or {}, front).items():
    write(os.path.join(directory, name), content)


def _write_file(path: str, content: bytes) -> None:
  with atomic_io.atomic_write(path) as file:
    file.write(content)


def render(
  suites: Mapping[str, SuiteReport],
  facts: Mapping[str, str],
  front: Sequence[str] = (),
) -> dict[str, bytes]:
  """Returns the contents of the report's files, in the order to write them."""
  if not suites:
    raise ValueError('the report has no suites; give at least one')
  for name in suites:
    if not re.fullmatch('[A-Za-z0-9][A-Za-z0-9_.-]*', name):
      raise ValueError(
        f'suite name {name!r} is not valid; use letters, digits and _ . -'
      )
  plots_of = {name: _plots(name, suite) for name, suite in suites.items()}
  files = {
    f'{name}-{kind}.png': png
    for name, suite_plots in plots_of.items()
    for kind, (_, png) in suite_plots.items()
  }
  files[RESULTS] = _results_json(suites, facts)
  files[PAGE] = report_html.page(
    'Evaluation report', _body(suites, facts, front, plots_of)
  )
  return files


def _plots(name: str, suite: SuiteReport) -> dict[str, tuple[str, bytes]]:
  """Returns (description, PNG) of each kind of plot."""
  figures = _curve_plots(name, suite) | _section_plots(name, suite)
  stats = _main_stats(suite)
  if sum(stats.scores):
    title = f'{suite.title}: frequency of each score'
    figures['scores'] = title, plots.score_histogram(stats, title)
  return {
    kind: (description, plots.png(figure))
    for kind, (description, figure) in figures.items()
  }


def _curve_plots(name: str, suite: SuiteReport) -> dict[str, tuple[str, Any]]:
  """Returns (description, figure) of the plots over k."""
  if not suite.curves.voting:
    return {}
  columns = paper_overall.columns_of(name, suite.curves)
  # Curves by kind of plot, title, and sections that they are the mean of.
  curves = [
    ('', suite.title, list(suite.curves.sections), suite.curves),
    *((f'{k}-', f'{suite.title} {k}', [k], v) for k, v in columns.items()),
  ]
  figures: dict[str, tuple[str, Any]] = {}
  for prefix, title, sections, x in curves:
    title = f'{title}: {suite.measure} over number of samples'
    reference = paper_numbers.of_suite(name, sections)
    figure = plots.accuracy_over_k(x, title, reference, suite.measure)
    figures[f'{prefix}accuracy-over-k'] = title, figure
  if len(suite.curves.sections) > 1:
    title = f'{suite.title}: {suite.measure} of each section'
    figure = plots.sections_over_k(suite.curves, title, suite.measure)
    figures['sections-over-k'] = title, figure
  return figures


def _section_plots(name: str, suite: SuiteReport) -> dict[str, tuple[str, Any]]:
  """Returns (description, figure) of the bars of sections."""
  figures: dict[str, tuple[str, Any]] = {}
  if suite.curves.sections:
    title = f'{suite.title}: sections'
    bars = _section_bars(suite.curves)
    figure = plots.accuracy_of_parts(bars, title, suite.measure)
    figures['parts'] = title, figure
  if suite.lengths:
    title = f'{suite.title}: mean length of the generations'
    bars = [Bar(k, *dataclasses.astuple(v)) for k, v in suite.lengths.items()]
    published = paper_numbers.LENGTHS.get(name)
    figure = plots.mean_lengths(
      bars, title, published, paper_numbers.LENGTHS_LABEL
    )
    figures['lengths'] = title, figure
  return figures


def _section_bars(curves: Curves) -> list[Bar]:
  """Returns the scores of the sections: Voting@K, or greedy without samples."""
  points = {
    name: (x.last, x.num_queries) for name, x in curves.sections.items()
  }
  return [
    Bar(name, point.value, point.low, point.high, count)
    for name, (point, count) in points.items()
    if point is not None
  ]


def _main_stats(suite: SuiteReport) -> GenerationStats:
  """Returns the statistics of the samples, or of greedy without samples."""
  if suite.samples.num_generations or suite.greedy is None:
    return suite.samples
  return suite.greedy


def _results_json(
  suites: Mapping[str, SuiteReport], facts: Mapping[str, str]
) -> bytes:
  numbers = {}
  for name, suite in suites.items():
    # Without the examples, which asdict would copy.
    row = dataclasses.asdict(dataclasses.replace(suite, examples=()))
    del row['examples']
    numbers[name] = row
  content = {'facts': dict(facts), 'suites': numbers}
  if mean := _overall(suites):
    content['overall'] = dataclasses.asdict(mean)
  content = _replace_non_finite(content)
  return (json.dumps(content, indent=2, allow_nan=False) + '\n').encode()


def _overall(suites: Mapping[str, SuiteReport]) -> Overall | None:
  return paper_overall.overall({k: suite.curves for k, suite in suites.items()})


def _replace_non_finite(value):
  """Returns the value with None for NaN and infinities, invalid in JSON."""
  if isinstance(value, dict):
    return {key: _replace_non_finite(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [_replace_non_finite(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _body(suites, facts, front, plots_of) -> list[str]:
  parts = [report_html.heading(1, 'Evaluation report')]
  if facts:
    rows = [('setting', 'value'), *facts.items()]
    parts.append(report_html.table(rows, 'Settings', 'texts'))
  scores, behaviour = _overview(suites)
  parts += [
    *front,
    report_html.table(scores, 'Scores in percent, with 95% intervals'),
    *([report_html.note(paper_overall.NOTE)] if _overall(suites) else []),
    report_html.table(behaviour, 'Statistics of the generations'),
    report_html.note(tables.BEHAVIOUR_NOTE),
  ]
  for name, suite in suites.items():
    parts += _section(suite, plots_of[name])
  return parts


def _section(suite: SuiteReport, suite_plots) -> list[str]:
  images = {
    kind: report_html.image(png, description)
    for kind, (description, png) in suite_plots.items()
  }
  parts = [report_html.heading(2, suite.title)]
  parts += [x for kind, x in images.items() if kind.endswith('over-k')]
  parts += _curve_tables(suite.curves)
  if 'parts' in images:
    parts += [images['parts'], *_part_tables(suite.curves)]
  parts += [images[kind] for kind in ('lengths', 'scores') if kind in images]
  if suite.examples:
    parts.append(report_html.heading(3, 'Example generations'))
  parts += [_generation(x, i == 0) for i, x in enumerate(suite.examples)]
  return parts


def _part_tables(curves: Curves) -> list[str]:
  subsets = tables.accuracy(list(curves.subsets.items()), ('subset', 'counted'))
  return [
    report_html.table(tables.by_section(curves), 'Sections, in percent'),
    report_html.table(subsets, 'Subsets, in percent, with 95% intervals'),
  ]


def _curve_tables(curves: Curves) -> list[str]:
  parts = [report_html.table(tables.over_k(curves), 'Scores by k, in percent')]
  if curves.meta_kept:
    caption = (
      f'Scores if the meta RM selects k_meta of {curves.voting[-1].k} samples'
    )
    parts.append(report_html.table(tables.meta_kept(curves), caption))
  return parts


def _generation(report_example: ReportExample, is_open: bool) -> str:
  """Returns query, responses in the shown order, and the generation."""
  example, judgement = report_example.example, report_example.judgement
  scores = judgement.scores
  texts = [(f'Query, {turn.role}', turn.text) for turn in example.query]
  for number, index in enumerate(judgement.order, 1):
    title = f'Response {number}'
    if scores is not None:
      title += f', score {scores[index]}'
    if index == example.best:
      title += ', best response'
    texts.append((title, example.responses[index]))
  tokens = f'{judgement.num_tokens:,} tokens, finish {judgement.finish!r}'
  texts.append((f'Generation ({tokens})', judgement.text))
  kind = report_example.kind
  title = f'{kind[0].upper()}{kind[1:]}: query {example.id}'
  return report_html.details(KINDS[kind], title, texts, is_open)


def table(suites: Mapping[str, SuiteReport]) -> str:
  """Returns the tables for a terminal: scores, then generation statistics."""
  return '\n\n'.join(map(tables.aligned, _overview(suites)))


def _overview(suites: Mapping[str, SuiteReport]) -> tuple[tables.Rows, ...]:
  """Returns the tables of scores and of generation statistics."""
  stats = []
  for suite in suites.values():
    if suite.samples.num_generations:
      stats.append((suite.title, suite.samples))
    if suite.greedy is not None:
      stats.append((f'{suite.title}, greedy', suite.greedy))
  scores = tables.accuracy(_score_rows(suites))
  if mean := _overall(suites):
    scores.append(tables.overall(mean))
  return scores, tables.behaviour(stats)


def _score_rows(suites: Mapping[str, SuiteReport]) -> list[tuple[str, Curves]]:
  """Returns (title, curves) of each suite and of its columns in the paper."""
  rows = []
  for name, suite in suites.items():
    rows.append((suite.title, suite.curves))
    columns = paper_overall.columns_of(name, suite.curves)
    rows += [(f'{suite.title} {k}', x) for k, x in columns.items()]
  return rows
