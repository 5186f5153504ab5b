"""PPE, Preference Proxy Evaluations: human preference and correctness pairs.

Datasets (cards at huggingface.co/datasets/lmarena-ai):

- PPE-Human-Preference-V1, split `test`, 16038 rows: question_id, prompt,
  response_1, response_2, winner; ties are not judged.
- PPE-{MMLU-Pro,MATH,GPQA,MBPP-Plus,IFEval}-Best-of-K, split `train`, 512
  questions each: question_id, prompt, model_name, response_1 to response_32,
  scores[32] (whether correct), sampled_conflict_pairs[[i, j]]: five pairs of
  indices from 0, one response correct and the other incorrect.

The path of a file must contain the name of its dataset, as the paths of a
download do.

Score: the preference section is the accuracy over its pairs; the correctness
section is the mean accuracy over the pairs of the five datasets. The overall
score is the mean of both; the DeepSeek-GRM paper reports them as two columns.
All five pairs of a question are resampled together.

With references=True, the prompts of correctness pairs show a correct answer, as
in Tables 9 and 12 of the paper (their row "w/ Reference"). It comes from these
fields: options, answer_index (MMLU-Pro); solution (MATH); choices,
correct_choice_index (GPQA); code (MBPP-Plus). IFEval has no such field.
"""

import functools
import string
from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows, row_values
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
# Lists of options, and indices of the correct one.
_OPTIONS = {
  'MMLU-Pro': ('options', 'answer_index'),
  'GPQA': ('choices', 'correct_choice_index'),
}
_SOLUTIONS = {'MATH': 'solution', 'MBPP-Plus': 'code'}
_WINNERS = {'model_a': 0, 'model_b': 1}


def load(path: str, references: bool = False) -> list[JudgingExample]:
  """Loads the pairs of a dataset, or of all datasets of a folder.

  Args:
    path: the file or folder.
    references: whether examples have the correct answers of their rows.
  """
  return suite_rows.load(
    path,
    functools.partial(_examples, references=references),
    suite_rows.path_mentions(path, _DATASETS),
  )


def _examples(
  row: preference_rows.SourceRow, references: bool
) -> Iterator[JudgingExample]:
  key = suite_rows.last_mentioned(row.file, _DATASETS)
  if key is None:
    raise row.error(
      f'the path has no name of a dataset; it must contain one of '
      f'{", ".join(_DATASETS)}'
    )
  if (dataset := _DATASETS[key]) == PREFERENCE:
    yield from _preference_examples(row)
  else:
    reference = _reference(row, dataset) if references else ''
    yield from _correctness_examples(row, dataset, reference)


def _preference_examples(row):
  winner = row.text_field('winner')
  if winner.startswith('tie'):
    return
  if winner not in _WINNERS:
    raise row.error(
      f'winner is {winner!r}; it must be model_a, model_b or a tie'
    )
  yield preference_rows.shuffled_example(
    row,
    # The row number makes the id unique: question ids can repeat.
    id=f'ppe/{PREFERENCE}/{row.number}/{row.field("question_id")}',
    query=preference_rows.user_query(row.text_field('prompt')),
    responses=(row.text_field('response_1'), row.text_field('response_2')),
    best=_WINNERS[winner],
    tags={'suite': 'ppe', 'section': 'preference', 'subset': PREFERENCE},
  )


def _reference(row, dataset) -> str:
  """Returns the correct answer of a row; '' in a dataset without answers."""
  if dataset in _SOLUTIONS:
    return row.text_field(_SOLUTIONS[dataset])
  if dataset not in _OPTIONS:
    return ''
  key, index_key = _OPTIONS[dataset]
  options, index = row.text_list_field(key), row.int_field(index_key)
  if not 0 <= index < len(options):
    raise row.error(
      f'{index_key} is {index}; it must be an index from 0 of the '
      f'{len(options)} {key}'
    )
  return f'{string.ascii_uppercase[index]}. {options[index]}'


def _correctness_examples(row, dataset, reference):
  question_id = row.field('question_id')
  query = preference_rows.user_query(row.text_field('prompt'))
  scores = [_score(row, value) for value in row.list_field('scores')]
  for k, pair in enumerate(row.list_field('sampled_conflict_pairs')):
    i, j = _check_pair(row, pair, scores)
    responses = tuple(row.text_field(f'response_{x + 1}') for x in (i, j))
    yield preference_rows.shuffled_example(
      row,
      id=f'ppe/{dataset}/{row.number}/{question_id}/{k}:{i}-{j}',
      query=query,
      responses=responses,
      best=0 if scores[i] > scores[j] else 1,
      tags={'suite': 'ppe', 'section': 'correctness', 'subset': dataset},
      reference=reference,
    )


def _score(row, value) -> float:
  number = value if isinstance(value, bool) else row_values.finite_number(value)
  if number is None:
    raise row.error(f'scores must be numbers or booleans, not {value!r:.60}')
  return float(number)


def _check_pair(row, pair, scores):
  """Returns the pair (i, j) of a correct and an incorrect response."""
  stated = pair
  pair = list(map(row_values.integer, pair)) if isinstance(pair, list) else []
  if len(pair) != 2 or None in pair:
    raise row.error(f'sampled_conflict_pairs: {stated} is not [i, j]')
  if not all(0 <= i < len(scores) for i in pair):
    raise row.error(
      f'sampled_conflict_pairs: {pair} is out of range; there are '
      f'{len(scores)} scores, with indices from 0'
    )
  i, j = pair
  if scores[i] == scores[j]:
    raise row.error(
      f'sampled_conflict_pairs: the responses {pair} have equal scores'
    )
  return i, j


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score."""
  return metrics.weighted_terms(_SECTIONS, metrics.by_subset(results))


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the mean of the sections that have results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
