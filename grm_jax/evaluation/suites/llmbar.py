"""LLMBar: which of two outputs follows the instruction.

Files (README of github.com/princeton-nlp/LLMBar): Dataset/LLMBar/Natural/
dataset.json and Dataset/LLMBar/Adversarial/{Neighbor,GPTInst,GPTOut,Manual}/
dataset.json, 419 rows in total: input, output_1, output_2, label 1 or 2. The
other sets of that repository, Dataset/{Processed,CaseStudy}/<name>, have the
same format and can be loaded too.

Score: mean of the accuracies of the subsets; a tie counts 1/2. The published
LLMEvaluator/evaluate.py averages the accuracies of the two orders;
config.response_order=balanced uses both orders too.
"""

from collections.abc import Iterator, Sequence

from etils import epath

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

_BEST = {1: 0, 2: 1}


def load(path: str) -> list[JudgingExample]:
  """Loads the pairs of a file, or of all dataset.* files of a folder."""
  # evaluators/ of the repository holds results of judges.
  return suite_rows.load(
    path, _examples, suite_rows.file_starts_with('dataset.')
  )


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  folder = epath.Path(row.file).parent
  subset = folder.name
  section = subset if subset == 'Natural' else folder.parent.name
  label = row.int_field('label')
  if label not in _BEST:
    raise row.error(f'label is {label}; it must be 1 or 2')
  yield preference_rows.shuffled_example(
    row,
    id=f'llmbar/{section}/{subset}/{row.number}',
    query=preference_rows.user_query(row.text_field('input')),
    responses=(row.text_field('output_1'), row.text_field('output_2')),
    best=_BEST[label],
    tags={'suite': 'llmbar', 'section': section, 'subset': subset},
  )


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score; all subsets have equal weight."""
  sections = {
    section: metrics.by_subset(members)
    for section, members in metrics.by_tag(results, 'section').items()
  }
  num_subsets = sum(map(len, sections.values()))
  return tuple(
    metrics.WeightedSection(
      section, len(groups) / num_subsets, 1 / len(groups), items
    )
    for section, groups in sections.items()
    for items in groups.values()
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the mean of the subsets; sections are Natural and Adversarial."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
