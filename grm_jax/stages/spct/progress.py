"""Marks in the folders of a run: what was begun and finished, by what settings.

  begun.json     written when a stage begins
  finished.json  the same, when all that it writes is there

A stage that is finished is skipped, one that was begun goes on by itself. One
of other settings is refused, so that two runs are never mixed; but where
nothing was made yet that would be mixed, it begins anew.
"""

import json
import os
from collections.abc import Sequence

from etils import epath

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.stages.spct import fingerprint as spct_fingerprint
from grm_jax.stages.spct.plan import PipelineStage
from grm_jax.training import run as training_run

BEGUN, FINISHED = 'begun.json', 'finished.json'
# What stages write that a run goes on from, beside checkpoints.
_WORK = ('*.partial', '*.greedy', '*samples.jsonl')


def check(workdir: str, steps: Sequence[PipelineStage]) -> None:
  """UserError if a folder holds work of other settings than this run's."""
  for place, step in enumerate(steps):
    folder = os.path.join(workdir, step.name)
    found = _read(folder, FINISHED)
    if found is None and _has_work(folder):
      found = _read(folder, BEGUN)
    if found is not None:
      _compare(workdir, folder, found, step, steps[place:])


def is_finished(workdir: str, step: PipelineStage) -> bool:
  """Whether the step was finished, by whatever settings; see `check`."""
  return atomic_io.exists(os.path.join(workdir, step.name, FINISHED))


def begin(workdir: str, step: PipelineStage) -> None:
  """Marks the step as begun; all processes may call."""
  _write(os.path.join(workdir, step.name, BEGUN), step)


def finish(workdir: str, step: PipelineStage) -> None:
  """Marks the step as finished; all processes may call."""
  _write(os.path.join(workdir, step.name, FINISHED), step)


def _write(path: str, step: PipelineStage) -> None:
  content = {
    'fingerprint': step.fingerprint,
    'settings': dict(step.settings),
    'reads': dict(step.reads),
  }
  atomic_io.write_whole(path, json.dumps(content, indent=2) + '\n')


def _read(folder: str, name: str):
  path = epath.Path(folder) / name
  return json.loads(path.read_text()) if path.exists() else None


def _has_work(folder: str) -> bool:
  """Whether there is anything that a run would go on from."""
  if orbax_checkpoint.steps(os.path.join(folder, training_run.MODEL)):
    return True
  return bool(atomic_io.matching(folder, *_WORK))


def _compare(workdir, folder, found, step, following) -> None:
  there = [x.name for x in following if _exists(workdir, x.name)]
  cure = (
    f'choose another --workdir, or delete {", ".join(there)} in {workdir} to '
    'make that anew'
  )
  for key in spct_fingerprint.differing(found['settings'], step.settings)[:1]:
    raise UserError(
      f'{folder} was made with config.{key}={found["settings"].get(key)!r}, '
      f'this run has {step.settings.get(key)!r}; {cure}'
    )
  for name in spct_fingerprint.differing(found['reads'], step.reads)[:1]:
    raise UserError(
      f'{folder} was made from {name} {found["reads"].get(name, "(none)")}, '
      f'this run has {step.reads.get(name, "(none)")}; {cure}'
    )


def _exists(workdir: str, name: str) -> bool:
  return (epath.Path(workdir) / name).exists()
