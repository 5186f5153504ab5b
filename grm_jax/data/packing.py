"""Packs several short sequences into one row: SFT without padding.

A packed row is a TokenizedExample whose `prompt` holds whole sequences one
after the other, each a prompt and one generation. Sequences of a row do not
attend to each other (see `segment_ids` in model/batch.py), so a packed batch
has the same loss as its sequences in rows of their own.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from grm_jax.data.tokenized_example import BatchShape, TokenizedExample

# (example, tokens of one of its generations)
_Sequence = tuple[TokenizedExample, np.ndarray]


def packed_row_length(shape: BatchShape) -> int:
  """Returns S of packed rows: long enough for any example that fits `shape`."""
  return shape.prompt_buckets[-1] + shape.generation_buckets[-1]


def pack(
  examples: Sequence[TokenizedExample], row_length: int
) -> list[TokenizedExample]:
  """Packs sequences by best-fit-decreasing bin packing.

  Sequences are placed longest first, each into the row that it leaves the
  least space in. All sequences of a row have the same source, so that mixture
  rates apply to rows. Every generation becomes a sequence of its own: packing
  does not share prompts.

  Args:
    examples: with generations; see tokenized_example.partition_by_fit.
    row_length: S, tokens of a row at most; see `packed_row_length`.

  Raises:
    ValueError: a sequence is longer than `row_length`.
  """
  sequences = [
    (example, tokens) for example in examples for tokens in example.generations
  ]
  sequences.sort(key=_length, reverse=True)  # stable: equal lengths keep order
  if sequences and _length(sequences[0]) > row_length:
    raise ValueError(
      f'example {sequences[0][0].id!r} has {_length(sequences[0])} tokens, a '
      f'packed row has {row_length}; drop the example or pack longer rows'
    )
  rows = []
  for source in dict.fromkeys(example.source for example, _ in sequences):
    of_source = [x for x in sequences if x[0].source == source]
    rows += [_make_row(members) for members in _best_fit(of_source, row_length)]
  return rows


def _length(sequence: _Sequence) -> int:
  example, generation = sequence
  return len(example.prompt) + len(generation)


def _best_fit(
  sequences: Sequence[_Sequence], row_length: int
) -> list[list[_Sequence]]:
  """Groups sequences, longest first, into rows of at most `row_length`."""
  rows: list[list[_Sequence]] = []
  open_rows: list[tuple[int, int]] = []  # ascending (space left, row index)
  for sequence in sequences:
    length = _length(sequence)
    # The first entry with space >= length; -1 is below every row index.
    fit = bisect.bisect_left(open_rows, (length, -1))
    if fit == len(open_rows):
      space, index = row_length, len(rows)
      rows.append([])
    else:
      space, index = open_rows.pop(fit)
    rows[index].append(sequence)
    bisect.insort(open_rows, (space - length, index))
  return rows


def _make_row(sequences: Sequence[_Sequence]) -> TokenizedExample:
  arrays = [
    x for example, tokens in sequences for x in (example.prompt, tokens)
  ]
  return TokenizedExample(
    id=' '.join(example.id for example, _ in sequences),
    prompt=np.concatenate(arrays),
    generations=(),
    source=sequences[0][0].source,
    packed_lengths=tuple((len(x.prompt), len(y)) for x, y in sequences),
  )


def segment_ids_and_loss_mask(
  packed_lengths: Sequence[tuple[int, int]], row_length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns segment_ids (int32 [S]) and loss_mask (bool [S]) of a packed row.

  Args:
    packed_lengths: see TokenizedExample.
    row_length: S.

  Returns:
    segment_ids: index of the sequence that each position belongs to; padding
      is a segment of its own after the last sequence.
    loss_mask: True at generation tokens.
  """
  segment_ids = np.full(row_length, len(packed_lengths), np.int32)
  loss_mask = np.zeros(row_length, bool)
  start = 0
  for index, (prompt, generation) in enumerate(packed_lengths):
    end = start + prompt + generation
    segment_ids[start:end] = index
    loss_mask[start + prompt : end] = True
    start = end
  return segment_ids, loss_mask
