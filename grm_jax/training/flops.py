"""Exact counts of useful multiplications, and the peak FLOP/s of devices.

A product of [m, k] by [k, n] is 2 m n k FLOPs. Counted are the projections,
the gated MLP, attention's scores and weighted sums, and the tied head; not
counted are the embedding lookup, norms, softmax, GELU and softcaps. Useful is
what true lengths need:

  a prompt is computed once, whatever the number of its generations;
  token i of a prompt sees keys 0..i, token t of a generation behind a prompt
  of length n sees n + t + 1 keys; on local layers at most the window W;
  the head is computed where a generation token is predicted, not on prompts;
  padding, keys behind the mask and whatever remat computes again are waste.

All numbers are Python ints, summed without rounding and in closed form.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from grm_jax.model.config import ModelConfig
from grm_jax.sharding import chip_specs


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs by part; the parts add up to `total`.

  Attributes:
    prompt: projections and MLPs of prompt tokens.
    generation: the same of generation tokens.
    prompt_attention: scores and weighted sums of prompt tokens.
    generation_attention: the same of generation tokens, over prompt keys and
      their own.
    head: logits of generation tokens, or the values of a scalar model.
  """

  prompt: int = 0
  generation: int = 0
  prompt_attention: int = 0
  generation_attention: int = 0
  head: int = 0

  @property
  def total(self) -> int:
    return sum(dataclasses.astuple(self))

  def times(self, factor: int) -> 'Flops':
    """Every part multiplied."""
    return Flops(*(factor * part for part in dataclasses.astuple(self)))


def forward(
  size: ModelConfig,
  prompt_lengths: ArrayLike,
  generation_lengths: ArrayLike | None = None,
  *,
  scalar: bool = False,
) -> Flops:
  """One pass over prompts and their generations, each prompt once.

  All tokens go through all layers, the last of a generation as well.

  Args:
    size: the model.
    prompt_lengths: int [P], true lengths.
    generation_lengths: int [P, R], true lengths, or None for prompts alone.
    scalar: count one value per generation (per prompt, if they are alone)
      instead of logits: what head.values computes.

  Raises:
    ValueError: shapes that contradict each other.
  """
  prompts = np.asarray(prompt_lengths, np.int64)
  own = np.zeros((*prompts.shape, 0), np.int64)
  if generation_lengths is not None:
    own = np.asarray(generation_lengths, np.int64)
  if prompts.ndim != 1 or own.ndim != 2 or len(own) != len(prompts):
    raise ValueError(
      f'prompt_lengths {prompts.shape} and generation_lengths {own.shape} '
      'should be [P] and [P, R]'
    )
  before = np.broadcast_to(prompts[:, None], own.shape)
  values = len(prompts) if generation_lengths is None else own.size
  head = values if scalar else _sum(own) * size.vocab_size
  return Flops(
    prompt=_sum(prompts) * _per_token(size),
    generation=_sum(own) * _per_token(size),
    prompt_attention=_attention(size, prompts),
    # Keys seen by all tokens of the sequence, less those seen by its prompt.
    generation_attention=_attention(size, before + own)
    - _attention(size, before),
    head=2 * size.width * head,
  )


def train_step(
  size: ModelConfig,
  prompt_lengths: ArrayLike,
  generation_lengths: ArrayLike,
  *,
  scalar: bool = False,
) -> Flops:
  """Forward and backward; each product has two in the backward pass."""
  one = forward(size, prompt_lengths, generation_lengths, scalar=scalar)
  return one.times(3)


def decode(size: ModelConfig, keys: int) -> Flops:
  """Drawing one token, by a step that sees `keys` keys, its own included."""
  seen = size.num_pairs * int(keys + size.near(keys))
  return Flops(
    generation=_per_token(size),
    generation_attention=_per_pair(size) * seen,
    head=2 * size.width * size.vocab_size,
  )


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
  """bfloat16 FLOP/s of all `devices`; None where one is of an unknown kind.

  A chip counts once: some runtimes report a TPU v4 chip as two devices.
  """
  kinds = {_chip(device): device.device_kind for device in devices}
  found = [chip_specs.of_kind(kind) for kind in kinds.values()]
  return None if None in found else sum(chip.flops for chip in found)


def _chip(device):
  if device.platform != 'tpu':
    return device.id
  # Coordinates are within a slice; a process is part of one slice.
  return device.process_index, *device.coords


def _per_token(size):
  """Projections and MLPs of all layers, for one token."""
  queries = 2 * size.width * size.num_heads * size.head_dim  # and out
  keys = 2 * size.width * size.num_kv_heads * size.head_dim  # and values
  mlp = 3 * size.width * size.mlp_width
  return 2 * size.num_layers * (queries + keys + mlp)


def _per_pair(size):
  """A query and a key in one layer: the score, and the weighted value."""
  return 4 * size.num_heads * size.head_dim


def _attention(size, lengths):
  """Causal attention of whole sequences of `lengths`, in all layers."""
  every = _sum(_pairs(lengths, lengths))
  near = _sum(_pairs(lengths, size.near(lengths)))
  return _per_pair(size) * size.num_pairs * (every + near)


def _pairs(lengths, reach):
  """Keys seen by the tokens of a sequence, where none sees over `reach`."""
  return reach * (reach + 1) // 2 + (lengths - reach) * reach


def _sum(x):
  return int(np.sum(x))
