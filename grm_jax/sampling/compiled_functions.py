"""The functions of decode.py, compiled once for each shape of an engine.

Sampling parameters are traced, so the shapes alone decide what is compiled.
With n prompt buckets and m cache lengths these are n times prefill and
empty_slots, n * m times decode, n * (n + 1) / 2 times insert (a short prompt
into longer slots), n * (n - 1) times resize, and init_state: 5 functions for
n = m = 1, 31 for three buckets and four cache lengths.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from grm_jax.errors import UserError
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode, decode_state, token_sampling
from grm_jax.sampling.decode_state import (
  DecodeOutput,
  DecodeState,
  DecodeWeights,
  PromptSlots,
  RowState,
)
from grm_jax.sampling.padding import pad_prompts


@dataclasses.dataclass(frozen=True)
class EngineShapes:
  """Static shapes of an engine.

  Attributes:
    prompts: P, prompt slots.
    generations_per_prompt: R, rows of a slot.
    max_new_tokens: T, the maximum length of a generation.
    decode_steps_per_call: C, steps of one call of `decode`.
    prefill_prompts: A, prompts of one prefill.
    prompt_buckets: lengths that prompts are padded to, ascending.
    num_cache_lengths: m, the number of lengths of the generation caches for
      which `decode` is compiled.
  """

  prompts: int
  generations_per_prompt: int
  max_new_tokens: int
  decode_steps_per_call: int
  prefill_prompts: int
  prompt_buckets: tuple[int, ...]
  num_cache_lengths: int = 1

  def __post_init__(self):
    if not self.prompt_buckets:
      raise UserError('prompt_buckets is empty; give at least one length')
    smallest = dataclasses.asdict(self)
    smallest['prompt_buckets'] = self.prompt_buckets[0]
    for name, value in smallest.items():
      if value < 1:
        raise UserError(f'{name} is {value}; set it to at least 1')

  @property
  def rows(self) -> tuple[int, int]:
    """The shape [P, R] of the rows."""
    return self.prompts, self.generations_per_prompt

  def prompt_bucket(self, length: int) -> int:
    """Returns the smallest bucket that holds `length` prompt tokens."""
    return next(x for x in self.prompt_buckets if length <= x)

  def cache_lengths(self) -> list[int]:
    """Returns up to m multiples of C, evenly spaced up to the full cache."""
    steps = self.decode_steps_per_call
    full = decode_state.generation_cache_size(self.max_new_tokens, steps)
    num_calls = full // steps
    count = min(self.num_cache_lengths, num_calls)
    return [-(-num_calls * i // count) * steps for i in range(1, count + 1)]

  def cache_length(self, length: int) -> int:
    """Returns the smallest cache length that holds `length` tokens."""
    return next(x for x in self.cache_lengths() if length <= x)


class CompiledFunctions:
  """Calls the functions of decode.py; each is compiled at its first call."""

  def __init__(
    self,
    model: Transformer,
    shapes: EngineShapes,
    stop_ids: Sequence[int],
    forbidden_ids: Sequence[int],
  ):
    """Compiles nothing yet.

    Raises:
      UserError: the mesh does not divide the numbers of prompts.
      ValueError: a token id is outside the vocabulary.
    """
    for token in (*stop_ids, *forbidden_ids):
      if not 0 <= token < model.config.vocab_size:
        raise ValueError(
          f'token id {token} is outside the vocabulary of '
          f'{model.config.vocab_size}'
        )
    check_divisible(model, 'prompts', shapes.prompts)
    check_divisible(model, 'prefill_prompts', shapes.prefill_prompts)
    self.model, self.shapes = model, shapes
    forbidden = np.zeros(model.config.padded_vocab_size, bool)
    forbidden[list(forbidden_ids)] = True
    self._slots, self._state, replicated = decode_state.shardings(model)
    # On the device once, not with every call.
    self._stop_ids, self._forbidden = jax.device_put(
      (np.asarray(stop_ids, np.int32), forbidden), replicated
    )
    self._compiled: dict[tuple, Callable] = {}

  def count(self) -> int:
    """Returns the number of functions compiled so far."""
    return len(self._compiled)

  def max_count(self) -> int:
    """Returns the number of functions that can be compiled."""
    n, m = len(self.shapes.prompt_buckets), len(self.shapes.cache_lengths())
    return (2 + m) * n + n * (n + 1) // 2 + n * (n - 1) + 1

  def warm_up(self, weights: DecodeWeights) -> int:
    """Compiles every function; returns their number."""
    shapes = self.shapes
    rows = idle_rows(shapes.rows)
    slot_numbers = np.zeros(shapes.prefill_prompts, np.int32)
    for bucket in shapes.prompt_buckets:
      slots = self.empty_slots(bucket)
      for length in shapes.cache_lengths():
        self.decode(weights, bucket, length, slots, rows, self.init_state())
      batch = pad_prompts([], shapes.prefill_prompts, bucket)
      for other in shapes.prompt_buckets:
        if other != bucket:
          self.resize(self.empty_slots(bucket), bucket, other)
        if other >= bucket:
          prompts = self.prefill(weights, bucket, batch)
          slots = self.empty_slots(other)
          self.insert(slots, prompts, slot_numbers, bucket, other)
    return self.count()

  def prefill(
    self, weights: DecodeWeights, bucket: int, batch: Batch
  ) -> PromptSlots:
    """Computes A prompts padded to `bucket`; see decode.prefill."""
    function = functools.partial(decode.prefill, self.model)
    return self._call(
      ('prefill', bucket), self._returning_slots(function), weights, batch
    )

  def empty_slots(self, bucket: int) -> PromptSlots:
    """Returns P empty slots; see decode_state.empty_slots."""
    function = functools.partial(
      decode_state.empty_slots, self.model, self.shapes.prompts, bucket
    )
    return self._call(('empty_slots', bucket), self._returning_slots(function))

  def init_state(self) -> DecodeState:
    """Returns the state of P x R rows; see decode_state.init_state."""
    function = functools.partial(_init_state, self.model, self.shapes)
    return self._call(
      ('init_state',), lambda: jax.jit(function, out_shardings=self._state)
    )

  def insert(
    self,
    slots: PromptSlots,
    prompts: PromptSlots,
    slot_numbers: np.ndarray,
    bucket: int,
    slot_bucket: int,
  ) -> PromptSlots:
    """Puts prompts of `bucket` into slots of `slot_bucket`, donated."""
    return self._call(
      ('insert', bucket, slot_bucket),
      self._returning_slots(decode.insert, donate_argnums=(0,)),
      *(slots, prompts, slot_numbers),
    )

  def resize(
    self, slots: PromptSlots, bucket: int, new_bucket: int
  ) -> PromptSlots:
    """Changes the length of slots of `bucket`; see decode.resize."""
    function = functools.partial(
      decode.resize, self.model, prompt_size=new_bucket
    )
    make = self._returning_slots(function)
    return self._call(('resize', bucket, new_bucket), make, slots)

  def decode(
    self,
    weights: DecodeWeights,
    bucket: int,
    cache_length: int,
    slots: PromptSlots,
    rows: RowState,
    state: DecodeState,
  ) -> tuple[DecodeState, DecodeOutput]:
    """Samples up to C tokens of every row; `state` is donated."""
    steps = self.shapes.decode_steps_per_call
    return self._call(
      ('decode', bucket, cache_length),
      lambda: decode_jit(self.model, steps, cache_length),
      *(weights, slots, rows, state, self._stop_ids, self._forbidden),
    )

  def _returning_slots(self, function, **options):
    return lambda: jax.jit(function, out_shardings=self._slots, **options)

  def _call(self, key, make, *args):
    """Runs the function of `key`; `make` returns the jitted form of it.

    Compilation is ahead of time: a compiled function rejects other shapes, so
    nothing is ever compiled unnoticed.
    """
    if key not in self._compiled:
      self._compiled[key] = make().lower(*args).compile()
    return self._compiled[key](*args)


def check_divisible(model: Transformer, name: str, value: int) -> None:
  """Raises UserError if the mesh does not divide a number of prompts."""
  ways = model.layout.num_shards('prompts')
  if value % ways:
    raise UserError(
      f'{name} is {value}, but the mesh splits prompts {ways} ways; set it to '
      f'a multiple of {ways}'
    )


def decode_jit(
  model: Transformer, num_steps: int, cache_length: int
) -> Callable:
  """Returns decode.decode jitted with its shardings; `state` is donated."""
  _, state, replicated = decode_state.shardings(model)
  return jax.jit(
    functools.partial(decode.decode, model, num_steps, cache_length),
    out_shardings=(state, replicated),
    donate_argnums=(3,),
  )


def decode_arguments(
  model: Transformer, shapes: EngineShapes, bucket: int
) -> tuple:
  """Returns decode_jit's arguments after the weights, as ShapeDtypeStructs."""
  slots_sharding, state_sharding, replicated = decode_state.shardings(model)
  slots = jax.eval_shape(
    lambda: decode_state.empty_slots(model, shapes.prompts, bucket)
  )
  state = jax.eval_shape(lambda: _init_state(model, shapes))
  slots, state = jax.tree.map(
    _with_sharding, (slots, state), (slots_sharding, state_sharding)
  )
  stop_ids = np.zeros(1, np.int32)
  forbidden = np.zeros(model.config.padded_vocab_size, bool)
  rows, stop_ids, forbidden = jax.tree.map(
    lambda x: _with_sharding(x, replicated),
    (idle_rows(shapes.rows), stop_ids, forbidden),
  )
  return slots, rows, state, stop_ids, forbidden


def idle_rows(shape: tuple[int, int]) -> RowState:
  """Returns [P, R] rows that sample nothing, as arrays on the host."""
  integers: dict[str, Any] = {
    name: np.zeros(shape, np.int32)
    for name in ('top_k', 'lengths', 'max_tokens')
  }
  floats: dict[str, Any] = {
    'temperature': np.ones(shape, np.float32),
    'top_p': np.ones(shape, np.float32),
    'min_p': np.zeros(shape, np.float32),
  }
  keys: Any = np.zeros((*shape, 2), np.uint32)
  return RowState(
    token_sampling.SamplingParams(top_k=integers.pop('top_k'), **floats),
    keys=keys,
    **integers,
  )


def _init_state(model: Transformer, shapes: EngineShapes) -> DecodeState:
  return decode_state.init_state(
    model, *shapes.rows, shapes.max_new_tokens, shapes.decode_steps_per_call
  )


def _with_sharding(x, sharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
