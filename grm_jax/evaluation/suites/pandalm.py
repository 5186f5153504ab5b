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

import collections
from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics
from grm_jax.judging import rows
from grm_jax.judging.example import JudgingExample

_ANNOTATORS = ('annotator1', 'annotator2', 'annotator3')


def load(path: str) -> list[JudgingExample]:
  """The pairs of testset-v1.json, or of the one below a folder."""
  # The published folder has judges' answers and other sets beside it.
  return rows.load(path, _examples, rows.starting('testset-v1.json'))


def _examples(row: rows.Row) -> Iterator[JudgingExample]:
  labels = [row.whole(key) for key in _ANNOTATORS]
  if not set(labels) <= {0, 1, 2}:
    raise row.fault(f'annotators say {labels}; each must be 0, 1 or 2')
  (label, times), *_ = collections.Counter(labels).most_common(1)
  if label == 0 or times == 1:
    return
  parts = (row.text('instruction'), row.text('input'))
  yield rows.arranged(
    row,
    id=f'pandalm/{row.whole("idx")}',
    query=rows.asked('\n\n'.join(part for part in parts if part)),
    responses=(_response(row, 'response1'), _response(row, 'response2')),
    best=label - 1,
    tags={
      'suite': 'pandalm',
      'section': 'preference',
      'subset': 'unanimous' if times == 3 else 'majority',
    },
  )


def _response(row, key):
  value = row.value(key)
  return str(value) if isinstance(value, bool) else row.text(key)


def terms(results: Sequence[metrics.Result]) -> tuple[metrics.Term, ...]:
  """The score as a sum of weighted means: there is one."""
  return (metrics.Term('preference', 1.0, 1.0, metrics.items(results)),)


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Accuracy over the pairs; subsets are by how many of three agreed."""
  return metrics.score(results, terms(results))


def interval(
  results: Sequence[metrics.Result], num: int = 1000, seed: int = 0
) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results), num, seed)
