"""Scores the rows of a file: votes, scores and generations of every row.

Rows are read, judged and written one after the other, so that memory does not
grow with the file unless it is a JSON array. Until the end, results are in a
journal next to the output; an interrupted run resumes from it.

With several processes, all judge the same rows, whose prompts the mesh shards,
and process 0 has the journal. With config.apart, each process has its own copy
of the model, its own journal and every n-th row: if the devices of one process
hold the model, no process waits for another. Process 0 merges the journals at
the end.
"""

import contextlib
import dataclasses
import glob
import heapq
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import model_directory
from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, row_reader, run_lock, terminal
from grm_jax.io import journal as journals
from grm_jax.io.journal import Journal
from grm_jax.judgement import verdict
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import failure_report
from grm_jax.judges import settings as judge_settings
from grm_jax.judges.factory import AnyJudge
from grm_jax.judges.generative import JudgeConfig
from grm_jax.sharding import distributed
from grm_jax.stages import input_identity, path_check, run_record

_NUM_PRINTED_ROWS = 5
_MAX_PRINTED_ID = 60  # characters
# Rules of configs/score.py.
SETTINGS = judge_settings.VOTING_JUDGE | {
  'stage': settings.one_of('score'),
  'judge': settings.one_of(*judge_factory.JUDGES),
  'value_checkpoint': settings.TEXT,
  'input': settings.TEXT,
  'output': settings.TEXT,
  'fail_on_bad_rows': settings.BOOLEAN,
  'apart': settings.BOOLEAN,
}
UNUSED = (
  *judge_settings.UNUSED,
  judge_settings.GREEDY_UNUSED,
  judge_settings.VALUE_MODEL_UNUSED,
)


def run(config: ConfigDict, workdir: str) -> None:
  """Scores `config.input`, writes JSON Lines, and prints a short table.

  Args:
    config: as configs/score.py.
    workdir: folder of the output if `config.output` is empty.

  Raises:
    UserError: a path or a setting is wrong, or with config.fail_on_bad_rows a
      row is bad; the message has file and line.
  """
  output = check(config, workdir)
  with distributed.enter_on_all(_hold_locks(workdir, output)):
    shard = _row_shard(config)
    journal_paths = _journal_paths(output, shard.count)
    num_rows = distributed.run_on_all(lambda: _count_rows(config.input))

    def has_results() -> bool:
      """Returns whether there is something to continue."""
      return atomic_io.exists(output) or any(
        map(journals.has_rows, journal_paths)
      )

    is_finished = bool(workdir) and atomic_io.exists(output)
    if is_finished:
      distributed.run_on_all(lambda: _check_written_here(output, workdir))
    run_settings = run_record.begin(
      config,
      workdir,
      lambda: _read_inputs(config, output, journal_paths, num_rows),
      resumes=has_results(),
    )
    if is_finished and not any(map(atomic_io.exists, journal_paths)):
      if not jax.process_index():
        print(f'{output} has all results; delete it to score again')
      return
    with run_record.discard_without_results(workdir, has_results):
      _score(config, output, shard, run_settings, num_rows)


@contextlib.contextmanager
def _hold_locks(workdir: str, output: str) -> Iterator[None]:
  """Holds the locks of the output, which may be elsewhere, and of `workdir`."""
  with contextlib.ExitStack() as locks:
    if workdir:
      locks.enter_context(run_lock.hold_workdir(workdir))
    locks.enter_context(run_lock.hold(f'{output}.lock', output))
    yield


def _check_written_here(output: str, workdir: str) -> None:
  """Checks that the run in `workdir` wrote an existing output.

  Raises:
    UserError: it did not, so that the settings of the output are unknown.
  """
  stored = run_record.read_config(workdir)
  written = _output_path(stored['output'], workdir) if stored else ''
  if not path_check.is_same(written, output):
    raise UserError(
      f'{output} exists, but {workdir} has no record of the settings with '
      'which it was written; delete it, or choose another config.output'
    )


def _read_inputs(
  config: ConfigDict,
  output: str,
  journal_paths: Sequence[str],
  num_rows: int,
) -> dict[str, str]:
  """Returns the identities of the inputs; checks that they stay as they are."""
  reads = {
    'input': config.input,
    'checkpoint': config.checkpoint,
    'meta_checkpoint': config.meta_checkpoint,
    'value_checkpoint': config.value_checkpoint,
    **input_identity.template_names(config),
  }
  path_check.check_distinct(
    reads, (output, _errors_path(output), *journal_paths)
  )
  identity = input_identity.of_source(config.input)
  return {
    'input': f'{identity}, {num_rows} rows',
    **input_identity.of_judge(config),
  }


