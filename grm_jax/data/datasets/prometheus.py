r"""Turns written feedback on single responses into judgements of pairs.

Rows are those of Prometheus' evaluation sets (vicuna_eval.json and similar,
github prometheus-eval/prometheus-eval): {instruction, gpt4_score: [int, ...],
gpt4_feedback: [str, ...]}. The instruction has sections such as `###Response to
evaluate:`. Two responses to the same query under the same rubric make a pair:
the rubric becomes the principle, the feedback on each response the analysis,
and twice its mean score (1 to 5) the score. Pairs with equal scores do not
state a preference and are left out; so are responses without a partner.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from grm_jax.data import dataset_files, label_only_judgements
from grm_jax.judgement import response_order, row_values
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.preference_rows import SourceRow

_SECTIONS = {
  'query': 'The instruction to evaluate',
  'response': 'Response to evaluate',
  'rubric': 'Score Rubrics',
}
_HEADING = re.compile(r'^###(.+?): ?$', re.MULTILINE)
_SENTENCE_BREAK = re.compile(r'(?<=[.!?])\s+(?=[A-Z])')
_MAX_SENTENCES = 2  # of each feedback


@dataclasses.dataclass(frozen=True)
class RatedResponse:
  """A response with its score and feedback.

  Attributes:
    question: (query, criterion of the rubric).
    response: its text.
    score: mean of its scores, 1 to 5.
    feedback: first sentences of the feedback whose score is closest to the
      mean.
  """

  question: tuple[str, str]
  response: str
  score: float
  feedback: str

  @property
  def score_of_ten(self) -> int:
    """The score on the scale of 1 to 10 that judgements use."""
    return round(2 * self.score)


def judgements(
  path: str, seed: int
) -> Iterator[tuple[JudgingExample, tuple[int, ...], str] | ExampleError]:
  """Yields (example, order, judgement) per pair, and an error per bad row.

  Args:
    path: a .json, .jsonl or .parquet file, local or gs://.
    seed: seed of the response orders.

  Raises:
    UserError: the file cannot be read.
  """
  groups: dict[tuple[str, str], list[RatedResponse]] = collections.defaultdict(
    list
  )
  for rated in dataset_files.adapt_rows(path, _rated_response):
    if isinstance(rated, ExampleError):
      yield rated
    else:
      groups[rated.question].append(rated)
  for (query, criterion), group in groups.items():
    for pair in itertools.combinations(group, 2):
      if pair[0].score_of_ten == pair[1].score_of_ten:
        continue
      example = _example(query, pair)
      order = label_only_judgements.random_order(example, seed)
      ordered = response_order.apply(pair, order)
      text = label_only_judgements.format_judgement(
        criterion,
        (x.feedback for x in ordered),
        (x.score_of_ten for x in ordered),
      )
      yield example, order, text


def _example(query: str, pair: Sequence[RatedResponse]) -> JudgingExample:
  texts = tuple(x.response for x in pair)
  scores = tuple(x.score for x in pair)
  return JudgingExample(
    id=f'prometheus/{dataset_files.text_digest(query, *texts)}',
    query=(Turn('user', query),),
    responses=texts,
    best=scores.index(max(scores)),
    rewards=scores,
  )


def _rated_response(row: SourceRow) -> Iterator[RatedResponse]:
  sections = _sections(row)
  criterion = _in_brackets(sections['rubric'])
  if not criterion:
    raise row.error('its rubric has no criterion in square brackets')
  scores = [row_values.integer(x) for x in row.list_field('gpt4_score')]
  feedback = row.text_list_field('gpt4_feedback')
  if len(scores) != len(feedback):
    raise row.error(
      f'gpt4_score has {len(scores)} entries and gpt4_feedback '
      f'{len(feedback)}; the numbers must be equal'
    )
  ratings = [x for x in scores if x is not None and 1 <= x <= 5]
  if len(ratings) < len(scores):
    given = row.field('gpt4_score')
    raise row.error(f'gpt4_score is {given}; each must be an integer 1 to 5')
  mean = sum(ratings) / len(ratings)
  closest = min(range(len(ratings)), key=lambda i: abs(ratings[i] - mean))
  yield RatedResponse(
    (sections['query'], ' '.join(criterion.split())),
    sections['response'],
    mean,
    _first_sentences(feedback[closest]),
  )


def _in_brackets(text: str) -> str:
  """Returns the text in the first pair of square brackets, '' without one."""
  # A regular expression takes quadratic time for many unclosed brackets.
  _, _, rest = text.partition('[')
  end = rest.find(']', 1)
  return rest[: max(0, end)]


def _sections(row: SourceRow) -> dict[str, str]:
  """Returns the sections of the instruction under the keys of _SECTIONS."""
  parts = _HEADING.split(row.text_field('instruction'))
  # split() returns text, heading, text, heading, text, ...
  by_heading = dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
  for heading in _SECTIONS.values():
    if not by_heading.get(heading):
      raise row.error(f'its instruction has no section "###{heading}:"')
  return {key: by_heading[heading] for key, heading in _SECTIONS.items()}


def _first_sentences(text: str) -> str:
  sentences = _SENTENCE_BREAK.split(' '.join(text.split()))
  return ' '.join(sentences[:_MAX_SENTENCES])
