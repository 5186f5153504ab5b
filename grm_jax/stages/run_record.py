"""Binds a WORKDIR to the settings and inputs of the run that wrote it.

WORKDIR/config.json has the whole config, and the identity of each input: the
resolved step and a digest of a checkpoint, a digest of a file. A run that
continues what is in WORKDIR must have the same ones. Leaves that do not change
the result, such as those of the mesh, may differ.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.io import atomic_io, json_record, run_lock
from grm_jax.sharding import distributed
from grm_jax.stages import input_identity, path_check
from grm_jax.training import metric_writer
from grm_jax.training import run as training_run

RECORD = 'config.json'
# Leaves and branches, at any place in a config, that do not change the result.
_FREE = frozenset(
  [
    'apart',
    'attention',
    'concurrent_prompts',
    'decode_steps_per_call',
    'every',
    'fail_on_bad_rows',
    'head_chunk',
    'log_samples_every',
    'max_parse_failure_rate',
    'max_to_keep',
    'mesh',
    'offload_to_host',
    'output',
    'patience',
    'profile_steps',
    'query_block',
    'remat',
    'save_every',
    'scoped_vmem_kib',
    'splash_block',
    'weights',
  ]
)
# Others that do not change it in one branch.
_FREE_LEAVES = (
  'sampling.generations_per_prompt',
  'rollout.generations_per_prompt',
  'rmb.ties',  # the report is written again
)
# Tuples of which only the largest value changes the result.
_LARGEST = 'sampling.prompt_buckets'


def begin(
  config: ConfigDict,
  workdir: str,
  read_inputs: Callable[[], Mapping[str, str]],
  *,
  resumes: bool,
  needs_record: bool = False,
  branch: str = '',
) -> dict[str, Any]:
  """Checks that this run fits WORKDIR, and writes config.json.

  All processes must call it. It comes after the check of the settings, and
  before the first file that a run resumes from is written.

  Args:
    config: config of the stage.
    workdir: folder of the run; '' writes no file.
    read_inputs: opens the inputs; returns their identities by config key.
    resumes: whether this run continues results in `workdir`.
    needs_record: whether these results are useless without config.json, as
      those are that do not store their settings themselves.
    branch: compare only the settings whose keys begin with it.

  Returns:
    The settings and inputs that the result depends on, JSON values by key.

  Raises:
    UserError: an input cannot be read, or differs between processes; `workdir`
      belongs to another stage; the run resumes with other settings, or its
      old ones are unknown.
  """
  agreed = distributed.agree(
    lambda: {f'config.{key}': x for key, x in read_inputs().items()}
  )
  inputs = {key.removeprefix('config.'): x for key, x in agreed.items()}
  settings = _settings(config, inputs)
  if not workdir:
    return settings
  path = os.path.join(workdir, RECORD)
  stored = _read(workdir)
  if stored:
    _check_stage(stored, config, workdir)
  if stored and resumes:
    _check_settings(stored, settings, branch, workdir)
  if not stored and needs_record:
    raise UserError(
      f'{workdir} has results, but {path} is missing, so that their settings '
      'are unknown; restore it, or choose another --workdir'
    )
  # No process may see the new record before all have compared the old one.
  distributed.barrier('compared')
  record = {'config': _to_json(config), 'settings': settings}
  if record != stored:
    atomic_io.write_file(path, json.dumps(record, indent=2) + '\n')
  return settings


@contextlib.contextmanager
def discard_without_results(
  workdir: str, has_results: Callable[[], bool]
) -> Iterator[None]:
  """Removes config.json if the block fails before it has written results.

  Args:
    workdir: folder of the run, or ''.
    has_results: returns whether there are results that the record binds.
  """
  try:
    yield
  except UserError:
    if workdir and not jax.process_index() and not has_results():
      atomic_io.remove(os.path.join(workdir, RECORD))
    raise


def begin_training(
  config: ConfigDict,
  workdir: str,
  reads: Mapping[str, str],
  identify_data: Callable[[], Mapping[str, str]],
) -> None:
  """Calls `begin` for a stage that trains WORKDIR/model.

  Args:
    config: config of the stage.
    workdir: folder of the run.
    reads: paths and data sources that the stage reads, by config key, besides
      the initial checkpoint and the templates.
    identify_data: returns the identities of the data, by config key.

  Raises:
    UserError: see `begin`; or the run would overwrite one of its inputs.
  """
  target = os.path.join(workdir, training_run.MODEL)
  path_check.check_distinct(
    {
      **reads,
      **input_identity.template_names(config),
      'checkpoint': config.checkpoint,
    },
    [target, *(os.path.join(workdir, x) for x in (RECORD, metric_writer.FILE))],
  )
  resumes = training_run.has_checkpoint(target)

  def read_inputs() -> dict[str, str]:
    """Returns the identities of all inputs."""
    checkpoint = input_identity.of_checkpoint(
      config.checkpoint,
      config.checkpoint_step,
      begun_identity(config, workdir, 'checkpoint') if resumes else '',
    )
    templates = input_identity.of_templates(config)
    return {**identify_data(), **templates, 'checkpoint': checkpoint}

  begin(config, workdir, read_inputs, resumes=resumes, needs_record=resumes)


def begun_identity(
  config: ConfigDict, workdir: str, key: str, stored_as: str = ''
) -> str:
  """Returns the identity of a checkpoint with which the run in WORKDIR began.

  Returns '' if there was no such run, or if the config now has another path.

  Args:
    config: config of the stage.
    workdir: folder of the run.
    key: config key of the checkpoint.
    stored_as: key of its identity, '' for the same.
  """
  record = _read(workdir)
  if not record:
    return ''
  begun = ConfigDict(record['config'])
  if flatten(begun).get(key) != flatten(config)[key]:
    return ''
  return record['settings'].get(stored_as or key, '')


def read_settings(workdir: str) -> dict[str, Any]:
  """Returns what `begin` returned to the run in this folder; {} for none."""
  return _read(workdir).get('settings', {})


def read_config(workdir: str) -> dict[str, Any] | None:
  """Returns the config of the run in this folder; None for none."""
  return _read(workdir).get('config')


def leaves(config: ConfigDict, *keys: str) -> dict[str, Any]:
  """Returns the leaves that the result depends on, JSON values by key.

  Args:
    config: a whole config.
    *keys: keys of leaves or branches to return; none for all.
  """
  return {
    leaf: max(value) if leaf.endswith(_LARGEST) else value
    for leaf, value in flatten(config).items()
    if not _is_free(leaf)
    and (not keys or f'{leaf}.'.startswith(tuple(f'{x}.' for x in keys)))
  }


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns all leaves of a config, JSON values by key."""
  result: dict[str, Any] = {}

  def add(key, value):
    if not isinstance(value, dict):
      result[key] = value
      return
    for name, child in value.items():
      add(f'{key}.{name}' if key else name, child)

  add('', _to_json(config))
  return result


