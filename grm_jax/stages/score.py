"""Scores a file of rows: votes, scores and generations of every row.

Rows are read, judged and written one after the other. Memory does not grow with
the file, unless it is a JSON array. Until the end the results are in a journal
beside the output; a run that was killed goes on from there.

With several processes all work on the same rows, whose prompts the mesh
splits, and the first one keeps the journal. With config.apart each has a model
of its own, and every n-th row and a journal of its own: where one
process's devices hold the model, nobody waits for another. The first process
merges the journals when all have ended.
"""

import contextlib
import dataclasses
import glob
import heapq
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, row_reader
from grm_jax.io import journal as journals
from grm_jax.io.journal import Journal
from grm_jax.judgement import verdict
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judges import factory as judge_factory
from grm_jax.sharding import distributed

_SHOWN = 5  # rows of the table


def run(config: ConfigDict, workdir: str) -> None:
  """Scores `config.input`, writes JSON lines, and prints a short table.

  Raises:
    UserError: a path or a setting is wrong, or with config.fail_on_bad_rows a row; the
      message has file and line.
  """
  output = config.output or (workdir and os.path.join(workdir, 'scores.jsonl'))
  if not output:
    raise UserError('give --config.output=FILE or --workdir=DIR')
  if not config.checkpoint:
    raise UserError("config.checkpoint is empty; give a directory or 'random'")
  if config.k < 0:
    raise UserError(f'config.k is {config.k}; 0 is one greedy judgement')
  total, share = _count(config.input), _share(config)
  mine = len(range(share.index, total, share.count))
  journal = _journal(config, output, share)
  done = journal.count if journal else 0
  done = done if config.apart else distributed.broadcast_from_host0(done)
  if done:
    logging.info('%s: going on after %d rows', output, done)
  # Rows before weights: a wrong path should not wait for gigabytes.
  rows = itertools.islice(
    dataset_files.examples(config.input), share.index, None, share.count
  )
  rows = itertools.islice(rows, done, None)
  settings = judge_factory.voting_settings_of(config)
  devices, judge = jax.local_devices() if config.apart else None, None
  if done < mine:
    try:
      judge = judge_factory.from_config(config, settings, devices)
    except UserError:
      if journal and not journal.count:
        journal.delete()  # or it would refuse the run without the mistake
      raise
  with journal or contextlib.nullcontext():
    if judge is not None:
      _judge_rows(judge, rows, config, settings, journal, mine - done)
  distributed.barrier('score')
  if not jax.process_index():
    _finish(output, _partials(output, share.count), config)


@dataclasses.dataclass(frozen=True)
class RowShard:
  """Rows index, index + count, ... are this process's."""

  index: int
  count: int


def _share(config) -> RowShard:
  if config.apart:
    return RowShard(jax.process_index(), jax.process_count())
  return RowShard(0, 1)


def _partials(output: str, count: int) -> list[str]:
  """The journals of a run by `count` shares."""
  if count == 1:
    return [f'{output}.partial']
  return [f'{output}.{i}-of-{count}.partial' for i in range(count)]


def _judge_rows(judge, rows, config, settings, journal, total):
  numbers, rows = itertools.tee(rows)
  items = judge.judge(
    (row for _, row in rows), config.k, progress='judging', total=total
  )
  for (number, _), item in zip(numbers, items, strict=True):
    if isinstance(item, ExampleError):
      where = f'{config.input}:{number}: {item.reason}'
      if config.fail_on_bad_rows:
        raise UserError(where)
      logging.warning('%s', where)
      row = {'id': item.id, 'error': item.reason}
    else:
      row = verdict.report(item, settings.voting(), settings.seed)
    if journal:
      journal.append({'line': number} | row)


def _count(path):
  count = row_reader.count_rows(path, '.jsonl')
  if not count:
    raise UserError(f'{path} has no rows')
  return count


def _journal(config, output: str, share: RowShard) -> Journal | None:
  """This process's; without config.apart only the first has one.

  Raises:
    UserError: it is of another run, or one of other shares was not ended.
  """
  if jax.process_index() and not config.apart:
    return None
  paths = _partials(output, share.count)
  folder, name = os.path.split(output)
  partial = f'{glob.escape(name)}.*partial'
  others = set(atomic_io.matching(folder, partial)) - set(paths)
  if others:
    raise UserError(
      f'{min(others)} is of a run by another number of processes; go on with '
      'that number and the same config.apart, or delete the file'
    )
  header = {
    'judge': config.judge,
    'checkpoint': config.checkpoint,
    'step': config.checkpoint_step,
    'meta_checkpoint': config.meta_checkpoint,
    'input': config.input,
    'k': config.k,
  }
  header |= dataclasses.asdict(judge_factory.voting_settings_of(config))
  header |= {
    'size': config.sampling.max_new_tokens,
    'int8': config.sampling.int8,
  }
  header['bytes'] = epath.Path(config.input).stat().length
  return Journal(paths[share.index], header)


def _finish(output: str, partials: Sequence[str], config) -> None:
  """Results and errors in files of their own, and a table of the first."""
  missing = [path for path in partials if not atomic_io.exists(path)]
  if missing:
    raise UserError(
      f'{missing[0]} is not there: with config.apart all processes must see '
      'the folder of config.output'
    )
  errors = f'{os.path.splitext(output)[0]}.errors.jsonl'
  good = (row for row in _merged(partials) if 'error' not in row)
  bad = (row for row in _merged(partials) if 'error' in row)
  num_bad = atomic_io.write_lines(errors, map(json.dumps, bad))
  shown = list(itertools.islice(_merged(partials), _SHOWN))
  first = next(good, None)
  if first is not None:
    rows = itertools.chain((first,), good)
    num_good = atomic_io.write_lines(output, map(json.dumps, rows))
  for path in partials:
    atomic_io.remove(path)
  if first is None:
    raise UserError(
      f'none of the {num_bad} rows of {config.input} could be judged, see '
      f'{errors}; the first: {shown[0]["error"]}'
    )
  print(_table(shown))
  if config.checkpoint == model_directory.RANDOM:
    print('random weights: this shows only that everything runs')
  print(f'{num_good} queries -> {output}')
  if num_bad:
    print(f'{num_bad} rows could not be judged -> {errors}')
  else:
    atomic_io.remove(errors)


def _merged(partials: Sequence[str]) -> Iterator[dict[str, Any]]:
  """Rows of all journals in the order of the input."""
  return heapq.merge(*map(journals.rows, partials), key=lambda x: x['line'])


def _table(rows: list[dict[str, Any]]) -> str:
  """The first few rows, for a person."""
  lines = []
  for row in rows:
    if 'error' in row:
      lines.append(f'{row["id"]}: {row["error"]}')
      continue
    found = row['votes']
    votes = 'no vote' if found is None else ' '.join(f'{x:g}' for x in found)
    lines.append(
      f'{row["id"]}: {votes}  best {row["best"]}  '
      f'({row["failures"]} of {len(row["samples"])} did not parse)'
    )
  return '\n'.join(lines)
