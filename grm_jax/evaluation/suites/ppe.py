"""PPE, Preference Proxy Evaluations: human preference and correctness pairs.

Datasets (cards at huggingface.co/datasets/lmarena-ai):

- PPE-Human-Preference-V1, split `test`, 16038 rows: question_id, prompt,
  response_1, response_2, winner; a tie is not judged.
- PPE-{MMLU-Pro,MATH,GPQA,MBPP-Plus,IFEval}-Best-of-K, split `train`, 512
  questions each: question_id, prompt, model_name, response_1 to response_32,
  scores[32] (whether right), sampled_conflict_pairs[[i, j]], five of them,
  counted from 0, one response right and the other wrong.

Which dataset a file is from is read off its path, which has to name it, as a
download's does.

Score: preference is the accuracy over its pairs, correctness the mean over the
five sets of the accuracy over their sampled pairs; the suite's number is the
mean of the two, which the method's paper reports as two columns. All five
pairs of a question are resampled together.
"""

from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

PREFERENCE = 'Human-Preference-V1'
SETS = ('MMLU-Pro', 'MATH', 'GPQA', 'MBPP-Plus', 'IFEval')
_DATASETS = {
  f'PPE-{PREFERENCE}': PREFERENCE,
  **{f'PPE-{name}-Best-of-K': name for name in SETS},
}
_SECTIONS = {
  'preference': {PREFERENCE: 1.0},
  'correctness': dict.fromkeys(SETS, 1.0),
}
_WINNERS = {'model_a': 0, 'model_b': 1}


def load(path: str) -> list[JudgingExample]:
  """The pairs of one dataset, or of all of them below a folder."""
  return suite_rows.load(path, _examples, suite_rows.naming(path, _DATASETS))


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  name = suite_rows.named(row.file, _DATASETS)
  if name is None:
    raise row.fault(f'the path names none of {", ".join(_DATASETS)}')
  if (dataset := _DATASETS[name]) == PREFERENCE:
    yield from _preference(row)
  else:
    yield from _conflicts(row, dataset)


def _preference(row):
  winner = row.text('winner')
  if winner.startswith('tie'):
    return
  if winner not in _WINNERS:
    raise row.fault(f'winner is {winner!r}, not model_a, model_b or a tie')
  yield preference_rows.arranged(
    row,
    # Numbers make ids unique: a question may have been asked twice.
    id=f'ppe/{PREFERENCE}/{row.number}/{row.value("question_id")}',
    query=preference_rows.asked(row.text('prompt')),
    responses=(row.text('response_1'), row.text('response_2')),
    best=_WINNERS[winner],
    tags={'suite': 'ppe', 'section': 'preference', 'subset': PREFERENCE},
  )


def _conflicts(row, dataset):
  name, prompt = (
    row.value('question_id'),
    preference_rows.asked(row.text('prompt')),
  )
  scores = row.listed('scores')
  for k, pair in enumerate(row.listed('sampled_conflict_pairs')):
    i, j = _checked(row, pair, scores)
    yield preference_rows.arranged(
      row,
      id=f'ppe/{dataset}/{row.number}/{name}/{k}:{i}-{j}',
      query=prompt,
      responses=(row.text(f'response_{i + 1}'), row.text(f'response_{j + 1}')),
      best=0 if scores[i] > scores[j] else 1,
      tags={'suite': 'ppe', 'section': 'correctness', 'subset': dataset},
    )


def _checked(row, pair, scores):
  """The pair, if one of its responses is right and the other wrong."""
  if not all(isinstance(score, bool | int | float) for score in scores):
    raise row.fault('scores must be numbers or truth values')
  whole = isinstance(pair, list) and all(type(i) is int for i in pair)
  if not whole or len(pair) != 2:
    raise row.fault(f'sampled_conflict_pairs: {pair} is not [i, j]')
  if not all(0 <= i < len(scores) for i in pair):
    raise row.fault(
      f'sampled_conflict_pairs: {pair} with {len(scores)} scores, from 0'
    )
  i, j = pair
  if scores[i] == scores[j]:
    raise row.fault(f'sampled_conflict_pairs: {pair} have equal scores')
  return i, j


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """The score as a sum of weighted means."""
  return metrics.weighted_terms(_SECTIONS, metrics.by_subset(results))


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Mean of preference and correctness, or the one that has results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results))
