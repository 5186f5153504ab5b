"""Checkpoints: a step is written whole or not at all, and checked when read.

Layout under the checkpoint directory, one folder per step, named by number:

    <step>/params      arrays (Orbax, OCDBT)
    <step>/opt_state   arrays, if given
    <step>/model       JSON, if given: what is needed to rebuild the model
    <step>/meta        JSON, if given: step, RNG, data iterator, config, ...
    <step>/index       JSON: shape, dtype and fingerprint of every array

Every JSON item carries its SHA-256. Arrays are compared to their fingerprints
as they were saved, before any cast. What does not agree is a UserError that
names the step, the item and the leaf; no other step is taken in its place.
This is the only module that imports Orbax. All processes call everything.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from grm_jax.checkpoint import orbax_errors
from grm_jax.checkpoint.array_checksum import fingerprint
from grm_jax.checkpoint.integrity import (
  CheckpointStep,
  absolute,
  batches,
  check_leaves,
  describe,
  leaves_by_path,
  with_checksum,
)
from grm_jax.errors import UserError

_COMMITTED = 'commit_success.txt'  # Orbax writes it last
_TEMPORARY = '.orbax-checkpoint-tmp'
# What Orbax and TensorStore raise for files that are missing, cut or altered;
# a failed read of array data is a bare Exception caused by one of them.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError)
_ARRAY_ITEMS = ('params', 'opt_state')

orbax_errors.silence_log()


class CheckpointManager:
  """Writes steps into a directory, in the background, and keeps the last.

  Use as a context manager, or call `close`. One writer at a time: nothing
  else may save into the same directory.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = 3,
    host_gb: int | None = None,
  ):
    """Opens `directory` (made if absent); warns of leftovers of killed saves.

    Args:
      directory: a local path or gs://; shared by all processes.
      keep: how many steps stay; older ones go once a new one is whole.
      host_gb: if set, a save copies at most about this many 10**9 bytes (but
        a whole array) from the devices to the host at a time and returns only
        when written, for hosts that cannot hold a second copy of the state.
        If None, a save returns as soon as that copy exists; with arrays that
        live in host memory (CPU) it is no copy.

    Raises:
      ValueError: keep or host_gb is below 1.
    """
    for name, value in (('keep', keep), ('host_gb', host_gb)):
      if value is not None and value < 1:
        raise ValueError(f'{name} is {value}; it must be at least 1')
    self.directory = absolute(directory)
    self._blocks = host_gb is not None
    orbax_errors.silence_late_work()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(n=keep),
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
    """Saves a step; the arrays may be donated as soon as this returns.

    Waits for the save before it, whose error, if any, is raised here.

    Args:
      step: at least 0 and greater than every step in the directory.
      params, opt_state: pytrees of jax.Arrays; global ones if there are
        several processes. Names of leaves may not contain '/' or '.'.
      model, meta: what json.dumps takes, the same on all processes.

    Raises:
      UserError: the step exists or is older than the latest; the directory
        cannot be written.
      ValueError: a leaf is not a jax.Array, or has a name or a dtype that
        cannot be saved; model or meta is not JSON.
    """
    self._check_step(step)
    trees = {'params': params}
    if opt_state is not None:
      trees['opt_state'] = opt_state
    leaves = {item: leaves_by_path(item, tree) for item, tree in trees.items()}
    words = {'model': model, 'meta': meta}
    words = {item: value for item, value in words.items() if value is not None}
    index = {
      'arrays': {item: describe(item, of) for item, of in leaves.items()},
      'words': sorted(words),
    }
    items = {
      item: ocp.args.JsonSave(with_checksum(item, value))
      for item, value in {**words, 'index': index}.items()
    }
    for item, of in leaves.items():
      # Orbax saves neither empty arrays nor empty trees; the index does.
      if full := {path: x for path, x in of.items() if x.size}:
        items[item] = ocp.args.PyTreeSave(ocp.tree.from_flat_dict(full))
    with orbax_errors.writing(self.directory):
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    if self._blocks:
      self.wait()

  def _check_step(self, step):
    existing = self.steps()
    if step in existing:
      raise UserError(
        f'{self.directory} already has a step {step}; delete the folder '
        f'{self.directory / str(step)} to save it again'
      )
    if existing and step < existing[-1]:
      raise UserError(
        f'step {step} is older than the latest step {existing[-1]} in '
        f'{self.directory}; delete the later ones or save elsewhere'
      )
    if step < 0:
      raise ValueError(f'step {step} is negative')

  def wait(self) -> None:
    """Returns when the save in progress is on disk; raises its error."""
    with orbax_errors.writing(self.directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then frees the background threads; raises what `wait` would."""
    with orbax_errors.writing(self.directory):
      self._manager.close()

  def steps(self) -> list[int]:
    """The steps on disk, ascending, after waiting for the one being saved."""
    self.wait()
    return steps(self.directory)

  def __enter__(self) -> 'CheckpointManager':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def steps(directory: str | os.PathLike) -> list[int]:
  """The steps in `directory`, ascending; [] if it does not exist.

  Leftovers of killed saves are no steps. A damaged step is one.

  Raises:
    UserError: a bucket, and no package to ask for it.
  """
  names = ocp.path.step.standard_name_format()
  return sorted(found.step for found in names.find_all(absolute(directory)))


def restore_params(
  directory: str | os.PathLike, abstract_params: Any, step: int | None = None
) -> Any:
  """The params of a step, without reading its optimizer state.

  Args:
    directory: as given to Checkpoints.
    abstract_params: the tree to fill: ShapeDtypeStructs with a sharding, on
      any mesh. Where the dtype is another one than was saved, and both are
      floats, the leaf is cast after it was checked.
    step: None for the latest.

  Returns:
    The tree with jax.Arrays of those shapes, dtypes and shardings.

  Raises:
    UserError: no such step; the step is damaged or unfinished; a leaf is
      missing, is extra, or has another shape or kind of dtype; no sharding.
  """
  return _restore(directory, {'params': abstract_params}, step)['params']


def restore(
  directory: str | os.PathLike, abstract_params: Any, abstract_opt_state: Any
) -> tuple[Any, Any]:
  """Params and optimizer state of the latest step; see `restore_params`."""
  trees = {'params': abstract_params, 'opt_state': abstract_opt_state}
  restored = _restore(directory, trees, None)
  return restored['params'], restored['opt_state']


def read_json(
  directory: str | os.PathLike, item: str, step: int | None = None
) -> Any:
  """What was saved as `item`: 'model', 'meta', or our own 'index'.

  Raises:
    UserError: no such step or item, or the step is damaged or unfinished.
  """
  at = _find(directory, step)
  saved = ['index', *at.read('index')['words']]
  if item not in saved:
    raise UserError(f'step {at.step} in {at.directory} has {saved}, no {item}')
  return at.read(item)


def _handlers(host_gb):
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  for item in _ARRAY_ITEMS:
    # Compression would hold a compressed copy of everything being written,
    # takes several times as long, and hardly shrinks weights.
    handler = ocp.PyTreeCheckpointHandler(
      use_compression=False, save_device_host_concurrent_gb=host_gb
    )
    registry.add(item, ocp.args.PyTreeSave, handler)
  return registry


def _warn_of_leftovers(directory):
  finished = {str(step) for step in steps(directory)}
  for path in sorted(directory.iterdir()):
    unfinished = path.name.isdigit() and path.name not in finished
    if unfinished or _TEMPORARY in path.name:
      logging.warning(
        'ignoring %s, left by a save that did not finish; it can be deleted',
        path,
      )


def _find(directory, step):
  """The Step asked for, which exists and was finished."""
  directory = absolute(directory)
  existing = steps(directory)
  if step is None and directory.exists():
    _warn_of_leftovers(directory)
  if step is None and existing:
    step = existing[-1]
  if step is None:
    if (directory / 'config.json').exists():
      raise UserError(
        f'no checkpoint in {directory}, which is a Hugging Face directory: '
        'convert it, see configs/convert.py'
      )
    raise UserError(
      f'no checkpoint in {directory}; give a directory that training or '
      'configs/convert.py wrote'
    )
  if step not in existing:
    raise UserError(
      f'no step {step} in {directory} (steps there: {existing}); a save that '
      'was killed leaves none'
    )
  found = CheckpointStep(
    directory, step, tuple(s for s in existing if s != step)
  )
  if not (directory / str(step) / _COMMITTED).exists():
    raise found.damaged(_COMMITTED, 'missing, so the save did not finish')
  return found


def _restore(directory, abstracts, step):
  at = _find(directory, step)
  index = at.read('index')['arrays']
  wanted = {
    item: leaves_by_path(item, tree) for item, tree in abstracts.items()
  }
  for item, leaves in wanted.items():
    if item not in index:
      raise at.mismatch(item, f'not saved, this step has {sorted(index)}')
    check_leaves(at, item, leaves, index[item])
  return {
    item: jax.tree.unflatten(
      jax.tree.structure(abstracts[item]),
      _restore_leaves(at, item, leaves, index[item]),
    )
    for item, leaves in wanted.items()
  }


def _restore_leaves(at, item, wanted, saved):
  """The jax.Arrays of `wanted`, in its order."""
  restored = {}
  for batch in batches(wanted, saved):
    arrays = _read_arrays(at, item, batch, saved)
    prints = {path: fingerprint(x) for path, x in arrays.items()}
    for path, x in arrays.items():
      expected, leaf = saved['/'.join(path)], wanted[path]
      number = int(np.asarray(prints[path]))
      if x.dtype.name != expected['dtype'] or number != expected['fingerprint']:
        raise at.damaged(
          item,
          f'leaf {"/".join(path)} has changed on disk: {x.dtype.name} '
          f'fingerprint {number}, saved as {expected["dtype"]} fingerprint '
          f'{expected["fingerprint"]}',
        )
      same = x.dtype == leaf.dtype
      restored[path] = x if same else _cast(x, leaf.dtype, leaf.sharding)
  return [restored[path] for path in wanted]


def _read_arrays(at, item, wanted, saved):
  """{path: jax.Array} as saved, in the shardings of `wanted`."""
  abstract = {
    path: jax.ShapeDtypeStruct(
      leaf.shape,
      jnp.dtype(saved['/'.join(path)]['dtype']),
      sharding=leaf.sharding,
    )
    for path, leaf in wanted.items()
  }
  full = {path: leaf for path, leaf in abstract.items() if leaf.size}
  found = _read_full(at, item, full) if full else {}
  return {
    path: found[path] if path in found else _empty(leaf)
    for path, leaf in abstract.items()
  }


def _read_full(at, item, wanted):
  arguments = {
    path: ocp.ArrayRestoreArgs(
      sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )
    for path, leaf in wanted.items()
  }
  request = ocp.args.PyTreeRestore(
    item=ocp.tree.from_flat_dict(wanted),
    restore_args=ocp.tree.from_flat_dict(arguments),
    partial_restore=True,
  )
  folder = at.directory / str(at.step) / item
  orbax_errors.silence_late_work()
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      tree = reader.restore(folder, args=request)
    return {path: _at(tree, path) for path in wanted}
  except Exception as error:  # Orbax leaves no narrower one, see _DAMAGE
    cause = error.__cause__ if type(error) is Exception else error
    if not isinstance(cause, _DAMAGE):
      raise
    raise at.damaged(item, f'Orbax reports {cause}'[:400]) from error


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _empty(leaf):
  return jax.jit(
    lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding
  )()


def _cast(x, dtype, sharding):
  return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(x)
