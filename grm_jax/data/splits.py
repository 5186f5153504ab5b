"""Train, validation, held out: which is fixed by the question alone.

A hash of the question decides, so that no order, subset or mixture of rows
ever puts a question into two splits, and a question that two sources share is
in the same split of both.
"""

import hashlib

from grm_jax.judgement.example import JudgingExample

SPLITS = ('train', 'validation', 'held_out')  # 80, 10 and 10 of 100


def of(example: JudgingExample) -> str:
  """The split of an example, by SHA-256 of its question.

  The question is the user's first turn, so that a conversation stays with its
  continuations; case and white space do not matter.
  """
  text = next(turn.text for turn in example.query if turn.role == 'user')
  folded = ' '.join(text.lower().split())
  # JSON can hold half a surrogate pair, which plain UTF-8 cannot.
  found = hashlib.sha256(folded.encode('utf-8', 'surrogatepass')).digest()
  tenth = int.from_bytes(found[:8], 'big') % 10
  return SPLITS[max(0, tenth - 7)]


def check(split: str) -> None:
  """Raises ValueError if there is no such split."""
  if split not in SPLITS:
    raise ValueError(f'split is {split!r}, none of {", ".join(SPLITS)}')
