"""EvalBiasBench: pairs with one typical bias of judges each.

File (data/evalbiasbench/biasbench.json of github.com/ncsoft/offsetbias), one
object with a list of rows for each of six biases, 80 rows in total: bias,
instruction, response1, response2, label 1 or 2. Its rows can also be the rows
of a file.

Score: accuracy over all pairs; the sections are the biases. A tie counts 1/2.
The published run_bench.py averages the accuracies of the two orders;
config.response_order=balanced uses both orders too.
"""

from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

_BEST = {1: 0, 2: 1}


def load(path: str) -> list[JudgingExample]:
  """Loads the pairs of a file, or of the biasbench.* files of a folder."""
  return suite_rows.load(
    path, _examples, suite_rows.file_starts_with('biasbench.')
  )


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  if 'instruction' in row.fields:
    yield _example(row, row.number)
    return
  for bias in row.fields:
    for number, pair in enumerate(row.object_list_field(bias), 1):
      yield _example(pair, number)


def _example(row: preference_rows.SourceRow, number: int) -> JudgingExample:
  bias, label = row.text_field('bias'), row.int_field('label')
  if label not in _BEST:
    raise row.error(f'label is {label}; it must be 1 or 2')
  return preference_rows.shuffled_example(
    row,
    id=f'evalbiasbench/{bias}/{number}',
    query=preference_rows.user_query(row.text_field('instruction')),
    responses=(row.text_field('response1'), row.text_field('response2')),
    best=_BEST[label],
    tags={'suite': 'evalbiasbench', 'section': bias, 'subset': bias},
  )


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score; biases are weighted by their pairs."""
  return metrics.pooled_terms(results)


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the accuracy over all pairs; sections are the biases."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
