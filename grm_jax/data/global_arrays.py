"""From each process's rows of a batch to global arrays on the devices."""

from typing import TypeVar

import jax
import numpy as np

from grm_jax.errors import UserError
from grm_jax.sharding.rules import ShardingLayout

Tree = TypeVar('Tree')

_NAMES = ('prompts', 'tokens', 'tokens')


def process_rows(layout: ShardingLayout, prompts: int) -> np.ndarray:
  """Which prompts of a global batch the devices of this process hold.

  Read off the layout: the processes' rows need not be in their order nor in
  one piece, and where the prompts are not split over processes (a tensor axis
  that spans them) several processes hold the same rows.

  Args:
    layout: of training.
    prompts: P, of the global batch.

  Returns:
    int64, ascending.

  Raises:
    UserError: the mesh cannot split P prompts.
  """
  ways = layout.split('prompts')
  if prompts % ways:
    raise UserError(
      f'config.batch.micro_batch_prompts is {prompts}; the mesh splits prompts {ways} '
      'ways, of which it must be a multiple'
    )
  indices = layout.sharding(_NAMES[:1], (prompts,)).devices_indices_map(
    (prompts,)
  )
  mine = np.zeros(prompts, bool)
  for device, (rows,) in indices.items():
    if device.process_index == jax.process_index():
      mine[rows] = True
  return np.flatnonzero(mine)


def place(batch: Tree, layout: ShardingLayout, prompts: int) -> Tree:
  """Global arrays of a batch; no process sends anything to another.

  Args:
    batch: NumPy arrays of the rows that process_rows names, in that order: a
      Batch, or any tree of arrays [P], [P, X] and [P, X, Y].
    layout: of training.
    prompts: P, of the global batch.

  Returns:
    jax.Arrays of all P prompts, split by `prompts`.

  Raises:
    UserError: the mesh cannot split P prompts.
    ValueError: another number of rows.
  """
  rows = process_rows(layout, prompts)
  given = len(jax.tree.leaves(batch)[0])
  if given != len(rows):
    raise ValueError(
      f'this process has {given} prompts of a batch of {prompts} '
      f'and holds {len(rows)}; give rows_of_process=process_rows(layout, '
      f'{prompts}) to the batches'
    )

  def put(x):
    shape = (prompts, *x.shape[1:])
    sharding = layout.sharding(_NAMES[: x.ndim], shape)
    # make_array_from_process_local_data refuses layouts where processes hold
    # some rows in common and others not.
    return jax.make_array_from_callback(
      shape, sharding, lambda index: x[(_local(index[0]), *index[1:])]
    )

  def _local(part):
    """Where a shard's rows, which follow each other, are in `rows`."""
    start, stop, _ = part.indices(prompts)
    first = int(np.searchsorted(rows, start))
    return slice(first, first + stop - start)

  return jax.tree.map(put, batch)
