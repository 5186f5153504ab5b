"""From hidden states to numbers: token log-probabilities, entropy, values.

Logits over 256,000 entries are the largest array a language model can make:
8 x 2048 tokens in float32 are 15.6 GiB. Here they exist for one chunk of
tokens at a time, forward and backward: a scan under remat, the final softcap
inside, float32 log-sum-exp. Rows of the table past the vocabulary are dead:
they get no probability.

Letters: P prompts, M tokens of a row, c tokens of a chunk, R generations,
T generation places, D width, V rows of the table.
"""

import jax
import jax.numpy as jnp

from grm_jax.model import quantization
from grm_jax.model.batch import Batch
from grm_jax.model.layers import softcap
from grm_jax.model.transformer import HiddenStates, Transformer

_DEAD = -1e30


def token_logps(
  model: Transformer,
  table: quantization.Weight,
  hidden: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target, and the entropy it was one outcome of.

  Args:
    model: for its size, compute and layout.
    table: [V, D] the tied embedding table, as an array or Int8.
    hidden: [P, M, D]; hidden[:, m] predicts targets[:, m].
    targets: int [P, M].

  Returns:
    (logps, entropy), float32 [P, M].
  """
  rows, width = model.size.table_rows, model.size.width
  if table.shape != (rows, width):
    raise ValueError(f'table is {table.shape}, expected {(rows, width)}')
  if hidden.shape[:2] != targets.shape:
    raise ValueError(f'hidden {hidden.shape} against targets {targets.shape}')
  # float32 here, so that the gradient adds up over chunks in float32.
  table = quantization.cast(table, jnp.float32)
  count, length = hidden.shape[:2]
  size = min(length, max(1, model.compute.head_chunk // count))
  chunks = -(-length // size)
  padding = chunks * size - length
  hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  targets = jnp.pad(targets, ((0, 0), (0, padding)))
  hidden = jnp.moveaxis(hidden.reshape(count, chunks, size, width), 1, 0)
  targets = jnp.moveaxis(targets.reshape(count, chunks, size), 1, 0)

  @jax.checkpoint
  def chunk(table, hidden, targets):
    return _chunk_logps(model, table, hidden, targets)

  _, outputs = jax.lax.scan(
    lambda carry, xs: (carry, chunk(table, *xs)), None, (hidden, targets)
  )
  return tuple(
    jnp.moveaxis(x, 0, 1).reshape(count, -1)[:, :length] for x in outputs
  )


def logits(
  model: Transformer, table: quantization.Weight, hidden: jax.Array
) -> jax.Array:
  """float32 [P, M, V] logits at once: one chunk of them, or a small test.

  Dead rows are at -1e30. The vocabulary stays split as the table is.
  """
  layout = model.layout
  hidden = layout.constrain(hidden, ('logit_prompts', 'tokens', 'width'))
  table = quantization.cast(table, model.compute.dtype)
  table = quantization.constrain(
    layout, 'table', table, ('logit_vocab', 'table_width')
  )
  x = quantization.contract('PMD,VD->PMV', hidden, table, jnp.float32)
  x = layout.constrain(x, ('logit_prompts', 'tokens', 'logit_vocab'))
  x = softcap(x, model.size.final_softcap)
  dead = jnp.arange(model.size.table_rows) >= model.size.vocab_size
  return jnp.where(dead[None, None], _DEAD, x)


def _chunk_logps(model, table, hidden, targets):
  """(logps, entropy), each [P, c], of one chunk."""
  x = logits(model, table, hidden)
  total = jax.nn.logsumexp(x, axis=-1)
  # A masked sum, not a gather: it stays local where the vocabulary is split.
  places = jnp.arange(x.shape[-1])[None, None]
  chosen = jnp.sum(jnp.where(places == targets[..., None], x, 0.0), axis=-1)
  probability = jnp.exp(x - total[..., None])
  mean = jnp.sum(probability * x, axis=-1)
  return chosen - total, total - mean


def generation_logps(
  model: Transformer, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Log-probability and entropy of every generation token.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations.

  Returns:
    (logps, entropy), float32 [P, R, T], 0 past each generation's length.
  """
  hidden = model.apply({'params': params}, batch)
  before = _predecessors(hidden, batch)
  shape = batch.generations.shape
  logps, entropy = token_logps(
    model,
    params['embedder']['table'],
    before.reshape(shape[0], -1, before.shape[-1]),
    batch.generations.reshape(shape[0], -1),
  )
  real = jnp.arange(shape[2])[None, None] < batch.generation_lengths[..., None]
  return tuple(jnp.where(real, x.reshape(shape), 0.0) for x in (logps, entropy))


def prompt_logps(
  model: Transformer, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Log-probability and entropy of prompt tokens 1, 2, ... given those before.

  Returns:
    (logps, entropy), float32 [P, S - 1], 0 past each prompt's length.
  """
  hidden = model.apply({'params': params}, batch).prompt
  logps, entropy = token_logps(
    model, params['embedder']['table'], hidden[:, :-1], batch.prompts[:, 1:]
  )
  places = jnp.arange(1, batch.prompts.shape[1])[None]
  real = places < batch.prompt_lengths[:, None]
  return jnp.where(real, logps, 0.0), jnp.where(real, entropy, 0.0)


def values(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  """The scalar head at the last token of each generation.

  An empty generation is judged by its prompt's last token, and so is a
  prompt without generations.

  Returns:
    float32 [P, R], or [P] for prompts alone.
  """
  hidden = model.apply({'params': params}, batch)
  last = last_of_prompt(hidden.prompt, batch)
  if batch.generations is not None:
    lengths = batch.generation_lengths[..., None, None]
    own = jnp.take_along_axis(
      hidden.generation, jnp.maximum(lengths - 1, 0), axis=2
    )
    empty = lengths[..., 0] == 0
    last = jnp.where(empty, last[:, None], own[:, :, 0])
  return model.apply({'params': params}, last, method=Transformer.value)


def last_of_prompt(hidden: jax.Array, batch: Batch) -> jax.Array:
  """[P, D] of [P, S, D]: the state at each prompt's true last token."""
  index = batch.prompt_lengths[:, None, None] - 1
  return jnp.take_along_axis(hidden, index, axis=1)[:, 0]


def _predecessors(hidden: HiddenStates, batch: Batch):
  """[P, R, T, D]: the hidden state that predicts each generation token."""
  last = last_of_prompt(hidden.prompt, batch)[:, None, None]
  shape = (*batch.generations.shape[:2], 1, last.shape[-1])
  first = jnp.broadcast_to(last, shape)
  return jnp.concatenate([first, hidden.generation[:, :, :-1]], axis=2)
