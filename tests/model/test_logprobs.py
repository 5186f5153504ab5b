"""Log-probabilities, entropies and values against the plain formulas.

Guards chunks, dead rows of the table, the final softcap, which hidden state
predicts which token, which token is judged, and memory: no array of tokens by
vocabulary larger than one chunk, forward or backward.
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

LIVE, ROWS = 250, 256


def random_arrays(count=2, length=7, width=32):
  """table, hidden, targets, and the weights of a loss."""
  rng = np.random.default_rng(0)
  table = rng.standard_normal((ROWS, width)).astype(np.float32)
  hidden = rng.standard_normal((count, length, width)).astype(np.float32)
  targets = rng.integers(0, LIVE, (count, length))
  weights = rng.standard_normal((2, count, length)).astype(np.float32)
  return table, 0.3 * hidden, targets, weights


def plain_logps(table, hidden, cap):
  """float32 [..., V] log-probabilities of all live tokens."""
  logits = jnp.einsum('...D,VD->...V', hidden, table[:LIVE])
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  return jax.nn.log_softmax(logits)


@functools.partial(jax.jit, static_argnames='cap')
def plain(table, hidden, targets, cap):
  """(logps, entropy) of the targets."""
  every = plain_logps(table, hidden, cap)
  logps = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
  return logps, -jnp.sum(jnp.exp(every) * every, axis=-1)


def with_gradients(function, weights):
  """(table, hidden) -> (outputs, gradients) of a weighted sum of both."""

  def loss(table, hidden):
    outputs = function(table, hidden)
    return sum(
      jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True)
    ), outputs

  grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  return lambda table, hidden: grad(table, hidden)[::-1]


# 2 rows of 7 tokens: one chunk, chunks of 4 (the last padded), of 1, and a
# limit below one token of each row.
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


def test_softcap_takes_effect():
  table, hidden, targets, _ = random_arrays()
  off, on = (
    logprobs.token_logps(tiny.gemma(final_softcap=cap), table, hidden, targets)
    for cap in (None, 3.0)
  )
  for a, b in zip(off, on, strict=True):
    assert np.all(np.abs(a - b) > 1e-3)


def test_dead_rows_have_no_probability_and_no_gradient():
  table, hidden, targets, weights = random_arrays()
  model = tiny.gemma(compute=ComputeConfig(head_chunk=8))
  assert (model.config.vocab_size, model.config.padded_vocab_size) == (LIVE, ROWS)
  loud = table.copy()
  loud[LIVE:] = 100 * hidden[0, 0]

  run = with_gradients(
    lambda t, h: logprobs.token_logps(model, t, h, targets), weights
  )
  ours, (gradient, _) = run(loud, hidden)
  jax.tree.map(np.testing.assert_array_equal, ours, run(table, hidden)[0])
  assert not np.any(gradient[LIVE:])
  assert np.all(np.any(gradient[:LIVE] != 0, axis=1))
  dead = jnp.full_like(targets, LIVE)
  logps, _ = logprobs.token_logps(model, loud, hidden, dead)
  assert not np.any(np.exp(logps))


def test_logits_of_dead_rows():
  table, hidden, _, _ = random_arrays()
  x = logprobs.logits(tiny.gemma(final_softcap=3.0), table, hidden)
  assert x.dtype == jnp.float32 and np.all(x[..., LIVE:] == -1e30)
  assert np.all(np.abs(x[..., :LIVE]) <= 3.0)


@pytest.mark.parametrize(
  'table, hidden, words',
  [
    ((ROWS, 16), (2, 3, 32), ['table', '(256, 16)', '(256, 32)']),
    ((LIVE, 32), (2, 3, 32), ['table', '(250, 32)', '(256, 32)']),
    ((ROWS, 32), (2, 4, 32), ['hidden', '(2, 4, 32)', '(2, 3)']),
  ],
)
def test_bad_shapes(table, hidden, words):
  with pytest.raises(ValueError, match=naming(*words)):
    logprobs.token_logps(
      tiny.gemma(),
      jnp.zeros(table),
      jnp.zeros(hidden),
      jnp.zeros((2, 3), jnp.int32),
    )


# Memory. 4 rows of 64 predicted tokens, 1024 rows of the table, 16 tokens a
# chunk: one chunk of logits has 16,384 entries, all of them 262,144.

CHUNK, WIDE = 16, 1024


def arrays_made(loss_of_logps):
  """Shapes of what the gradient of a loss over generations makes."""
  compute = ComputeConfig(head_chunk=CHUNK, query_block=8)
  model = tiny.gemma(compute=compute, vocab_size=WIDE, num_layers=2)
  batch = tiny.batch([5] * 4, 6, [[16] * 4] * 4, 16)
  made = tiny.intermediate_shapes(
    jax.grad(lambda params: loss_of_logps(model, params, batch)),
    tiny.params(model),
  )
  # The table and its gradient are not the head's to avoid.
  return [shape for shape in made if shape != (WIDE, model.config.width)]


def chunked(model, params, batch):
  return jnp.sum(logprobs.generation_logps(model, params, batch)[0])


def at_once(model, params, batch):
  """The same tokens without chunks."""
  hidden = model.apply({'params': params}, batch).generation
  flat = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
  logits = logprobs.logits(model, params['embedder']['table'], flat)
  return jnp.sum(jax.nn.logsumexp(logits, axis=-1))


def test_no_array_is_larger_than_a_chunk_of_logits():
  sizes = [np.prod(shape) for shape in arrays_made(chunked)]
  assert max(sizes) == CHUNK * WIDE


def test_logits_at_once_would_be_found():
  sizes = [np.prod(shape) for shape in arrays_made(at_once)]
  assert max(sizes) == 4 * 64 * WIDE


def test_chunks_kept_for_the_backward_pass_would_be_found(monkeypatch):
  monkeypatch.setattr(jax, 'checkpoint', lambda function, **_: function)
  sizes = [np.prod(shape) for shape in arrays_made(chunked)]
  assert max(sizes) == 4 * 64 * WIDE


# Which hidden state predicts which token, and which token is judged.

LENGTHS, OWN_LENGTHS = [1, 6], [[4, 0, 1], [2, 5, 0]]


@pytest.fixture(scope='module')
def model():
  return tiny.gemma(scalar=True, compute=ComputeConfig(head_chunk=8))


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


@pytest.fixture(scope='module')
def batch():
  return tiny.batch(LENGTHS, 8, OWN_LENGTHS, 5)


@pytest.fixture(scope='module')
def hidden(model, params, batch):
  return jax.jit(model.apply)({'params': params}, batch)


def jitted(function, model):
  return jax.jit(functools.partial(function, model))


def scored(model, params, state, token):
  """(logp, entropy) of one token after one hidden state."""
  table = params['embedder']['table']
  token = jnp.asarray(token)
  return np.array(plain(table, state, token, model.config.final_softcap))


def test_generation_logps(model, params, batch, hidden):
  ours = jitted(logprobs.generation_logps, model)(params, batch)
  assert all(x.dtype == jnp.float32 and x.shape == (2, 3, 5) for x in ours)
  expected = np.zeros((2, 2, 3, 5))
  for p, r, t in np.ndindex(2, 3, 5):
    if t < OWN_LENGTHS[p][r]:
      state = hidden.prompt[p, LENGTHS[p] - 1]
      if t > 0:
        state = hidden.generation[p, r, t - 1]
      token = batch.generations[p, r, t]
      expected[:, p, r, t] = scored(model, params, state, token)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_prompt_logps(model, params, batch, hidden):
  ours = jitted(logprobs.prompt_logps, model)(params, batch)
  assert all(x.dtype == jnp.float32 and x.shape == (2, 7) for x in ours)
  expected = np.zeros((2, 2, 7))
  for p, s in np.ndindex(2, 7):
    if s + 1 < LENGTHS[p]:
      token = batch.prompts[p, s + 1]
      state = hidden.prompt[p, s]
      expected[:, p, s] = scored(model, params, state, token)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def expected_values(params, hidden):
  kernel = np.asarray(params['value_head']['kernel'], np.float32)[:, 0]
  out = np.zeros((2, 3))
  for p, r in np.ndindex(2, 3):
    count = OWN_LENGTHS[p][r]
    state = hidden.prompt[p, LENGTHS[p] - 1]
    if count:
      state = hidden.generation[p, r, count - 1]
    out[p, r] = np.asarray(state, np.float32) @ kernel
  return out


def test_values_are_of_the_last_true_token(model, params, batch, hidden):
  values = jitted(logprobs.values, model)
  ours = values(params, batch)
  np.testing.assert_allclose(ours, expected_values(params, hidden), atol=1e-5)
  # An empty generation is judged as its prompt is.
  prompts = Batch(batch.prompts, batch.prompt_lengths)
  alone = values(params, prompts)
  assert alone.shape == (2,) and alone.dtype == jnp.float32
  np.testing.assert_allclose(alone, [ours[0, 1], ours[1, 2]], atol=1e-5)


def test_everything_is_float32_under_bfloat16(batch):
  compute = ComputeConfig(
    dtype='bfloat16', param_dtype='bfloat16', head_chunk=8
  )
  model = tiny.gemma(scalar=True, compute=compute)
  params = tiny.params(model)
  hidden = jax.jit(model.apply)({'params': params}, batch)
  assert hidden.prompt.dtype == jnp.bfloat16
  ours = jitted(logprobs.values, model)(params, batch)
  assert ours.dtype == jnp.float32
  # Too close for a product rounded to bfloat16.
  np.testing.assert_allclose(ours, expected_values(params, hidden), atol=1e-4)
  outputs = jax.eval_shape(
    functools.partial(logprobs.generation_logps, model), params, batch
  )
  assert all(x.dtype == jnp.float32 for x in outputs)


def test_bfloat16_gradient_is_near_the_float32_one():
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
