"""Several short texts in one row: fine-tuning without padding.

A packed row is a Record whose prompt holds whole texts, one after the other,
each a prompt and its one generation. They do not see each other (model/batch
.py, segments), so that a packed batch has the loss of its texts apart.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from grm_jax.data.tokenized_example import BatchShape, TokenizedExample


def room(limits: BatchShape) -> int:
  """Places of a packed row: all that fits apart fits a row, too."""
  return limits.buckets[-1] + limits.sizes[-1]


def pack(
  records: Sequence[TokenizedExample], size: int
) -> list[TokenizedExample]:
  """Rows of at most `size` tokens; each text of a row is of one source.

  The longest text comes first, and each goes where it leaves the least room
  (best fit, decreasing). Every generation is a text of its own: packing
  shares no prompts.

  Args:
    records: with generations; see records.usable.
    size: S, places of a row; see `room`.

  Raises:
    ValueError: a text longer than `size`.
  """
  texts = [
    (record, tokens) for record in records for tokens in record.generations
  ]
  texts.sort(key=lambda text: -_length(text))
  if texts and _length(texts[0]) > size:
    record = texts[0][0]
    raise ValueError(
      f'{record.id!r} has {_length(texts[0])} tokens, a packed row has {size}; '
      'leave it out, or give longer rows'
    )
  rows = []
  for source in dict.fromkeys(record.source for record, _ in texts):
    own = [text for text in texts if text[0].source == source]
    rows += [_row(members) for members in _fill(own, size)]
  return rows


def _length(text):
  return len(text[0].prompt) + len(text[1])


def _fill(texts, size):
  """Lists of texts that fit into a row."""
  rooms, rows = [], []  # rooms: ascending (room left, number of the row)
  for text in texts:
    at = bisect.bisect_left(rooms, (_length(text), -1))
    if at == len(rooms):
      room, number = size, len(rows)
      rows.append([])
    else:
      room, number = rooms.pop(at)
    rows[number].append(text)
    bisect.insort(rooms, (room - _length(text), number))
  return rows


def _row(texts) -> TokenizedExample:
  arrays = [x for record, tokens in texts for x in (record.prompt, tokens)]
  return TokenizedExample(
    id=' '.join(record.id for record, _ in texts),
    prompt=np.concatenate(arrays),
    generations=(),
    source=texts[0][0].source,
    parts=tuple((len(record.prompt), len(x)) for record, x in texts),
  )


def places(
  parts: Sequence[tuple[int, int]], size: int
) -> tuple[np.ndarray, np.ndarray]:
  """(segments int32, targets bool) [S] of a row with these texts.

  Padding is a segment of its own, without targets.
  """
  segments = np.full(size, len(parts), np.int32)
  targets = np.zeros(size, bool)
  at = 0
  for number, (prompt, generation) in enumerate(parts):
    end = at + prompt + generation
    segments[at:end] = number
    targets[at + prompt : end] = True
    at = end
  return segments, targets
