"""PandaLM's human test set: which of two responses three people prefer.

File (github WeOpenML/PandaLM, data/testset-v1.json), one array of 999 rows over
170 prompts: idx, instruction, input, response1, response2, annotator1 to 3,
each 0 (tie), 1 or 2. Six rows have a JSON boolean for a response, which is
cast to a text. The label is the majority (data/compute_metrics.py).
"""

import collections

from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

ANNOTATORS = ('annotator1', 'annotator2', 'annotator3')


def example(row: preference_rows.SourceRow) -> JudgingExample | None:
  """The pair of a row; None if the majority is a tie or there is none.

  Raises:
    UserError: says what is wrong with the row.
  """
  labels = [row.whole(key) for key in ANNOTATORS]
  if not set(labels) <= {0, 1, 2}:
    raise row.fault(f'annotators say {labels}; each must be 0, 1 or 2')
  (label, times), *_ = collections.Counter(labels).most_common(1)
  if label == 0 or times == 1:
    return None
  parts = (row.text('instruction'), row.text('input'))
  return preference_rows.arranged(
    row,
    id=f'pandalm/{row.whole("idx")}',
    query=preference_rows.asked('\n\n'.join(part for part in parts if part)),
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
