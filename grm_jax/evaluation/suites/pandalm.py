"""PandaLM's human test set: which of two responses three people prefer.

File (github WeOpenML/PandaLM, data/testset-v1.json), one array of 999 rows over
170 prompts: idx, instruction, input, response1, response2, annotator1 to 3,
each 0 (tie), 1 or 2. Six rows have a JSON boolean for a response, which is
cast to a text.

The label is the majority (data/compute_metrics.py). Rows whose majority is a
tie, 105, or that have none are not judged: the published figure is a
three-class accuracy, ours is over the other 894 and a tie of votes is worth
1/2. All rows of a prompt are resampled together.
"""

from collections.abc import Sequence

from grm_jax.data.datasets import pandalm as pandalm_rows
from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample


def load(path: str) -> list[JudgingExample]:
  """The pairs of a test set, or of testset-v1.* below a folder."""
  # The published folder has judges' answers and other sets beside it.
  return suite_rows.load(path, _examples, suite_rows.starting('testset-v1.'))


def _examples(row: preference_rows.SourceRow) -> list[JudgingExample]:
  found = pandalm_rows.example(row)
  return [] if found is None else [found]


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """The score as a sum of weighted means: there is one."""
  return (
    metrics.WeightedSection('preference', 1.0, 1.0, metrics.items(results)),
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Accuracy over the pairs; subsets are by how many of three agreed."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results))