def _score(
  config: ConfigDict,
  output: str,
  shard: 'RowShard',
  run_settings: Mapping[str, Any],
  num_rows: int,
) -> None:
  """Judges the rows that have no result yet, and writes the results."""
  num_shard_rows = len(range(shard.index, num_rows, shard.count))
  judge_config = judge_factory.make_voting_judge_config(config)
  journal = _open_journal(config, run_settings, output, shard)
  num_done = journal.count if journal else 0
  if not config.apart:
    num_done = distributed.broadcast_from_host0(num_done)
  if num_done:
    logging.info('%s: resuming after %d rows', output, num_done)
  # Opens the file before reading gigabytes of weights.
  rows = itertools.islice(
    dataset_files.read_examples(config.input), shard.index, None, shard.count
  )
  rows = itertools.islice(rows, num_done, None)
  num_remaining = num_shard_rows - num_done
  judge = None
  if num_remaining > 0:
    judge = _load_judge(config, judge_config, journal)
  with journal or contextlib.nullcontext():
    if judge is not None:
      items = _judge_rows(judge, rows, config, num_remaining)
      for row in _result_rows(items, config, judge_config):
        if journal:
          journal.append(row)
  distributed.barrier('score')
  if not jax.process_index():
    _write_results(output, _journal_paths(output, shard.count), config)


def check(config: ConfigDict, workdir: str) -> str:
  """Checks the settings; returns the path of the results.

  Raises:
    UserError: a setting is wrong.
  """
  settings.check(config, SETTINGS)
  output = _output_path(config.output, workdir)
  if not output:
    raise UserError(
      'config.output and --workdir are empty; set --config.output=FILE or '
      '--workdir=DIR'
    )
  # A gs:// path never exists locally.
  if output.endswith('/') or (
    os.path.exists(output) and not os.path.isfile(output)
  ):
    raise UserError(
      f'config.output={output} is not a file; give the path of a file, such as '
      f'{os.path.join(output, "scores.jsonl")}'
    )
  if not config.input:
    raise UserError('config.input is empty; set it to a file with rows')
  if not config.checkpoint:
    raise UserError(
      "config.checkpoint is empty; set it to a model directory or 'random'"
    )
  judge_factory.check(config, config.apart)
  return output


def _output_path(output: str, workdir: str) -> str:
  return output or (workdir and os.path.join(workdir, 'scores.jsonl'))


@dataclasses.dataclass(frozen=True)
class RowShard:
  """The rows index, index + count, ... of the file."""

  index: int
  count: int


def _row_shard(config: ConfigDict) -> RowShard:
  """Returns the rows of this process."""
  if config.apart:
    return RowShard(jax.process_index(), jax.process_count())
  return RowShard(0, 1)


def _journal_paths(output: str, count: int) -> list[str]:
  """Returns the journals of all shards."""
  if count == 1:
    return [f'{output}.partial']
  return [f'{output}.{i}-of-{count}.partial' for i in range(count)]


def _errors_path(output: str) -> str:
  """Returns the path of the rows that cannot be judged."""
  return f'{os.path.splitext(output)[0]}.errors.jsonl'


def _load_judge(
  config: ConfigDict, judge_config: JudgeConfig, journal: Journal | None
) -> AnyJudge:
  devices = jax.local_devices() if config.apart else None
  try:
    return judge_factory.from_config(config, judge_config, devices)
  except UserError:
    if journal and not journal.count:
      # An empty journal would require the wrong settings of the next run.
      journal.delete()
    raise


def _judge_rows(
  judge: AnyJudge,
  rows: Iterable[tuple[int, JudgingExample | ExampleError]],
  config: ConfigDict,
  total: int,
) -> Iterator[tuple[int, Any]]:
  """Yields (line number, judged example or error) for every row."""
  num_samples = max(1, config.k)
  logging.info(
    '%d rows with %d samples each: %d samples',
    total,
    num_samples,
    total * num_samples,
  )
  # The judge reads ahead; tee keeps the numbers until the results arrive.
  numbered, rows = itertools.tee(rows)
  results = judge.judge(
    (example for _, example in rows),
    config.k,
    progress='judging',
    total=total,
  )
  for (number, item), result in zip(numbered, results, strict=True):
    if isinstance(result, ExampleError) and isinstance(item, JudgingExample):
      result = dataclasses.replace(result, id=item.stated_id)
    yield number, result


