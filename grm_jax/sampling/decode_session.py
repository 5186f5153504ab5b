"""The device side of one run of the engine: weights, prompt slots and rows."""

from collections.abc import Sequence

import numpy as np

from grm_jax.sampling.compiled_functions import CompiledFunctions, idle_rows
from grm_jax.sampling.decode_state import (
  DecodeOutput,
  DecodeState,
  DecodeWeights,
  PromptSlots,
  RowState,
)
from grm_jax.sampling.padding import pad_prompts
from grm_jax.sampling.request import Request
from grm_jax.sampling.slot_scheduler import SlotTable


class DecodeSession:
  """The caches of one run, which are freed together with the run."""

  def __init__(self, compiled: CompiledFunctions, weights: DecodeWeights):
    """Allocates nothing before the first prompt."""
    self._compiled, self._weights = compiled, weights
    self._slots: PromptSlots | None = None
    self._state: DecodeState | None = None
    self._bucket = 0  # the length S of the slots

  def add_prompts(
    self, admitted: Sequence[tuple[int, Request]], max_length: int
  ) -> None:
    """Computes prompts and puts them into their slots.

    Args:
      admitted: (slot number, request) of each prompt.
      max_length: length of the longest prompt in any slot.
    """
    shapes = self._compiled.shapes
    self._fit_slots(shapes.prompt_bucket(max_length))
    # Prompts of similar lengths share a prefill and so a short bucket.
    by_length = sorted(admitted, key=lambda item: len(item[1].prompt))
    for first in range(0, len(by_length), shapes.prefill_prompts):
      self._prefill(by_length[first : first + shapes.prefill_prompts])

  def decode(self, table: SlotTable) -> DecodeOutput:
    """Starts C steps for the rows of the table; does not wait for them."""
    shapes = self._compiled.shapes
    rows = _row_state(table, shapes.rows)
    cache_length = shapes.cache_length(int(rows.lengths.max()))
    assert self._slots is not None and self._state is not None
    self._state, output = self._compiled.decode(
      self._weights, self._bucket, cache_length, self._slots, rows, self._state
    )
    return output

  def _fit_slots(self, bucket: int) -> None:
    """Makes or resizes the slots, so that they hold `bucket` positions."""
    if self._slots is None:
      self._slots = self._compiled.empty_slots(bucket)
      self._state = self._compiled.init_state()
    elif self._bucket != bucket:
      self._slots = self._compiled.resize(self._slots, self._bucket, bucket)
    self._bucket = bucket

  def _prefill(self, admitted: Sequence[tuple[int, Request]]) -> None:
    """Computes up to A prompts and puts them into their slots."""
    shapes = self._compiled.shapes
    count = shapes.prefill_prompts
    # The last prompt fills the batch up. Inserting it several times into its
    # own slot is harmless.
    padded = [*admitted, *[admitted[-1]] * (count - len(admitted))]
    token_ids = [request.prompt for _, request in padded]
    bucket = shapes.prompt_bucket(max(map(len, token_ids)))
    batch = pad_prompts(token_ids, count, bucket)
    slot_numbers = np.array([number for number, _ in padded], np.int32)
    prompts = self._compiled.prefill(self._weights, bucket, batch)
    assert self._slots is not None  # _fit_slots has made them
    self._slots = self._compiled.insert(
      self._slots, prompts, slot_numbers, bucket, self._bucket
    )


def _row_state(table: SlotTable, shape: tuple[int, int]) -> RowState:
  """Returns the rows of the table as host arrays [P, R]."""
  state = idle_rows(shape)
  sampling = state.sampling
  for p, r, row in table.rows():
    request = row.request
    sampling.temperature[p, r] = request.temperature
    sampling.top_k[p, r] = request.top_k
    sampling.top_p[p, r] = request.top_p
    sampling.min_p[p, r] = request.min_p
    state.keys[p, r] = row.key
    state.lengths[p, r] = len(row.tokens)
    state.max_tokens[p, r] = row.max_tokens
  return state
