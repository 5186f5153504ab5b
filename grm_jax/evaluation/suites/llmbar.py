"""LLMBar: which of two outputs follows the instruction.

Files (README of github princeton-nlp/LLMBar): Dataset/LLMBar/Natural/
dataset.json and Dataset/LLMBar/Adversarial/{Neighbor,GPTInst,GPTOut,Manual}/
dataset.json, 419 rows together: input, output_1, output_2, label 1 or 2. The
other sets of that repository, Dataset/{Processed,CaseStudy}/<name>, have the
same form and load too.

Score: mean of the subsets' accuracies; a tie is worth 1/2. The published
LLMEvaluator/evaluate.py averages the accuracies of the two orders: show both,
as config.response_order 'balanced' does.
"""

from collections.abc import Iterator, Sequence

from etils import epath

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

_BEST = {1: 0, 2: 1}


def load(path: str) -> list[JudgingExample]:
  """The pairs of a file, or of all dataset.* below a folder."""
  # Beside them are results of judges, in evaluators/.
  return suite_rows.load(path, _examples, suite_rows.starting('dataset.'))


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  folder = epath.Path(row.file).parent
  subset = folder.name
  section = subset if subset == 'Natural' else folder.parent.name
  label = row.whole('label')
  if label not in _BEST:
    raise row.fault(f'label is {label}, neither 1 nor 2')
  yield preference_rows.arranged(
    row,
    id=f'llmbar/{section}/{subset}/{row.number}',
    query=preference_rows.asked(row.text('input')),
    responses=(row.text('output_1'), row.text('output_2')),
    best=_BEST[label],
    tags={'suite': 'llmbar', 'section': section, 'subset': subset},
  )


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """The score as a sum of weighted means: subsets count alike."""
  sections = {
    section: metrics.by_subset(found)
    for section, found in metrics.by_tag(results, 'section').items()
  }
  number = sum(map(len, sections.values()))
  return tuple(
    metrics.WeightedSection(
      section, len(groups) / number, 1 / len(groups), items
    )
    for section, groups in sections.items()
    for items in groups.values()
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Mean of the subsets; sections are Natural and the mean of Adversarial."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results))
