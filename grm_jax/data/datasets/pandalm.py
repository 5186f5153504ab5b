"""PandaLM's human test set: preferences of three annotators between two texts.

File (github WeOpenML/PandaLM, data/testset-v1.json): one array of 999 rows for
170 instructions with the fields idx, instruction, input, response1, response2
and annotator1 to annotator3, each 0 (tie), 1 or 2. In six rows a response is a
JSON boolean, which is converted to text. The label is the majority, as in the
reference implementation (data/compute_metrics.py there).
"""

import collections
from collections.abc import Iterator

from grm_jax.data.dataset_files import SkippedRow
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.preference_rows import SourceRow

ANNOTATORS = ('annotator1', 'annotator2', 'annotator3')


def example(row: SourceRow) -> JudgingExample | None:
  """Returns the pair of a row; None without a majority for one response.

  Raises:
    UserError: a field is missing or has a wrong value.
  """
  labels = [row.int_field(key) for key in ANNOTATORS]
  if not set(labels) <= {0, 1, 2}:
    raise row.error(f'the annotators chose {labels}; each must be 0, 1 or 2')
  (label, count), *_ = collections.Counter(labels).most_common(1)
  if label == 0 or count == 1:
    return None
  parts = (row.text_field('instruction'), row.text_field('input'))
  return preference_rows.shuffled_example(
    row,
    id=f'pandalm/{row.int_field("idx")}',
    query=preference_rows.user_query('\n\n'.join(x for x in parts if x)),
    responses=(_response(row, 'response1'), _response(row, 'response2')),
    best=label - 1,
    tags={
      'suite': 'pandalm',
      'section': 'preference',
      'subset': 'unanimous' if count == 3 else 'majority',
    },
  )


def adapt(row: SourceRow) -> Iterator[JudgingExample | SkippedRow]:
  """Yields the pair of a row with the id that the evaluation suite uses.

  A model trained on one split of this set may report the PandaLM suite on the
  held_out split only.
  """
  yield example(row) or SkippedRow('the annotators do not prefer a response')


def _response(row: SourceRow, key: str) -> str:
  value = row.field(key)
  return str(value) if isinstance(value, bool) else row.text_field(key)
