"""The batch: P prompts and R generations of each.

SFT texts, a prompt with one generation each, can instead be packed: several
texts one after the other in each row of `prompts`.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Batch:
  """Prompts and their generations, both right-padded.

  Attributes:
    prompts: int32 [P, S].
    prompt_lengths: int32 [P], each in 1..S (a prompt has at least its bos).
    generations: int32 [P, R, T], or None for prompts alone.
    generation_lengths: int32 [P, R], each in 0..T, or None.
    segment_ids: int32 [P, S] of packed rows, None otherwise: the text that each
      token belongs to, ascending along a row. Texts do not attend to each
      other, and each counts its positions from 0.
    loss_mask: bool [P, S] of packed rows: True at generation tokens.
  """

  prompts: jax.Array
  prompt_lengths: jax.Array
  generations: jax.Array | None = None
  generation_lengths: jax.Array | None = None
  segment_ids: jax.Array | None = None
  loss_mask: jax.Array | None = None


def check_batch(batch: Batch) -> None:
  """Checks shapes and dtypes; works on abstract arrays too.

  Args:
    batch: the batch.

  Raises:
    ValueError: shapes or dtypes contradict each other.
  """
  _check_int('prompts', batch.prompts, 2)
  _check_int('prompt_lengths', batch.prompt_lengths, 1)
  _check_shape('prompt_lengths', batch.prompt_lengths, batch.prompts.shape[:1])
  if batch.segment_ids is not None or batch.loss_mask is not None:
    _check_packed(batch)
  if batch.generations is None and batch.generation_lengths is None:
    return
  if batch.generations is None or batch.generation_lengths is None:
    raise ValueError(
      'one of generations and generation_lengths is None; give both or none'
    )
  _check_int('generations', batch.generations, 3)
  _check_int('generation_lengths', batch.generation_lengths, 2)
  _check_shape('generations', batch.generations, batch.prompts.shape[:1], 1)
  _check_shape(
    'generation_lengths', batch.generation_lengths, batch.generations.shape[:2]
  )
  if 0 in batch.generations.shape:
    raise ValueError(
      f'generations have shape {batch.generations.shape}; no dimension can be '
      '0 (an empty generation has length 0 and T >= 1)'
    )


def _check_packed(batch):
  if batch.segment_ids is None or batch.loss_mask is None:
    raise ValueError(
      'one of segment_ids and loss_mask is None; give both or none'
    )
  if batch.generations is not None:
    raise ValueError(
      'a packed batch has its generations inside the rows of prompts; '
      'generations must be None'
    )
  _check_int('segment_ids', batch.segment_ids, 2)
  _check_shape('segment_ids', batch.segment_ids, batch.prompts.shape)
  _check_shape('loss_mask', batch.loss_mask, batch.prompts.shape)
  if batch.loss_mask.dtype != jnp.bool_:
    raise ValueError(f'loss_mask has dtype {batch.loss_mask.dtype}; use bool')


def _check_int(name, x, rank):
  if x.ndim != rank or not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(
      f'{name} has dtype {x.dtype} and shape {x.shape}; it must be integers of '
      f'rank {rank}'
    )


def _check_shape(name, x, expected, num_dims=None):
  """Compares the first `num_dims` dimensions of `x` (all if None)."""
  if x.shape[:num_dims] != expected:
    raise ValueError(
      f'{name} has shape {x.shape}; its first dimensions must be {expected}'
    )
