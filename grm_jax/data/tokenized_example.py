"""Tokenized training examples, and the shapes that batches are padded to."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedExample:
  """Token ids of a prompt and of its generations.

  Attributes:
    id: unique within its source.
    prompt: int32 [S].
    generations: int32 [T] each; empty if a rollout writes them.
    source: name of the mixture component that the example belongs to.
    packed_lengths: only for a packed row (see packing.py): (prompt tokens,
      generation tokens) of each sequence in the row. All tokens of a packed
      row are in `prompt`.
  """

  id: str
  prompt: np.ndarray
  generations: tuple[np.ndarray, ...]
  source: str
  packed_lengths: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    for tokens in (self.prompt, *self.generations):
      if tokens.ndim != 1 or tokens.dtype != np.int32:
        raise ValueError(
          f'example {self.id!r} of source {self.source!r} has tokens of dtype '
          f'{tokens.dtype} and shape {tokens.shape}; expected int32 of rank 1'
        )


def token_array(ids: Sequence[int]) -> np.ndarray:
  """Returns ids as the int32 array that TokenizedExample stores."""
  return np.asarray(ids, np.int32)


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """Padded lengths of a batch, and its generations per prompt.

  Attributes:
    prompt_buckets: ascending lengths; S is one of them.
    generation_buckets: ascending lengths; T is one of them.
    generations_per_prompt: R; 0 for batches of prompts without generations.
  """

  prompt_buckets: tuple[int, ...]
  generation_buckets: tuple[int, ...]
  generations_per_prompt: int


def misfit_reason(example: TokenizedExample, shape: BatchShape) -> str | None:
  """Returns why an example does not fit into a batch; None if it fits.

  More than R generations fit: every epoch trains on R of them.
  """
  if not len(example.prompt):
    return 'its prompt is empty; a prompt must begin with the bos token'
  if len(example.prompt) > shape.prompt_buckets[-1]:
    return (
      f'its prompt has {len(example.prompt)} tokens, the largest of '
      f'config.batch.prompt_buckets is {shape.prompt_buckets[-1]}'
    )
  if not shape.generations_per_prompt or example.packed_lengths:
    return None
  if not example.generations:
    return (
      'it has no generations, config.batch.generations_per_prompt is '
      f'{shape.generations_per_prompt}'
    )
  longest = max(map(len, example.generations))
  if longest > shape.generation_buckets[-1]:
    return (
      f'its longest generation has {longest} tokens, the largest of '
      f'config.batch.generation_buckets is {shape.generation_buckets[-1]}'
    )
  return None


def partition_by_fit(
  examples: Sequence[TokenizedExample], shape: BatchShape
) -> tuple[list[TokenizedExample], list[tuple[str, str]]]:
  """Separates examples that fit from examples that do not; truncates nothing.

  Returns:
    The examples that fit, in order, and (id, reason) of every other one.
  """
  fitting, misfits = [], []
  for example in examples:
    reason = misfit_reason(example, shape)
    if reason is None:
      fitting.append(example)
    else:
      misfits.append((example.id, reason))
  return fitting, misfits


def fingerprint(examples: Sequence[TokenizedExample]) -> str:
  """Returns 16 hex digits that change with any id, token or their order."""
  digest = hashlib.blake2b(digest_size=8)
  for example in examples:
    arrays = (example.prompt, *example.generations)
    # The lengths separate arrays whose bytes follow each other.
    header = [
      *(example.source, example.id),
      *map(len, arrays),
      *example.packed_lengths,
    ]
    digest.update(json.dumps(header).encode())
    for tokens in arrays:
      digest.update(tokens.tobytes())
  return digest.hexdigest()
