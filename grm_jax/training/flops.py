"""Exact FLOP counts of useful computation, and the peak FLOP/s of devices.

A product of [m, k] by [k, n] is 2 m n k FLOPs. The counts include the
projections, the gated MLP, attention scores and weighted sums, and the tied
head. They exclude the embedding lookup, norms, softmax, GELU and softcaps.
Useful computation is what the true lengths need:

  a prompt is computed once, whatever the number of its generations;
  token i of a prompt sees keys 0..i, token t of a generation behind a prompt
  of length n sees n + t + 1 keys; on local layers at most the window W;
  the head is computed where a generation token is predicted, not on prompts;
  padding, masked keys and rematerialization are not useful.

All counts are exact Python ints in closed form.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

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
    generation: projections and MLPs of generation tokens.
    prompt_attention: attention of prompt tokens.
    generation_attention: attention of generation tokens to the prompt and to
      their own generation.
    head: logits of generation tokens, or the values of a scalar model.
  """

  prompt: int = 0
  generation: int = 0
  prompt_attention: int = 0
  generation_attention: int = 0
  head: int = 0

  @property
  def total(self) -> int:
    """Sum of all parts."""
    return sum(dataclasses.astuple(self))

  def times(self, factor: int) -> 'Flops':
    """Returns the FLOPs with every part multiplied by `factor`."""
    return Flops(*(factor * part for part in dataclasses.astuple(self)))


def forward(
  config: ModelConfig,
  prompt_lengths: ArrayLike,
  generation_lengths: ArrayLike | None = None,
  *,
  scalar: bool = False,
) -> Flops:
  """Returns the FLOPs of one forward pass; each prompt counts once.

  All tokens pass through all layers, including the last of a generation.

  Args:
    config: configuration of the model.
    prompt_lengths: int [P], true lengths.
    generation_lengths: int [P, R], true lengths; None for prompts alone.
    scalar: count one value per generation (per prompt without generations)
      instead of logits, as logprobs.values computes.

  Raises:
    ValueError: inconsistent shapes.
  """
  prompts = np.asarray(prompt_lengths, np.int64)
  generations = np.zeros((*prompts.shape, 0), np.int64)
  if generation_lengths is not None:
    generations = np.asarray(generation_lengths, np.int64)
  if (
    prompts.ndim != 1
    or generations.ndim != 2
    or len(generations) != len(prompts)
  ):
    raise ValueError(
      f'prompt_lengths {prompts.shape} and generation_lengths '
      f'{generations.shape} should be [P] and [P, R]'
    )
  repeated_prompts = np.broadcast_to(prompts[:, None], generations.shape)
  num_values = len(prompts) if generation_lengths is None else generations.size
  num_outputs = num_values if scalar else _sum(generations) * config.vocab_size
  return Flops(
    prompt=_sum(prompts) * _per_token(config),
    generation=_sum(generations) * _per_token(config),
    prompt_attention=_attention(config, prompts),
    # Keys that the whole sequence sees, less those that its prompt sees.
    generation_attention=_attention(config, repeated_prompts + generations)
    - _attention(config, repeated_prompts),
    head=2 * config.width * num_outputs,
  )


def train_step(
  config: ModelConfig,
  prompt_lengths: ArrayLike,
  generation_lengths: ArrayLike,
  *,
  scalar: bool = False,
  frozen: bool = False,
) -> Flops:
  """Returns the FLOPs of forward and backward: 3 times the forward pass.

  The backward pass of a matrix product is two products of the same size. If
  kernels are frozen, it is one: they get no gradient. The products of adapters
  are not counted.
  """
  one_pass = forward(config, prompt_lengths, generation_lengths, scalar=scalar)
  whole = one_pass.times(3)
  if not frozen:
    return whole
  kernels = one_pass.times(2)
  return dataclasses.replace(
    kernels,
    prompt_attention=whole.prompt_attention,
    generation_attention=whole.generation_attention,
  )


def decode(config: ModelConfig, num_keys: int) -> Flops:
  """Returns the FLOPs of decoding one token that sees `num_keys` keys."""
  # A layer pair has a global layer and a local layer with a window.
  pairs = config.num_pairs * int(num_keys + config.visible_keys(num_keys))
  return Flops(
    generation=_per_token(config),
    generation_attention=_per_query_key_pair(config) * pairs,
    head=2 * config.width * config.vocab_size,
  )


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
  """Returns the bfloat16 FLOP/s of all devices; None if one is unknown.

  A TPU v4 chip counts once: some runtimes report it as two devices. A TPU7x
  chip always is two devices, with half of the FLOP/s each.
  """
  peaks = {}
  for device in devices:
    chip = chip_specs.from_device_kind(device.device_kind)
    if chip is None:
      return None
    is_part = chip.devices_per_chip > 1
    peaks[device.id if is_part else _chip_id(device)] = chip.peak_flops
  return sum(peaks.values())


def _chip_id(device: Any) -> Hashable:
  if device.platform != 'tpu':
    return device.id
  # Coordinates are within a slice; a process is part of one slice.
  return device.process_index, *device.coords


def _per_token(config: ModelConfig) -> int:
  """Returns the FLOPs of projections and MLPs of all layers, for one token."""
  queries = 2 * config.width * config.num_heads * config.head_dim  # and out
  keys = 2 * config.width * config.num_kv_heads * config.head_dim  # and values
  mlp = 3 * config.width * config.mlp_width
  return 2 * config.num_layers * (queries + keys + mlp)


def _per_query_key_pair(config: ModelConfig) -> int:
  """Returns the FLOPs of one query and one key: score and weighted value."""
  return 4 * config.num_heads * config.head_dim


def _attention(config: ModelConfig, lengths: np.ndarray) -> int:
  """Returns the FLOPs of causal attention of whole sequences, all layers."""
  global_pairs = _sum(_num_pairs(lengths, lengths))
  local_pairs = _sum(_num_pairs(lengths, config.visible_keys(lengths)))
  return (
    _per_query_key_pair(config)
    * config.num_pairs
    * (global_pairs + local_pairs)
  )


def _num_pairs(lengths: np.ndarray, window: np.ndarray) -> np.ndarray:
  """Returns the query-key pairs of causal sequences; window <= lengths."""
  return window * (window + 1) // 2 + (lengths - window) * window


def _sum(x: np.ndarray) -> int:
  return int(np.sum(x))
