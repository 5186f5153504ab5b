"""Token log-probabilities, entropies and values from hidden states.

Logits are the largest array of a language model: 8 x 2048 tokens times 256,000
entries in float32 are 15.6 GiB. Here the logits of one chunk of tokens exist at
a time, forward and backward: a scan whose body is rematerialized. Log-sum-exp
and softcap are in float32. Rows of the embedding table beyond the vocabulary
are padding and get no probability.

Letters in shapes and einsums:
  P  prompts                  M  predicted tokens of a row
  S  prompt tokens            D  model width
  R  generations per prompt   V  rows of the embedding table
  T  generation tokens
"""

from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.model import quantization
from grm_jax.model.batch import Batch
from grm_jax.model.layers import softcap
from grm_jax.model.transformer import Transformer

# The logit of a padding row. Finite: -inf * 0 in the entropy would be NaN.
_PADDING_LOGIT = -1e30


@jax.named_scope('token_logps')
def token_logps(
  model: Transformer,
  table: quantization.Weight,
  hidden: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Computes the log-probability of each target and the entropy at its place.

  Args:
    model: for its config, compute and layout.
    table: [V, D], the tied embedding table.
    hidden: [P, M, D]; hidden[:, m] predicts targets[:, m].
    targets: int [P, M].

  Returns:
    (logps, entropy), float32 [P, M].
  """
  rows, width = model.config.padded_vocab_size, model.config.width
  if table.shape != (rows, width):
    raise ValueError(
      f'table has shape {table.shape}; the model needs {(rows, width)}'
    )
  if hidden.shape[:2] != targets.shape:
    raise ValueError(
      f'hidden has shape {hidden.shape} and targets {targets.shape}; their '
      'first two dimensions must agree'
    )
  count, length = targets.shape
  # Chunks of about head_chunk tokens over all prompts together.
  chunk_size = min(length, max(1, model.compute.head_chunk // count))
  num_chunks = -(-length // chunk_size)
  padding = num_chunks * chunk_size - length
  hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  targets = jnp.pad(targets, ((0, 0), (0, padding)))
  # [P, M, ...] -> [num_chunks, P, chunk_size, ...]
  hidden = hidden.reshape(count, num_chunks, chunk_size, width)
  hidden = jnp.moveaxis(hidden, 1, 0)
  targets = targets.reshape(count, num_chunks, chunk_size)
  targets = jnp.moveaxis(targets, 1, 0)

  # Remat: the backward pass recomputes the logits of a chunk instead of saving
  # those of all chunks.
  @jax.checkpoint
  def chunk_logps(table, hidden, targets):
    return _chunk_logps(model, table, hidden, targets)

  _, outputs = jax.lax.scan(
    lambda carry, xs: (carry, chunk_logps(table, *xs)), None, (hidden, targets)
  )
  logps, entropy = (
    jnp.moveaxis(x, 0, 1).reshape(count, -1)[:, :length] for x in outputs
  )
  return logps, entropy


@jax.named_scope('logits')
def logits(
  model: Transformer, table: quantization.Weight, hidden: jax.Array
) -> jax.Array:
  """Computes the logits of a few tokens at once; see `token_logps` for many.

  Args:
    model: for its config, compute and layout.
    table: [V, D], the tied embedding table.
    hidden: [P, M, D].

  Returns:
    float32 [P, M, V], split over the vocabulary as the table is. Padding rows
    have -1e30.
  """
  layout = model.layout
  hidden = layout.constrain(hidden, ('logit_prompts', 'tokens', 'width'))
  table = quantization.cast(table, model.compute.dtype)
  table = quantization.constrain(
    layout, 'table', table, ('logit_vocab', 'table_width')
  )
  x = quantization.einsum('PMD,VD->PMV', hidden, table, jnp.float32)
  x = layout.constrain(x, ('logit_prompts', 'tokens', 'logit_vocab'))
  x = softcap(x, model.config.final_softcap)
  ids = jnp.arange(model.config.padded_vocab_size)
  is_padding = ids >= model.config.vocab_size
  return jnp.where(is_padding[None, None], _PADDING_LOGIT, x)


def _chunk_logps(model, table, hidden, targets):
  """Returns (logps, entropy), each [P, chunk_size], of one chunk."""
  x = logits(model, table, hidden)
  log_z = jax.nn.logsumexp(x, axis=-1)
  # A masked sum instead of a gather: each device sums its part of the
  # vocabulary, so the logits stay split.
  ids = jnp.arange(x.shape[-1])[None, None]
  chosen = jnp.sum(jnp.where(ids == targets[..., None], x, 0.0), axis=-1)
  probability = jnp.exp(x - log_z[..., None])
  mean_logit = jnp.sum(probability * x, axis=-1)
  # Entropy: -sum p (x - log_z) = log_z - sum p x.
  return chosen - log_z, log_z - mean_logit


def generation_logps(
  model: Transformer, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Computes log-probability and entropy of every generation token.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations.

  Returns:
    (logps, entropy), float32 [P, R, T], 0 past each generation's length.
  """
  generations, lengths = _generations(batch)
  hidden = _hidden_states(model, params, batch)
  predictors = _predictors(hidden, batch)  # [P, R, T, D]
  shape = generations.shape
  logps, entropy = token_logps(
    model,
    params['embedder']['table'],
    predictors.reshape(shape[0], -1, predictors.shape[-1]),
    generations.reshape(shape[0], -1),
  )
  real = jnp.arange(shape[2])[None, None] < lengths[..., None]
  logps, entropy = (
    jnp.where(real, x.reshape(shape), 0.0) for x in (logps, entropy)
  )
  return logps, entropy


def prompt_logps(
  model: Transformer, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Computes log-probability and entropy of the prompt tokens after the first.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts; generations are not read.

  Returns:
    (logps, entropy), float32 [P, S - 1], 0 past each prompt's length.
  """
  prompts = Batch(
    batch.prompts,
    batch.prompt_lengths,
    segment_ids=batch.segment_ids,
    loss_mask=batch.loss_mask,
  )
  hidden = _hidden_states(model, params, prompts).prompt
  logps, entropy = token_logps(
    model, params['embedder']['table'], hidden[:, :-1], batch.prompts[:, 1:]
  )
  index = jnp.arange(1, batch.prompts.shape[1])[None]
  real = index < batch.prompt_lengths[:, None]
  return jnp.where(real, logps, 0.0), jnp.where(real, entropy, 0.0)


def values(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  """Computes the scalar head at the last token of each generation.

  The value of an empty generation is at the last token of its prompt, and so is
  the value of a prompt without generations.

  Args:
    model: a scalar model.
    params: its parameters.
    batch: prompts, with or without generations.

  Returns:
    float32 [P, R], or [P] for prompts alone.
  """
  hidden = _hidden_states(model, params, batch)
  last = last_prompt_state(hidden.prompt, batch)  # [P, D]
  if batch.generations is not None:
    _, lengths = _generations(batch)
    lengths = lengths[..., None, None]  # [P, R, 1, 1]
    last_of_generation = jnp.take_along_axis(
      hidden.generation, jnp.maximum(lengths - 1, 0), axis=2
    )  # [P, R, 1, D]
    empty = lengths[..., 0] == 0
    last = jnp.where(empty, last[:, None], last_of_generation[:, :, 0])
  value: Any = model.apply({'params': params}, last, method=Transformer.value)
  return value


def last_prompt_state(hidden: jax.Array, batch: Batch) -> jax.Array:
  """Returns [P, D], the hidden state of each prompt's last true token.

  Args:
    hidden: [P, S, D], see HiddenStates.prompt.
    batch: has `prompt_lengths`.
  """
  if batch.generations is not None:
    return hidden[:, -1]
  index = batch.prompt_lengths[:, None, None] - 1
  return jnp.take_along_axis(hidden, index, axis=1)[:, 0]


def _hidden_states(model, params, batch) -> Any:
  """Returns HiddenStates; `apply` can also return mutated variables."""
  return model.apply({'params': params}, batch)


def _generations(batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Returns (generations, lengths); raises ValueError if there are none."""
  if batch.generations is None or batch.generation_lengths is None:
    raise ValueError('the batch has prompts alone; add generations to it')
  return batch.generations, batch.generation_lengths


def _predictors(hidden, batch):
  """Returns [P, R, T, D], the state that predicts each generation token.

  The last token of the prompt predicts token 0, token t - 1 predicts token t.
  """
  last = last_prompt_state(hidden.prompt, batch)[:, None, None]
  p, r, _, d = hidden.generation.shape
  first = jnp.broadcast_to(last, (p, r, 1, d))
  return jnp.concatenate([first, hidden.generation[:, :, :-1]], axis=2)
