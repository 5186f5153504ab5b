"""Tokenised training data, and which of it fits into a batch."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from grm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedExample:
  """A prompt and what was written after it, as token ids.

  Attributes:
    id: unique within its source.
    prompt: int32 [S].
    generations: int32 [T] each; none where a rollout is to write them.
    source: which part of a mixture it belongs to.
    parts: of a packed row, see packing.py: the tokens of the prompt and of
      the generation of each text in it; all of them are in `prompt`.
  """

  id: str
  prompt: np.ndarray
  generations: tuple[np.ndarray, ...]
  source: str
  parts: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    for tokens in (self.prompt, *self.generations):
      if tokens.ndim != 1 or tokens.dtype != np.int32:
        raise ValueError(
          f'record {self.id!r} of source {self.source!r} has tokens of '
          f'{tokens.dtype} {tokens.shape}; they are int32 of rank 1'
        )


def tokens_of(ids: Sequence[int]) -> np.ndarray:
  """int32 ids, as a Record holds them."""
  return np.asarray(ids, np.int32)


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """What a batch has place for; make one with `limits`.

  Attributes:
    buckets: ascending lengths that prompts are padded to.
    sizes: ascending lengths that generations are padded to.
    rows: R, generations of each prompt; 0 for prompts alone.
  """

  buckets: tuple[int, ...]
  sizes: tuple[int, ...]
  rows: int


def limits(
  buckets: int | Sequence[int],
  size: int | Sequence[int],
  rows: int,
  key: str = 'config.batch',
) -> BatchShape:
  """The Limits that `config.batch` describes.

  Args:
    buckets, size: a length, or several in any order.
    rows: see Limits.
    key: config key that they are under, for messages.

  Raises:
    UserError: no length, a length below 1, or negative rows.
  """
  if rows < 0:
    raise UserError(f'{key}.rows is {rows}; it must be 0 or more')
  return BatchShape(
    lengths(f'{key}.buckets', buckets), lengths(f'{key}.size', size), rows
  )


def lengths(key: str, given: int | Sequence[int]) -> tuple[int, ...]:
  """The lengths of a setting, ascending; UserError if they are none.

  Args:
    key: its config key, for messages.
    given: a length, or several in any order.
  """
  several = (given,) if isinstance(given, int) else tuple(given)
  if not several or min(several) < 1:
    raise UserError(f'{key} is {given}; it must be one or more lengths above 0')
  return tuple(sorted(set(several)))


def fits(record: TokenizedExample, limits: BatchShape) -> str | None:
  """Why a record cannot be in a batch, None if it can.

  More generations than rows are no reason: each epoch takes its share.
  """
  if not len(record.prompt):
    return 'its prompt has no tokens; it must begin with bos'
  if len(record.prompt) > limits.buckets[-1]:
    return (
      f'its prompt has {len(record.prompt)} tokens, config.batch.prompt_buckets '
      f'allows {limits.buckets[-1]}'
    )
  if not limits.rows or record.parts:
    return None
  if not record.generations:
    return f'it has no generations, config.batch.generations_per_prompt is {limits.rows}'
  longest = max(map(len, record.generations))
  if longest > limits.sizes[-1]:
    return (
      f'its longest generation has {longest} tokens, config.batch.generation_buckets allows '
      f'{limits.sizes[-1]}'
    )
  return None


def usable(
  records: Sequence[TokenizedExample], limits: BatchShape
) -> tuple[list[TokenizedExample], list[tuple[str, str]]]:
  """Parts records that fit from those that do not; nothing is cut.

  Returns:
    The records that fit, in order, and (id, reason) of the others.
  """
  kept, left_out = [], []
  for record in records:
    reason = fits(record, limits)
    if reason is None:
      kept.append(record)
    else:
      left_out.append((record.id, reason))
  return kept, left_out


def fingerprint(records: Sequence[TokenizedExample]) -> str:
  """16 hexadecimal digits that change with any id, token, or their order."""
  digest = hashlib.blake2b(digest_size=8)
  for record in records:
    arrays = (record.prompt, *record.generations)
    # The lengths keep arrays apart that follow each other.
    head = [record.source, record.id, *map(len, arrays), *record.parts]
    digest.update(json.dumps(head).encode())
    for tokens in arrays:
      digest.update(np.ascontiguousarray(tokens))
  return digest.hexdigest()
