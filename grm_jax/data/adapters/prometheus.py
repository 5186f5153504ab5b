"""Critiques of single responses by GPT-4, with scores from 1 to 5.

Files (github prometheus-eval/prometheus-eval, eval/benchmark/data/
{mt_bench,vicuna}_eval.json): instruction, a prompt that holds the query, the
response, a reference answer and a rubric under headings; gpt4_score and
gpt4_feedback, as long as each other. In mt_bench_eval the query is a dialogue
in one text. The questions are those of MT-Bench and Vicuna-80: no benchmark
that has them may be reported after training on this.
"""

from collections.abc import Iterator

from grm_jax.data import published
from grm_jax.judging import rows
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.judgement import Fault

Critique = tuple[JudgingExample, str, int]

_HEADINGS = (
  '###The instruction to evaluate:\n',
  '\n\n###Response to evaluate:\n',
  '\n\n###Reference Answer (Score 5):\n',
  '\n\n###Score Rubrics:\n',
  '\n\n###Feedback:',
)


def read(path: str) -> Iterator[Critique | Fault]:
  """Critiques of a file; rows that are wrong are faults.

  Raises:
    ValueError: the file cannot be read.
  """
  return published.read(path, critiques)


def critiques(row: rows.Row) -> Iterator[Critique]:
  """(example, critique, score from 1 to 5), one for each text of a row.

  The example has one response; its principles are the rubric. Its reward is
  not known, for a rubric's score is no label of 0 or 1.
  """
  query, response, reference, rubric = _sections(row)
  example = rows.example(
    row,
    id=f'prometheus/{published.digest(query, response, rubric)}',
    query=rows.asked(query),
    responses=(response,),
    reference=reference,
    principles=rubric,
    tags={'suite': 'prometheus'},
  )
  texts, scores = row.texts('gpt4_feedback'), row.listed('gpt4_score')
  if len(texts) != len(scores):
    raise row.fault(f'{len(texts)} gpt4_feedback, {len(scores)} gpt4_score')
  for text, score in zip(texts, scores, strict=True):
    if type(score) is not int or not 1 <= score <= 5:
      raise row.fault(f'gpt4_score is {score!r:.60}, not from 1 to 5')
    # One text goes on to repeat its score.
    yield example, text.partition('[RESULT]')[0].strip(), score


def _sections(row):
  rest, found = row.text('instruction'), []
  for heading in _HEADINGS:
    if rest.count(heading) != 1:
      name = heading.strip()
      raise row.fault(f'instruction must have {name!r} once, in its place')
    part, rest = rest.split(heading)
    found.append(part.strip())
  return found[1:]
