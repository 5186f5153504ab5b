r"""Written feedback on single responses, made into judgements of pairs.

Rows are those of Prometheus' evaluation sets (vicuna_eval.json and its like,
github prometheus-eval/prometheus-eval): {instruction, gpt4_score: [int, ...],
gpt4_feedback: [str, ...]}, the instruction with sections `###Response to
evaluate:` and so on. Responses to one question by one rubric are judged in
pairs: the rubric becomes the principle, what was written of each response the
analysis, and the mean of its scores, of 5, its score of 10. Pairs with the
same score say nothing of what is better and are left out, and so are
responses that are alone.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from grm_jax.data import dataset_files, label_only_judgements
from grm_jax.judgement import preference_rows, response_order
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import ExampleError

_SECTIONS = {
  'query': 'The instruction to evaluate',
  'response': 'Response to evaluate',
  'rubric': 'Score Rubrics',
}
_HEAD = re.compile(r'^###(.+?): ?$', re.MULTILINE)
_CRITERION = re.compile(r'\[(.+?)\]', re.DOTALL)
_SENTENCE = re.compile(r'(?<=[.!?])\s+(?=[A-Z])')
_SENTENCES = 2  # of each feedback


@dataclasses.dataclass(frozen=True)
class RatedResponse:
  """A response, and what was written about it.

  Attributes:
    question: (the query, the criterion of the rubric).
    response: the text.
    score: the mean of its scores.
    feedback: the one whose score is nearest to the mean, its first sentences.
  """

  question: tuple[str, str]
  response: str
  score: float
  feedback: str


def judgements(
  path: str, seed: int
) -> Iterator[tuple[JudgingExample, tuple[int, ...], str] | ExampleError]:
  """(example, order, judgement) of each pair; a fault for each bad row.

  Args:
    path: a .json, .jsonl or .parquet file, local or gs://.
    seed: of the orders that responses are shown in.

  Raises:
    UserError: the file cannot be read.
  """
  groups: dict[tuple[str, str], list[RatedResponse]] = collections.defaultdict(
    list
  )
  for found in dataset_files.read(path, _rated):
    if isinstance(found, ExampleError):
      yield found
    else:
      groups[found.question].append(found)
  for (query, criterion), group in groups.items():
    for pair in itertools.combinations(group, 2):
      if _of_ten(pair[0]) == _of_ten(pair[1]):
        continue
      example = _example(query, pair)
      order = label_only_judgements.order_of(example, seed)
      yield example, order, _write(criterion, response_order.apply(pair, order))


def _example(query: str, pair: Sequence[RatedResponse]) -> JudgingExample:
  texts = tuple(x.response for x in pair)
  scores = tuple(x.score for x in pair)
  return JudgingExample(
    id=f'prometheus/{dataset_files.digest(query, *texts)}',
    query=(Turn('user', query),),
    responses=texts,
    best=scores.index(max(scores)),
    rewards=scores,
  )


def _write(criterion: str, shown: Sequence[RatedResponse]) -> str:
  said = (x.feedback for x in shown)
  return label_only_judgements.judgement(criterion, said, map(_of_ten, shown))


def _of_ten(rated: RatedResponse) -> int:
  return round(2 * rated.score)


def _rated(row: preference_rows.SourceRow) -> Iterator[RatedResponse]:
  parts = _sections(row)
  criterion = _CRITERION.search(parts['rubric'])
  if criterion is None:
    raise row.fault('its rubric has no criterion in square brackets')
  scores, texts = row.listed('gpt4_score'), row.texts('gpt4_feedback')
  if len(scores) != len(texts):
    raise row.fault(f'{len(scores)} gpt4_score and {len(texts)} gpt4_feedback')
  if not all(type(x) is int and 1 <= x <= 5 for x in scores):
    raise row.fault(f'gpt4_score is {scores}; scores are 1 to 5')
  mean = sum(scores) / len(scores)
  near = min(range(len(scores)), key=lambda i: abs(scores[i] - mean))
  yield RatedResponse(
    (parts['query'], ' '.join(criterion[1].split())),
    parts['response'],
    mean,
    _first_sentences(texts[near]),
  )


def _sections(row: preference_rows.SourceRow) -> dict[str, str]:
  """The parts of the instruction that are used, by their keys above."""
  cut = _HEAD.split(row.text('instruction'))
  found = dict(zip(cut[1::2], map(str.strip, cut[2::2]), strict=True))
  for name in _SECTIONS.values():
    if not found.get(name):
      raise row.fault(f'its instruction has no section "###{name}:"')
  return {key: found[name] for key, name in _SECTIONS.items()}


def _first_sentences(text: str) -> str:
  sentences = _SENTENCE.split(' '.join(text.split()))
  return ' '.join(sentences[:_SENTENCES])