def _result_rows(
  items: Iterable[tuple[int, Any]],
  config: ConfigDict,
  judge_config: JudgeConfig,
) -> Iterator[dict[str, Any]]:
  """Yields rows of the journal.

  Raises:
    UserError: with config.fail_on_bad_rows, for the first bad row.
  """
  for number, result in items:
    if isinstance(result, ExampleError):
      message = f'{config.input}:{number}: {result.reason}'
      if config.fail_on_bad_rows:
        raise UserError(message)
      logging.warning('%s', message)
      row = {'id': result.id, 'error': result.reason}
    else:
      row = verdict.to_row(
        result,
        judge_config.vote_config(bool(config.meta_checkpoint)),
        judge_config.seed,
      )
    yield {'line': number} | row


def _count_rows(path: str) -> int:
  count = row_reader.count_rows(path, '.jsonl')
  if not count:
    raise UserError(f'config.input={path} has no rows; use another file')
  return count


def _open_journal(
  config: ConfigDict,
  run_settings: Mapping[str, Any],
  output: str,
  shard: RowShard,
) -> Journal | None:
  """Returns the journal of this process; None if it has none.

  Raises:
    UserError: it has other settings, or an unfinished run with another number
      of shards has left journals.
  """
  if jax.process_index() and not config.apart:
    return None
  paths = _journal_paths(output, shard.count)
  folder, name = os.path.split(output)
  pattern = f'{glob.escape(name)}.*partial'
  other_paths = set(atomic_io.list_files(folder, pattern)) - set(paths)
  if other_paths:
    raise UserError(
      f'{min(other_paths)} was written by another number of processes than '
      f'{shard.count}; resume with that number and the same config.apart, or '
      'delete the file'
    )
  header = {**run_settings, 'apart': [shard.index, shard.count]}
  return Journal(paths[shard.index], header)


def _write_results(
  output: str, journal_paths: Sequence[str], config: ConfigDict
) -> None:
  """Writes results and errors into separate files, and prints a table."""
  for path in journal_paths:
    if not atomic_io.exists(path):
      raise UserError(
        f'{path} does not exist; with config.apart all processes need access '
        'to the folder of config.output'
      )
  errors_path = _errors_path(output)
  good = (row for row in _merge(journal_paths) if 'error' not in row)
  bad = (row for row in _merge(journal_paths) if 'error' in row)
  num_bad = atomic_io.write_lines(errors_path, map(json.dumps, bad))
  first_rows = list(itertools.islice(_merge(journal_paths), _NUM_PRINTED_ROWS))
  # Without any result, no output file is written.
  first = next(good, None)
  num_good = 0
  if first is not None:
    results = itertools.chain((first,), good)
    num_good = atomic_io.write_lines(output, map(json.dumps, results))
  samples = [
    (x['scores'] is None, x['finish'] == 'length', x['shortened'])
    for row in _merge(journal_paths)
    for x in row.get('samples', ())
  ]
  warning = failure_report.of_samples(config, (x[:2] for x in samples))
  num_shortened = sum(shortened for *_, shortened in samples)
  for path in journal_paths:
    atomic_io.remove(path)
  if not num_good:
    raise UserError(
      f'all {num_bad} rows of {config.input} are bad, see {errors_path}; the '
      f'first: {first_rows[0]["error"]}'
    )
  print(_format_table(first_rows))
  if config.checkpoint == model_directory.RANDOM:
    print('random weights: the scores have no meaning')
  print(f'{num_good} queries -> {output}')
  if num_bad:
    print(f'{num_bad} bad rows -> {errors_path}')
  else:
    atomic_io.remove(errors_path)
  if num_shortened:
    print(
      f'{num_shortened} judgements are of texts that were shortened to fit; '
      'their field "shortened" is true'
    )
  if warning:
    print(warning)


def _merge(journal_paths: Sequence[str]) -> Iterator[dict[str, Any]]:
  """Yields the rows of all journals in the order of the input."""
  return heapq.merge(
    *map(journals.rows, journal_paths), key=lambda row: row['line']
  )


def _format_table(rows: Sequence[dict[str, Any]]) -> str:
  """Returns a line of text per row."""
  lines = []
  for row in rows:
    name = terminal.short(str(row['id']), _MAX_PRINTED_ID)
    if 'error' in row:
      lines.append(f'{name}: {terminal.short(row["error"])}')
      continue
    votes = 'no vote'
    if row['votes'] is not None:
      votes = ' '.join(f'{x:g}' for x in row['votes'])
    lines.append(
      f'{name}: {votes}  best {row["best"]}  '
      f'({row["failures"]} of {len(row["samples"])} do not parse)'
    )
  return '\n'.join(lines)
