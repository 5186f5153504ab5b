"""Math datasets whose answers were checked by a rule: right or wrong.

A question with right and wrong answers yields one comparison with exactly one
right response, and one single response whose label is 0 for half of the
questions and 1 for the others. Equal answers count once. A hash of the question
and its answers makes every choice among answers, so all runs choose alike.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from grm_jax.data.dataset_files import SkippedRow, text_digest
from grm_jax.data.datasets import math_answers
from grm_jax.judgement import preference_rows, row_values
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.preference_rows import SourceRow

MODELS = (
  '6b_finetuning',
  '6b_verification',
  '175b_finetuning',
  '175b_verification',
)
# Calculator annotations such as `<<48/2=24>>`. The text after one repeats the
# result, answers of other models have none, and they take a sixth of the text.
# A truncated solution can end inside an annotation.
_CALCULATOR = re.compile(r'<<[^<>]*(?:>>|$)')
# See `single_every` of _examples. There are about three times as many
# questions with only wrong solutions as with only right ones; taking every
# third of the former balances the labels of single responses.
_GSM8K_SINGLE_EVERY = {1: 1, 0: 3}

Answer = tuple[str, bool]  # (text, is correct)


def gsm8k(row: SourceRow) -> Iterator[JudgingExample | SkippedRow]:
  """Adapts solutions of four models to the GSM8K test questions.

  Fields: {question, ground_truth, and for each of MODELS {solution,
  is_correct}} (github openai/grade-school-math, example_model_solutions.jsonl).
  Yields 2 to 4 responses. A model trained on this must not report GSM8K
  accuracy.
  """
  question, answers = row.text_field('question'), _solutions(row)
  yield from _examples(
    row, question, answers, 4, _GSM8K_SINGLE_EVERY, {'suite': 'gsm8k'}
  )


def gsm8k_pairs(row: SourceRow) -> Iterator[JudgingExample | SkippedRow]:
  """Adapts the rows of `gsm8k` as pairs, which make shorter prompts.

  Yields one pair per wrong solution, one to three per question. The right
  solutions take turns.
  """
  question, answers = row.text_field('question'), _solutions(row)
  name = _name('gsm8k', question, answers)
  right, wrong = _right_and_wrong(row, name, answers)
  if not (right and wrong):
    yield _skip_one_sided(right)
    return
  for number, text in enumerate(wrong):
    yield preference_rows.shuffled_example(
      row,
      id=f'{name}/pair{number}',
      query=preference_rows.user_query(question),
      responses=(right[number % len(right)], text),
      best=0,
      rewards=(1.0, 0.0),
      tags={'suite': 'gsm8k'},
    )


def _solutions(row: SourceRow) -> list[Answer]:
  answers = []
  for model in MODELS:
    solution = row.object_field(model)
    text = _CALCULATOR.sub('', solution.text_field('solution')).strip()
    answers.append((text, _is_correct(solution)))
  return answers


def math(row: SourceRow) -> Iterator[JudgingExample | SkippedRow]:
  """Adapts competition problems with answers that a policy sampled.

  Fields: {problem, answers: [{text[, is_correct]}, ...][, solution, type]}: a
  published MATH row (problem, solution, level, type) plus sampled answers, as
  the stage solve writes them. An answer without is_correct is compared with
  the solution. Yields pairs of a right and a wrong answer; a problem with only
  right or only wrong answers is skipped. The judge does not see the solution.
  """
  question = row.text_field('problem')
  answers = row.object_list_field('answers')
  if not all('is_correct' in x.fields for x in answers):
    solution = row.text_field('solution')
    if not math_answers.has_answer(solution):
      yield SkippedRow('the published solution has no answer in a box')
      return
    answers = tuple(_checked(x, solution) for x in answers)
  tags = {'suite': 'math'}
  if isinstance(problem_type := row.fields.get('type'), str):
    tags['subset'] = problem_type
  texts = [(x.text_field('text'), _is_correct(x)) for x in answers]
  yield from _examples(row, question, texts, 2, {}, tags)


def _checked(answer: SourceRow, solution: str) -> SourceRow:
  """Returns an answer with is_correct."""
  if 'is_correct' in answer.fields:
    return answer
  is_correct = math_answers.is_correct(answer.text_field('text'), solution)
  fields = {**answer.fields, 'is_correct': is_correct}
  return dataclasses.replace(answer, fields=fields)


def _is_correct(row: SourceRow) -> bool:
  value = row.field('is_correct')
  # pandas writes the booleans of a column with gaps as 1.0 and 0.0.
  number = int(value) if isinstance(value, bool) else row_values.integer(value)
  if number not in (0, 1):
    raise row.error(f'is_correct must be true or false, not {value!r:.60}')
  return bool(number)


def _examples(
  row: SourceRow,
  question: str,
  answers: Sequence[Answer],
  max_responses: int,
  single_every: Mapping[int, int],
  tags: Mapping[str, str],
) -> Iterator[JudgingExample | SkippedRow]:
  """Yields the comparison and the single response of a question.

  Args:
    row: the row that the question comes from, for errors.
    question: its text.
    answers: distinct or not, right or wrong.
    max_responses: number of responses of the comparison at most.
    single_every: {label: n}: of the questions whose answers all have this
      label, one in n yields a single response; none if the label is missing.
    tags: tags of the examples.
  """
  name = _name(tags['suite'], question, answers)
  right, wrong = _right_and_wrong(row, name, answers)
  query = preference_rows.user_query(question)
  if right and wrong:
    responses = (right[0], *wrong[: max_responses - 1])
    yield preference_rows.shuffled_example(
      row,
      id=f'{name}/list',
      query=query,
      responses=responses,
      best=0,
      rewards=(1.0,) + (0.0,) * (len(responses) - 1),
      tags=tags,
    )
  label = _single_label(name, right, wrong, single_every)
  if label is None:
    yield _skip_one_sided(right)
    return
  yield preference_rows.make_example(
    row,
    id=f'{name}/single',
    query=query,
    # The last one, which the comparison leaves out if it leaves out any.
    responses=((right if label else wrong)[-1],),
    rewards=(float(label),),
    tags=tags,
  )


def _name(suite: str, question: str, answers: Sequence[Answer]) -> str:
  return f'{suite}/{text_digest(question, *(text for text, _ in answers))}'


def _skip_one_sided(right: Sequence[str]) -> SkippedRow:
  return SkippedRow(f'every answer is {"right" if right else "wrong"}')


def _right_and_wrong(
  row: SourceRow, name: str, answers: Sequence[Answer]
) -> tuple[list[str], list[str]]:
  """Returns the distinct right and wrong texts, in an order by hash."""
  order = preference_rows.shuffled_order(f'{name}/choice', len(answers))
  shuffled = [answers[i] for i in order]
  right = dict.fromkeys(text for text, correct in shuffled if correct)
  wrong = dict.fromkeys(text for text, correct in shuffled if not correct)
  if right.keys() & wrong.keys():
    raise row.error('is_correct is both true and false for the same answer')
  return list(right), list(wrong)


def _single_label(
  name: str,
  right: Sequence[str],
  wrong: Sequence[str],
  single_every: Mapping[int, int],
) -> int | None:
  """Returns the label of the single response; None for no single response."""

  def uniform(n: int) -> int:
    """Returns an integer below n by hash."""
    return preference_rows.shuffled_order(f'{name}/label', n)[0]

  if right and wrong:
    return uniform(2)
  label = int(bool(right))
  if label in single_every and uniform(single_every[label]) == 0:
    return label
  return None
