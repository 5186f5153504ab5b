"""A shared prompt with R generations equals R separate sequences.

Covers the joint softmax over prompt and generation keys, positions, the window
(also across the end of the prompt), softcaps and query blocks. No token attends
to another generation, to a later token or to padding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import logprobs
from grm_jax.model.attention import SequenceLayout, attend
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh
from tests.model import tiny

# Different lengths, a prompt of one token, an empty generation, S longer than
# every prompt, generations longer than the window of 6. Separate sequences have
# only three lengths (11, 14, 20), which saves compilations.
PROMPT_LENGTHS = [1, 5, 9]
GENERATION_LENGTHS = [[10, 0, 13], [6, 9, 15], [2, 5, 11]]
PROMPT_SIZE, GENERATION_SIZE = 12, 15


@pytest.fixture(scope='module')
def model():
  return tiny.gemma()


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


@pytest.fixture(scope='module')
def batch():
  return tiny.batch(
    PROMPT_LENGTHS, PROMPT_SIZE, GENERATION_LENGTHS, GENERATION_SIZE
  )


@pytest.fixture(scope='module')
def weights():
  shape = (*np.shape(GENERATION_LENGTHS), GENERATION_SIZE)
  return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def apply(model, params):
  """Returns a compiled function: batch -> HiddenStates on the host."""
  compiled = jax.jit(lambda batch: model.apply({'params': params}, batch))
  return lambda batch: jax.device_get(compiled(batch))


def with_gradients(model, logps_fn):
  """Returns a function: params, batch, weights -> (logps, gradients).

  The gradients are those of the weighted sum of the log-probabilities.
  """

  def loss(params, batch, weights):
    logps, _ = logps_fn(model, params, batch)
    return jnp.sum(logps * weights), logps

  grad = jax.jit(jax.grad(loss, has_aux=True))
  return lambda *args: jax.device_get(grad(*args))[::-1]


@pytest.fixture(scope='module')
def shared_result(model, params, batch, weights):
  return with_gradients(model, logprobs.generation_logps)(
    params, batch, weights
  )


def generation_indices(batch):
  return np.ndindex(*batch.generation_lengths.shape)


def separate_sequence(batch, p, r):
  """Returns prompt p and its generation r as one unpadded prompt."""
  prompt = batch.prompts[p, : batch.prompt_lengths[p]]
  generation = batch.generations[p, r, : batch.generation_lengths[p, r]]
  tokens = jnp.concatenate([prompt, generation])[None]
  return Batch(tokens, jnp.array([tokens.shape[1]]))


@pytest.fixture(scope='module')
def separate_results(model, params, batch, weights):
  """Returns {(p, r): (logps, gradients)} of the separate sequences."""
  run = with_gradients(model, logprobs.prompt_logps)
  results = {}
  for p, r in generation_indices(batch):
    count = GENERATION_LENGTHS[p][r]
    if count:
      row = np.zeros((1, PROMPT_LENGTHS[p] + count - 1), np.float32)
      row[0, PROMPT_LENGTHS[p] - 1 :] = weights[p, r, :count]
      results[p, r] = run(params, separate_sequence(batch, p, r), row)
  return results


def test_hidden_states_equal_separate_sequences(batch, apply):
  hidden = apply(batch)
  for p, r in generation_indices(batch):
    length, count = PROMPT_LENGTHS[p], GENERATION_LENGTHS[p][r]
    if not count:
      continue
    expected = apply(separate_sequence(batch, p, r)).prompt[0]
    np.testing.assert_allclose(
      hidden.prompt[p, -length:], expected[:length], atol=1e-5
    )
    np.testing.assert_allclose(
      hidden.generation[p, r, :count], expected[length:], atol=1e-5
    )


def test_logps_equal_separate_sequences(batch, shared_result, separate_results):
  logps = shared_result[0]
  for p, r in generation_indices(batch):
    length, count = PROMPT_LENGTHS[p], GENERATION_LENGTHS[p][r]
    assert not np.any(logps[p, r, count:])
    if count:
      expected = separate_results[p, r][0][0, length - 1 :]
      np.testing.assert_allclose(logps[p, r, :count], expected, atol=1e-5)


def test_gradients_equal_separate_sequences(shared_result, separate_results):
  gradients = [gradients for _, gradients in separate_results.values()]
  total = jax.tree.map(lambda *parts: sum(parts), *gradients)
  tiny.assert_close(shared_result[1], total, 1e-5)


def with_other_tokens(x, *index):
  """Returns `x` with other tokens at `index`."""
  x = np.array(x)
  x[index] = (x[index] + 7) % tiny.CONFIG.vocab_size
  return jnp.asarray(x)


def test_a_generation_affects_only_itself(batch, apply):
  before = apply(batch)
  other = batch.replace(generations=with_other_tokens(batch.generations, 1, 1))
  after = apply(other)
  np.testing.assert_array_equal(after.prompt, before.prompt)
  unchanged = np.ones((3, 3), bool)
  unchanged[1, 1] = False
  np.testing.assert_array_equal(
    after.generation[unchanged], before.generation[unchanged]
  )
  assert np.all(after.generation[1, 1] != before.generation[1, 1])


def test_generation_tokens_do_not_affect_earlier_tokens(batch, apply):
  before = apply(batch).generation[2, 2]
  index = (2, 2, slice(7, None))
  other = batch.replace(
    generations=with_other_tokens(batch.generations, *index)
  )
  after = apply(other).generation[2, 2]
  np.testing.assert_array_equal(after[:7], before[:7])
  assert np.all(after[7:] != before[7:])


def test_prompt_tokens_do_not_affect_earlier_tokens(batch, apply):
  before = apply(batch)
  other = batch.replace(
    prompts=with_other_tokens(batch.prompts, 2, slice(4, None))
  )
  after = apply(other)
  np.testing.assert_array_equal(after.prompt[:2], before.prompt[:2])
  first = PROMPT_SIZE - PROMPT_LENGTHS[2]
  unchanged = slice(first, first + 4)
  np.testing.assert_array_equal(
    after.prompt[2, unchanged], before.prompt[2, unchanged]
  )
  np.testing.assert_array_equal(after.generation[:2], before.generation[:2])
  # Every generation of that prompt attends to the changed tokens.
  assert np.all(np.any(after.generation[2] != before.generation[2], axis=-1))


def test_padding_does_not_affect_true_tokens(batch, apply):
  padding = np.arange(PROMPT_SIZE) >= np.array(PROMPT_LENGTHS)[:, None]
  generation_padding = (
    np.arange(GENERATION_SIZE) >= np.array(GENERATION_LENGTHS)[..., None]
  )
  before = apply(batch)
  after = apply(
    batch.replace(
      prompts=with_other_tokens(batch.prompts, padding),
      generations=with_other_tokens(batch.generations, generation_padding),
    )
  )
  # Rows have the padding on the left.
  padding = padding[:, ::-1]
  np.testing.assert_array_equal(after.prompt[~padding], before.prompt[~padding])
  np.testing.assert_array_equal(
    after.generation[~generation_padding],
    before.generation[~generation_padding],
  )
  assert np.all(np.any(after.prompt != before.prompt, axis=-1)[padding])


# The following tests call attention alone, on random queries, keys and values.

SEQUENCE = SequenceLayout(jnp.array([3, 11], jnp.int32), 13, 2, 7)


def random_qkv(sequence, seed=3, heads=4, kv_heads=2, head_dim=8):
  rng = np.random.default_rng(seed)
  num_tokens = (
    sequence.prompt_size + sequence.num_generations * sequence.generation_size
  )
  shape = (sequence.prompt_lengths.shape[0], num_tokens)
  return [
    rng.standard_normal((*shape, n, head_dim)).astype(np.float32)
    for n in (heads, kv_heads, kv_heads)
  ]


def run_attend(qkv, sequence, window, cap, query_block=512):
  static = ('window', 'cap', 'compute', 'layout')
  return jax.jit(attend, static_argnames=static)(
    *qkv,
    sequence,
    window=window,
    cap=cap,
    compute=ComputeConfig(query_block=query_block),
    layout=mesh.one_device(),
  )


# Index of the query -> indices of visible keys, for one prompt of 4 tokens
# padded to 6 (so 6.. is the first generation, 11.. the second) and W = 3: a key
# W - 1 = 2 positions back is visible, a key 3 positions back is not.
LOCAL = {
  # Indices 0 and 1 are padding.
  2: {2},
  3: {2, 3},
  4: {2, 3, 4},
  5: {3, 4, 5},
  # Across the end of the prompt.
  6: {4, 5, 6},
  7: {5, 6, 7},
  8: {6, 7, 8},
  # Inside a generation longer than W.
  9: {7, 8, 9},
  10: {8, 9, 10},
  11: {4, 5, 11},
  12: {5, 11, 12},
  13: {11, 12, 13},
  14: {12, 13, 14},
  15: {13, 14, 15},
}
GLOBAL = {
  2: {2},
  3: {2, 3},
  4: {2, 3, 4},
  5: {2, 3, 4, 5},
  6: {2, 3, 4, 5, 6},
  7: {2, 3, 4, 5, 6, 7},
  8: {2, 3, 4, 5, 6, 7, 8},
  9: {2, 3, 4, 5, 6, 7, 8, 9},
  10: {2, 3, 4, 5, 6, 7, 8, 9, 10},
  11: {2, 3, 4, 5, 11},
  12: {2, 3, 4, 5, 11, 12},
  13: {2, 3, 4, 5, 11, 12, 13},
  14: {2, 3, 4, 5, 11, 12, 13, 14},
  15: {2, 3, 4, 5, 11, 12, 13, 14, 15},
}


@pytest.mark.parametrize('query_block', [3, 512])
@pytest.mark.parametrize('window, expected', [(3, LOCAL), (None, GLOBAL)])
def test_visible_keys(window, expected, query_block):
  """Equal logits and one-hot values make the output show the visible keys."""
  sequence = SequenceLayout(jnp.array([4], jnp.int32), 6, 2, 5)
  zeros = np.zeros((1, 16, 1, 16), np.float32)
  one_hot = np.eye(16, dtype=np.float32)[None, :, None, :]
  qkv = [zeros, zeros, one_hot]
  out = run_attend(qkv, sequence, window, None, query_block)
  for query, visible in expected.items():
    weights = np.array(out[0, query, 0])
    assert set(np.flatnonzero(weights)) == visible, query
    np.testing.assert_allclose(
      weights[list(visible)], 1 / len(visible), rtol=1e-6
    )


def test_with_window_1_a_token_attends_to_itself():
  qkv = random_qkv(SEQUENCE)
  out = run_attend(qkv, SEQUENCE, 1, None)
  np.testing.assert_allclose(out, np.repeat(qkv[2], 2, axis=2), atol=1e-6)


def causal_keys(sequence, p, query):
  """Returns (index, position) of the keys up to `query`, without a window.

  The true tokens of a prompt are the last ones before its generations. The
  padding before them attends to itself.
  """
  size = sequence.prompt_size
  first = size - int(sequence.prompt_lengths[p])
  if query < size:
    return [(s, s) for s in range(first if query >= first else 0, query + 1)]
  token = (query - size) % sequence.generation_size
  own = [(query - token + t, size + t) for t in range(token + 1)]
  return [(s, s) for s in range(first, size)] + own


def numpy_attention(qkv, sequence, window, cap):
  """Computes attention in NumPy, one query and one head at a time."""
  query, key, value = (np.asarray(x, np.float64) for x in qkv)
  out = np.zeros(query.shape)
  group = query.shape[2] // key.shape[2]
  for p, x, n in np.ndindex(query.shape[:3]):
    keys = causal_keys(sequence, p, x)
    position = keys[-1][1]
    visible = [i for i, k in keys if window is None or position - k < window]
    logits = key[p, visible, n // group] @ query[p, x, n]
    if cap is not None:
      logits = cap * np.tanh(logits / cap)
    weights = np.exp(logits - logits.max())
    out[p, x, n] = weights @ value[p, visible, n // group] / weights.sum()
  return out


def causal_mask(sequence, num_tokens):
  """Returns bool [P, X, X]: keys that each query sees without a window."""
  batch_size = len(sequence.prompt_lengths)
  mask = np.zeros((batch_size, num_tokens, num_tokens), bool)
  for p, x in np.ndindex(mask.shape[:2]):
    mask[p, x, [i for i, _ in causal_keys(sequence, p, x)]] = True
  return mask


def dense_attention(qkv, mask, cap):
  """Computes attention by one softmax over all X tokens, in jnp."""
  query, key, value = qkv
  group = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
  logits = cap * jnp.tanh(jnp.einsum('PXNH,PYNH->PNXY', query, key) / cap)
  logits = jnp.where(mask[:, None], logits, -jnp.inf)
  return jnp.einsum('PNXY,PYNH->PXNH', jax.nn.softmax(logits), value)


@pytest.mark.parametrize('sign', [1, -1])
def test_gradients_with_logits_at_the_softcap(sign):
  """All logits are near 50 or -50, and no maximum is subtracted."""
  query, key, value = random_qkv(SEQUENCE)
  # 50 * tanh(2) is 48.2, and exp(2 * 48) overflows float32.
  query[..., 0], key[..., 0] = 10 * sign, 10
  weights = random_qkv(SEQUENCE, seed=4)[0]
  mask = causal_mask(SEQUENCE, query.shape[1])

  def gradients(run):
    loss = jax.jit(lambda qkv: jnp.sum(run(qkv) * weights))
    return jax.grad(loss)([query, key, value])

  ours = gradients(lambda qkv: run_attend(qkv, SEQUENCE, None, 50.0))
  expected = gradients(lambda qkv: dense_attention(qkv, mask, 50.0))
  for x, expected_x in zip(ours, expected, strict=True):
    assert np.abs(expected_x).max() > 0.1
    np.testing.assert_allclose(x, expected_x, atol=1e-4)


# Blocks of 5 pad S = 13 by 2 queries; with a window of 2 they see no key.
@pytest.mark.parametrize('cap', [None, 1.5])
def test_block_padding_has_no_gradient(cap):
  weights = random_qkv(SEQUENCE, seed=4)[0]

  def gradients(block):
    def loss(qkv):
      return jnp.sum(run_attend(qkv, SEQUENCE, 2, cap, block) * weights)

    return jax.grad(loss)(random_qkv(SEQUENCE))

  for x, expected in zip(gradients(5), gradients(512), strict=True):
    np.testing.assert_allclose(x, expected, atol=1e-5)


@pytest.mark.parametrize('window', [None, 4])
@pytest.mark.parametrize('cap', [None, 1.0])
def test_attention_equals_numpy(window, cap):
  qkv = random_qkv(SEQUENCE)
  ours = run_attend(qkv, SEQUENCE, window, cap)
  expected = numpy_attention(qkv, SEQUENCE, window, cap)
  np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_softcap_affects_prompts_and_generations():
  qkv = random_qkv(SEQUENCE)
  off, on = (run_attend(qkv, SEQUENCE, None, cap) for cap in (None, 1.0))
  difference = np.abs(np.array(off - on)).max(axis=(2, 3))
  # The first token attends only to itself, with or without a softcap.
  first = SEQUENCE.prompt_size - SEQUENCE.prompt_lengths
  later = np.arange(difference.shape[1])[None] > first[:, None]
  assert np.all(difference[later] > 1e-3)


@functools.cache
def run_with_blocks(query_block, window):
  """Returns (output, gradients of q, k, v) of a random weighted sum."""
  qkv = random_qkv(SEQUENCE)
  weights = random_qkv(SEQUENCE, seed=4)[0]

  def loss(qkv):
    out = run_attend(qkv, SEQUENCE, window, 1.5, query_block)
    return jnp.sum(out * weights), out

  gradients, out = jax.jit(jax.grad(loss, has_aux=True))(qkv)
  return out, gradients


@pytest.mark.parametrize('window', [None, 4])
# S = 13, T = 7, R = 2. Tokens per block: 5 (prompt) and 2 (generations); 1, 1.
@pytest.mark.parametrize('query_block', [5, 1])
def test_blocks_equal_one_block(query_block, window):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-5),
    run_with_blocks(query_block, window),
    run_with_blocks(512, window),
  )


def test_blocks_never_hold_all_logits():
  """Neither part creates an array with all of its logits."""
  qkv = random_qkv(SEQUENCE)
  # With a window of 4, 7 tokens see at most 7 + 4 - 1 tokens of the prompt.
  all_logits = {(2, 2, 1, 2, 13, 13), (2, 2, 2, 2, 7, 10), (2, 2, 2, 2, 7, 7)}

  def shapes(query_block):
    run = functools.partial(
      run_attend, sequence=SEQUENCE, window=4, cap=1.5, query_block=query_block
    )
    return set(tiny.intermediate_shapes(run, qkv))

  assert all_logits <= shapes(512)
  assert not all_logits & shapes(4)


def test_positions():
  sequence = SequenceLayout(jnp.array([1, 3], jnp.int32), 3, 2, 2)
  np.testing.assert_array_equal(
    sequence.positions(), [[0, 0, 0, 1, 2, 1, 2], [0, 1, 2, 3, 4, 3, 4]]
  )
  sequence = SequenceLayout(jnp.array([2], jnp.int32), 3)
  np.testing.assert_array_equal(sequence.positions(), [[0, 1, 2]])


def test_sequence_layout_from_batch(batch):
  sequence = SequenceLayout.from_batch(batch)
  assert (
    sequence.prompt_size,
    sequence.num_generations,
    sequence.generation_size,
  ) == (PROMPT_SIZE, 3, GENERATION_SIZE)
  prompts = SequenceLayout.from_batch(
    Batch(batch.prompts, batch.prompt_lengths)
  )
  assert (prompts.prompt_size, prompts.num_generations) == (PROMPT_SIZE, 0)
