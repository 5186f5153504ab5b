"""Assembles global device arrays from each process's rows of a batch."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from grm_jax.errors import UserError
from grm_jax.sharding.rules import ShardingLayout

Tree = TypeVar('Tree')

# Logical axes of arrays [P], [P, X] and [P, X, Y].
_AXES = ('prompts', 'tokens', 'tokens')


def local_prompt_indices(
  layout: ShardingLayout, num_prompts: int
) -> np.ndarray:
  """Returns which prompts of a global batch this process's devices hold.

  The result is read from the sharding itself, because a process's rows need
  not be contiguous nor in the order of process ids. If a tensor axis spans
  several processes, these hold the same rows.

  Args:
    layout: layout of training.
    num_prompts: P of the global batch.

  Returns:
    int64 [p], ascending.

  Raises:
    UserError: the mesh does not divide P.
  """
  num_shards = layout.num_shards('prompts')
  if num_prompts % num_shards:
    raise UserError(
      f'config.batch.micro_batch_prompts is {num_prompts}, but the mesh splits '
      f'prompts into {num_shards} shards; set it to a multiple of {num_shards}'
    )
  sharding = layout.sharding(_AXES[:1], (num_prompts,))
  is_local = np.zeros(num_prompts, bool)
  index_map: Mapping[Any, Any] = sharding.devices_indices_map((num_prompts,))
  for device, (rows,) in index_map.items():
    if device.process_index == jax.process_index():
      is_local[rows] = True
  return np.flatnonzero(is_local)


def make_global_arrays(
  local_batch: Tree, layout: ShardingLayout, num_prompts: int
) -> Tree:
  """Returns global arrays, split by prompt, without any communication.

  Args:
    local_batch: NumPy arrays of the rows that `local_prompt_indices` returns,
      in that order: a Batch, or any tree of arrays [p], [p, X] and [p, X, Y].
    layout: layout of training.
    num_prompts: P of the global batch.

  Returns:
    jax.Arrays of all P prompts.

  Raises:
    UserError: the mesh does not divide P.
    ValueError: the number of rows is not that of this process.
  """
  local_indices = local_prompt_indices(layout, num_prompts)
  num_rows = len(jax.tree.leaves(local_batch)[0])
  if num_rows != len(local_indices):
    raise ValueError(
      f'got {num_rows} rows of a batch of {num_prompts} prompts, but this '
      f'process holds {len(local_indices)}; build batches with local_indices='
      f'local_prompt_indices(layout, {num_prompts})'
    )

  def local_slice(rows: slice) -> slice:
    """Maps a shard's global rows to their place in `local_batch`."""
    start, stop, _ = rows.indices(num_prompts)
    # The rows of one shard are contiguous, also among the local ones.
    first = int(np.searchsorted(local_indices, start))
    return slice(first, first + stop - start)

  def local_shard(x: np.ndarray, index: Any) -> np.ndarray:
    """Returns the rows of this process that a shard consists of."""
    return x[(local_slice(index[0]), *index[1:])]

  def to_global(x: np.ndarray) -> jax.Array:
    """Maps the rows of this process, [rows, ...], to [num_prompts, ...]."""
    shape = (num_prompts, *x.shape[1:])
    sharding = layout.sharding(_AXES[: x.ndim], shape)
    # make_array_from_process_local_data does not support layouts where two
    # processes share some rows but not all.
    return jax.make_array_from_callback(
      shape, sharding, functools.partial(local_shard, x)
    )

  return jax.tree.map(to_global, local_batch)
