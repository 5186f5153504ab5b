"""PandaLM's human test set: which of two responses three annotators prefer.

File (github.com/WeOpenML/PandaLM, data/testset-v1.json): an array of 999 rows
over 170 prompts: idx, instruction, input, response1, response2, annotator1 to
annotator3, each 0 (tie), 1 or 2. Six rows have a JSON boolean as a response,
which is converted to text.

The label is the majority (data/compute_metrics.py). The 105 rows without a
majority for one response are not judged. The published figure is a three-class
accuracy; ours is over the other 894 rows, and a tied vote counts 1/2. All rows
of a prompt are resampled together.
"""

from collections.abc import Sequence

from grm_jax.data.datasets import pandalm as pandalm_rows
from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample


def load(path: str) -> list[JudgingExample]:
  """Loads the pairs of a file, or of the testset-v1.* files of a folder."""
  # The published folder also has outputs of judges and other datasets.
  return suite_rows.load(
    path, _examples, suite_rows.file_starts_with('testset-v1.')
  )


def _examples(row: preference_rows.SourceRow) -> list[JudgingExample]:
  example = pandalm_rows.example(row)
  return [] if example is None else [example]


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score: one mean over all pairs."""
  return (
    metrics.WeightedSection('preference', 1.0, 1.0, metrics.items(results)),
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the accuracy; subsets are numbers of annotators that agree."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
