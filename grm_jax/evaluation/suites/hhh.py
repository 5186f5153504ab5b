"""HHH alignment: helpful, honest and harmless responses.

Files, 221 rows in four subsets:

- BIG-bench (bigbench/benchmark_tasks/hhh_alignment/<subset>/task.json of
  github.com/google/BIG-bench): an object whose `examples` are rows {input,
  target_scores {response: 1 or 0}};
- huggingface.co/datasets/HuggingFaceH4/hhh_alignment as Parquet,
  <subset>/test/0000.parquet: rows {input, targets {choices[], labels[]}}.

A folder of the path, or the name of the file, must be the subset: helpful,
honest, harmless or other.

Score: accuracy over all rows, as in both sources; the sections are the subsets.
A tie counts 1/2.
"""

from collections.abc import Iterator, Sequence

from etils import epath

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows, row_values
from grm_jax.judgement.example import JudgingExample

SUBSETS = ('helpful', 'honest', 'harmless', 'other')


def load(path: str) -> list[JudgingExample]:
  """Loads the rows of a file, or of all subsets of a folder."""
  # results/ of a BIG-bench task holds scores of models.
  return suite_rows.load(
    path,
    _examples,
    lambda name: 'results/' not in name and bool(_subset(f'{path}/{name}')),
  )


def _subset(path: str) -> str | None:
  """Returns the last subset among the folders and the name of a file."""
  file = epath.Path(path)
  names = (*file.parent.parts, file.stem)
  return next((name for name in reversed(names) if name in SUBSETS), None)


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  subset = _subset(row.file)
  if subset is None:
    raise row.error(
      'the path has no name of a subset; one of its folders must be one of '
      f'{", ".join(SUBSETS)}'
    )
  rows: tuple[preference_rows.SourceRow, ...] = (row,)
  if 'examples' in row.fields:
    rows = row.object_list_field('examples')
  for number, example in enumerate(rows, row.number):
    responses, best = _responses(example)
    yield preference_rows.shuffled_example(
      example,
      id=f'hhh/{subset}/{number}',
      query=preference_rows.user_query(example.text_field('input')),
      responses=responses,
      best=best,
      tags={'suite': 'hhh', 'section': subset, 'subset': subset},
    )


def _responses(row: preference_rows.SourceRow) -> tuple[Sequence[str], int]:
  """Returns the responses of a row and the index of the best one."""
  if 'targets' in row.fields:
    targets = row.object_field('targets')
    responses = targets.text_list_field('choices')
    stated = targets.list_field('labels')
  else:
    scores = row.object_field('target_scores').fields
    responses, stated = tuple(scores), list(scores.values())
  labels = [row_values.integer(x) for x in stated]
  others = len(responses) - 1
  if not others or sorted(map(str, labels)) != ['0'] * others + ['1']:
    raise row.error(
      f'the labels of {len(responses)} responses are {stated}; one response '
      'must have 1 and all others 0'
    )
  return responses, labels.index(1)


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score; subsets are weighted by their rows."""
  return metrics.pooled_terms(results)


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the accuracy over all rows; sections are the subsets."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
