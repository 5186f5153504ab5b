"""Judges examples through a journal, so that an interrupted run resumes."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from grm_jax.evaluation import judgement_io
from grm_jax.io.journal import Journal
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges.factory import AnyJudge
from grm_jax.sharding import distributed


def judge_all(
  judge: AnyJudge,
  examples: Sequence[JudgingExample],
  k: int,
  path: str,
  header: Mapping[str, Any],
  progress: str,
  postprocess: Callable[[JudgedExample], JudgedExample] = lambda judged: judged,
) -> list[JudgedExample]:
  """Returns judgements of all examples; skips those in the journal.

  The first process keeps the journal. All processes start where it ends.

  Args:
    judge: of any kind.
    examples: all of them.
    k: samples of each; 0 for one greedy judgement.
    path: of the journal, which stays there.
    header: identifies the run, so that no other run's journal is used.
    progress: name of a progress bar.
    postprocess: applied to each judged example before it is stored.

  Returns:
    Judged examples in the order of `examples`. In other processes than the
    first, examples from the journal have no samples.
  """
  is_first = not jax.process_index()
  journal = Journal(path, {**header, 'samples': k}) if is_first else None
  num_done = distributed.broadcast_from_host0(journal.count if journal else 0)
  remaining = examples[num_done:]
  items = judge.judge(remaining, k, progress=progress, total=len(remaining))
  results = []
  for example, item in zip(remaining, items, strict=True):
    if isinstance(item, ExampleError):
      item = _failed(example, item, k)
    judged = postprocess(item)
    results.append(judged)
    if journal:
      journal.append(json.loads(judgement_io.to_line(judged)))
  if not journal:
    return [JudgedExample(x, ()) for x in examples[:num_done]] + results
  rows = enumerate(journal.rows(), 1)
  results = [judgement_io.from_row(row, number) for number, row in rows]
  journal.close()
  return results


def _failed(
  example: JudgingExample, error: ExampleError, k: int
) -> JudgedExample:
  """Returns an example that cannot be judged, with k parse failures."""
  logging.warning('%s: %s', error.id, error.reason)
  order = tuple(range(len(example.responses)))
  text = f'[not judged: {error.reason}]'
  failure = Judgement(order, text, 0, 'length', None)
  return JudgedExample(example, (failure,) * max(1, k))
