"""A report of an evaluation: a folder of files, and a table for the terminal.

For every suite NAME

  NAME-accuracy-over-k.png, NAME-parts.png, NAME-scores.png

and for all of them results.json, with all numbers, and report.html: everything
on one page that needs no other file. What a user or a model wrote is escaped.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence

from grm_jax.evaluation import generation_stats, plots, tables
from grm_jax.evaluation import html as report_html
from grm_jax.evaluation.generation_stats import GenerationStats
from grm_jax.evaluation.metrics import Result, Score
from grm_jax.evaluation.plots import Bar
from grm_jax.evaluation.scaling_curves import Curves, Results
from grm_jax.io import atomic_io
from grm_jax.judgement import correctness, voting
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample, Judgement

# Of generations to read; the value is their look.
KINDS = {
  'right': 'right',
  'wrong': 'wrong',
  'parse failure': 'failure',
  'without a known best response': '',
}


@dataclasses.dataclass(frozen=True)
class ReportExample:
  """A generation to read, of one of KINDS."""

  kind: str
  example: JudgingExample
  judgement: Judgement


@dataclasses.dataclass(frozen=True)
class SuiteReport:
  """All that a report says about a suite.

  Attributes:
    title: for people.
    measure: what its score is: 'accuracy', 'ROC-AUC', ...
    curves: scores over the number of samples.
    samples: how the samples behaved.
    greedy: the same of the greedy generations, None without any.
    score: of the votes of all samples, or of the greedy generations if there
      are no samples; None for data that is no suite.
    parts: the sections of that score.
    shown: a generation of each kind.
  """

  title: str
  measure: str
  curves: Curves
  samples: GenerationStats
  greedy: GenerationStats | None
  score: Score | None
  parts: tuple[Bar, ...]
  shown: tuple[ReportExample, ...]


def suite_report(
  title: str,
  judged: Sequence[JudgedExample],
  curves: Curves,
  score: Callable[[Results], Score] | None = None,
  interval: Callable[[Results], tuple[float, float]] | None = None,
  measure: str = 'accuracy',
) -> SuiteReport:
  """The report of a suite; `score` and `interval` are the suite's own.

  Both are given or neither is: without them there are no sections.
  """
  found = voted(judged) if score else []
  greedy = generation_stats.of_greedy(judged)
  return SuiteReport(
    title=title,
    measure=measure,
    curves=curves,
    samples=generation_stats.of_samples(judged),
    greedy=greedy if greedy.num_generations else None,
    score=score(found) if score else None,
    parts=_parts(found, score, interval) if score else (),
    shown=_shown(judged),
  )


def voted(judged: Sequence[JudgedExample]) -> Results:
  """The votes of all samples, or what the greedy generation says alone."""
  found = []
  for one in judged:
    generations = one.samples or (one.greedy,)
    scores = [generation.scores for generation in generations]
    vote = voting.sum_scores(scores, len(one.example.responses))
    found.append(Result(one.example, vote))
  return found


def _parts(results: Results, score, interval) -> tuple[Bar, ...]:
  """The sections, each being the suite's score of its own results."""
  bars = []
  for section, value in score(results).sections.items():
    own = [r for r in results if r.example.tags['section'] == section]
    bars.append(Bar(section, value, *interval(own), len(own)))
  return tuple(bars)


def _shown(judged: Sequence[JudgedExample]) -> tuple[ReportExample, ...]:
  """One of each kind, each of another query if there is one."""
  found: dict[str, list[ReportExample]] = {kind: [] for kind in KINDS}
  for one in judged:
    for generation in one.samples or (one.greedy,):
      kind = _kind(one.example, generation)
      found[kind].append(ReportExample(kind, one.example, generation))
  chosen: dict[str, ReportExample] = {}
  for kind in sorted(KINDS, key=lambda kind: len(found[kind])):
    used = [shown.example for shown in chosen.values()]
    fresh = (shown for shown in found[kind] if shown.example not in used)
    if found[kind]:
      chosen[kind] = next(fresh, found[kind][0])
  return tuple(chosen[kind] for kind in KINDS if kind in chosen)


def _kind(example: JudgingExample, generation: Judgement) -> str:
  if generation.scores is None:
    return 'parse failure'
  if example.best is None or len(example.responses) == 1:
    return 'without a known best response'
  right = correctness.prefers_best(generation.scores, example.best)
  return 'right' if right else 'wrong'


def write_report(
  directory: str | os.PathLike[str],
  suites: Mapping[str, SuiteReport],
  facts: Mapping[str, str] | None = None,
  write: Callable[[str, bytes], None] | None = None,
  front: Sequence[str] = (),
) -> None:
  """Writes the files of a report, each whole or not at all.

  Everything is drawn before anything is written, and report.html comes last.

  Args:
    directory: local or gs://.
    suites: by name, which begins the names of files.
    facts: what else to say at the top: the model, temperature, seed, ...
    write: writes a file whole, given its path; with several processes it is
      `parallel.files.write_whole`.
    front: parts of the page, by page.py, that come before the suites.

  Raises:
    UserError: a file cannot be written.
    ValueError: there are no suites, or a name cannot be one of a file.
  """
  for name, content in render(suites, facts or {}, front).items():
    (write or _write_whole)(os.path.join(directory, name), content)


def _write_whole(path: str, content: bytes) -> None:
  with atomic_io.atomic_write(path) as file:
    file.write(content)


