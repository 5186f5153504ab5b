"""Arrays that decoding keeps on the device, and their shapes and shardings.

Letters: P prompt slots, A prompts of one prefill, R rows of a slot, S prompt
positions, T generation positions, C steps of one call of `decode`, D width, V
vocabulary rows, K key/value heads, H head dim.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from grm_jax.model import kv_cache
from grm_jax.model.transformer import Transformer
from grm_jax.sampling.token_sampling import SamplingParams

# Status of a row: it continues, drew a stop token, or reached its length.
RUNNING, STOPPED, FULL = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeWeights:
  """Parameters in the form that decoding reads; see decode_weights.place.

  Every layer has weights of its own: slicing them out of a stack would copy
  them at every step.

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
  """Computed prompts, P in the slots of an engine or A of one prefill.

  Attributes:
    lengths: int32 [P].
    last_hidden: [P, D], final hidden state of each prompt's last token.
    caches: one PromptCache per layer.
  """

  lengths: jax.Array
  last_hidden: jax.Array
  caches: tuple[kv_cache.PromptCache, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """State of the [P, R] rows on the device between two calls of `decode`.

  Attributes:
    hidden: [P, R, D], the hidden state that gives each row's next token.
    caches: one GenerationCache per layer, of the tokens of earlier calls.
  """

  hidden: jax.Array
  caches: tuple[kv_cache.GenerationCache, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
  """State of the [P, R] rows that the host passes to each call of `decode`.

  Attributes:
    sampling: temperature and truncation, [P, R].
    keys: uint32 [P, R, 2], the random key of each row; see step_keys.
    lengths: int32 [P, R], tokens generated before this call; 0 starts from the
      prompt. A multiple of C, because a shorter call has ended all rows.
    max_tokens: int32 [P, R]; a row is idle once its length reaches it.
  """

  sampling: SamplingParams
  keys: jax.Array
  lengths: jax.Array
  max_tokens: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeOutput:
  """Tokens of one call of `decode`.

  Attributes:
    tokens: int32 [P, R, C], 0 after each row's count.
    sampling_logps: float32 [P, R, C], see token_sampling.sample_token.
    model_logps: float32 [P, R, C], see token_sampling.sample_token.
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


def empty_slots(
  model: Transformer, num_slots: int, prompt_size: int
) -> PromptSlots:
  """Returns P slots of S = `prompt_size` positions without prompts."""
  config, dtype = model.config, jnp.dtype(model.compute.dtype)
  heads = (num_slots, config.num_kv_heads)

  def empty_cache(layer):
    length = prompt_cache_size(model, layer, prompt_size)
    return kv_cache.PromptCache(
      jnp.zeros((*heads, config.head_dim, length), dtype),  # [P, K, H, S]
      jnp.zeros((*heads, length, config.head_dim), dtype),  # [P, K, S, H]
    )

  return PromptSlots(
    jnp.ones(num_slots, jnp.int32),
    jnp.zeros((num_slots, config.width), dtype),
    tuple(empty_cache(layer) for layer in range(config.num_layers)),
  )


def init_state(
  model: Transformer,
  num_slots: int,
  num_rows: int,
  max_new_tokens: int,
  num_steps: int,
) -> DecodeState:
  """Returns the state of P x R rows that have no tokens yet.

  Args:
    model: the network.
    num_slots: P.
    num_rows: R.
    max_new_tokens: T.
    num_steps: C.
  """
  dtype = jnp.dtype(model.compute.dtype)
  length = generation_cache_size(max_new_tokens, num_steps)
  return DecodeState(
    hidden=jnp.zeros((num_slots, num_rows, model.config.width), dtype),
    caches=empty_generation_caches(model, num_slots * num_rows, length),
  )


def empty_generation_caches(
  model: Transformer, num_rows: int, length: int
) -> tuple[kv_cache.GenerationCache, ...]:
  """Returns one empty cache [P * R, K, length, H] per layer."""
  config, dtype = model.config, jnp.dtype(model.compute.dtype)
  shape = (num_rows, config.num_kv_heads, length, config.head_dim)

  def zeros():
    """Returns an empty cache, [P * R, K, T, H]."""
    # Without the constraint, a cache inside a jitted loop may be replicated.
    return model.layout.constrain(jnp.zeros(shape, dtype), kv_cache.KV_AXES)

  return tuple(
    kv_cache.GenerationCache(zeros(), zeros()) for _ in range(config.num_layers)
  )


def generation_cache_size(max_new_tokens: int, num_steps: int) -> int:
  """Returns the positions of a generation cache, a multiple of `num_steps`.

  The tokens of a row's last call are never read by a later call, so the cache
  leaves them out.
  """
  num_calls = -(-max_new_tokens // num_steps)
  return max(num_calls - 1, 1) * num_steps


def prompt_cache_size(model: Transformer, layer: int, prompt_size: int) -> int:
  """Returns the positions of a layer's cache of prompts of `prompt_size`."""
  window = layer_window(model, layer)
  return prompt_size if window is None else min(prompt_size, window)


def layer_window(model: Transformer, layer: int) -> int | None:
  """Returns W of a local layer (even numbers), None of a global layer."""
  return None if layer % 2 else model.config.window


def shardings(
  model: Transformer,
) -> tuple[PromptSlots, DecodeState, NamedSharding]:
  """Returns the shardings of slots, of states, and of replicated arrays."""
  layout, num_layers = model.layout, model.config.num_layers
  # A tree of shardings has the class of the arrays that it describes, which
  # only `Any` can tell the type checker.
  replicated: Any = layout.sharding(())
  keys: Any = layout.sharding(kv_cache.PROMPT_KEY_AXES)
  values: Any = layout.sharding(kv_cache.KV_AXES)
  last_hidden: Any = layout.sharding(('prompts', 'width'))
  hidden: Any = layout.sharding(('prompts', 'tokens', 'width'))
  slots = PromptSlots(
    replicated,
    last_hidden,
    (kv_cache.PromptCache(keys, values),) * num_layers,
  )
  # Generation caches store keys and values alike.
  state = DecodeState(
    hidden,
    (kv_cache.GenerationCache(values, values),) * num_layers,
  )
  return slots, state, replicated
