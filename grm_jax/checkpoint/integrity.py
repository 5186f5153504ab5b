"""What a checkpoint says of itself: JSON items, leaf names, fingerprints.

The `index` item of a step holds shape, dtype and fingerprint of every array
and the names of the other JSON items. Every JSON item carries its SHA-256.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from grm_jax.checkpoint.array_checksum import fingerprint
from grm_jax.errors import UserError

# Bytes that one process restores at once: what Orbax holds beside the arrays
# is about as much.
_RESTORED_AT_ONCE = 2**30


@dataclasses.dataclass(frozen=True)
class CheckpointStep:
  """One finished step on disk."""

  directory: epath.Path
  step: int
  others: tuple[int, ...]  # the other steps there

  def read(self, item: str) -> Any:
    """The value of a JSON item, if its checksum is right."""
    path = self.directory / str(self.step) / item / 'metadata'
    try:
      held = json.loads(path.read_text())
      value, expected = held['value'], held['sha256']
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise self.damaged(item, f'unreadable {path.name}: {error}') from error
    if _sha256(value) != expected:
      raise self.damaged(item, 'its contents differ from their SHA-256')
    return value

  def damaged(self, item: str, detail: str) -> UserError:
    """The error for what is on disk, with a way out."""
    return UserError(
      f'step {self.step} in {self.directory} is damaged or not ours, item '
      f'{item!r}: {detail}. Ask for another step ({list(self.others)}), or '
      f'delete the folder {self.directory / str(self.step)}'
    )

  def mismatch(self, item: str, detail: str) -> UserError:
    """The error for a request that does not fit what is on disk."""
    return UserError(
      f'{item} of step {self.step} in {self.directory}: {detail}'
    )


def absolute(directory: str | os.PathLike) -> epath.Path:
  """`directory` as Orbax wants it; gs:// and the like stay as they are.

  Raises:
    UserError: a bucket, and no package by which Orbax could ask for its kind.
  """
  directory = os.fspath(directory)
  if directory.startswith('gs://') and not _has_client():
    raise UserError(
      f'{directory}: checkpoints in a bucket need a package besides; '
      'pip install -r requirements-tpu.txt'
    )
  remote = '://' in directory
  return epath.Path(directory if remote else os.path.abspath(directory))


def _has_client():
  try:
    return importlib.util.find_spec('google.cloud.storage') is not None
  except ImportError:  # not even google.cloud
    return False


def leaves_by_path(item: str, tree: Any) -> dict[tuple[str, ...], Any]:
  """{path: leaf} in the order of jax.tree.leaves; a path is a tuple of names.

  Raises:
    ValueError: two leaves have one name, or a name is empty or has '/' or '.'.
  """
  leaves = {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    path = tuple(jax.tree_util.keystr((k,), simple=True) for k in keys)
    if not path or path in leaves or any({'/', '.'} & set(p) for p in path):
      raise ValueError(
        f'{item} has a leaf {"/".join(path)!r}: names must be unique, not '
        "empty, and without '/' and '.'"
      )
    leaves[path] = leaf
  return leaves


def describe(item: str, leaves: dict[tuple[str, ...], Any]) -> dict[str, dict]:
  """{name: shape, dtype, fingerprint}, the same on all processes.

  Raises:
    ValueError: a leaf is no jax.Array or its dtype has no fingerprint.
  """
  for path, x in leaves.items():
    if not isinstance(x, jax.Array):
      raise ValueError(
        f'{item} has a leaf {"/".join(path)} of type {type(x).__name__}; '
        'a checkpoint holds jax.Arrays'
      )
  prints = {}
  for path, x in leaves.items():
    try:
      prints[path] = fingerprint(x)  # on the devices, while the next starts
    except ValueError as error:
      raise ValueError(f'{item} leaf {"/".join(path)}: {error}') from error
  return {
    '/'.join(path): {
      'shape': list(x.shape),
      'dtype': x.dtype.name,
      'fingerprint': int(np.asarray(prints[path])),
    }
    for path, x in leaves.items()
  }


def check_leaves(
  at: CheckpointStep, item: str, wanted: dict[tuple[str, ...], Any], saved: dict
) -> None:
  """Raises a UserError unless the leaves asked for are those saved."""
  names = {'/'.join(path): leaf for path, leaf in wanted.items()}
  missing = [name for name in names if name not in saved]
  extra = [name for name in saved if name not in names]
  if missing or extra:
    shapes = {name: tuple(names[name].shape) for name in missing}
    held = {name: tuple(saved[name]['shape']) for name in extra}
    raise at.mismatch(
      item, f'asked for but not saved: {shapes}; saved but not asked: {held}'
    )
  for name, leaf in names.items():
    shape, dtype = tuple(saved[name]['shape']), jnp.dtype(saved[name]['dtype'])
    if tuple(leaf.shape) != shape:
      raise at.mismatch(
        item, f'{name} was saved as {shape}, asked for as {tuple(leaf.shape)}'
      )
    floats = [jnp.issubdtype(d, jnp.floating) for d in (dtype, leaf.dtype)]
    if leaf.dtype != dtype and not all(floats):
      raise at.mismatch(
        item, f'{name} was saved as {dtype}, asked for as {leaf.dtype}'
      )
    if getattr(leaf, 'sharding', None) is None:
      raise at.mismatch(item, f'{name} is asked for without a sharding')


def batches(
  wanted: dict[tuple[str, ...], Any], saved: dict
) -> list[dict[tuple[str, ...], Any]]:
  """The leaves asked for in parts of about _RESTORED_AT_ONCE bytes a process.

  Args:
    wanted: abstract leaves with shardings, by path.
    saved: of the index, by name; what is read has the dtype that was saved.
  """
  room = 0
  made = []
  for path, leaf in wanted.items():
    dtype = jnp.dtype(saved['/'.join(path)]['dtype'])
    size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * dtype.itemsize
    size *= len(leaf.sharding.addressable_devices)
    if not made or size > room:
      made.append({})
      room = _RESTORED_AT_ONCE
    made[-1][path] = leaf
    room -= size
  return made


def with_checksum(item: str, value: Any) -> dict:
  """`value` with its checksum, as Step.read expects it.

  Raises:
    ValueError: json.dumps does not take `value`.
  """
  try:
    value = json.loads(json.dumps(value))
  except (TypeError, ValueError) as error:
    raise ValueError(f'{item} is not JSON: {error}') from error
  return {'value': value, 'sha256': _sha256(value)}


def _sha256(value):
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
