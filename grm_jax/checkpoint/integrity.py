"""Checks of a checkpoint step: format version, JSON items, array leaves.

The `index` item of a step holds the format version, the number of the step, the
shape, dtype and checksum of every array, and the SHA-256 of every other JSON
item. Every JSON item is stored with its SHA-256, too.
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

from grm_jax.checkpoint.array_checksum import array_checksum
from grm_jax.errors import UserError
from grm_jax.io import atomic_io

# Increased by every change of the layout or the meaning of what is stored.
FORMAT_VERSION = 2
# Bytes that one process restores at once. Orbax needs about as much memory
# again beside the restored arrays.
_RESTORE_BATCH_BYTES = 2**30

Path = tuple[str, ...]  # of a leaf: the names of the keys above it
Leaves = dict[Path, Any]


@dataclasses.dataclass(frozen=True)
class CheckpointStep:
  """One finished step on disk.

  Attributes:
    directory: checkpoint directory.
    step: number of the step.
    other_steps: the other steps in `directory`, for messages.
  """

  directory: epath.Path
  step: int
  other_steps: tuple[int, ...]

  @property
  def path(self) -> epath.Path:
    """Folder of the step."""
    return self.directory / str(self.step)

  def read(self, item: str) -> Any:
    """Returns the value of a JSON item after checking its SHA-256.

    Raises:
      UserError: the item is missing, unreadable or damaged.
    """
    path = self.path / item / 'metadata'
    try:
      content = json.loads(path.read_text())
      value, expected = content['value'], content['sha256']
    except FileNotFoundError as error:
      raise self.damaged(item, f'{path.name} is missing') from error
    except OSError as error:
      raise atomic_io.cannot_read(path, error.strerror or error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise self.damaged(item, f'{path.name} is not JSON: {error}') from error
    if sha256(value) != expected:
      raise self.damaged(item, 'its contents differ from their SHA-256')
    return value

  def read_index(self) -> dict[str, Any]:
    """Returns the index after checking its format version and its step.

    Raises:
      UserError: the index is missing, unreadable or damaged, or has another
        version; or the folder has the name of another step.
    """
    index = self.read('index')
    version = index.get('format_version') if isinstance(index, dict) else None
    if version != FORMAT_VERSION:
      raise UserError(
        f'{self.path} has checkpoint format version {version}, this code reads '
        f'version {FORMAT_VERSION}; use the version of grm_jax that wrote it, '
        'or train or convert the model again'
      )
    if index['step'] != self.step:
      raise UserError(
        f'{self.path} holds step {index["step"]}, not step {self.step}; give '
        f'the folder its name {index["step"]} again'
      )
    return index

  def read_item(self, index: dict[str, Any], item: str) -> Any:
    """Returns the value of a JSON item that belongs to the index.

    Raises:
      UserError: see `read`; or the item was saved with another step.
    """
    value = self.read(item)
    if sha256(value) != index['json_items'][item]:
      raise self.damaged(item, 'it was not saved together with the index')
    return value

  def damaged(self, item: str, detail: str) -> UserError:
    """Returns the error for an item that is damaged on disk."""
    return UserError(
      f'step {self.step} in {self.directory} is damaged or not a grm_jax '
      f'checkpoint, item {item!r}: {detail}; use another step '
      f'({list(self.other_steps)}), copy this one again, or move {self.path} '
      'away'
    )

  def mismatch(self, item: str, detail: str) -> UserError:
    """Returns the error for a request that does not match what is on disk."""
    return UserError(
      f'{item} of step {self.step} in {self.directory}: {detail}'
    )


def absolute_path(directory: str | os.PathLike) -> epath.Path:
  """Returns `directory` as an absolute path; URLs such as gs:// are unchanged.

  Raises:
    UserError: a bucket, and the package that accesses it is not installed.
  """
  directory = os.fspath(directory)
  if directory.startswith('gs://') and not _has_gcs_client():
    raise UserError(
      f'{directory}: checkpoints in a bucket need the package '
      'google-cloud-storage; pip install -r requirements-tpu.txt'
    )
  is_url = '://' in directory
  return epath.Path(directory if is_url else os.path.abspath(directory))


def _has_gcs_client() -> bool:
  try:
    return importlib.util.find_spec('google.cloud.storage') is not None
  except ImportError:  # google.cloud itself is not installed
    return False


def leaves_by_path(item: str, tree: Any) -> Leaves:
  """Returns the leaves of `tree` by path, in the order of jax.tree.leaves.

  Raises:
    ValueError: two leaves have the same path, or a name is empty or contains
      '/' or '.'.
  """
  leaves: Leaves = {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    path = tuple(jax.tree_util.keystr((k,), simple=True) for k in keys)
    if not path or path in leaves or any({'/', '.'} & set(p) for p in path):
      raise ValueError(
        f'{item} has a leaf {"/".join(path)!r}; names must be unique, not '
        "empty, and without '/' and '.'"
      )
    leaves[path] = leaf
  return leaves


def describe_leaves(item: str, leaves: Leaves) -> dict[str, dict]:
  """Returns {name: {shape, dtype, checksum}}, the same on all processes.

  Raises:
    ValueError: a leaf is not a jax.Array, or its dtype has no checksum.
  """
  for path, x in leaves.items():
    if not isinstance(x, jax.Array):
      raise ValueError(
        f'{item} has a leaf {"/".join(path)} of type {type(x).__name__}; '
        'convert it to a jax.Array'
      )
  checksums = {}
  for path, x in leaves.items():
    try:
      # Asynchronous: the devices compute while the next one is dispatched.
      checksums[path] = array_checksum(x)
    except ValueError as error:
      raise ValueError(f'{item} leaf {"/".join(path)}: {error}') from error
  return {
    '/'.join(path): {
      'shape': list(x.shape),
      'dtype': x.dtype.name,
      'checksum': int(np.asarray(checksums[path])),
    }
    for path, x in leaves.items()
  }


def check_leaves(
  step: CheckpointStep, item: str, requested: Leaves, saved: dict[str, dict]
) -> None:
  """Checks that the requested leaves are exactly the saved ones.

  Args:
    step: the step that is read, for messages.
    item: 'params' or 'opt_state'.
    requested: abstract leaves by path.
    saved: the descriptions in the index by name.

  Raises:
    UserError: a missing or extra leaf, another shape, a dtype that cannot be
      cast, or no sharding.
  """
  leaves = {'/'.join(path): leaf for path, leaf in requested.items()}
  missing = {n: tuple(x.shape) for n, x in leaves.items() if n not in saved}
  extra = {n: tuple(x['shape']) for n, x in saved.items() if n not in leaves}
  if missing or extra:
    raise step.mismatch(
      item,
      f'requested but not saved: {missing}; saved but not requested: {extra}',
    )
  for name, leaf in leaves.items():
    shape, dtype = tuple(saved[name]['shape']), jnp.dtype(saved[name]['dtype'])
    if tuple(leaf.shape) != shape:
      raise step.mismatch(
        item, f'{name} was saved as {shape}, requested as {tuple(leaf.shape)}'
      )
    both_float = all(
      jnp.issubdtype(d, jnp.floating) for d in (dtype, leaf.dtype)
    )
    if leaf.dtype != dtype and not both_float:
      raise step.mismatch(
        item, f'{name} was saved as {dtype}, requested as {leaf.dtype}'
      )
    if getattr(leaf, 'sharding', None) is None:
      raise step.mismatch(item, f'{name} is requested without a sharding')


def restore_batches(requested: Leaves, saved: dict[str, dict]) -> list[Leaves]:
  """Splits the leaves into batches of about 1 GiB for each process.

  The largest leaves come first: when each is made smaller or moved after its
  batch, as for int8, the highest memory is that of the first ones.

  Args:
    requested: abstract leaves with shardings, by path.
    saved: the descriptions in the index by name; a leaf is read in the dtype
      in which it was saved.
  """

  def num_bytes(path: Path, leaf: Any) -> int:
    """Returns the bytes that this process reads."""
    dtype = jnp.dtype(saved['/'.join(path)]['dtype'])
    size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * dtype.itemsize
    return size * len(leaf.sharding.addressable_devices)

  sizes = {path: num_bytes(path, leaf) for path, leaf in requested.items()}
  free_bytes = 0
  batches: list[Leaves] = []
  for path in sorted(sizes, key=lambda x: -sizes[x]):
    if not batches or sizes[path] > free_bytes:
      batches.append({})
      free_bytes = _RESTORE_BATCH_BYTES
    batches[-1][path] = requested[path]
    free_bytes -= sizes[path]
  return batches


def with_checksum(item: str, value: Any) -> dict[str, Any]:
  """Returns `value` with its SHA-256, as `CheckpointStep.read` expects it.

  Raises:
    ValueError: json.dumps rejects `value`.
  """
  try:
    value = json.loads(json.dumps(value))
  except (TypeError, ValueError) as error:
    raise ValueError(f'{item} is not JSON: {error}') from error
  return {'value': value, 'sha256': sha256(value)}


def sha256(value: Any) -> str:
  """Returns the SHA-256 of a JSON value, in hexadecimal digits."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
