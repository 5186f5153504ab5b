"""Sets whose answers were checked by a rule: right or wrong.

A question with right and wrong answers makes one example with exactly one
right response, and one single response with label 0 or 1, each label for half
of the questions. Equal answers count once. Every choice among answers is by a
hash of the question and its answers, so that it is the same in every run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from grm_jax.data.dataset_files import SkippedRow, digest
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

MODELS = (
  '6b_finetuning',
  '6b_verification',
  '175b_finetuning',
  '175b_verification',
)
# `<<48/2=24>>` was for a calculator that filled the result in. What follows it
# says the same, no other answer to be judged has it, and it is a sixth of the
# text. A solution that was cut off may end inside of one.
_CALCULATOR = re.compile(r'<<[^<>]*(?:>>|$)')
# Of questions with wrong solutions only, one in three makes a single: there
# are about three times as many as with right ones only, so that labels of
# singles balance.
_GSM8K_SINGLES = {1: 1, 0: 3}

Answer = tuple[str, bool]


def gsm8k(
  row: preference_rows.SourceRow,
) -> Iterator[JudgingExample | SkippedRow]:
  """Solutions of four models to the GSM8K test questions.

  {question, ground_truth, and for each of MODELS {solution, is_correct}}
  (github openai/grade-school-math, example_model_solutions.jsonl). n = 2 to 4
  responses. A model trained on this must not report GSM8K accuracy.
  """
  question, answers = row.text('question'), _solutions(row)
  yield from _examples(
    row, question, answers, 4, _GSM8K_SINGLES, {'suite': 'gsm8k'}
  )


def gsm8k_pairs(
  row: preference_rows.SourceRow,
) -> Iterator[JudgingExample | SkippedRow]:
  """The same in pairs, which are short: each wrong solution and a right one.

  One to three pairs a question; right ones take turns.
  """
  question, answers = row.text('question'), _solutions(row)
  name = _name('gsm8k', question, answers)
  right, wrong = _sorted(row, name, answers)
  if not (right and wrong):
    yield _one_sided(right)
    return
  for number, text in enumerate(wrong):
    yield preference_rows.arranged(
      row,
      id=f'{name}/pair{number}',
      query=preference_rows.asked(question),
      responses=(right[number % len(right)], text),
      best=0,
      rewards=(1.0, 0.0),
      tags={'suite': 'gsm8k'},
    )


def _solutions(row):
  answers = []
  for model in MODELS:
    inner = row.inner(model)
    text = _CALCULATOR.sub('', inner.text('solution')).strip()
    answers.append((text, _truth(inner)))
  return answers


def math(
  row: preference_rows.SourceRow,
) -> Iterator[JudgingExample | SkippedRow]:
  """Competition problems with answers that a policy sampled.

  {problem, answers: [{text, is_correct}, ...][, type]}: a published MATH row
  (problem, solution, level, type), plus answers sampled by a model of yours
  and checked by a rule. Pairs of a right and a wrong answer; a problem whose
  answers are all right or all wrong says nothing about them and is dropped.
  The published solution is not shown to the judge.
  """
  question = row.text('problem')
  answers = [(a.text('text'), _truth(a)) for a in row.inners('answers')]
  tags = {'suite': 'math'}
  if isinstance(kind := row.fields.get('type'), str):
    tags['subset'] = kind
  yield from _examples(row, question, answers, 2, {}, tags)


def _truth(row):
  value = row.value('is_correct')
  if not isinstance(value, bool):
    raise row.fault(f'is_correct must be true or false, not {value!r:.60}')
  return value


def _examples(
  row: preference_rows.SourceRow,
  question: str,
  answers: Sequence[Answer],
  most: int,
  singles: Mapping[int, int],
  tags: Mapping[str, str],
) -> Iterator[JudgingExample | SkippedRow]:
  """The list and the single of a question.

  Args:
    row: which one it is.
    question: its text.
    answers: to it.
    most: responses of the list.
    singles: label -> n: of questions with this label only, one in n makes a
      single; without one, none does.
    tags: of the examples.
  """
  name = _name(tags['suite'], question, answers)
  right, wrong = _sorted(row, name, answers)
  common = dict(query=preference_rows.asked(question), tags=tags)
  if right and wrong:
    responses = (right[0], *wrong[: most - 1])
    rewards = (1.0,) + (0.0,) * (len(responses) - 1)
    yield preference_rows.arranged(
      row,
      id=f'{name}/list',
      responses=responses,
      best=0,
      rewards=rewards,
      **common,
    )
  label = _label(name, right, wrong, singles)
  if label is None:
    yield _one_sided(right)
    return
  yield preference_rows.example(
    row,
    id=f'{name}/single',
    # The last: one that the list leaves out, where it does.
    responses=((right if label else wrong)[-1],),
    rewards=(float(label),),
    **common,
  )


def _name(suite, question, answers):
  return f'{suite}/{digest(question, *(text for text, _ in answers))}'


def _one_sided(right):
  return SkippedRow(f'every answer is {"right" if right else "wrong"}')


def _sorted(row, name, answers):
  """Distinct right and wrong texts, in an order by hash."""
  places = preference_rows.places(f'{name}/choice', len(answers))
  mixed = [answers[i] for i in places]
  right = dict.fromkeys(text for text, truth in mixed if truth)
  wrong = dict.fromkeys(text for text, truth in mixed if not truth)
  if right.keys() & wrong.keys():
    raise row.fault('the same answer is called right and wrong')
  return list(right), list(wrong)


def _label(name, right, wrong, singles):
  """Of the single, None if there is to be none."""

  def drawn(n):
    """One of range(n), each for as many names."""
    return preference_rows.places(f'{name}/label', n)[0]

  if right and wrong:
    return drawn(2)
  label = int(bool(right))
  return label if label in singles and drawn(singles[label]) == 0 else None
