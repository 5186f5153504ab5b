"""The host side of the engine: assigns samples to rows. It imports no JAX.

Each of P slots holds a prompt, and its R rows generate samples of that prompt.
A row whose sample has ended gets the next sample of the same prompt. A slot
whose samples have all ended gets the next prompt.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from grm_jax.sampling.request import Request, row_key


@dataclasses.dataclass
class ActiveSample:
  """A sample that is being generated.

  Attributes:
    request: the request of the sample.
    sample: number of the sample in the request.
    key: uint32 [2], its random key.
    max_tokens: maximum length.
    tokens: token ids so far.
    sampling_logps, model_logps: log-probabilities of these tokens.
    num_checked: leading tokens that contain no stop string.
    finish: why the sample ended; '' while it runs.
  """

  request: Request
  sample: int
  key: np.ndarray
  max_tokens: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  sampling_logps: list[float] = dataclasses.field(default_factory=list)
  model_logps: list[float] = dataclasses.field(default_factory=list)
  num_checked: int = 0
  finish: str = ''

  def truncate(self, length: int, finish: str) -> None:
    """Ends the sample after `length` tokens."""
    for values in (self.tokens, self.sampling_logps, self.model_logps):
      del values[length:]
    self.finish = finish


@dataclasses.dataclass
class PromptSlot:
  """A prompt slot: its request, the samples started so far, and its R rows."""

  request: Request | None
  num_started: int
  rows: list[ActiveSample | None]


class SlotTable:
  """The requests and samples in P slots of R rows."""

  def __init__(self, num_slots: int, num_rows: int, max_new_tokens: int):
    self.max_new_tokens = max_new_tokens
    self.slots = [
      PromptSlot(None, 0, [None] * num_rows) for _ in range(num_slots)
    ]

  def free_slots(self) -> list[int]:
    """Returns the numbers of the slots without a prompt."""
    return [i for i, slot in enumerate(self.slots) if slot.request is None]

  def requests(self) -> list[Request]:
    """Returns the requests in the slots."""
    return [slot.request for slot in self.slots if slot.request is not None]

  def rows(self) -> Iterator[tuple[int, int, ActiveSample]]:
    """Yields (slot number, row number, sample) of every row in use."""
    for p, slot in enumerate(self.slots):
      yield from ((p, r, row) for r, row in enumerate(slot.rows) if row)

  def admit(self, slot_number: int, request: Request) -> None:
    """Puts a request into a free slot and starts its first samples."""
    slot = self.slots[slot_number]
    slot.request, slot.num_started = request, 0
    for r in range(len(slot.rows)):
      self._start_next_sample(slot, r)

  def drop(self, request_ids: Collection[str]) -> None:
    """Frees the slots of these requests and discards their samples."""
    for slot in self.slots:
      if slot.request is not None and slot.request.id in request_ids:
        slot.request, slot.rows = None, [None] * len(slot.rows)

  def collect(
    self,
    counts: np.ndarray,
    finishes: Sequence[Sequence[str]],
    tokens: np.ndarray,
    sampling_logps: np.ndarray,
    model_logps: np.ndarray,
  ) -> list[ActiveSample]:
    """Appends the tokens of one decode call and refills the ended rows.

    Args:
      counts: int [P, R], tokens of each row in this call.
      finishes: [P][R], why a row ended; '' if it is running.
      tokens: int [P, R, C].
      sampling_logps: float [P, R, C].
      model_logps: float [P, R, C].

    Returns:
      The samples that have ended.
    """
    ended = []
    for p, r, row in list(self.rows()):
      # A row that met a stop string during the call ignores its new tokens.
      if not row.finish:
        n = counts[p, r]
        row.tokens += tokens[p, r, :n].tolist()
        row.sampling_logps += sampling_logps[p, r, :n].tolist()
        row.model_logps += model_logps[p, r, :n].tolist()
        row.finish = finishes[p][r]
      if row.finish:
        ended.append(row)
        self._start_next_sample(self.slots[p], r)
    for slot in self.slots:
      if not any(slot.rows):
        slot.request = None
    return ended

  def _start_next_sample(self, slot: PromptSlot, r: int) -> None:
    """Starts the next sample of the slot's request in row r, if one is left."""
    request, sample = slot.request, slot.num_started
    assert request is not None
    if sample == request.num_samples:
      slot.rows[r] = None
      return
    slot.num_started += 1
    max_tokens = request.max_tokens or self.max_new_tokens
    slot.rows[r] = ActiveSample(
      request, sample, row_key(request, sample), max_tokens
    )
