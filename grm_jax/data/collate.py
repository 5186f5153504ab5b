"""Pads tokenized examples to the arrays of a batch.

Prompts are padded to the smallest bucket that the longest prompt of the batch
fits, generations likewise. Few buckets mean few compiled programs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from grm_jax.data import packing
from grm_jax.data.mixture import permutation
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.model.batch import Batch


@dataclasses.dataclass(frozen=True)
class BatchItem:
  """One prompt of a batch.

  Attributes:
    example: None for a padding prompt.
    epoch: epoch of the example's source, from 0.
    generation_indices: which generations of the example the batch holds,
      ascending; at most R.
  """

  example: TokenizedExample | None
  epoch: int
  generation_indices: tuple[int, ...]

  @property
  def prompt_length(self) -> int:
    """Number of prompt tokens; 1 for a padding prompt."""
    return len(self.example.prompt) if self.example else 1

  @property
  def generations(self) -> list[np.ndarray]:
    """Tokens of the generations that the batch holds, int32 [T] each."""
    if self.example is None:
      return []
    return [self.example.generations[i] for i in self.generation_indices]


@dataclasses.dataclass(frozen=True)
class BatchInfo:
  """Provenance and sizes of a global batch; the same on all processes.

  Attributes:
    example_ids: [P], None for padding prompts.
    sources: [P], None for padding prompts.
    epochs: [P], epoch of the source, from 0.
    generation_indices: [P], which generations of the example the batch holds,
      ascending; the remaining rows of R are empty.
    token_lengths: (prompt tokens, tokens of each generation) of every
      sequence, packed or not, without padding prompts.
    num_tokens: under 'prompts' and 'generations', without padding.
    num_positions: the same with padding: P * S and P * R * T.
  """

  example_ids: tuple[str | None, ...]
  sources: tuple[str | None, ...]
  epochs: tuple[int, ...]
  generation_indices: tuple[tuple[int, ...], ...]
  token_lengths: tuple[tuple[int, tuple[int, ...]], ...]
  num_tokens: dict[str, int]
  num_positions: dict[str, int]


def make_item(
  example: TokenizedExample, shape: BatchShape, seed: int, epoch: int
) -> BatchItem:
  """Returns the BatchItem of an example, with at most R generations.

  If the example has more, epoch e takes R generations from position e * R of a
  shuffled cycle, so that all of them are used equally often.
  """
  n, r = len(example.generations), shape.generations_per_prompt
  if not r or n <= r:
    return BatchItem(example, epoch, tuple(range(min(n, r))))
  # 'rows' is an input of the hash behind the permutation: it must not change.
  cycle = permutation(n, seed, 'rows', example.source, example.id)
  indices = cycle[(epoch * r + np.arange(r)) % n]
  return BatchItem(example, epoch, tuple(sorted(indices.tolist())))


def padded_shape(
  items: Sequence[BatchItem], shape: BatchShape
) -> tuple[int, int]:
  """Returns (S, T), the padded lengths of a batch of these items."""
  longest_prompt = max(item.prompt_length for item in items)
  longest_generation = max(
    (len(tokens) for item in items for tokens in item.generations), default=0
  )
  return (
    _smallest_bucket(shape.prompt_buckets, longest_prompt),
    _smallest_bucket(shape.generation_buckets, longest_generation),
  )


def _smallest_bucket(buckets: Sequence[int], length: int) -> int:
  return next(bucket for bucket in buckets if length <= bucket)


def build_batch(
  items: Sequence[BatchItem], shape: BatchShape, local_indices: np.ndarray
) -> Batch:
  """Builds the arrays of this process's prompts of a batch.

  Args:
    items: P, the global batch: the longest of all items decide S and T.
    shape: all items must fit it.
    local_indices: ints [p], positions in `items` of the prompts to build.

  Returns:
    NumPy arrays [p, S], [p], [p, R, T], [p, R], padded with 0. If R is 0 there
    are no generations. For packed items, segment_ids and loss_mask [p, S]
    take their place.
  """
  s, t = padded_shape(items, shape)
  local_items = [items[i] for i in local_indices]
  arrays = _prompt_arrays(local_items, s)
  # All processes must agree on the kind of the batch, hence all items.
  if any(item.example and item.example.packed_lengths for item in items):
    arrays |= _packed_arrays(local_items, s)
  elif shape.generations_per_prompt:
    arrays |= _generation_arrays(local_items, shape.generations_per_prompt, t)
  return Batch(**arrays)


def _prompt_arrays(items: Sequence[BatchItem], s: int) -> dict[str, Any]:
  prompts = np.zeros((len(items), s), np.int32)  # [p, S]
  # A padding prompt has length 1: attention needs at least one key.
  lengths = np.array([item.prompt_length for item in items], np.int32)  # [p]
  for row, item in zip(prompts, items, strict=True):
    if item.example:
      row[: item.prompt_length] = item.example.prompt
  return {'prompts': prompts, 'prompt_lengths': lengths}


def _generation_arrays(
  items: Sequence[BatchItem], r: int, t: int
) -> dict[str, Any]:
  generations = np.zeros((len(items), r, t), np.int32)  # [p, R, T]
  lengths = np.zeros((len(items), r), np.int32)  # [p, R]
  for p, item in enumerate(items):
    for row, tokens in enumerate(item.generations):
      generations[p, row, : len(tokens)] = tokens
      lengths[p, row] = len(tokens)
  return {'generations': generations, 'generation_lengths': lengths}


def _packed_arrays(items: Sequence[BatchItem], s: int) -> dict[str, Any]:
  rows = [
    packing.segment_ids_and_loss_mask(
      # A padding prompt is one sequence of one prompt token.
      item.example.packed_lengths if item.example else ((1, 0),),
      s,
    )
    for item in items
  ]
  segment_ids, loss_mask = zip(*rows, strict=True)
  # [p, S] each.
  return {
    'segment_ids': np.stack(segment_ids),
    'loss_mask': np.stack(loss_mask),
  }


def batch_info(items: Sequence[BatchItem], shape: BatchShape) -> BatchInfo:
  """Returns the BatchInfo of a global batch."""
  s, t = padded_shape(items, shape)
  examples = [item.example for item in items]
  return BatchInfo(
    example_ids=tuple(x.id if x else None for x in examples),
    sources=tuple(x.source if x else None for x in examples),
    epochs=tuple(item.epoch for item in items),
    generation_indices=tuple(item.generation_indices for item in items),
    token_lengths=tuple(x for item in items for x in _token_lengths(item)),
    num_tokens={
      'prompts': sum(len(x.prompt) for x in examples if x),
      'generations': sum(len(x) for item in items for x in item.generations),
    },
    num_positions={
      'prompts': len(items) * s,
      'generations': len(items) * shape.generations_per_prompt * t,
    },
  )


def _token_lengths(item: BatchItem) -> list[tuple[int, tuple[int, ...]]]:
  if item.example is None:
    return []
  if item.example.packed_lengths:
    return [
      (prompt, (generation,))
      for prompt, generation in item.example.packed_lengths
    ]
  return [(item.prompt_length, tuple(map(len, item.generations)))]
