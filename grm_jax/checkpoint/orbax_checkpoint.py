"""Checkpoints with Orbax: atomic writes, and checks of everything that is read.

Layout of a checkpoint directory, one folder per step, named by its number:

    <step>/params      arrays (Orbax, OCDBT)
    <step>/opt_state   arrays, if given
    <step>/model       JSON, if given: the configuration of the model
    <step>/meta        JSON, if given: step, RNG, data iterator, config, ...
    <step>/index       JSON: format version; step; checksums of all other items

Every JSON item is stored with its SHA-256. Arrays are compared with their
checksums in the dtype in which they were saved, before any cast. Damage raises
a UserError that names the step, the item and the leaf; the code never falls
back to another step. With several processes, all must call every function.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from grm_jax.checkpoint import orbax_errors
from grm_jax.checkpoint.integrity import (
  FORMAT_VERSION,
  CheckpointStep,
  Path,
  absolute_path,
  check_leaves,
  describe_leaves,
  leaves_by_path,
  sha256,
  with_checksum,
)
from grm_jax.checkpoint.orbax_reader import read_leaves
from grm_jax.errors import UserError
from grm_jax.io import atomic_io

_COMMITTED = 'commit_success.txt'  # the last file that Orbax writes
_TEMPORARY = '.orbax-checkpoint-tmp'
_ARRAY_ITEMS = ('params', 'opt_state')

orbax_errors.silence_log()


class CheckpointManager:
  """Writes steps into a directory in the background and deletes old ones.

  Use it as a context manager or call `close`. A directory must not have two
  writers at a time.

  Attributes:
    directory: absolute path of the checkpoint directory.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    max_to_keep: int = 3,
    host_gb: int | None = None,
  ):
    """Opens or creates `directory`; warns about leftovers of killed saves.

    Args:
      directory: a local path or gs://; shared by all processes.
      max_to_keep: number of steps that stay. An older step is deleted after a
        new one is complete.
      host_gb: if set, a save copies at most about this many 10**9 bytes (at
        least one array) from the devices to the host at a time and returns
        after the step is on disk. Use it on hosts that cannot hold a second
        copy of the state. If None, a save returns as soon as the host has a
        copy; arrays in host memory (CPU) are not copied.

    Raises:
      ValueError: max_to_keep or host_gb is below 1.
    """
    for name, value in (('max_to_keep', max_to_keep), ('host_gb', host_gb)):
      if value is not None and value < 1:
        raise ValueError(f'{name} is {value}; it must be at least 1')
    self.directory = absolute_path(directory)
    steps(self.directory)  # raises UserError if it cannot be read
    self._is_blocking = host_gb is not None
    orbax_errors.silence_late_errors()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(n=max_to_keep),
        lightweight_initialize=True,
      ),
      handler_registry=_handlers(host_gb),
    )
    _warn_of_leftovers(self.directory)

  def save(
    self,
    step: int,
    params: Any,
    opt_state: Any = None,
    *,
    model: dict | None = None,
    meta: dict | None = None,
  ) -> None:
    """Saves a step. The arrays may be donated as soon as this returns.

    Waits for the previous save and raises its error, if any.

    Args:
      step: at least 0 and greater than every step in the directory.
      params: pytree of jax.Arrays, global ones with several processes. Names
        of leaves must not contain '/' or '.'.
      opt_state: as `params`; None to save no optimizer state.
      model: JSON value, the same on all processes.
      meta: JSON value, the same on all processes.

    Raises:
      UserError: the step exists or is older than the latest; the directory
        cannot be written.
      ValueError: a leaf is not a jax.Array, or its name or dtype cannot be
        saved; model or meta is not JSON.
    """
    self._check_step(step)
    trees = {'params': params}
    if opt_state is not None:
      trees['opt_state'] = opt_state
    json_items = {
      item: value
      for item, value in (('model', model), ('meta', meta))
      if value is not None
    }
    items = _items_to_save(step, trees, json_items)
    with orbax_errors.wrap_save_errors(self.directory):
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    if self._is_blocking:
      self.wait()

  def _check_step(self, step: int) -> None:
    existing = self.steps()
    if step in existing:
      raise UserError(
        f'{self.directory} already has a step {step}; delete the folder '
        f'{self.directory / str(step)} to save it again'
      )
    if existing and step < existing[-1]:
      raise UserError(
        f'step {step} is older than the latest step {existing[-1]} in '
        f'{self.directory}; delete the later steps or save elsewhere'
      )
    if step < 0:
      raise ValueError(f'step {step} is negative')

  def wait(self) -> None:
    """Waits until the save in progress is on disk; raises its error."""
    with orbax_errors.wrap_save_errors(self.directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits as `wait` does, then ends the background threads."""
    with orbax_errors.wrap_save_errors(self.directory):
      self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps on disk, ascending, after the save in progress."""
    self.wait()
    return steps(self.directory)

  def __enter__(self) -> 'CheckpointManager':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def _items_to_save(
  step: int, trees: dict[str, Any], json_items: dict[str, Any]
) -> dict[str, Any]:
  """Returns the Orbax arguments of all items, including the index."""
  leaves = {item: leaves_by_path(item, tree) for item, tree in trees.items()}
  checked = {item: with_checksum(item, x) for item, x in json_items.items()}
  index = {
    'format_version': FORMAT_VERSION,
    'step': step,
    'arrays': {
      item: describe_leaves(item, by_path) for item, by_path in leaves.items()
    },
    'json_items': {item: x['sha256'] for item, x in checked.items()},
  }
  items: dict[str, Any] = {
    item: ocp.args.JsonSave(value)
    for item, value in {
      **checked,
      'index': with_checksum('index', index),
    }.items()
  }
  for item, by_path in leaves.items():
    # Orbax saves neither empty arrays nor empty trees; the index has them.
    if not_empty := {path: x for path, x in by_path.items() if x.size}:
      items[item] = ocp.args.PyTreeSave(ocp.tree.from_flat_dict(not_empty))
  return items


def _handlers(host_gb: int | None):
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  for item in _ARRAY_ITEMS:
    # Compression would keep a compressed copy of everything being written,
    # takes several times as long, and hardly shrinks weights.
    handler = ocp.PyTreeCheckpointHandler(
      use_compression=False, save_device_host_concurrent_gb=host_gb
    )
    registry.add(item, ocp.args.PyTreeSave, handler)
  return registry


def steps(directory: str | os.PathLike) -> list[int]:
  """Returns the steps in `directory`, ascending; [] if it does not exist.

  Leftovers of killed saves are not listed. Damaged steps are listed.

  Raises:
    UserError: `directory` cannot be read or is not a folder; or it is in a
      bucket, and the package that accesses buckets is not installed.
  """
  path = absolute_path(directory)
  names = ocp.path.step.standard_name_format()
  with atomic_io.wrap_read_errors(path):
    if not _is_present(path):
      return []
    if not path.is_dir():
      raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return sorted(step.step for step in names.find_all(path))


def _is_present(path: epath.Path) -> bool:
  """As path.exists(), but a path that cannot be read raises an OSError."""
  try:
    path.stat()
  except FileNotFoundError:
    return False
  return True


def restore_params(
  directory: str | os.PathLike,
  abstract_params: Any,
  step: int | None = None,
  convert: Callable[[Path, jax.Array], Any] | None = None,
) -> Any:
  """Restores the parameters of a step without reading its optimizer state.

  Args:
    directory: as given to CheckpointManager.
    abstract_params: tree of ShapeDtypeStructs with shardings on any mesh. If
      its dtype differs from the saved one and both are floats, the leaf is
      cast after its checksum was checked.
    step: None for the latest.
    convert: (path, array) -> what takes the place of the array in the result.
      It is called for the largest leaves first, so that the memory of the
      results and of the arrays together is little more than that of one of
      them.

  Returns:
    The tree with jax.Arrays of those shapes, dtypes and shardings.

  Raises:
    UserError: no such step; the step is unreadable, damaged or unfinished, is
      in the folder of another step, or has another format version; a leaf is
      missing, is extra, or has another shape or kind of dtype; a leaf without
      a sharding.
  """
  trees = {'params': abstract_params}
  return _restore(directory, trees, step, convert)['params']


def restore(
  directory: str | os.PathLike, abstract_params: Any, abstract_opt_state: Any
) -> tuple[Any, Any]:
  """Restores parameters and optimizer state of the latest step.

  See `restore_params` for arguments and errors.
  """
  trees = {'params': abstract_params, 'opt_state': abstract_opt_state}
  restored = _restore(directory, trees, None)
  return restored['params'], restored['opt_state']


def read_json(
  directory: str | os.PathLike, item: str, step: int | None = None
) -> Any:
  """Returns the JSON item 'model', 'meta' or 'index' of a step.

  Raises:
    UserError: no such step or item; the step is unreadable, damaged or
      unfinished, is in the folder of another step, or has another format
      version.
  """
  checkpoint = _find_step(directory, step)
  index = checkpoint.read_index()
  available = ['index', *index['json_items']]
  if item not in available:
    raise UserError(
      f'step {checkpoint.step} in {checkpoint.directory} has no item {item!r}; '
      f'available: {", ".join(available)}'
    )
  return index if item == 'index' else checkpoint.read_item(index, item)


def identity(
  directory: str | os.PathLike, step: int | None = None
) -> dict[str, Any]:
  """Returns what identifies the contents of a step; reads no arrays.

  Returns:
    step (the resolved number), params (SHA-256 of the shapes, dtypes and
    checksums of all parameters) and model (SHA-256 of that item).

  Raises:
    UserError: see `read_json`.
  """
  checkpoint = _find_step(directory, step)
  index = checkpoint.read_index()
  return {
    'step': checkpoint.step,
    'params': sha256(index['arrays']['params']),
    'model': index['json_items'].get('model', ''),
  }


def _restore(
  directory: str | os.PathLike,
  abstract_trees: dict[str, Any],
  step: int | None,
  convert: Callable[[Path, jax.Array], Any] | None = None,
) -> dict[str, Any]:
  checkpoint = _find_step(directory, step)
  saved = checkpoint.read_index()['arrays']
  leaves = {
    item: leaves_by_path(item, tree) for item, tree in abstract_trees.items()
  }
  # Check everything before the first array is read.
  for item, by_path in leaves.items():
    if item not in saved:
      raise checkpoint.mismatch(
        item, f'not saved; this step has {", ".join(sorted(saved))}'
      )
    check_leaves(checkpoint, item, by_path, saved[item])
  return {
    item: jax.tree.unflatten(
      jax.tree.structure(abstract_trees[item]),
      read_leaves(checkpoint, item, by_path, saved[item], convert),
    )
    for item, by_path in leaves.items()
  }


def _find_step(
  directory: str | os.PathLike, step: int | None
) -> CheckpointStep:
  """Returns a step that exists and whose save finished; None for the latest."""
  path = absolute_path(directory)
  existing = steps(path)
  if step is None:
    if not existing:
      raise _no_checkpoint(path)
    _warn_of_leftovers(path)
    step = existing[-1]
  if step not in existing:
    raise UserError(
      f'no step {step} in {path}; available steps: {existing}. A save that '
      'was killed leaves no step'
    )
  other_steps = tuple(s for s in existing if s != step)
  checkpoint = CheckpointStep(path, step, other_steps)
  with atomic_io.wrap_read_errors(checkpoint.path):
    is_committed = _is_present(checkpoint.path / _COMMITTED)
  if not is_committed:
    raise checkpoint.damaged(
      _COMMITTED, 'missing, so the save or a copy did not finish'
    )
  return checkpoint


def _no_checkpoint(directory: epath.Path) -> UserError:
  # Common mistakes: the folder of a run, and the folder of a step.
  with contextlib.suppress(UserError):  # unreadable
    if steps(directory / 'model'):
      return UserError(
        f'no checkpoint in {directory}, which is the folder of a run; give '
        f'{directory / "model"}'
      )
    if directory.name.isdigit() and int(directory.name) in steps(
      directory.parent
    ):
      return UserError(
        f'no checkpoint in {directory}, which is one step of a checkpoint; '
        f'give {directory.parent}, and {int(directory.name)} as checkpoint_step'
      )
  if (directory / 'config.json').exists():
    return UserError(
      f'no checkpoint in {directory}, which is a Hugging Face directory; '
      'convert it with configs/convert.py'
    )
  return UserError(
    f'no checkpoint in {directory}; give a directory that training or '
    'configs/convert.py wrote'
  )


def _warn_of_leftovers(directory: epath.Path) -> None:
  finished = {str(step) for step in steps(directory)}
  for path in sorted(directory.iterdir()):
    if _TEMPORARY in path.name:
      logging.warning(
        'ignoring %s, left by a save that did not finish; it can be deleted',
        path,
      )
    elif path.name.isdigit() and path.name not in finished:
      logging.warning('ignoring %s, which is not a finished step', path)
