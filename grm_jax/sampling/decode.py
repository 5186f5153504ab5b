"""Prefill and decode: the two jitted programs that a generation is made of.

A prompt is computed once and its cache is kept once; all R rows of it read
that cache. Layers are unrolled and each has weights and caches of its own, so
that a step reads weights in place instead of slicing them out of a stack.

Letters: P prompts, R rows of a prompt, S prompt places, T own places, D width,
V vocabulary rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from grm_jax.model import head
from grm_jax.model.batch import Batch
from grm_jax.model.cache import OwnCache, PromptCache, Step, empty_own
from grm_jax.model.cache import prompt_cache as cache_prompt
from grm_jax.model.gemma import Block, Embedder, Gemma
from grm_jax.model.layers import RMSNorm
from grm_jax.sampling.choose import Settings, choose, row_keys

RUNNING, STOPPED, FULL = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
  """What decoding needs of P prompts.

  Attributes:
    lengths: int32 [P].
    last: [P, D], final hidden state of each prompt's last token.
    caches: one PromptCache per layer.
  """

  lengths: jax.Array
  last: jax.Array
  caches: tuple[PromptCache, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """A decode loop between two steps.

  Attributes:
    index: int32 [], tokens drawn so far.
    hidden: [P, R, D], which the next token is drawn from.
    caches: one OwnCache per layer.
    tokens: int32 [P, R, T], 0 past each row's end.
    drawn_logps, model_logps: float32 [P, R, T], see choose.choose.
    lengths: int32 [P, R], tokens of each row, a stop token included.
    status: int32 [P, R], RUNNING, STOPPED (a stop token) or FULL (length).
  """

  index: jax.Array
  hidden: jax.Array
  caches: tuple[OwnCache, ...]
  tokens: jax.Array
  drawn_logps: jax.Array
  model_logps: jax.Array
  lengths: jax.Array
  status: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Who the [P, R] rows are and how they draw.

  Attributes:
    settings: temperature and truncation, [P, R].
    max_tokens: int32 [P, R], each at most T; 0 is an empty row.
    requests, samples: int32 [P, R], what a row's randomness is made of.
    seed: int32 [].
  """

  settings: Settings
  max_tokens: jax.Array
  requests: jax.Array
  samples: jax.Array
  seed: jax.Array


def unstack(params: dict) -> tuple[dict, ...]:
  """Parameters by layer, local and global in turn, for `decode`."""
  pairs = params['pairs']
  count = jax.tree.leaves(pairs)[0].shape[0]
  return tuple(
    jax.tree.map(lambda x, i=i: x[i], pairs[kind])
    for i in range(count)
    for kind in ('local', 'global')
  )


def prefill(model: Gemma, params: dict, batch: Batch) -> Prefilled:
  """Computes prompts once; jit it with `model` bound."""
  hidden, kept = model.apply({'params': params}, batch, method=Gemma.prefill)
  last = head.last_of_prompt(hidden, batch)
  caches = []
  for i in range(model.size.num_pairs):
    for kind, window in (('local', model.size.window), ('global', None)):
      key, value = (x[i] for x in kept[kind])
      caches.append(cache_prompt(key, value, batch.prompt_lengths, window))
  return Prefilled(batch.prompt_lengths, last, tuple(caches))


def start(prompts: Prefilled, rows: int, size: int) -> State:
  """A State of R rows a prompt and T places, before the first token."""
  p, d = prompts.last.shape
  shape = (p, rows)
  zeros = functools.partial(jnp.zeros, (*shape, size))
  return State(
    index=jnp.int32(0),
    hidden=jnp.broadcast_to(prompts.last[:, None], (*shape, d)),
    caches=tuple(empty_own(c, rows, size) for c in prompts.caches),
    tokens=zeros(jnp.int32),
    drawn_logps=zeros(jnp.float32),
    model_logps=zeros(jnp.float32),
    lengths=jnp.zeros(shape, jnp.int32),
    status=jnp.zeros(shape, jnp.int32),
  )


def decode(
  model: Gemma,
  params: dict,
  layers: tuple[dict, ...],
  prompts: Prefilled,
  rows: Rows,
  state: State,
  stop_ids: jax.Array,
  forbidden: jax.Array,
) -> State:
  """Draws tokens until every row has ended.

  Jit it with `model` bound and `state` donated.

  Args:
    model: the network.
    params: for the embedding table and the final norm.
    layers: from `unstack`.
    prompts: from `prefill`.
    rows: who and how.
    state: from `start`.
    stop_ids: int [n]; drawing one ends a row, and it is the row's last token.
    forbidden: bool [V], tokens that are never drawn.
  """
  empty = rows.max_tokens <= 0
  state = dataclasses.replace(
    state, status=jnp.where(empty, FULL, state.status)
  )

  draw = functools.partial(
    _draw, model, params, rows, stop_ids=stop_ids, forbidden=forbidden
  )

  def body(carry):
    state, tokens = carry
    return draw(_advance(model, params, layers, prompts, state, tokens))

  # The first token comes from the prefill, so that no step is wasted on the
  # last one.
  state, _ = jax.lax.while_loop(
    lambda carry: jnp.any(carry[0].status == RUNNING), body, draw(state)
  )
  return state


def _draw(model, params, rows, state, *, stop_ids, forbidden):
  """The next token of every running row, written down."""
  table = params['embedder']['table']
  x = head.logits(model, table, state.hidden)
  p, r, v = x.shape
  x = jnp.where(forbidden[None, None], -1e30, x).reshape(p * r, v)
  flat = functools.partial(jax.tree.map, lambda x: x.reshape(-1))
  keys = row_keys(
    rows.seed, flat(rows.requests), flat(rows.samples), state.index
  )
  drawn = choose(x, flat(rows.settings), keys)
  tokens, drawn_logps, model_logps = (x.reshape(p, r) for x in drawn)
  live = state.status == RUNNING
  lengths = state.lengths + live
  stopped = jnp.any(tokens[..., None] == stop_ids[None, None], axis=-1)
  ended = jnp.where(lengths >= rows.max_tokens, FULL, RUNNING)
  ended = jnp.where(stopped, STOPPED, ended)

  def put(into, values):
    values = jnp.where(live, values, 0).astype(into.dtype)[..., None]
    return jax.lax.dynamic_update_slice_in_dim(into, values, state.index, 2)

  state = dataclasses.replace(
    state,
    tokens=put(state.tokens, tokens),
    drawn_logps=put(state.drawn_logps, drawn_logps),
    model_logps=put(state.model_logps, model_logps),
    lengths=lengths,
    status=jnp.where(live, ended, state.status),
  )
  return state, jnp.where(live, tokens, 0)


def _advance(model, params, layers, prompts, state, tokens):
  """Feeds the tokens [P, R] through the network."""
  size, parts = model.size, (model.size, model.compute, model.layout)
  x = Embedder(*parts).apply({'params': params['embedder']}, tokens)
  caches = []
  for number, layer in enumerate(layers):
    window = None if number % 2 else size.window
    step = Step(
      prompts.lengths,
      state.index,
      prompts.caches[number],
      state.caches[number],
    )
    block = Block(*parts, window)
    x, own = block.apply({'params': layer}, x, step)
    caches.append(own)
  norm = RMSNorm(size, model.compute)
  x = norm.apply({'params': params['final_norm']}, x)
  return dataclasses.replace(
    state, index=state.index + 1, hidden=x, caches=tuple(caches)
  )
