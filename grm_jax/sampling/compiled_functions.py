"""Compiled programs for one set of sizes: countable, and ready ahead.

With n buckets (lengths that prompts are padded to) and m reaches (how far own
caches are read) there are n each of prefill and empty slots, n m of decode,
n (n + 1) / 2 of insert (a short prompt into longer slots), n (n - 1) of resize
and one start; so 5 for one of both, 31 for three buckets and four reaches.
Settings are traced: nothing else is ever compiled.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from grm_jax.errors import UserError
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode, token_sampling
from grm_jax.sampling.decode import (
  DecodeOutput,
  DecodeState,
  DecodeWeights,
  PromptSlots,
  RowState,
)


@dataclasses.dataclass(frozen=True)
class EngineShapes:
  """Sizes that are compiled in.

  Attributes:
    prompts: P, prompt slots.
    rows: R, rows of a slot.
    size: T, the most tokens of a generation.
    chunk: C, steps of one call of decode.
    prefill: A, prompts computed at once.
    buckets: lengths that prompts are padded to, ascending.
    reaches: m, how many lengths of own caches decode is compiled for.
  """

  prompts: int
  rows: int
  size: int
  chunk: int
  prefill: int
  buckets: tuple[int, ...]
  reaches: int = 1

  def __post_init__(self):
    if not self.buckets:
      raise UserError('there are no buckets to pad prompts to')
    least = dataclasses.asdict(self) | {'buckets': self.buckets[0]}
    for name, value in least.items():
      if value < 1:
        raise UserError(f'{name} is {value}; it must be at least 1')

  def bucket(self, length: int) -> int:
    """The smallest bucket that holds `length` tokens."""
    return next(b for b in self.buckets if length <= b)

  def all_reaches(self) -> list[int]:
    """M lengths of own caches, or fewer: whole calls, up to all there is."""
    calls = decode.own_places(self.size, self.chunk) // self.chunk
    parts = min(self.reaches, calls)
    return [-(-calls * i // parts) * self.chunk for i in range(1, parts + 1)]

  def reach(self, length: int) -> int:
    """The smallest of them that holds `length` tokens."""
    return next(x for x in self.all_reaches() if length <= x)


class CompiledFunctions:
  """Calls the functions of decode.py, each compiled once for its shapes."""

  def __init__(
    self,
    model: Transformer,
    weights: DecodeWeights,
    sizes: EngineShapes,
    stop_ids: Sequence[int],
    forbidden: Sequence[int],
  ):
    """Compiles nothing yet.

    Raises:
      UserError: numbers of prompts that the mesh cannot split.
      ValueError: an id that the model does not have.
    """
    for i in (*stop_ids, *forbidden):
      if not 0 <= i < model.size.vocab_size:
        raise ValueError(f'id {i} is not below {model.size.vocab_size}')
    ways = model.layout.split('prompts')
    for name, value in (('prompts', sizes.prompts), ('prefill', sizes.prefill)):
      if value % ways:
        raise UserError(
          f'{name} is {value}; the mesh splits prompts {ways} ways, of which '
          'it must be a multiple'
        )
    self.model, self.weights, self.sizes = model, weights, sizes
    never = np.zeros(model.size.table_rows, bool)
    never[list(forbidden)] = True
    self._slots, self._state, whole = decode.shardings(model)
    # On the device once, not at every call.
    self._constants = jax.device_put(
      (np.asarray(stop_ids, np.int32), never), whole
    )
    self._compiled = {}

  def count(self) -> int:
    """How many programs are compiled so far."""
    return len(self._compiled)

  def all(self) -> int:
    """How many there can be."""
    n, m = len(self.sizes.buckets), len(self.sizes.all_reaches())
    return (2 + m) * n + n * (n + 1) // 2 + n * (n - 1) + 1

  def warm_up(self) -> int:
    """Compiles everything; returns how many programs there are."""
    sizes = self.sizes
    idle = idle_rows((sizes.prompts, sizes.rows))
    where = np.zeros(sizes.prefill, np.int32)
    for bucket in sizes.buckets:
      slots = self.empty(bucket)
      for reach in sizes.all_reaches():
        self.decode(bucket, reach, slots, idle, self.start())
      for other in sizes.buckets:
        if other != bucket:
          self.resize(self.empty(bucket), bucket, other)
        if other >= bucket:
          tokens = np.zeros((sizes.prefill, bucket), np.int32)
          batch = Batch(tokens, np.ones(sizes.prefill, np.int32))
          new = self.prefill(bucket, batch)
          self.insert(self.empty(other), new, where, bucket, other)
    return self.count()

  def prefill(self, bucket: int, batch: Batch) -> PromptSlots:
    """A prompts of `bucket` places; see decode.prefill."""
    function = functools.partial(decode.prefill, self.model)
    key = ('prefill', bucket)
    return self._call(key, self._to_slots(function), self.weights, batch)

  def empty(self, bucket: int) -> PromptSlots:
    """P slots without prompts; see decode.empty."""
    function = functools.partial(
      decode.empty, self.model, self.sizes.prompts, bucket
    )
    return self._call(('empty', bucket), self._to_slots(function))

  def start(self) -> DecodeState:
    """P x R rows; see decode.start."""
    s = self.sizes
    function = functools.partial(
      decode.start, self.model, s.prompts, s.rows, s.size, s.chunk
    )
    return self._call(
      ('start',), lambda: jax.jit(function, out_shardings=self._state)
    )

  def insert(
    self,
    slots: PromptSlots,
    new: PromptSlots,
    where: np.ndarray,
    bucket: int,
    size: int,
  ) -> PromptSlots:
    """`new` prompts of `bucket` places in `slots` of `size`, donated."""
    key = ('insert', bucket, size)
    make = self._to_slots(decode.insert, donate_argnums=(0,))
    return self._call(key, make, slots, new, where)

  def resize(self, slots: PromptSlots, bucket: int, size: int) -> PromptSlots:
    """Slots of `bucket` places as slots of `size`; see decode.resize."""
    function = functools.partial(decode.resize, self.model, size=size)
    make = self._to_slots(function)
    return self._call(('resize', bucket, size), make, slots)

  def decode(
    self,
    bucket: int,
    reach: int,
    slots: PromptSlots,
    rows: RowState,
    state: DecodeState,
  ) -> tuple[DecodeState, DecodeOutput]:
    """Up to C tokens of every row; `state` is donated. See decode.decode."""
    make = functools.partial(decode_jit, self.model, self.sizes.chunk, reach)
    arguments = (self.weights, slots, rows, state, *self._constants)
    return self._call(('decode', bucket, reach), make, *arguments)

  def _to_slots(self, function, **how):
    """Makes the jitted form of a function that returns slots."""
    return lambda: jax.jit(function, out_shardings=self._slots, **how)

  def _call(self, key, make, *arguments):
    """Runs a program; the first time `make` gives what is compiled for it.

    A compiled program refuses other shapes, so nothing is compiled unseen.
    """
    if key not in self._compiled:
      self._compiled[key] = make().lower(*arguments).compile()
    return self._compiled[key](*arguments)


def decode_jit(model: Transformer, steps: int, reach: int) -> Callable:
  """decode.decode with its layouts; `state` is donated."""
  _, state, whole = decode.shardings(model)
  return jax.jit(
    functools.partial(decode.decode, model, steps, reach),
    out_shardings=(state, whole),
    donate_argnums=(3,),
  )


def decode_arguments(
  model: Transformer, sizes: EngineShapes, bucket: int
) -> tuple:
  """All that decode_jit takes after the weights, as ShapeDtypeStructs."""
  *homes, whole = decode.shardings(model)
  p, r = sizes.prompts, sizes.rows
  slots = jax.eval_shape(lambda: decode.empty(model, p, bucket))
  state = jax.eval_shape(
    lambda: decode.start(model, p, r, sizes.size, sizes.chunk)
  )
  slots, state = jax.tree.map(_shaped, (slots, state), tuple(homes))
  rows = idle_rows((p, r))
  constants = np.zeros(1, np.int32), np.zeros(model.size.table_rows, bool)
  rows, constants = jax.tree.map(lambda x: _shaped(x, whole), (rows, constants))
  return slots, rows, state, *constants


def _shaped(x, sharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def idle_rows(shape: tuple[int, int]) -> RowState:
  """Rows [P, R] on the host that draw nothing."""
  zeros = functools.partial(np.zeros, shape)
  how = token_sampling.SamplingParams(
    temperature=np.ones(shape, np.float32),
    top_k=zeros(np.int32),
    top_p=np.ones(shape, np.float32),
    min_p=zeros(np.float32),
  )
  keys = np.zeros((*shape, 2), np.uint32)
  return RowState(how, keys, zeros(np.int32), zeros(np.int32))
