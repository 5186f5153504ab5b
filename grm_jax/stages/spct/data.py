"""The examples of a whole run, written once into a folder of its own.

  cold_start.jsonl  to be told verdicts of; not for practice data
  rft.jsonl, grpo.jsonl, fresh.jsonl
                    of training examples: the first ones, the first ones, the
                    last ones, so that the meta RM also sees judgements of
                    examples that few stages have learnt from
  train.jsonl       all that these three hold
  validation.jsonl  judged while training
  held_out.jsonl    judged at the end

No query is both in the cold start and in train.jsonl, and the splits share
none (data/splits.py). Which examples are used depends on no seed, so that runs
of several seeds are judged by the same ones.
"""

import json
import os
from collections.abc import Sequence

from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import example_sources, labelled_examples, sft_sources
from grm_jax.data.synthetic import stateless_random
from grm_jax.errors import UserError
from grm_jax.evaluation import metrics
from grm_jax.io import atomic_io
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample
from grm_jax.sharding import distributed

COLD_START, TRAIN, VALIDATION = 'cold_start', 'train', 'validation'
RFT, GRPO, FRESH, HELD_OUT = 'rft', 'grpo', 'fresh', 'held_out'
# Of files at most this share of the queries is told verdicts of.
_COLD_SHARE = 3


def is_practice(spec: str) -> bool:
  """Whether the examples are made, as many as are asked for."""
  return spec == sft_sources.PRACTICE


def path(folder: str, part: str) -> str:
  """The file of a part."""
  return os.path.join(folder, f'{part}.jsonl')


def check(config: ConfigDict) -> None:
  """UserError for counts that make no sense."""
  for key, value in config.examples.items():
    least = 0 if key in ('texts', VALIDATION) else 1
    if value < least:
      raise UserError(
        f'config.examples.{key} is {value}; it must be {least} or more'
      )
  if config.data.startswith(f'{sft_sources.PRACTICE}:'):
    raise UserError(
      f'config.data={config.data}: give practice; how many examples each stage '
      'gets is in config.examples'
    )
  if not config.data:
    raise UserError('config.data is empty; see grm_jax/data/example_sources.py')


def write(config: ConfigDict, folder: str) -> bool:
  """Writes all files; with several processes the first one does.

  Args:
    config: as configs/spct.py.
    folder: where to.

  Returns:
    True, when the files are there for all.

  Raises:
    UserError: a source cannot be read, or has no example of use.
  """
  counts = config.examples
  cold, train = _training(config)
  parts = {
    RFT: train[: counts.rft],
    GRPO: train[: counts.grpo],
    FRESH: train[-counts.fresh :],
    TRAIN: train,
    HELD_OUT: _told(config, HELD_OUT, counts.held_out),
  }
  if cold:
    parts[COLD_START] = cold
  if counts.validation:
    parts[VALIDATION] = _told(config, VALIDATION, counts.validation)
  if not any(x.best is not None for x in parts[HELD_OUT]):
    raise UserError(
      f'config.data={config.data}: no held-out example has two responses or '
      'more of which one is known to be best; there is nothing to vote on'
    )
  for part, found in parts.items():
    rows = (json.dumps(examples_lib.to_row(x)) for x in found)
    atomic_io.write_lines(path(folder, part), rows)
  distributed.barrier('data')
  sizes = ', '.join(f'{part} {len(found)}' for part, found in parts.items())
  logging.info('%s: %s', folder, sizes)
  return True


def _training(config) -> tuple[list[JudgingExample], list[JudgingExample]]:
  """(examples of the cold start, all others that are trained on)."""
  counts = config.examples
  wanted = max(counts.rft, counts.grpo) + counts.fresh
  if is_practice(config.data):
    # The teacher writes about the first ones, see spct_plan.py.
    cold = counts.texts
    return [], _told(config, TRAIN, cold + wanted)[cold:]
  everything = _told(config, TRAIN, 0)
  if config.sft.data.texts or 'sft' not in config.stages:
    return [], everything[:wanted]
  most = min(counts.texts, len(everything) // _COLD_SHARE)
  cold = _whole_queries(everything, most)
  others = everything[len(cold) :]
  if not cold or not others:
    raise UserError(
      f'config.data={config.data} has {len(everything)} training examples, too '
      'few for a cold start and all else; give more, or texts of your own in '
      'config.sft.data.texts'
    )
  return cold, others[:wanted]


def _whole_queries(found, most) -> list[JudgingExample]:
  """The first ones, about `most`, none of whose queries comes again."""
  end = most
  while 0 < end < len(found) and metrics.query_of(
    found[end]
  ) == metrics.query_of(found[end - 1]):
    end += 1
  return list(found[:end])


def _told(config, split, count) -> list[JudgingExample]:
  """Examples that say what is right, those of a query beside each other.

  Practice examples come as they are drawn, the families in turn; others in an
  order that depends on the queries alone.
  """
  spec = f'{config.data}:{count}' if is_practice(config.data) else config.data
  found, _ = example_sources.load(spec, split, config.fail_on_bad_rows)
  used = labelled_examples.keep_labelled(found, f'{spec}, {split}')
  if is_practice(config.data):
    return used
  return _shuffled(used)[: count or None]


def _shuffled(examples: Sequence[JudgingExample]) -> list[JudgingExample]:
  by_query: dict[object, list[JudgingExample]] = {}
  for example in examples:
    by_query.setdefault(metrics.query_of(example), []).append(example)
  return [
    example
    for query in stateless_random.shuffled(list(by_query), 'spct')
    for example in by_query[query]
  ]