def _is_free(leaf: str) -> bool:
  return not _FREE.isdisjoint(leaf.split('.')) or leaf.endswith(_FREE_LEAVES)


def _to_json(config: ConfigDict) -> dict[str, Any]:
  return json.loads(config.to_json_best_effort())


def _settings(config: ConfigDict, inputs: Mapping[str, str]) -> dict[str, Any]:
  """Returns the leaves, with identities in place of paths and steps."""
  steps = {f'{key}_step' for key in inputs}
  settings = leaves(config)
  return {k: v for k, v in settings.items() if k not in steps} | dict(inputs)


def _read(workdir: str) -> dict[str, Any]:
  """Returns the record in a workdir; {} if there is none.

  Raises:
    UserError: the file was not written by `begin`.
  """
  path = os.path.join(workdir, RECORD)
  return json_record.read(path, 'config', 'settings') or {}


def _check_stage(
  stored: Mapping[str, Any], config: ConfigDict, workdir: str
) -> None:
  stage = stored['config'].get('stage')
  if stage == config.stage:
    return
  names = {x.name for x in epath.Path(workdir).iterdir()}
  if names - {RECORD, run_lock.WORKDIR_LOCK}:
    raise UserError(
      f'{workdir} has results of the stage {stage}, but this is the stage '
      f'{config.stage}; choose another --workdir'
    )


def _check_settings(
  stored: Mapping[str, Any],
  settings: Mapping[str, Any],
  branch: str,
  workdir: str,
) -> None:
  old, new = (
    {k: v for k, v in x.items() if k.startswith(branch)}
    for x in (stored['settings'], settings)
  )
  for key in [key for key in new if key.endswith('steps') and key in old]:
    if _only_extends(key, old, new):
      del old[key], new[key]
  different = json_record.differences(old, new)
  if different:
    raise UserError(
      f'{workdir} was written with other settings: {different}; use the old '
      'settings to continue, or choose another --workdir'
    )


def _only_extends(
  key: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> bool:
  """Returns whether more steps leave the earlier steps as they were."""
  head, _, name = key.rpartition('steps')
  schedule = new.get(f'{head}optimizer.schedule')
  is_total = not name and (not head or head.endswith('.'))
  return is_total and schedule == 'constant' and new[key] > old[key]
