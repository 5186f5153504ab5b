"""Judging through a journal, so that a run that was killed goes on."""

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
  rate: Callable[[JudgedExample], JudgedExample] = lambda judged: judged,
) -> list[JudgedExample]:
  """Judgements of all examples; those in the journal are not made again.

  The first process keeps the journal, and all go on where it says.

  Args:
    judge: of any kind.
    examples: all of them.
    k: samples of each; 0 is one greedy judgement.
    path: of the journal, which is left there.
    header: what tells it from journals of other runs.
    progress: name of a progress bar.
    rate: what is done to each judgement before it is kept.

  Returns:
    In the order of the examples. In other processes than the first what the
    journal held before has no samples.
  """
  first = not jax.process_index()
  journal = Journal(path, {**header, 'samples': k}) if first else None
  done = distributed.broadcast_from_host0(journal.count if first else 0)
  items = judge.judge(
    examples[done:], k, progress=progress, total=len(examples) - done
  )
  found = []
  for example, item in zip(examples[done:], items, strict=True):
    judged = (
      _failed(example, item, k) if isinstance(item, ExampleError) else item
    )
    judged = rate(judged)
    found.append(judged)
    if journal:
      journal.append(json.loads(judgement_io.line(judged)))
  if not journal:
    return [JudgedExample(x, ()) for x in examples[:done]] + found
  whole = [
    judgement_io.of_row(row, i) for i, row in enumerate(journal.rows(), 1)
  ]
  journal.close()
  return whole


def _failed(
  example: JudgingExample, fault: ExampleError, k: int
) -> JudgedExample:
  """An example that could not be judged, as k that do not parse."""
  logging.warning('%s: %s', fault.id, fault.reason)
  order = tuple(range(len(example.responses)))
  text = f'[not judged: {fault.reason}]'
  failed = Judgement(order, text, 0, 'length', None)
  return JudgedExample(example, (failed,) * max(1, k))
