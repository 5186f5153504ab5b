"""ReaLMistake: is there an error in one response.

Files (README of github psunlpgroup/ReaLMistake; data.zip there, the same rows
in huggingface.co/datasets/ryokamoi/realmistake): data/<task>/<model>.jsonl with
the tasks below and the models gpt-4-0613 and Llama-2-70b-chat-hf, 900 rows:
input, llm_response, error_label 'error' or 'no_error', and more. The README's
list of keys says label for error_label; its code and Hugging Face say
error_label, and both are read. The task is read off the path.

Score: ROC-AUC of the vote against 'no_error', per task and, as the suite's
number, pooled (as the method's paper does; the benchmark's own code reports
precision, recall and F1 of a binary verdict). Every comparison with a response
whose judgements do not parse is lost.
"""

import math
from collections.abc import Iterator, Sequence

from etils import epath

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

TASKS = (
  'math_word_problem_generation',
  'finegrained_fact_verification',
  'answerability_classification',
)
_LABELS = {'error': 0.0, 'no_error': 1.0}


def load(path: str) -> list[JudgingExample]:
  """The responses of a file, or of the files of all tasks below a folder."""
  return suite_rows.load(path, _examples, suite_rows.naming(path, TASKS))


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  task = suite_rows.named(row.file, TASKS)
  if task is None:
    raise row.fault(f'the path names none of {", ".join(TASKS)}')
  model = epath.Path(row.file).stem
  key = 'error_label' if 'error_label' in row.fields else 'label'
  yield preference_rows.arranged(
    row,
    id=f'realmistake/{task}/{model}/{row.number}',
    query=preference_rows.asked(row.text('input')),
    responses=(row.text('llm_response'),),
    rewards=(_LABELS[row.one_of(key, _LABELS)],),
    tags={
      'suite': 'realmistake',
      'section': task,
      'subset': f'{task}/{model}',
    },
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Pooled ROC-AUC; of sections and subsets with both labels, theirs.

  Raises:
    UserError: all results have the same label.
  """
  subsets = metrics.by_tag(results, 'subset')
  return metrics.Score(
    overall=metrics.auc(*_scores_and_labels(results)),
    sections=_aucs(metrics.by_tag(results, 'section')),
    subsets=_aucs(subsets),
    counts={name: len(found) for name, found in subsets.items()},
    failures=metrics.failures(results),
    ties=metrics.ties(results),
  )


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the pooled ROC-AUC when inputs are resampled."""
  queries = [metrics.query_of(r.example) for r in results]
  return metrics.bootstrap_auc(*_scores_and_labels(results), queries)


def _aucs(groups):
  return {
    name: metrics.auc(*_scores_and_labels(found))
    for name, found in groups.items()
    if len({r.example.rewards for r in found}) == 2
  }


def _scores_and_labels(results):
  labels = [r.example.rewards[0] == 1 for r in results]
  scores = [
    r.votes[0] if r.votes is not None else -math.inf if label else math.inf
    for r, label in zip(results, labels, strict=True)
  ]
  return scores, labels
