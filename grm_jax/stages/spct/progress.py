"""Files that record which stages of a run started and finished.

  started.json   written when a stage starts, with its settings
  finished.json  the same content, written when all files of the stage exist

Finished stages are skipped; a started stage resumes by itself. A stage with
other settings than before is an error, so that results of two runs are never
mixed. If the stage has not written anything to resume from, it starts again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, journal, json_record
from grm_jax.stages.spct.plan import PipelineStage
from grm_jax.training import run as training_run

STARTED, FINISHED = 'started.json', 'finished.json'
# Files that stages resume from, besides checkpoints.
_JOURNALS = ('*.partial', '*.greedy')
_SAMPLES = '*samples.jsonl'


def check(workdir: str, stages: Sequence[PipelineStage]) -> None:
  """Raises UserError if a folder has results of other settings."""
  for index, stage in enumerate(stages):
    folder = os.path.join(workdir, stage.name)
    record = _read(folder, FINISHED)
    if record is None and _can_resume(folder):
      record = _read(folder, STARTED)
    if record is not None:
      _check_record(workdir, record, stages[index:])


def is_finished(workdir: str, stage: PipelineStage) -> bool:
  """Returns whether the stage finished; `check` compares its settings."""
  return atomic_io.exists(os.path.join(workdir, stage.name, FINISHED))


def mark_started(workdir: str, stage: PipelineStage) -> None:
  """Records the start; all processes may call this."""
  _write(os.path.join(workdir, stage.name, STARTED), stage)


def mark_finished(workdir: str, stage: PipelineStage) -> None:
  """Records the end; all processes may call this."""
  _write(os.path.join(workdir, stage.name, FINISHED), stage)


def _write(path: str, stage: PipelineStage) -> None:
  record = {
    'fingerprint': stage.fingerprint,
    'settings': dict(stage.settings),
    'reads': dict(stage.reads),
  }
  atomic_io.write_file(path, json.dumps(record, indent=2) + '\n')


def _read(folder: str, name: str) -> dict[str, Any] | None:
  return json_record.read(os.path.join(folder, name), 'settings', 'reads')


def _can_resume(folder: str) -> bool:
  """Returns whether the stage has written anything to resume from."""
  if orbax_checkpoint.steps(os.path.join(folder, training_run.MODEL)):
    return True
  if atomic_io.list_files(folder, _SAMPLES):
    return True
  return any(map(journal.has_rows, atomic_io.list_files(folder, *_JOURNALS)))


def _check_record(
  workdir: str, record: Mapping[str, Any], stages: Sequence[PipelineStage]
) -> None:
  """Raises UserError if the record is not of the first of these stages."""
  stage = stages[0]
  folder = os.path.join(workdir, stage.name)
  # Later stages depend on this one, so that their folders are stale, too.
  stale = [x.name for x in stages if (epath.Path(workdir) / x.name).exists()]
  remedy = (
    f'set another --workdir, or delete {", ".join(stale)} in {workdir} to run '
    'these stages again'
  )
  different = json_record.differences(record['settings'], stage.settings)
  if different:
    raise UserError(
      f'{folder} was written with other settings: {different}; {remedy}'
    )
  stored = record['reads']
  for name in sorted({*stored, *stage.reads}):
    if stored.get(name) != stage.reads.get(name):
      raise UserError(
        f'{folder} was written from {name} {stored.get(name, "(none)")}, but '
        f'this run has {stage.reads.get(name, "(none)")}; {remedy}'
      )
