"""Which row draws which sample: the host's side of the engine, without JAX.

P slots hold a prompt each, R rows of a slot draw samples of its prompt. A row
that ends is given the next sample of the same prompt; a slot whose samples
have all ended is given the next prompt.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from grm_jax.sampling.request import Request, row_key


@dataclasses.dataclass
class ActiveSample:
  """One sample on its way.

  Attributes:
    request, sample: which.
    key: uint32 [2], its randomness.
    max_tokens: most tokens.
    tokens, sampling_logps, model_logps: what was drawn so far.
    checked: tokens that were searched for stop strings.
    finish: why it ended, '' while it runs.
  """

  request: Request
  sample: int
  key: np.ndarray
  max_tokens: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  sampling_logps: list[float] = dataclasses.field(default_factory=list)
  model_logps: list[float] = dataclasses.field(default_factory=list)
  checked: int = 0
  finish: str = ''

  def cut(self, length: int, finish: str) -> None:
    """Ends it after `length` tokens."""
    for values in (self.tokens, self.sampling_logps, self.model_logps):
      del values[length:]
    self.finish = finish


@dataclasses.dataclass
class PromptSlot:
  """A prompt's place: its request, samples begun so far, and its R rows."""

  request: Request | None
  begun: int
  rows: list[ActiveSample | None]


class SlotTable:
  """P slots of R rows, and who is in them."""

  def __init__(self, prompts: int, rows: int, size: int):
    """`size` is T, the most tokens of a row."""
    self.size = size
    self.slots = [PromptSlot(None, 0, [None] * rows) for _ in range(prompts)]

  def free(self) -> list[int]:
    """Numbers of the slots without a prompt."""
    return [i for i, slot in enumerate(self.slots) if slot.request is None]

  def requests(self) -> list[Request]:
    """Requests that are in a slot."""
    return [slot.request for slot in self.slots if slot.request is not None]

  def rows(self) -> Iterator[tuple[int, int, ActiveSample]]:
    """(slot, row, sample) of every row that is in use."""
    for p, slot in enumerate(self.slots):
      yield from ((p, r, row) for r, row in enumerate(slot.rows) if row)

  def admit(self, number: int, request: Request) -> None:
    """Puts a request into a free slot and begins its samples."""
    slot = self.slots[number]
    slot.request, slot.begun = request, 0
    for r in range(len(slot.rows)):
      self._begin(slot, r)

  def drop(self, ids: Collection[str]) -> None:
    """Frees the slots of these requests, whatever their rows have written."""
    for slot in self.slots:
      if slot.request is not None and slot.request.id in ids:
        slot.request, slot.rows = None, [None] * len(slot.rows)

  def collect(
    self,
    counts: np.ndarray,
    finished: Sequence[Sequence[str]],
    *drawn: np.ndarray,
  ) -> list[ActiveSample]:
    """Writes down what a call of `decode` drew; ended rows make place.

    Args:
      counts: int [P, R], tokens drawn.
      finished: [P][R], why a row ended, '' if it runs on.
      *drawn: tokens, sampling_logps and model_logps, [P, R, C].

    Returns:
      The rows that have ended.
    """
    ended = []
    for p, r, row in list(self.rows()):
      if not row.finish:  # else it has met a stop string meanwhile
        n = counts[p, r]
        row.tokens += drawn[0][p, r, :n].tolist()
        row.sampling_logps += drawn[1][p, r, :n].tolist()
        row.model_logps += drawn[2][p, r, :n].tolist()
        row.finish = finished[p][r]
      if row.finish:
        ended.append(row)
        self._begin(self.slots[p], r)
    for slot in self.slots:
      if not any(slot.rows):
        slot.request = None
    return ended

  def _begin(self, slot, r):
    """Row r draws the next sample of its slot's prompt, or nothing."""
    request, sample = slot.request, slot.begun
    if sample == request.num_samples:
      slot.rows[r] = None
      return
    slot.begun += 1
    most = self.size if request.max_tokens is None else request.max_tokens
    slot.rows[r] = ActiveSample(request, sample, row_key(request, sample), most)
