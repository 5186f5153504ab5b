"""ReaLMistake: whether a single response has an error.

Files (data.zip of github.com/psunlpgroup/ReaLMistake, and the same rows in
huggingface.co/datasets/ryokamoi/realmistake): data/<task>/<model>.jsonl with
the tasks below and the models gpt-4-0613 and Llama-2-70b-chat-hf, 900 rows:
input, llm_response, error_label ('error' or 'no_error'), and more. The README
calls error_label `label`; both keys are accepted. The path contains the task.

Score: ROC-AUC of the votes for 'no_error', per task and, as the overall score,
pooled over tasks, as in the DeepSeek-GRM paper (the benchmark's own code
reports precision, recall and F1 of binary verdicts). A response without a vote
loses all comparisons.
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
  """Loads the responses of a file, or of all task files of a folder."""
  return suite_rows.load(path, _examples, suite_rows.path_mentions(path, TASKS))


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  task = suite_rows.last_mentioned(row.file, TASKS)
  if task is None:
    raise row.error(
      f'the path has no name of a task; it must contain one of '
      f'{", ".join(TASKS)}'
    )
  model = epath.Path(row.file).stem
  key = 'error_label' if 'error_label' in row.fields else 'label'
  yield preference_rows.shuffled_example(
    row,
    id=f'realmistake/{task}/{model}/{row.number}',
    query=preference_rows.user_query(row.text_field('input')),
    responses=(row.text_field('llm_response'),),
    rewards=(_LABELS[row.choice_field(key, _LABELS)],),
    tags={
      'suite': 'realmistake',
      'section': task,
      'subset': f'{task}/{model}',
    },
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the pooled ROC-AUC, and that of parts with both labels.

  Raises:
    UserError: all results have the same label.
  """
  subsets = metrics.by_tag(results, 'subset')
  return metrics.Score(
    overall=metrics.auc(*_scores_and_labels(results)),
    sections=_aucs(metrics.by_tag(results, 'section')),
    subsets=_aucs(subsets),
    counts={name: len(members) for name, members in subsets.items()},
    failures=metrics.failures(results),
    ties=metrics.ties(results),
  )


def interval(
  results: Sequence[metrics.Result], seed: int = 0
) -> tuple[float, float]:
  """Returns the 95 % interval of the pooled ROC-AUC over queries."""
  queries = [metrics.query_of(r.example) for r in results]
  scores, labels = _scores_and_labels(results)
  return metrics.bootstrap_auc(scores, labels, queries, seed=seed)


def _aucs(groups):
  return {
    name: metrics.auc(*_scores_and_labels(members))
    for name, members in groups.items()
    if len({r.example.rewards for r in members}) == 2
  }


def _scores_and_labels(results):
  """Returns votes and labels; True is a response without an error."""
  labels = [r.example.rewards[0] == 1 for r in results]
  # Without a vote, the score is on the wrong side of all others.
  scores = [
    r.votes[0] if r.votes is not None else -math.inf if label else math.inf
    for r, label in zip(results, labels, strict=True)
  ]
  return scores, labels
