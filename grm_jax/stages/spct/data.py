"""Writes the examples of all stages of a run, once, into one folder.

  cold_start.jsonl  examples whose labels become texts of the stage sft; not
                    written for practice problems
  rft.jsonl         the first training examples
  grpo.jsonl        the first training examples
  fresh.jsonl       the last training examples, to sample from for the meta RM;
                    few stages have trained on them
  train.jsonl       the union of these three
  validation.jsonl  judged during training
  held_out.jsonl    judged at the end

cold_start.jsonl and train.jsonl share no query, and neither do the splits (see
data/example_sources.py). The selection does not depend on a seed, so that runs
with different seeds are evaluated on the same examples.
"""

import json
import os
from collections.abc import Sequence

from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import (
  example_sources,
  labelled_examples,
  sft_sources,
  source_list,
)
from grm_jax.data.synthetic import stateless_random
from grm_jax.errors import UserError
from grm_jax.evaluation import metrics
from grm_jax.io import atomic_io
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample
from grm_jax.sharding import distributed

COLD_START, TRAIN, VALIDATION = 'cold_start', 'train', 'validation'
RFT, GRPO, FRESH, HELD_OUT = 'rft', 'grpo', 'fresh', 'held_out'
PARTS = (COLD_START, TRAIN, VALIDATION, RFT, GRPO, FRESH, HELD_OUT)
# The cold start gets at most a third of the training examples.
_COLD_START_DIVISOR = 3


def is_practice(spec: str) -> bool:
  """Returns whether the examples are practice problems, of any number."""
  return spec == sft_sources.PRACTICE


def path(folder: str, part: str) -> str:
  """Returns the file of a part."""
  return os.path.join(folder, f'{part}.jsonl')


def check(config: ConfigDict) -> None:
  """Raises UserError if config.data is wrong."""
  first, *others = source_list.parse(config.data)
  is_only_practice = is_practice(first.spec.partition(':')[0]) and not others
  if is_only_practice and not is_practice(config.data):
    raise UserError(
      f'config.data is {config.data}; set it to practice, and the number of '
      'examples of each stage in config.examples'
    )
  if not config.data:
    raise UserError(
      'config.data is empty; set it to a source, see '
      'grm_jax/data/example_sources.py'
    )


def write(config: ConfigDict, folder: str) -> bool:
  """Writes all files; of several processes, process 0 does.

  Args:
    config: as configs/spct.py.
    folder: where to write.

  Returns:
    True: the stage always finishes.

  Raises:
    UserError: a source cannot be read, or has no suitable examples.
  """
  counts = config.examples
  cold_start, train = _training_examples(config)
  parts = {
    RFT: train[: counts.rft],
    GRPO: train[: counts.grpo],
    FRESH: train[-counts.meta_rm_samples :],
    TRAIN: train,
    HELD_OUT: _load_labelled(config, HELD_OUT, counts.held_out),
  }
  if cold_start:
    parts[COLD_START] = cold_start
  if counts.validation:
    parts[VALIDATION] = _load_labelled(config, VALIDATION, counts.validation)
  if not any(x.best is not None for x in parts[HELD_OUT]):
    raise UserError(
      f'config.data={config.data}: no held-out example has two or more '
      'responses and a known best one, which votes need; use other data'
    )
  for part, examples in parts.items():
    rows = (json.dumps(examples_lib.to_row(x)) for x in examples)
    atomic_io.write_lines(path(folder, part), rows)
  distributed.barrier('data')
  sizes = ', '.join(f'{part} {len(x)}' for part, x in parts.items())
  logging.info('%s: examples: %s', folder, sizes)
  return True


def _training_examples(
  config: ConfigDict,
) -> tuple[list[JudgingExample], list[JudgingExample]]:
  """Returns the examples of the cold start, and those of all other stages."""
  counts = config.examples
  num_train = max(counts.rft, counts.grpo) + counts.meta_rm_samples
  if is_practice(config.data):
    # The teacher of the cold start writes about the first `texts` problems.
    loaded = _load_labelled(config, TRAIN, counts.texts + num_train)
    return [], loaded[counts.texts :]
  loaded = _load_labelled(config, TRAIN, 0)
  if config.sft.data.texts or 'sft' not in config.stages:
    return [], loaded[:num_train]
  limit = len(loaded) // _COLD_START_DIVISOR
  cold_start = _complete_queries(loaded, min(counts.texts, limit))
  remaining = loaded[len(cold_start) :]
  if not cold_start or not remaining:
    raise UserError(
      f'config.data={config.data} has {len(loaded)} training examples, too few '
      'for the cold start and the other stages; use more data, or set '
      'config.sft.data.texts to other texts for the cold start'
    )
  return cold_start, remaining[:num_train]


def _complete_queries(
  examples: Sequence[JudgingExample], count: int
) -> list[JudgingExample]:
  """Returns the first `count` examples, and the rest of the last query.

  Examples of a query must be adjacent.
  """
  end = count
  while 0 < end < len(examples) and metrics.query_of(
    examples[end]
  ) == metrics.query_of(examples[end - 1]):
    end += 1
  return list(examples[:end])


def _load_labelled(
  config: ConfigDict, split: str, count: int
) -> list[JudgingExample]:
  """Returns labelled examples of a split; examples of a query are adjacent.

  Practice problems alternate between families. Other examples are shuffled by
  a hash of their queries. A `count` of 0 means all.
  """
  spec = f'{config.data}:{count}' if is_practice(config.data) else config.data
  loaded, _ = example_sources.load(spec, split, config.fail_on_bad_rows)
  labelled = labelled_examples.keep_labelled(loaded, f'{spec}, {split}')
  if is_practice(config.data):
    return labelled
  return _shuffled(labelled)[: count or None]


def _shuffled(examples: Sequence[JudgingExample]) -> list[JudgingExample]:
  by_query: dict[object, list[JudgingExample]] = {}
  for example in examples:
    by_query.setdefault(metrics.query_of(example), []).append(example)
  return [
    example
    for query in stateless_random.shuffled(list(by_query), 'spct')
    for example in by_query[query]
  ]
