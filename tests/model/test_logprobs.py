"""Log-probabilities, entropies and values equal the plain formulas.

Covers chunks, padding rows of the table, the final softcap, which hidden state
predicts which token, which token has the value, and memory: no array of tokens
times vocabulary is larger than one chunk, forward or backward.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from tests.messages import naming
from tests.model import tiny

VOCAB_SIZE, PADDED_SIZE = 250, 256


def random_arrays(count=2, length=7, width=32):
  """Returns table, hidden, targets, and the weights of a loss."""
  rng = np.random.default_rng(0)
  table = rng.standard_normal((PADDED_SIZE, width)).astype(np.float32)
  hidden = rng.standard_normal((count, length, width)).astype(np.float32)
  targets = rng.integers(0, VOCAB_SIZE, (count, length))
  weights = rng.standard_normal((2, count, length)).astype(np.float32)
  return table, 0.3 * hidden, targets, weights


def plain_logps(table, hidden, cap):
  """Returns float32 [..., V], log-probabilities of the vocabulary."""
  logits = jnp.einsum('...D,VD->...V', hidden, table[:VOCAB_SIZE])
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  return jax.nn.log_softmax(logits)


@functools.partial(jax.jit, static_argnames='cap')
def plain(table, hidden, targets, cap):
  """Returns (logps, entropy) of the targets."""
  all_logps = plain_logps(table, hidden, cap)
  logps = jnp.take_along_axis(all_logps, targets[..., None], axis=-1)[..., 0]
  return logps, -jnp.sum(jnp.exp(all_logps) * all_logps, axis=-1)


def with_gradients(function, weights):
  """Returns a function: table, hidden -> (outputs, gradients).

  The gradients are those of the weighted sum of both outputs.
  """

  def loss(table, hidden):
    outputs = function(table, hidden)
    return sum(
      jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True)
    ), outputs

  grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  return lambda table, hidden: grad(table, hidden)[::-1]


# 2 rows of 7 tokens. Tokens per chunk and row: all 7, 4 (the last chunk is
# padded), 1, and 1 although the limit is below the number of rows.
@pytest.mark.parametrize('head_chunk', [4096, 8, 2, 1])
@pytest.mark.parametrize('cap', [None, 3.0])
def test_token_logps_equal_plain(head_chunk, cap):
  table, hidden, targets, weights = random_arrays()
  model = tiny.gemma(
    compute=ComputeConfig(head_chunk=head_chunk), final_softcap=cap
  )
  ours, expected = (
    with_gradients(function, weights)(table, hidden)
    for function in (
      lambda t, h: logprobs.token_logps(model, t, h, targets),
      lambda t, h: plain(t, h, targets, cap),
    )
  )
  assert all(x.dtype == jnp.float32 for x in ours[0])
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-5), ours, expected
  )


def test_softcap_affects_logps_and_entropy():
  table, hidden, targets, _ = random_arrays()
  off, on = (
    logprobs.token_logps(tiny.gemma(final_softcap=cap), table, hidden, targets)
    for cap in (None, 3.0)
  )
  for a, b in zip(off, on, strict=True):
    assert np.all(np.abs(a - b) > 1e-3)


def test_padding_rows_have_no_probability_and_no_gradient():
  table, hidden, targets, weights = random_arrays()
  model = tiny.gemma(compute=ComputeConfig(head_chunk=8))
  assert (model.config.vocab_size, model.config.padded_vocab_size) == (
    VOCAB_SIZE,
    PADDED_SIZE,
  )
  large_padding = table.copy()
  large_padding[VOCAB_SIZE:] = 100 * hidden[0, 0]

  run = with_gradients(
    lambda t, h: logprobs.token_logps(model, t, h, targets), weights
  )
  ours, (gradient, _) = run(large_padding, hidden)
  jax.tree.map(np.testing.assert_array_equal, ours, run(table, hidden)[0])
  assert not np.any(gradient[VOCAB_SIZE:])
  assert np.all(np.any(gradient[:VOCAB_SIZE] != 0, axis=1))
  padding_targets = jnp.full_like(targets, VOCAB_SIZE)
  logps, _ = logprobs.token_logps(model, large_padding, hidden, padding_targets)
  assert not np.any(np.exp(logps))


def test_logits_of_padding_rows():
  table, hidden, _, _ = random_arrays()
  x = logprobs.logits(tiny.gemma(final_softcap=3.0), table, hidden)
  assert x.dtype == jnp.float32 and np.all(x[..., VOCAB_SIZE:] == -1e30)
  assert np.all(np.abs(x[..., :VOCAB_SIZE]) <= 3.0)


@pytest.mark.parametrize(
  'table, hidden, words',
  [
    ((PADDED_SIZE, 16), (2, 3, 32), ['table', '(256, 16)', '(256, 32)']),
    ((VOCAB_SIZE, 32), (2, 3, 32), ['table', '(250, 32)', '(256, 32)']),
    ((PADDED_SIZE, 32), (2, 4, 32), ['hidden', '(2, 4, 32)', '(2, 3)']),
  ],
)
def test_wrong_shapes_are_rejected(table, hidden, words):
  with pytest.raises(ValueError, match=naming(*words)):
    logprobs.token_logps(
      tiny.gemma(),
      jnp.zeros(table),
      jnp.zeros(hidden),
      jnp.zeros((2, 3), jnp.int32),
    )


# Memory: 4 rows of 64 predicted tokens, 1024 rows of the table, 16 tokens per
# chunk. The logits of a chunk have 16,384 entries, all logits 262,144.

CHUNK, LARGE_VOCAB = 16, 1024


def intermediate_sizes(loss):
  """Returns the sizes of all arrays in the gradient of a loss."""
  compute = ComputeConfig(head_chunk=CHUNK, query_block=8)
  model = tiny.gemma(compute=compute, vocab_size=LARGE_VOCAB, num_layers=2)
  batch = tiny.batch([5] * 4, 6, [[16] * 4] * 4, 16)
  shapes = tiny.intermediate_shapes(
    jax.grad(lambda params: loss(model, params, batch)), tiny.params(model)
  )
  # Without the table and its gradient, which the loss cannot avoid.
  table_shape = (LARGE_VOCAB, model.config.width)
  return [np.prod(shape) for shape in shapes if shape != table_shape]


def chunked_loss(model, params, batch):
  return jnp.sum(logprobs.generation_logps(model, params, batch)[0])


def unchunked_loss(model, params, batch):
  hidden = model.apply({'params': params}, batch).generation
  flat = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
  logits = logprobs.logits(model, params['embedder']['table'], flat)
  return jnp.sum(jax.nn.logsumexp(logits, axis=-1))


def test_no_array_is_larger_than_a_chunk_of_logits():
  assert max(intermediate_sizes(chunked_loss)) == CHUNK * LARGE_VOCAB


def test_the_memory_test_detects_unchunked_logits():
  assert max(intermediate_sizes(unchunked_loss)) == 4 * 64 * LARGE_VOCAB


def test_the_memory_test_detects_saved_logits(monkeypatch):
  monkeypatch.setattr(jax, 'checkpoint', lambda function, **_: function)
  assert max(intermediate_sizes(chunked_loss)) == 4 * 64 * LARGE_VOCAB


# Which hidden state predicts which token, and which token has the value.

PROMPT_LENGTHS, GENERATION_LENGTHS = [1, 6], [[4, 0, 1], [2, 5, 0]]


@pytest.fixture(scope='module')
def model():
  return tiny.gemma(scalar=True, compute=ComputeConfig(head_chunk=8))


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


@pytest.fixture(scope='module')
def batch():
  return tiny.batch(PROMPT_LENGTHS, 8, GENERATION_LENGTHS, 5)


@pytest.fixture(scope='module')
def hidden(model, params, batch):
  return jax.jit(model.apply)({'params': params}, batch)


def jitted(function, model):
  return jax.jit(functools.partial(function, model))


def plain_logp(model, params, state, token):
  """Returns (logp, entropy) of one token after one hidden state."""
  table = params['embedder']['table']
  token = jnp.asarray(token)
  return np.array(plain(table, state, token, model.config.final_softcap))


def test_generation_logps(model, params, batch, hidden):
  ours = jitted(logprobs.generation_logps, model)(params, batch)
  assert all(x.dtype == jnp.float32 and x.shape == (2, 3, 5) for x in ours)
  expected = np.zeros((2, 2, 3, 5))
  for p, r, t in np.ndindex(2, 3, 5):
    if t < GENERATION_LENGTHS[p][r]:
      state = hidden.prompt[p, -1]
      if t > 0:
        state = hidden.generation[p, r, t - 1]
      token = batch.generations[p, r, t]
      expected[:, p, r, t] = plain_logp(model, params, state, token)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_prompt_logps(model, params, batch, hidden):
  ours = jitted(logprobs.prompt_logps, model)(params, batch)
  assert all(x.dtype == jnp.float32 and x.shape == (2, 7) for x in ours)
  expected = np.zeros((2, 2, 7))
  for p, s in np.ndindex(2, 7):
    if s + 1 < PROMPT_LENGTHS[p]:
      token = batch.prompts[p, s + 1]
      state = hidden.prompt[p, s - PROMPT_LENGTHS[p]]
      expected[:, p, s] = plain_logp(model, params, state, token)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def expected_values(params, hidden):
  kernel = np.asarray(params['value_head']['kernel'], np.float32)[:, 0]
  expected = np.zeros((2, 3))
  for p, r in np.ndindex(2, 3):
    count = GENERATION_LENGTHS[p][r]
    state = hidden.prompt[p, -1]
    if count:
      state = hidden.generation[p, r, count - 1]
    expected[p, r] = np.asarray(state, np.float32) @ kernel
  return expected


def test_values_are_at_the_last_true_token(model, params, batch, hidden):
  values = jitted(logprobs.values, model)
  ours = values(params, batch)
  np.testing.assert_allclose(ours, expected_values(params, hidden), atol=1e-5)
  # An empty generation has the value of its prompt.
  prompts = Batch(batch.prompts, batch.prompt_lengths)
  prompt_values = values(params, prompts)
  assert prompt_values.shape == (2,) and prompt_values.dtype == jnp.float32
  np.testing.assert_allclose(prompt_values, [ours[0, 1], ours[1, 2]], atol=1e-5)


def test_outputs_are_float32_under_bfloat16(batch):
  compute = ComputeConfig(
    dtype='bfloat16', param_dtype='bfloat16', head_chunk=8
  )
  model = tiny.gemma(scalar=True, compute=compute)
  params = tiny.params(model)
  hidden = jax.jit(model.apply)({'params': params}, batch)
  assert hidden.prompt.dtype == jnp.bfloat16
  ours = jitted(logprobs.values, model)(params, batch)
  assert ours.dtype == jnp.float32
  # Closer than a product rounded to bfloat16 could be.
  np.testing.assert_allclose(ours, expected_values(params, hidden), atol=1e-4)
  outputs = jax.eval_shape(
    functools.partial(logprobs.generation_logps, model), params, batch
  )
  assert all(x.dtype == jnp.float32 for x in outputs)


def test_bfloat16_gradient_is_close_to_float32():
  lengths = [[10, 0], [6, 9], [2, 5]]
  batch = tiny.batch([1, 5, 9], 12, lengths, 15)
  params = tiny.params(tiny.gemma())

  def run(dtype):
    compute = ComputeConfig(dtype=dtype, remat='dots', query_block=8)
    model = tiny.gemma(compute=compute)

    def loss(params):
      logps, _ = logprobs.generation_logps(model, params, batch)
      return jnp.sum(logps) / batch.generations.size

    return jax.jit(jax.value_and_grad(loss))(params)

  (ours, ours_grad), (expected, expected_grad) = run('bfloat16'), run('float32')
  assert abs(ours - expected) < 2e-3 * abs(expected)
  difference = jax.tree.map(jnp.subtract, ours_grad, expected_grad)
  assert optax.tree.norm(difference) < 0.07 * optax.tree.norm(expected_grad)
