"""The report of an evaluation: a folder of files, and tables for a terminal.

The folder has these files for every suite NAME:

  NAME-accuracy-over-k.png, NAME-parts.png, NAME-scores.png

results.json has the numbers of all suites, and report.html has everything on
one self-contained page. Texts of users and models are escaped.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence

from grm_jax.evaluation import generation_stats, paper_numbers, plots, tables
from grm_jax.evaluation import html as report_html
from grm_jax.evaluation.generation_stats import GenerationStats
from grm_jax.evaluation.metrics import Result, Score
from grm_jax.evaluation.plots import Bar
from grm_jax.evaluation.scaling_curves import Curves, Results
from grm_jax.io import atomic_io
from grm_jax.judgement import correctness, voting
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
    curves: scores over the number of samples.
    samples: statistics of the samples.
    greedy: statistics of the greedy generations, None if there are none.
    score: score of the votes of all samples, or of the greedy generations if
      there are no samples; None for data that is not a suite.
    parts: the sections of that score.
    examples: a generation of each kind.
  """

  title: str
  measure: str
  curves: Curves
  samples: GenerationStats
  greedy: GenerationStats | None
  score: Score | None
  parts: tuple[Bar, ...]
  examples: tuple[ReportExample, ...]


def suite_report(
  title: str,
  judged: Sequence[JudgedExample],
  curves: Curves,
  score: Callable[[Results], Score] | None = None,
  interval: Callable[[Results], tuple[float, float]] | None = None,
  measure: str = 'accuracy',
) -> SuiteReport:
  """Returns the report of a suite.

  Args:
    title: title of the suite.
    judged: the judged examples.
    curves: scores over the number of samples.
    score: returns the suite's score of results; None for data that is not a
      suite, which has no sections.
    interval: returns the interval of that score; required with `score`.
    measure: name of the score.
  """
  results = combine_votes(judged) if score else []
  greedy = generation_stats.of_greedy(judged)
  return SuiteReport(
    title=title,
    measure=measure,
    curves=curves,
    samples=generation_stats.of_samples(judged),
    greedy=greedy if greedy.num_generations else None,
    score=score(results) if score else None,
    parts=_section_bars(results, score, interval) if score else (),
    examples=_pick_examples(judged),
  )


def combine_votes(judged: Sequence[JudgedExample]) -> Results:
  """Returns the votes of all samples, or the greedy scores without samples."""
  results = []
  for x in judged:
    scores = [generation.scores for generation in _generations(x)]
    vote = voting.sum_scores(scores, len(x.example.responses))
    results.append(Result(x.example, vote))
  return results


def _generations(judged: JudgedExample) -> tuple[Judgement, ...]:
  """Returns the samples, or the greedy generation if there are none."""
  if judged.samples or judged.greedy is None:
    return judged.samples
  return (judged.greedy,)


def _section_bars(results: Results, score, interval) -> tuple[Bar, ...]:
  """Returns the score of each section, computed from its results alone."""
  bars = []
  for section, value in score(results).sections.items():
    members = [r for r in results if r.example.tags['section'] == section]
    low, high = interval(members)
    bars.append(Bar(section, value, low, high, len(members)))
  return tuple(bars)


def _pick_examples(
  judged: Sequence[JudgedExample],
) -> tuple[ReportExample, ...]:
  """Returns a generation of each kind, of different queries if possible."""
  candidates: dict[str, list[ReportExample]] = {kind: [] for kind in KINDS}
  for x in judged:
    for generation in _generations(x):
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
  figures = {}
  if suite.curves.voting:
    title = f'{suite.title}: {suite.measure} over number of samples'
    sections = [part.name for part in suite.parts]
    reference = paper_numbers.of_suite(name, sections)
    figures['accuracy-over-k'] = (
      title,
      plots.accuracy_over_k(suite.curves, title, reference, suite.measure),
    )
  if suite.parts:
    title = f'{suite.title}: sections'
    figure = plots.accuracy_of_parts(suite.parts, title, suite.measure)
    figures['parts'] = title, figure
  stats = _main_stats(suite)
  if sum(stats.scores):
    title = f'{suite.title}: frequency of each score'
    figures['scores'] = title, plots.score_histogram(stats, title)
  return {
    kind: (description, plots.png(figure))
    for kind, (description, figure) in figures.items()
  }


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
  content = _replace_non_finite({'facts': dict(facts), 'suites': numbers})
  return (json.dumps(content, indent=2, allow_nan=False) + '\n').encode()


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
  if 'accuracy-over-k' in images:
    parts.append(images['accuracy-over-k'])
  parts += _curve_tables(suite.curves)
  if 'parts' in images and suite.score is not None:
    rows = tables.by_subset(suite.score)
    parts += [images['parts'], report_html.table(rows, 'Subsets, in percent')]
  if 'scores' in images:
    parts.append(images['scores'])
  if suite.examples:
    parts.append(report_html.heading(3, 'Example generations'))
  parts += [_generation(x, i == 0) for i, x in enumerate(suite.examples)]
  return parts


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
  curves = [(suite.title, suite.curves) for suite in suites.values()]
  return tables.accuracy(curves), tables.behaviour(stats)
