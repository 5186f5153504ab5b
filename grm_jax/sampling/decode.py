"""The programs that a generation is made of: prefill, insert, resize, decode.

A prompt is computed once (`prefill`) and its cache is kept once, in one of P
slots (`insert`); all R rows of the slot read it. `decode` draws up to C tokens
of every row and comes back, so that rows that ended can be given to other
samples. What a row is and how far it got is told by the host at each call
(`Rows`); the device keeps what is large: caches and hidden states.

Layers are unrolled and each has weights and caches of its own, so that a step
reads weights in place instead of slicing them out of a stack.

Letters: P prompt slots, A prompts prefilled together, R rows of a prompt, S
prompt places, C steps of a call, D width, V vocabulary rows.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from grm_jax.model import kv_cache, logprobs
from grm_jax.model.attention import SequenceLayout as PromptRows
from grm_jax.model.attention import rows_of
from grm_jax.model.batch import Batch
from grm_jax.model.layers import RMSNorm
from grm_jax.model.transformer import Block, Embedder, Transformer
from grm_jax.sampling.token_sampling import (
  SamplingParams,
  sample_token,
  step_keys,
)

RUNNING, STOPPED, FULL = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeWeights:
  """Parameters as decoding reads them; made by placing.place.

  Attributes:
    embedder: {'table': [V, D]}.
    layers: one tree per layer, local and global in turn.
    final_norm: {'scale': [D]}.
  """

  embedder: dict
  layers: tuple[dict, ...]
  final_norm: dict


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptSlots:
  """What decoding needs of P (or A) prompts.

  Attributes:
    lengths: int32 [P].
    last: [P, D], final hidden state of each prompt's last token.
    caches: one PromptCache per layer.
  """

  lengths: jax.Array
  last: jax.Array
  caches: tuple[kv_cache.PromptCache, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """What the rows have on the device between two calls of `decode`.

  Attributes:
    hidden: [P, R, D], which each row's next token is drawn from.
    caches: one OwnCache per layer, of the tokens of earlier calls.
  """

  hidden: jax.Array
  caches: tuple[kv_cache.GenerationCache, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
  """Who the [P, R] rows are, how far they are and how they draw.

  Attributes:
    settings: temperature and truncation, [P, R].
    keys: uint32 [P, R, 2], the randomness of each row; see choose.step_keys.
    lengths: int32 [P, R], tokens drawn before; 0 begins from the prompt. A
      multiple of C: a call that was shorter has ended all rows.
    max_tokens: int32 [P, R]; a row that has them is idle.
  """

  settings: SamplingParams
  keys: jax.Array
  lengths: jax.Array
  max_tokens: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeOutput:
  """What one call of `decode` drew.

  Attributes:
    tokens: int32 [P, R, C], 0 past each row's count.
    sampling_logps, model_logps: float32 [P, R, C], see choose.choose.
    counts: int32 [P, R], tokens of this call, a stop token included.
    status: int32 [P, R], RUNNING, STOPPED (a stop token) or FULL (length).
    steps: int32 [], at most C; fewer when all rows have ended.
  """

  tokens: jax.Array
  sampling_logps: jax.Array
  model_logps: jax.Array
  counts: jax.Array
  status: jax.Array
  steps: jax.Array


def prefill(
  model: Transformer, weights: DecodeWeights, batch: Batch
) -> PromptSlots:
  """Computes A prompts once; jit it with `model` bound."""
  rows = rows_of(batch).replace(keep=True)
  x = _embed(model, weights, batch.prompts)
  x, kept = _layers(model, weights, x, [rows] * len(weights.layers))
  last = logprobs.last_of_prompt(_final_norm(model, weights, x), batch)
  caches = tuple(
    kv_cache.prompt_cache(
      *pair, batch.prompt_lengths, _window(model, i), model.layout
    )
    for i, pair in enumerate(kept)
  )
  return PromptSlots(batch.prompt_lengths, last, caches)


def own_hidden(
  model: Transformer, weights: DecodeWeights, batch: Batch
) -> jax.Array:
  """[P, R, T, D]: final states of generations in one pass, nothing kept."""
  rows = rows_of(batch)
  flat = batch.generations.reshape(batch.prompts.shape[0], -1)
  tokens = jnp.concatenate([batch.prompts, flat], axis=1)
  x = _embed(model, weights, tokens)
  x, _ = _layers(model, weights, x, [rows] * len(weights.layers))
  x = _final_norm(model, weights, x[:, rows.prompt_size :])
  return x.reshape(*batch.generations.shape, x.shape[-1])


def empty(model: Transformer, prompts: int, size: int) -> PromptSlots:
  """P slots of S = `size` places with no prompt in them."""
  s, dtype = model.size, jnp.dtype(model.compute.dtype)

  def one(number):
    kept = _kept(model, number, size)
    front = (prompts, s.num_kv_heads)
    return kv_cache.PromptCache(
      jnp.zeros((*front, s.head_dim, kept), dtype),
      jnp.zeros((*front, kept, s.head_dim), dtype),
    )

  return PromptSlots(
    jnp.ones(prompts, jnp.int32),
    jnp.zeros((prompts, s.width), dtype),
    tuple(one(i) for i in range(s.num_layers)),
  )


def insert(
  slots: PromptSlots, new: PromptSlots, where: jax.Array
) -> PromptSlots:
  """Puts prompt a of `new` into slot where[a]; jit it with `slots` donated.

  Args:
    slots: P slots of S places.
    new: A prompts of S or fewer places.
    where: int32 [A]; to leave some of A out, repeat another one.
  """

  def put(a, slots):
    def leaf(into, x):
      x = jax.lax.dynamic_slice_in_dim(x, a, 1)
      start = (where[a], *[0] * (into.ndim - 1))
      return jax.lax.dynamic_update_slice(into, x, start)

    return jax.tree.map(leaf, slots, new)

  return jax.lax.fori_loop(0, len(where), put, slots)


def resize(model: Transformer, slots: PromptSlots, size: int) -> PromptSlots:
  """The slots with S = `size` places; every prompt in use must fit."""

  def fit(x, axis, kept):
    x = jax.lax.slice_in_dim(x, 0, min(kept, x.shape[axis]), axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, kept - x.shape[axis])
    return jnp.pad(x, padding)

  caches = tuple(
    kv_cache.PromptCache(
      fit(c.key, 3, _kept(model, i, size)),
      fit(c.value, 2, _kept(model, i, size)),
    )
    for i, c in enumerate(slots.caches)
  )
  return dataclasses.replace(slots, caches=caches)


def start(
  model: Transformer, prompts: int, rows: int, size: int, steps: int
) -> DecodeState:
  """A State of P x R rows of at most `size` tokens, C = `steps` a call."""
  dtype = jnp.dtype(model.compute.dtype)
  return DecodeState(
    hidden=jnp.zeros((prompts, rows, model.size.width), dtype),
    caches=_own_caches(model, prompts * rows, own_places(size, steps)),
  )


def own_places(size: int, steps: int) -> int:
  """Places of an own cache: whole calls, as many as are ever read.

  The last call of the longest row needs none: nothing comes after it.
  """
  return max(-(-size // steps) - 1, 1) * steps


def _own_caches(model, rows, size):
  """One of [B, K, size, H] for each layer, without anything in it."""
  s, dtype = model.size, jnp.dtype(model.compute.dtype)
  shape = (rows, s.num_kv_heads, size, s.head_dim)

  def empty():
    return model.layout.constrain(jnp.zeros(shape, dtype), kv_cache.AXES)

  return tuple(
    kv_cache.GenerationCache(empty(), empty()) for _ in range(s.num_layers)
  )


def shardings(
  model: Transformer,
) -> tuple[PromptSlots, DecodeState, NamedSharding]:
  """Where slots and states live, and the sharding of small arrays."""
  layout, count = model.layout, model.size.num_layers
  whole = layout.sharding(())
  kept = layout.sharding(kv_cache.AXES)
  keys = layout.sharding(kv_cache.KEY_AXES)
  slots = PromptSlots(
    whole,
    layout.sharding(('prompts', 'width')),
    (kv_cache.PromptCache(keys, kept),) * count,
  )
  state = DecodeState(
    layout.sharding(('prompts', 'tokens', 'width')),
    (kv_cache.GenerationCache(kept, kept),) * count,
  )
  return slots, state, whole


def decode(
  model: Transformer,
  steps: int,
  reach: int,
  weights: DecodeWeights,
  slots: PromptSlots,
  rows: RowState,
  state: DecodeState,
  stop_ids: jax.Array,
  forbidden: jax.Array,
) -> tuple[DecodeState, DecodeOutput]:
  """Draws up to C = `steps` tokens of every row, fewer when all have ended.

  Jit it with `model`, `steps` and `reach` bound and `state` donated.

  Args:
    model: the network.
    steps: C.
    reach: a multiple of C: no row that goes on has drawn more before, and no
      more places of the own caches are read.
    weights: its parameters.
    slots: the prompts.
    rows: who and how.
    state: from `start` or the call before.
    stop_ids: int [n]; drawing one ends a row, and it is the row's last token.
    forbidden: bool [V], tokens that are never drawn.
  """
  fresh = (rows.lengths == 0)[..., None]
  hidden = jnp.where(fresh, slots.last[:, None], state.hidden)
  own = [kv_cache.slice_cache(x, reach) for x in state.caches]

  def body(carry):
    hidden, recent, drawn = carry
    step = drawn.steps
    tokens, drawn = _draw(
      model, weights, rows, hidden, drawn, stop_ids, forbidden
    )
    caches = zip(slots.caches, own, recent, strict=True)
    seen = [
      kv_cache.DecodeContext(slots.lengths, rows.lengths, step, *three)
      for three in caches
    ]
    return *_forward(model, weights, tokens, seen), drawn

  def goes_on(carry):
    *_, drawn = carry
    return (drawn.steps < steps) & jnp.any(drawn.status == RUNNING)

  recent = _own_caches(model, rows.lengths.size, steps)
  carry = hidden, recent, _init_output(rows, steps)
  hidden, recent, drawn = jax.lax.while_loop(goes_on, body, carry)
  before = rows.lengths.reshape(-1)
  caches = kv_cache.append_recent(state.caches, recent, before, model.layout)
  return DecodeState(hidden, caches), drawn


def _init_output(rows, steps):
  """Drawn before the first step."""
  shape = rows.lengths.shape
  zeros = functools.partial(jnp.zeros, (*shape, steps))
  return DecodeOutput(
    tokens=zeros(jnp.int32),
    sampling_logps=zeros(jnp.float32),
    model_logps=zeros(jnp.float32),
    counts=jnp.zeros(shape, jnp.int32),
    status=jnp.where(rows.lengths < rows.max_tokens, RUNNING, FULL),
    steps=jnp.int32(0),
  )


def _draw(model, weights, rows, hidden, drawn, stop_ids, forbidden):
  """The next token of every running row, and `drawn` with it."""
  x = logprobs.logits(model, weights.embedder['table'], hidden)
  p, r, v = x.shape
  lengths = rows.lengths + drawn.counts
  keys = step_keys(rows.keys.reshape(p * r, 2), lengths.reshape(-1))
  how = jax.tree.map(lambda x: x.reshape(-1), rows.settings)
  found = sample_token(x.reshape(p * r, v), how, keys, forbidden)
  found = [x.reshape(p, r) for x in found]
  live = drawn.status == RUNNING
  found = [jnp.where(live, x, 0) for x in found]
  stopped = jnp.any(found[0][..., None] == stop_ids[None, None], axis=-1)
  ended = jnp.where(lengths + 1 >= rows.max_tokens, FULL, RUNNING)
  ended = jnp.where(stopped, STOPPED, ended)

  def put(into, values):
    return jax.lax.dynamic_update_slice_in_dim(
      into, values[..., None], drawn.steps, axis=2
    )

  old = (drawn.tokens, drawn.sampling_logps, drawn.model_logps)
  written = map(put, old, found)
  drawn = DecodeOutput(
    *written,
    counts=drawn.counts + live,
    status=jnp.where(live, ended, drawn.status),
    steps=drawn.steps + 1,
  )
  return found[0], drawn


def _forward(model, weights, tokens, steps):
  """(hidden [P, R, D], recent caches) of the tokens [P, R]."""
  x = _embed(model, weights, tokens)
  x, recent = _layers(model, weights, x, steps)
  return _final_norm(model, weights, x), tuple(recent)


def _embed(model, weights, tokens):
  embedder = Embedder(model.size, model.compute, model.layout)
  return embedder.apply({'params': weights.embedder}, tokens)


def _layers(
  model: Transformer,
  weights: DecodeWeights,
  x: jax.Array,
  steps: Sequence[PromptRows | kv_cache.DecodeContext],
):
  """([P, X, D], what each layer keeps) of [P, X, D] through all layers."""
  kept = []
  for number, (layer, step) in enumerate(
    zip(weights.layers, steps, strict=True)
  ):
    block = Block(
      model.size, model.compute, model.layout, _window(model, number)
    )
    x, keep = block.apply({'params': layer}, x, step)
    kept.append(keep)
  return x, kept


def _final_norm(model, weights, x):
  norm = RMSNorm(model.size, model.compute)
  return norm.apply({'params': weights.final_norm}, x)


def _window(model, number):
  """W of a layer: local ones are the even ones, global ones have none."""
  return None if number % 2 else model.size.window


def _kept(model, number, size):
  """Places of a layer's prompt cache for prompts of S = `size`."""
  window = _window(model, number)
  return size if window is None else min(size, window)
