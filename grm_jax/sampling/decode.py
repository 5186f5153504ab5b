"""The device functions of generation: prefill, insert, resize and decode.

`prefill` computes A prompts once, and `insert` puts their caches into prompt
slots. All R rows of a slot read the same cache. `decode` samples up to C tokens
of every row and returns, so that the host can give finished rows to other
samples. The host passes the state of the rows with each call (`RowState`);
caches and hidden states stay on the device.

Layers are unrolled, each with its own weights and caches, so that a step reads
weights in place and does not slice them out of a stack. See decode_state.py
for the letters of the shapes.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from grm_jax.model import kv_cache, logprobs
from grm_jax.model.attention import SequenceLayout
from grm_jax.model.batch import Batch
from grm_jax.model.layers import RMSNorm
from grm_jax.model.transformer import Block, Embedder, Transformer
from grm_jax.sampling import decode_state
from grm_jax.sampling.decode_state import (
  FULL,
  RUNNING,
  STOPPED,
  DecodeOutput,
  DecodeState,
  DecodeWeights,
  PromptSlots,
  RowState,
)
from grm_jax.sampling.token_sampling import sample_token, step_keys


def prefill(
  model: Transformer, weights: DecodeWeights, batch: Batch
) -> PromptSlots:
  """Computes A prompts once; jit it with `model` bound.

  Args:
    model: the network.
    weights: its parameters.
    batch: prompts [A, S], padded on the right, without generations.
  """
  layout = SequenceLayout.from_batch(batch)
  rows = dataclasses.replace(layout, return_kv=True)
  x = _embed(model, weights, batch.prompts)  # [A, S, D]
  x, keys_values = _layers(model, weights, x, [rows] * len(weights.layers))
  x = _final_norm(model, weights, x)
  last_hidden = logprobs.last_prompt_state(x, batch)  # [A, D]
  caches = tuple(
    kv_cache.make_prompt_cache(
      key,
      value,
      batch.prompt_lengths,
      decode_state.layer_window(model, layer),
      model.layout,
    )
    for layer, (key, value) in enumerate(keys_values)
  )
  return PromptSlots(batch.prompt_lengths, last_hidden, caches)


def generation_hidden(
  model: Transformer, weights: DecodeWeights, batch: Batch
) -> jax.Array:
  """Returns the final hidden states [P, R, T, D] of given generations.

  One forward pass over prompts and generations; it keeps no cache.
  """
  assert batch.generations is not None
  rows = SequenceLayout.from_batch(batch)
  x = _embed(model, weights, rows.row_tokens(batch))  # [P, X, D]
  x, _ = _layers(model, weights, x, [rows] * len(weights.layers))
  x = _final_norm(model, weights, x[:, rows.prompt_size :])  # [P, R * T, D]
  return x.reshape(*batch.generations.shape, x.shape[-1])


def insert(
  slots: PromptSlots, prompts: PromptSlots, slot_numbers: jax.Array
) -> PromptSlots:
  """Puts prompt a into slot slot_numbers[a]; jit it with `slots` donated.

  Args:
    slots: P slots of S positions.
    prompts: A prompts of S or fewer positions.
    slot_numbers: int32 [A]. To insert fewer than A prompts, repeat one of them
      together with its slot number.
  """

  def insert_one(a, slots):
    """Copies prompt a, [1, ...] of [A, ...], into its slot."""

    def insert_leaf(slots_leaf, prompts_leaf):
      row = jax.lax.dynamic_slice_in_dim(prompts_leaf, a, 1)  # [1, ...]
      start = (slot_numbers[a], *[0] * (slots_leaf.ndim - 1))
      return jax.lax.dynamic_update_slice(slots_leaf, row, start)

    return jax.tree.map(insert_leaf, slots, prompts)

  return jax.lax.fori_loop(0, len(slot_numbers), insert_one, slots)


def resize(
  model: Transformer, slots: PromptSlots, prompt_size: int
) -> PromptSlots:
  """Returns the slots with S = `prompt_size`; every prompt in use must fit."""

  def resize_axis(x, axis, length):
    """Cuts or zero-pads one axis to `length`."""
    x = jax.lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, padding)

  def resize_cache(layer, cache):
    # A local layer's cache is a ring of at most W positions. Its size changes
    # only if S is below W before or after, and prompts in use fit in both, so
    # none has wrapped around.
    length = decode_state.prompt_cache_size(model, layer, prompt_size)
    return kv_cache.PromptCache(
      resize_axis(cache.key, 3, length),  # [P, K, H, S]
      resize_axis(cache.value, 2, length),  # [P, K, S, H]
    )

  caches = tuple(resize_cache(*item) for item in enumerate(slots.caches))
  return dataclasses.replace(slots, caches=caches)


def decode(
  model: Transformer,
  num_steps: int,
  cache_length: int,
  weights: DecodeWeights,
  slots: PromptSlots,
  rows: RowState,
  state: DecodeState,
  stop_ids: jax.Array,
  forbidden: jax.Array,
) -> tuple[DecodeState, DecodeOutput]:
  """Samples up to C = `num_steps` tokens of every row.

  It returns earlier when all rows have ended. Jit it with `model`, `num_steps`
  and `cache_length` bound and `state` donated.

  Args:
    model: the network.
    num_steps: C.
    cache_length: a multiple of C, at least the length of every running row.
      Attention reads this many positions of the generation caches.
    weights: parameters of the network.
    slots: the prompts.
    rows: lengths, random keys and sampling parameters of the rows.
    state: from `init_state` or from the call before.
    stop_ids: int [n]. A stop token ends its row and belongs to it.
    forbidden: bool [V], tokens that are never sampled.

  Returns:
    The state for the next call, and the tokens.
  """
  # A row without tokens continues its prompt, other rows their last token.
  is_new = (rows.lengths == 0)[..., None]  # [P, R, 1]
  last_hidden = slots.last_hidden[:, None]  # [P, 1, D]
  hidden = jnp.where(is_new, last_hidden, state.hidden)  # [P, R, D]
  # [P * R, K, cache_length, H] per layer.
  earlier = [kv_cache.slice_cache(x, cache_length) for x in state.caches]

  def body_fn(carry):
    """Samples a token for every row and runs the model on it."""
    # [P, R, D], [P * R, K, C, H] per layer, [P, R, C].
    hidden, recent, output = carry
    table = weights.embedder['table']
    logits = logprobs.logits(model, table, hidden)  # [P, R, V]
    sample = _sample_rows(logits, rows, output, forbidden)
    contexts = [
      kv_cache.DecodeContext(slots.lengths, rows.lengths, output.steps, *caches)
      for caches in zip(slots.caches, earlier, recent, strict=True)
    ]
    hidden, recent = _forward(model, weights, sample[0], contexts)
    return hidden, recent, _append(output, sample, rows, stop_ids)

  def cond_fn(carry):
    """Continues while there is room in this call and any row is running."""
    *_, output = carry
    return (output.steps < num_steps) & jnp.any(output.status == RUNNING)

  # Tokens of this call have a small cache of their own. The loop would
  # otherwise carry, and may copy, the large caches at every step.
  recent = decode_state.empty_generation_caches(
    model, rows.lengths.size, num_steps
  )
  carry = hidden, recent, _init_output(rows, num_steps)
  hidden, recent, output = jax.lax.while_loop(cond_fn, body_fn, carry)
  lengths = rows.lengths.reshape(-1)  # [P * R]
  caches = kv_cache.append_recent(state.caches, recent, lengths, model.layout)
  return DecodeState(hidden, caches), output


def _init_output(rows: RowState, num_steps: int) -> DecodeOutput:
  """Returns the output before the first step."""
  shape = rows.lengths.shape  # [P, R]
  return DecodeOutput(
    tokens=jnp.zeros((*shape, num_steps), jnp.int32),
    sampling_logps=jnp.zeros((*shape, num_steps), jnp.float32),
    model_logps=jnp.zeros((*shape, num_steps), jnp.float32),
    counts=jnp.zeros(shape, jnp.int32),
    status=jnp.where(rows.lengths < rows.max_tokens, RUNNING, FULL),
    steps=jnp.int32(0),
  )


def _sample_rows(
  logits: jax.Array, rows: RowState, output: DecodeOutput, forbidden: jax.Array
) -> list[jax.Array]:
  """Samples the next token of every row.

  Returns:
    Tokens, sampling_logps and model_logps, each [P, R]; 0 in rows that have
    ended.
  """
  p, r, v = logits.shape
  lengths = (rows.lengths + output.counts).reshape(-1)  # [P * R]
  keys = step_keys(rows.keys.reshape(p * r, 2), lengths)
  sampling = jax.tree.map(lambda x: x.reshape(-1), rows.sampling)
  sample = sample_token(logits.reshape(p * r, v), sampling, keys, forbidden)
  running = output.status == RUNNING
  return [jnp.where(running, x.reshape(p, r), 0) for x in sample]


def _append(
  output: DecodeOutput,
  sample: Sequence[jax.Array],
  rows: RowState,
  stop_ids: jax.Array,
) -> DecodeOutput:
  """Writes a step's tokens into the output and updates the status of rows."""
  running = output.status == RUNNING
  tokens, sampling_logps, model_logps = sample
  is_stop = jnp.any(tokens[..., None] == stop_ids[None, None], axis=-1)
  is_full = rows.lengths + output.counts + 1 >= rows.max_tokens
  status = jnp.where(is_stop, STOPPED, jnp.where(is_full, FULL, RUNNING))

  def write(buffer, values):
    """Writes values [P, R] at the current step of buffer [P, R, C]."""
    return jax.lax.dynamic_update_slice_in_dim(
      buffer, values[..., None], output.steps, axis=2
    )

  return DecodeOutput(
    tokens=write(output.tokens, tokens),
    sampling_logps=write(output.sampling_logps, sampling_logps),
    model_logps=write(output.model_logps, model_logps),
    counts=output.counts + running,
    status=jnp.where(running, status, output.status),
    steps=output.steps + 1,
  )


