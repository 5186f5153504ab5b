"""The one array shape of the code base: prompts and their generations.

Plain fine-tuning texts, each a prompt with one generation, can instead be
packed: several of them one after the other in a row of [P, S].
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Batch:
  """P prompts, and R generations of each; both right-padded.

  A prompt has at least one token (the bos). A generation may be empty.

  Attributes:
    prompts: int32 [P, S].
    prompt_lengths: int32 [P], each in 1..S.
    generations: int32 [P, R, T], or None for prompts alone.
    generation_lengths: int32 [P, R], each in 0..T, or None.
    segments: int32 [P, S] of packed rows, None otherwise: which text a place
      belongs to, never falling along a row. Texts do not see each other, and
      each counts its positions from 0.
    targets: bool [P, S] of packed rows: the places of generation tokens.
  """

  prompts: jax.Array
  prompt_lengths: jax.Array
  generations: jax.Array | None = None
  generation_lengths: jax.Array | None = None
  segments: jax.Array | None = None
  targets: jax.Array | None = None


def check(batch: Batch) -> None:
  """Raises ValueError where shapes or dtypes contradict each other."""
  _integers('prompts', batch.prompts, 2)
  _integers('prompt_lengths', batch.prompt_lengths, 1)
  _agree('prompt_lengths', batch.prompt_lengths, batch.prompts.shape[:1])
  if batch.segments is not None or batch.targets is not None:
    _check_packed(batch)
  if batch.generations is None and batch.generation_lengths is None:
    return
  if batch.generations is None or batch.generation_lengths is None:
    raise ValueError('generations and generation_lengths come together')
  _integers('generations', batch.generations, 3)
  _integers('generation_lengths', batch.generation_lengths, 2)
  _agree('generations', batch.generations, batch.prompts.shape[:1], 1)
  _agree(
    'generation_lengths', batch.generation_lengths, batch.generations.shape[:2]
  )
  if 0 in batch.generations.shape:
    raise ValueError(
      f'generations have shape {batch.generations.shape}; an empty generation '
      'is one of length 0, with at least one place'
    )


def _check_packed(batch):
  if batch.segments is None or batch.targets is None:
    raise ValueError('segments and targets come together')
  if batch.generations is not None:
    raise ValueError('packed rows have their generations inside, none beside')
  _integers('segments', batch.segments, 2)
  _agree('segments', batch.segments, batch.prompts.shape)
  _agree('targets', batch.targets, batch.prompts.shape)
  if batch.targets.dtype != jnp.bool_:
    raise ValueError(f'targets must be bool, got {batch.targets.dtype}')


def _integers(name, x, rank):
  if x.ndim != rank or not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(
      f'{name} must be integers of rank {rank}, got {x.dtype} {x.shape}'
    )


def _agree(name, x, shape, dims=None):
  if x.shape[:dims] != shape:
    raise ValueError(f'{name} has shape {x.shape}, expected {shape} in front')
