"""Reads the arrays of a checkpoint item with Orbax, one batch at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from grm_jax.checkpoint import orbax_errors
from grm_jax.checkpoint.array_checksum import array_checksum
from grm_jax.checkpoint.integrity import (
  CheckpointStep,
  Leaves,
  Path,
  restore_batches,
)
from grm_jax.io import atomic_io

# Exceptions that Orbax and TensorStore raise for missing, truncated or altered
# files. A failed read of array data is a bare Exception caused by one of them.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError)


def read_leaves(
  step: CheckpointStep,
  item: str,
  requested: Leaves,
  saved: dict[str, dict],
  convert: Callable[[Path, jax.Array], Any] | None = None,
) -> list[Any]:
  """Returns the requested leaves, in order, after checking their checksums.

  Args:
    step: the step to read.
    item: 'params' or 'opt_state'.
    requested: abstract leaves by path, already compared with `saved`.
    saved: shape, dtype and checksum of each leaf by name, from the index.
    convert: changes each leaf before the next ones are read.

  Raises:
    UserError: an array cannot be read, is damaged, or differs from its
      checksum.
  """
  restored = {}
  for batch in restore_batches(requested, saved):
    arrays = _read_batch(step, item, batch, saved)
    # Dispatch all checksums before the first transfer to the host.
    checksums = {path: array_checksum(x) for path, x in arrays.items()}
    for path in batch:
      x = arrays.pop(path)
      _check_array(step, item, path, x, int(np.asarray(checksums[path])), saved)
      leaf = requested[path]
      if x.dtype != leaf.dtype:
        x = _cast(x, leaf.dtype, leaf.sharding)
      restored[path] = convert(path, x) if convert else x
  return [restored[path] for path in requested]


def _check_array(step, item, path, x, checksum, saved):
  """Raises a UserError if an array is not the one that was saved."""
  name = '/'.join(path)
  expected = saved[name]
  if x.dtype.name != expected['dtype'] or checksum != expected['checksum']:
    raise step.damaged(
      item,
      f'leaf {name} has changed on disk: {x.dtype.name} with checksum '
      f'{checksum}, saved as {expected["dtype"]} with checksum '
      f'{expected["checksum"]}',
    )


def _read_batch(step, item, batch, saved) -> dict[Path, jax.Array]:
  """Returns the arrays in their saved dtypes and the requested shardings."""
  abstract = {
    path: jax.ShapeDtypeStruct(
      leaf.shape,
      jnp.dtype(saved['/'.join(path)]['dtype']),
      sharding=leaf.sharding,
    )
    for path, leaf in batch.items()
  }
  # Orbax does not store empty arrays.
  not_empty = {path: leaf for path, leaf in abstract.items() if leaf.size}
  arrays = _read_arrays(step, item, not_empty) if not_empty else {}
  return {
    path: arrays[path] if path in arrays else _empty(leaf)
    for path, leaf in abstract.items()
  }


def _read_arrays(
  step: CheckpointStep, item: str, abstract: Mapping[Path, Any]
) -> dict[Path, jax.Array]:
  arguments = {
    path: ocp.ArrayRestoreArgs(
      sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )
    for path, leaf in abstract.items()
  }
  request = ocp.args.PyTreeRestore(
    item=ocp.tree.from_flat_dict(abstract),
    restore_args=ocp.tree.from_flat_dict(arguments),
    partial_restore=True,
  )
  orbax_errors.silence_late_errors()
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      tree = reader.restore(step.path / item, args=request)
    return {path: _leaf_at(tree, path) for path in abstract}
  except Exception as error:  # Orbax has no narrower class, see _DAMAGE
    cause = error.__cause__ if type(error) is Exception else error
    if not isinstance(cause, _DAMAGE):
      raise
    reason = orbax_errors.reading_failure(cause)
    if reason := reason or _reading_failure(step.path / item):
      raise atomic_io.cannot_read(step.path / item, reason) from error
    raise step.damaged(item, f'Orbax reports {cause}'[:400]) from error


def _reading_failure(folder: epath.Path) -> str:
  """Returns why a file of an item cannot be opened, '' if all can.

  Orbax reports a folder that may not be entered as one without arrays.
  """
  try:
    for path in sorted(folder.iterdir()):
      if path.is_dir():
        if reason := _reading_failure(path):
          return reason
      else:
        with path.open('rb') as file:
          file.read(1)
  except OSError as error:
    return orbax_errors.reading_failure(error)
  return ''


def _leaf_at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _empty(leaf):
  return jax.jit(
    lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding
  )()


def _cast(x, dtype, sharding):
  return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(x)