def _forward(
  model: Transformer,
  weights: DecodeWeights,
  tokens: jax.Array,
  contexts: Sequence[kv_cache.DecodeContext],
) -> tuple[jax.Array, tuple]:
  """Returns the hidden states [P, R, D] and recent caches of tokens [P, R]."""
  x = _embed(model, weights, tokens)  # [P, R, D]
  x, recent = _layers(model, weights, x, contexts)
  return _final_norm(model, weights, x), tuple(recent)


def _embed(model, weights, tokens):
  """Looks up tokens [..., X]; returns [..., X, D]."""
  embedder = Embedder(model.config, model.compute, model.layout)
  return embedder.apply({'params': weights.embedder}, tokens)


def _layers(
  model: Transformer,
  weights: DecodeWeights,
  x: jax.Array,
  contexts: Sequence[SequenceLayout | kv_cache.DecodeContext],
) -> tuple[jax.Array, list]:
  """Applies all layers to [P, X, D]; also returns what each layer caches."""
  cached = []
  for layer, (params, context) in enumerate(
    zip(weights.layers, contexts, strict=True)
  ):
    window = decode_state.layer_window(model, layer)
    block = Block(model.config, model.compute, model.layout, window)
    x, layer_cache = block.apply({'params': params}, x, context)
    if isinstance(context, SequenceLayout):
      # XLA would keep the outputs of all sublayers to sum them at the end.
      x = jax.lax.optimization_barrier(x)
    cached.append(layer_cache)
  return x, cached


def _final_norm(model, weights, x):
  norm = RMSNorm(model.config, model.compute)
  return norm.apply({'params': weights.final_norm}, x)
