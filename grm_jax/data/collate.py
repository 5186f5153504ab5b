"""From records to the padded arrays of a batch.

A batch is padded to the smallest of a few lengths that its longest prompt
fits, its generations to the smallest of a few sizes, so that few programs are
compiled.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from grm_jax.data import packing
from grm_jax.data.mixture import permutation
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.model.batch import Batch


@dataclasses.dataclass(frozen=True)
class BatchItem:
  """What becomes one prompt of a batch.

  Attributes:
    record: None for a dummy.
    epoch: of its source, from 0.
    chosen: which of the record's generations, ascending; at most R.
  """

  record: TokenizedExample | None
  epoch: int
  chosen: tuple[int, ...]

  @property
  def prompt_length(self) -> int:
    """Tokens of the prompt; a dummy has one."""
    return len(self.record.prompt) if self.record else 1

  @property
  def generation_lengths(self) -> list[int]:
    """Tokens of the chosen generations."""
    return [len(self.record.generations[i]) for i in self.chosen]


@dataclasses.dataclass(frozen=True)
class BatchInfo:
  """What a global batch is made of; the same on all processes.

  Attributes:
    ids, sources: [P], None for dummies.
    epochs: [P], of the source, from 0.
    chosen: [P], which generation of the record each row holds, ascending;
      rows beyond them are empty.
    lengths: of each text, packed or not, without dummies: tokens of its
      prompt, and of its generations.
    tokens: of 'prompts' and 'generations', without padding and dummies.
    places: of 'prompts' P * S, of 'generations' P * R * T.
  """

  ids: tuple[str | None, ...]
  sources: tuple[str | None, ...]
  epochs: tuple[int, ...]
  chosen: tuple[tuple[int, ...], ...]
  lengths: tuple[tuple[int, tuple[int, ...]], ...]
  tokens: dict[str, int]
  places: dict[str, int]


def item(
  record: TokenizedExample, limits: BatchShape, seed: int, epoch: int
) -> BatchItem:
  """The Item of a record, with at most R of its generations.

  Where it has more, each epoch takes the next R of a shuffled circle of them,
  so that all of them are used equally often.
  """
  n, rows = len(record.generations), limits.rows
  if not rows or n <= rows:
    return BatchItem(record, epoch, tuple(range(min(n, rows))))
  circle = permutation(n, seed, 'rows', record.source, record.id)
  chosen = circle[(epoch * rows + np.arange(rows)) % n]
  return BatchItem(record, epoch, tuple(sorted(chosen.tolist())))


def padded_shape(
  items: Sequence[BatchItem], limits: BatchShape
) -> tuple[int, int]:
  """(S, T) that these items are padded to."""
  prompt = max(item.prompt_length for item in items)
  generation = max((n for i in items for n in i.generation_lengths), default=0)
  return _smallest(limits.buckets, prompt), _smallest(limits.sizes, generation)


def _smallest(lengths, length):
  return next(least for least in lengths if length <= least)


def pad(
  items: Sequence[BatchItem], limits: BatchShape, rows_of_process: np.ndarray
) -> Batch:
  """The arrays of some of a batch's items.

  Args:
    items: P, the whole batch: all of them decide what it is padded to.
    limits: all items fit them.
    rows_of_process: ints [p], which of the items.

  Returns:
    NumPy arrays [p, S], [p], [p, R, T], [p, R]; padding is 0. Without rows
    there are no generations.
  """
  s, t = padded_shape(items, limits)
  p = len(rows_of_process)
  prompts, lengths = np.zeros((p, s), np.int32), np.ones(p, np.int32)
  generations = np.zeros((p, limits.rows, t), np.int32)
  generation_lengths = np.zeros((p, limits.rows), np.int32)
  for place, number in enumerate(rows_of_process):
    record = items[number].record
    if record is None:
      continue
    lengths[place] = len(record.prompt)
    prompts[place, : len(record.prompt)] = record.prompt
    for row, i in enumerate(items[number].chosen):
      tokens = record.generations[i]
      generation_lengths[place, row] = len(tokens)
      generations[place, row, : len(tokens)] = tokens
  if _packed(items):
    return Batch(prompts, lengths, **_packed_places(items, s, rows_of_process))
  if not limits.rows:
    return Batch(prompts, lengths)
  return Batch(prompts, lengths, generations, generation_lengths)


def _packed(items):
  return any(item.record and item.record.parts for item in items)


def _packed_places(items, size, rows_of_process):
  """Segments and targets [p, S]; a dummy is one text of no generation."""
  chosen = (items[number].record for number in rows_of_process)
  found = [packing.places(r.parts if r else ((1, 0),), size) for r in chosen]
  segments, targets = zip(*found, strict=True)
  return {'segments': np.stack(segments), 'targets': np.stack(targets)}


def describe(items: Sequence[BatchItem], limits: BatchShape) -> BatchInfo:
  """The Meta of a global batch."""
  s, t = padded_shape(items, limits)
  records = [item.record for item in items]
  return BatchInfo(
    ids=tuple(r and r.id for r in records),
    sources=tuple(r and r.source for r in records),
    epochs=tuple(item.epoch for item in items),
    chosen=tuple(item.chosen for item in items),
    lengths=tuple(x for item in items for x in _lengths(item)),
    tokens={
      'prompts': sum(len(r.prompt) for r in records if r),
      'generations': sum(n for i in items for n in i.generation_lengths),
    },
    places={
      'prompts': len(items) * s,
      'generations': len(items) * limits.rows * t,
    },
  )


def _lengths(item):
  if item.record is None:
    return []
  if item.record.parts:
    return [(prompt, (own,)) for prompt, own in item.record.parts]
  return [(item.prompt_length, tuple(item.generation_lengths))]