def render(
  suites: Mapping[str, SuiteReport],
  facts: Mapping[str, str],
  front: Sequence[str] = (),
) -> dict[str, bytes]:
  """The files of a report, by name, in the order to write them."""
  if not suites:
    raise ValueError('there are no suites to report')
  for name in suites:
    if not re.fullmatch('[A-Za-z0-9][A-Za-z0-9_.-]*', name):
      raise ValueError(
        f'suite {name!r}: names have only letters, digits and _ . -'
      )
  pictures = {name: _pictures(name, one) for name, one in suites.items()}
  files = {
    f'{name}-{kind}.png': png
    for name, own in pictures.items()
    for kind, (_, png) in own.items()
  }
  files['results.json'] = _results(suites, facts)
  files['report.html'] = report_html.page(
    'Evaluation report', _body(suites, facts, front, pictures)
  )
  return files


def _pictures(name: str, suite: SuiteReport) -> dict[str, tuple[str, bytes]]:
  """Kind -> (description, PNG)."""
  figures = {}
  if suite.curves.voting:
    title = f'{suite.title}: {suite.measure} over generations voted on'
    reference = plots.REFERENCES.get(name, plots.OVERALL)
    figures['accuracy-over-k'] = (
      title,
      plots.accuracy_over_k(suite.curves, title, reference, suite.measure),
    )
  if suite.parts:
    title = f'{suite.title}: sections'
    figure = plots.accuracy_of_parts(suite.parts, title, suite.measure)
    figures['parts'] = title, figure
  behaviour = _behaviour(suite)
  if sum(behaviour.scores):
    title = f'{suite.title}: how often each score is given'
    figures['scores'] = title, plots.score_histogram(behaviour, title)
  return {
    kind: (description, plots.png(figure))
    for kind, (description, figure) in figures.items()
  }


def _behaviour(suite: SuiteReport) -> GenerationStats:
  """Of the samples, or of the greedy generations if there are none."""
  if suite.samples.num_generations or suite.greedy is None:
    return suite.samples
  return suite.greedy


def _results(
  suites: Mapping[str, SuiteReport], facts: Mapping[str, str]
) -> bytes:
  numbers = {}
  for name, suite in suites.items():
    row = dataclasses.asdict(dataclasses.replace(suite, shown=()))
    del row['shown']
    numbers[name] = row
  content = _finite({'facts': dict(facts), 'suites': numbers})
  return (json.dumps(content, indent=2, allow_nan=False) + '\n').encode()


def _finite(value):
  """The value with null for numbers that JSON does not have."""
  if isinstance(value, dict):
    return {key: _finite(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _body(suites, facts, front, pictures) -> list[str]:
  parts = [report_html.heading(1, 'Evaluation report')]
  if facts:
    rows = [('setting', 'value'), *facts.items()]
    parts.append(report_html.table(rows, 'What was evaluated', 'texts'))
  scores, behaviour = _overview(suites)
  parts += [
    *front,
    report_html.table(scores, 'Scores in percent, with 95% intervals'),
    report_html.table(behaviour, 'Behaviour of the generations'),
    report_html.note(tables.BEHAVIOUR_NOTE),
  ]
  for name, suite in suites.items():
    parts += _section(suite, pictures[name])
  return parts


def _section(suite: SuiteReport, pictures) -> list[str]:
  images = {
    kind: report_html.image(png, description)
    for kind, (description, png) in pictures.items()
  }
  parts = [report_html.heading(2, suite.title)]
  if 'accuracy-over-k' in images:
    parts.append(images['accuracy-over-k'])
  parts += _curve_tables(suite.curves)
  if 'parts' in images:
    rows = tables.by_subset(suite.score)
    parts += [images['parts'], report_html.table(rows, 'Subsets, in percent')]
  if 'scores' in images:
    parts.append(images['scores'])
  if suite.shown:
    parts.append(report_html.heading(3, 'Generations to read'))
  parts += [_generation(x, i == 0) for i, x in enumerate(suite.shown)]
  return parts


def _curve_tables(curves: Curves) -> list[str]:
  parts = [
    report_html.table(tables.over_k(curves), 'The curve in numbers, in percent')
  ]
  if curves.meta_kept:
    caption = f'Of {curves.voting[-1].k} samples the meta RM keeps k_meta'
    parts.append(report_html.table(tables.meta_kept(curves), caption))
  return parts


def _generation(shown: ReportExample, opened: bool) -> str:
  """A generation with all that it was about, in the order it was shown."""
  example, judgement = shown.example, shown.judgement
  scores = judgement.scores
  texts = [(f'Query, {turn.role}', turn.text) for turn in example.query]
  for place, index in enumerate(judgement.order, 1):
    title = f'Response {place}'
    if scores is not None:
      title += f', scored {scores[index]}'
    if index == example.best:
      title += ', the best one'
    texts.append((title, example.responses[index]))
  tokens = f'{judgement.num_tokens:,} tokens, ended by {judgement.finish!r}'
  texts.append((f'Generation ({tokens})', judgement.text))
  title = f'{shown.kind[0].upper()}{shown.kind[1:]}: query {example.id}'
  return report_html.folded(KINDS[shown.kind], title, texts, opened)


def table(suites: Mapping[str, SuiteReport]) -> str:
  """What a terminal shows: the scores, then the behaviour."""
  return '\n\n'.join(map(tables.aligned, _overview(suites)))


def _overview(suites: Mapping[str, SuiteReport]) -> tuple[tables.Rows, ...]:
  """The scores of all suites, and their behaviour."""
  summaries = []
  for suite in suites.values():
    if suite.samples.num_generations:
      summaries.append((suite.title, suite.samples))
    if suite.greedy is not None:
      summaries.append((f'{suite.title}, greedy', suite.greedy))
  curves = [(suite.title, suite.curves) for suite in suites.values()]
  return tables.accuracy(curves), tables.behaviour(summaries)
