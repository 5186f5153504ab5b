"""One prompt with many generations is the same as many whole sequences.

Guards the joint softmax over prompt and own keys, true positions, the window
(also across the border between prompt and generation), softcaps, blocks of
queries, and that nobody sees a sibling, the future or padding.
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

# All different, one prompt of a single token, one empty generation, S above
# every prompt, generations above the window of 6. Whole sequences have only
# three different lengths (11, 14, 20), which saves compilations.
LENGTHS = [1, 5, 9]
OWN_LENGTHS = [[10, 0, 13], [6, 9, 15], [2, 5, 11]]
PROMPT_SIZE, OWN_SIZE = 12, 15


@pytest.fixture(scope='module')
def model():
  return tiny.gemma()


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


@pytest.fixture(scope='module')
def batch():
  return tiny.batch(LENGTHS, PROMPT_SIZE, OWN_LENGTHS, OWN_SIZE)


@pytest.fixture(scope='module')
def weights():
  shape = (*np.shape(OWN_LENGTHS), OWN_SIZE)
  return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def apply(model, params):
  """batch -> Hidden, compiled once."""
  compiled = jax.jit(lambda batch: model.apply({'params': params}, batch))
  return lambda batch: jax.device_get(compiled(batch))


def with_gradients(model, logps_of):
  """(params, batch, weights) -> (logps, gradients of their weighted sum)."""

  def loss(params, batch, weights):
    logps, _ = logps_of(model, params, batch)
    return jnp.sum(logps * weights), logps

  grad = jax.jit(jax.grad(loss, has_aux=True))
  return lambda *args: jax.device_get(grad(*args))[::-1]


@pytest.fixture(scope='module')
def shared(model, params, batch, weights):
  return with_gradients(model, logprobs.generation_logps)(
    params, batch, weights
  )


def pairs_of(batch):
  return np.ndindex(*batch.generation_lengths.shape)


def whole(batch, p, r):
  """Prompt p and its generation r as one unpadded prompt."""
  prompt = batch.prompts[p, : batch.prompt_lengths[p]]
  own = batch.generations[p, r, : batch.generation_lengths[p, r]]
  tokens = jnp.concatenate([prompt, own])[None]
  return Batch(tokens, jnp.array([tokens.shape[1]]))


@pytest.fixture(scope='module')
def alone(model, params, batch, weights):
  """(p, r) -> (logps, gradients) of each whole sequence by itself."""
  run = with_gradients(model, logprobs.prompt_logps)
  out = {}
  for p, r in pairs_of(batch):
    count = OWN_LENGTHS[p][r]
    if count:
      each = np.zeros((1, LENGTHS[p] + count - 1), np.float32)
      each[0, LENGTHS[p] - 1 :] = weights[p, r, :count]
      out[p, r] = run(params, whole(batch, p, r), each)
  return out


def test_hidden_equal_whole_sequences(batch, apply):
  hidden = apply(batch)
  for p, r in pairs_of(batch):
    length, count = LENGTHS[p], OWN_LENGTHS[p][r]
    if not count:
      continue
    expected = apply(whole(batch, p, r)).prompt[0]
    np.testing.assert_allclose(
      hidden.prompt[p, :length], expected[:length], atol=1e-5
    )
    np.testing.assert_allclose(
      hidden.generation[p, r, :count], expected[length:], atol=1e-5
    )


def test_logps_equal_whole_sequences(batch, shared, alone):
  logps = shared[0]
  for p, r in pairs_of(batch):
    length, count = LENGTHS[p], OWN_LENGTHS[p][r]
    assert not np.any(logps[p, r, count:])
    if count:
      expected = alone[p, r][0][0, length - 1 :]
      np.testing.assert_allclose(logps[p, r, :count], expected, atol=1e-5)


def test_gradients_equal_whole_sequences(shared, alone):
  total = jax.tree.map(
    lambda *parts: sum(parts), *(gradients for _, gradients in alone.values())
  )
  tiny.assert_close(shared[1], total, 1e-5)


def changed(x, *index):
  """`x` with other tokens at `index`."""
  x = np.array(x)
  x[index] = (x[index] + 7) % tiny.CONFIG.vocab_size
  return jnp.asarray(x)


def test_a_generation_touches_only_itself(batch, apply):
  before = apply(batch)
  other = batch.replace(generations=changed(batch.generations, 1, 1))
  after = apply(other)
  np.testing.assert_array_equal(after.prompt, before.prompt)
  same = np.ones((3, 3), bool)
  same[1, 1] = False
  np.testing.assert_array_equal(after.generation[same], before.generation[same])
  assert np.all(after.generation[1, 1] != before.generation[1, 1])


def test_later_generation_tokens_touch_nothing_earlier(batch, apply):
  before = apply(batch).generation[2, 2]
  index = (2, 2, slice(7, None))
  other = batch.replace(generations=changed(batch.generations, *index))
  after = apply(other).generation[2, 2]
  np.testing.assert_array_equal(after[:7], before[:7])
  assert np.all(after[7:] != before[7:])


def test_later_prompt_tokens_touch_nothing_earlier(batch, apply):
  before = apply(batch)
  other = batch.replace(prompts=changed(batch.prompts, 2, slice(4, None)))
  after = apply(other)
  np.testing.assert_array_equal(after.prompt[:2], before.prompt[:2])
  np.testing.assert_array_equal(after.prompt[2, :4], before.prompt[2, :4])
  np.testing.assert_array_equal(after.generation[:2], before.generation[:2])
  # Every generation of that prompt sees the change.
  assert np.all(np.any(after.generation[2] != before.generation[2], axis=-1))


def test_padding_touches_no_real_token(batch, apply):
  padding = np.arange(PROMPT_SIZE) >= np.array(LENGTHS)[:, None]
  own_padding = np.arange(OWN_SIZE) >= np.array(OWN_LENGTHS)[..., None]
  before = apply(batch)
  after = apply(
    batch.replace(
      prompts=changed(batch.prompts, padding),
      generations=changed(batch.generations, own_padding),
    )
  )
  np.testing.assert_array_equal(after.prompt[~padding], before.prompt[~padding])
  np.testing.assert_array_equal(
    after.generation[~own_padding], before.generation[~own_padding]
  )
  assert np.all(np.any(after.prompt != before.prompt, axis=-1)[padding])


# From here on attention alone, on random queries, keys and values.

ROWS = SequenceLayout(jnp.array([3, 11], jnp.int32), 13, 2, 7)


def random_qkv(rows, seed=3, heads=4, kv_heads=2, head_dim=8):
  """Rotated queries and keys are as good as any numbers here."""
  rng = np.random.default_rng(seed)
  places = rows.prompt_size + rows.num_generations * rows.generation_size
  shape = (rows.prompt_lengths.shape[0], places)
  return [
    rng.standard_normal((*shape, n, head_dim)).astype(np.float32)
    for n in (heads, kv_heads, kv_heads)
  ]


def run_attend(qkv, rows, window, cap, query_block=512):
  static = ('window', 'cap', 'compute', 'layout')
  return jax.jit(attend, static_argnames=static)(
    *qkv,
    rows,
    window=window,
    cap=cap,
    compute=ComputeConfig(query_block=query_block),
    layout=mesh.one_device(),
  )


# (p, place of the query) -> places of the keys it sees, for one prompt of 4
# tokens in 6 places (so 6.. is the first generation, 11.. the second) and
# W = 3: a key W - 1 = 2 places back is seen, a key 3 places back is not.
LOCAL = {
  0: {0},
  1: {0, 1},
  2: {0, 1, 2},
  3: {1, 2, 3},
  # Across the border; places 4 and 5 are padding.
  6: {2, 3, 6},
  7: {3, 6, 7},
  8: {6, 7, 8},
  # Inside a generation longer than W.
  9: {7, 8, 9},
  10: {8, 9, 10},
  11: {2, 3, 11},
  12: {3, 11, 12},
  13: {11, 12, 13},
  14: {12, 13, 14},
  15: {13, 14, 15},
}
GLOBAL = {
  0: {0},
  1: {0, 1},
  2: {0, 1, 2},
  3: {0, 1, 2, 3},
  6: {0, 1, 2, 3, 6},
  7: {0, 1, 2, 3, 6, 7},
  8: {0, 1, 2, 3, 6, 7, 8},
  9: {0, 1, 2, 3, 6, 7, 8, 9},
  10: {0, 1, 2, 3, 6, 7, 8, 9, 10},
  11: {0, 1, 2, 3, 11},
  12: {0, 1, 2, 3, 11, 12},
  13: {0, 1, 2, 3, 11, 12, 13},
  14: {0, 1, 2, 3, 11, 12, 13, 14},
  15: {0, 1, 2, 3, 11, 12, 13, 14, 15},
}


@pytest.mark.parametrize('query_block', [3, 512])
@pytest.mark.parametrize('window, expected', [(3, LOCAL), (None, GLOBAL)])
def test_visible_keys(window, expected, query_block):
  """Equal logits, and each value names its place: the output is the set."""
  rows = SequenceLayout(jnp.array([4], jnp.int32), 6, 2, 5)
  zeros = np.zeros((1, 16, 1, 16), np.float32)
  names = np.eye(16, dtype=np.float32)[None, :, None, :]
  out = run_attend([zeros, zeros, names], rows, window, None, query_block)
  for query, seen in expected.items():
    weights = np.array(out[0, query, 0])
    assert set(np.flatnonzero(weights)) == seen, query
    np.testing.assert_allclose(weights[list(seen)], 1 / len(seen), rtol=1e-6)


def test_window_of_one_sees_only_itself():
  qkv = random_qkv(ROWS)
  out = run_attend(qkv, ROWS, 1, None)
  np.testing.assert_allclose(out, np.repeat(qkv[2], 2, axis=2), atol=1e-6)


def key_places(rows, p, query):
  """(place, position) of the keys before `query`, itself included."""
  prompt = [(s, s) for s in range(rows.prompt_size)]
  if query < rows.prompt_size:
    return prompt[: query + 1]
  length = int(rows.prompt_lengths[p])
  own = (query - rows.prompt_size) % rows.generation_size
  first = query - own
  return prompt[:length] + [(first + t, length + t) for t in range(own + 1)]


def reference(qkv, rows, window, cap):
  """Attention in plain NumPy, one query and one head at a time."""
  query, key, value = (np.asarray(x, np.float64) for x in qkv)
  out = np.zeros(query.shape)
  group = query.shape[2] // key.shape[2]
  for p, x, n in np.ndindex(query.shape[:3]):
    places = key_places(rows, p, x)
    here = places[-1][1]
    seen = [i for i, at in places if window is None or here - at < window]
    logits = key[p, seen, n // group] @ query[p, x, n]
    if cap is not None:
      logits = cap * np.tanh(logits / cap)
    weights = np.exp(logits - logits.max())
    out[p, x, n] = weights @ value[p, seen, n // group] / weights.sum()
  return out


def seen_by(rows, places):
  """bool [P, X, X]: which keys each query sees without a window."""
  mask = np.zeros((len(rows.prompt_lengths), places, places), bool)
  for p, x in np.ndindex(mask.shape[:2]):
    mask[p, x, [i for i, _ in key_places(rows, p, x)]] = True
  return mask


def dense(qkv, mask, cap):
  """Attention by one softmax over all places, in jnp."""
  query, key, value = qkv
  group = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
  logits = cap * jnp.tanh(jnp.einsum('PXNH,PYNH->PNXY', query, key) / cap)
  logits = jnp.where(mask[:, None], logits, -jnp.inf)
  return jnp.einsum('PNXY,PYNH->PXNH', jax.nn.softmax(logits), value)


@pytest.mark.parametrize('sign', [1, -1])
def test_gradients_at_the_ends_of_the_softcap(sign):
  """All logits are near 50, or all near -50, where no maximum is known."""
  query, key, value = random_qkv(ROWS)
  # 50 * tanh(2) is 48.2; of two of these exp(2 * 48) is no float32.
  query[..., 0], key[..., 0] = 10 * sign, 10
  weights = random_qkv(ROWS, seed=4)[0]
  mask = seen_by(ROWS, query.shape[1])

  def gradients(run):
    loss = jax.jit(lambda qkv: jnp.sum(run(qkv) * weights))
    return jax.grad(loss)([query, key, value])

  ours = gradients(lambda qkv: run_attend(qkv, ROWS, None, 50.0))
  expected = gradients(lambda qkv: dense(qkv, mask, 50.0))
  for one, other in zip(ours, expected, strict=True):
    assert np.abs(other).max() > 0.1
    np.testing.assert_allclose(one, other, atol=1e-4)


# S = 13 in blocks of 5 is padded by 2, which see nothing in a window of 2.
@pytest.mark.parametrize('cap', [None, 1.5])
def test_padding_of_a_block_has_no_gradient(cap):
  weights = random_qkv(ROWS, seed=4)[0]

  def gradients(block):
    def loss(qkv):
      return jnp.sum(run_attend(qkv, ROWS, 2, cap, block) * weights)

    return jax.grad(loss)(random_qkv(ROWS))

  for one, other in zip(gradients(5), gradients(512), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize('window', [None, 4])
@pytest.mark.parametrize('cap', [None, 1.0])
def test_equals_numpy(window, cap):
  qkv = random_qkv(ROWS)
  ours = run_attend(qkv, ROWS, window, cap)
  np.testing.assert_allclose(ours, reference(qkv, ROWS, window, cap), atol=2e-6)


def test_softcap_takes_effect_on_both_parts():
  qkv = random_qkv(ROWS)
  off, on = (run_attend(qkv, ROWS, None, cap) for cap in (None, 1.0))
  difference = np.abs(np.array(off - on)).max(axis=(2, 3))
  cut = ROWS.prompt_size
  # The very first token sees only itself, with or without a cap.
  assert np.all(difference[:, 1:cut] > 1e-3)
  assert np.all(difference[:, cut:] > 1e-3)


@functools.cache
def blocked(query_block, window):
  """(output, gradients of q, k, v) of a random weighted sum."""
  qkv = random_qkv(ROWS)
  weights = random_qkv(ROWS, seed=4)[0]

  def loss(qkv):
    out = run_attend(qkv, ROWS, window, 1.5, query_block)
    return jnp.sum(out * weights), out

  gradients, out = jax.jit(jax.grad(loss, has_aux=True))(qkv)
  return out, gradients


@pytest.mark.parametrize('window', [None, 4])
# S = 13, T = 7, R = 2: blocks of 5 and of 2 tokens, and of 1 and 1.
@pytest.mark.parametrize('query_block', [5, 1])
def test_blocks_equal_one_block(query_block, window):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-5),
    blocked(query_block, window),
    blocked(512, window),
  )


def test_blocks_never_hold_all_logits():
  """Neither part makes an array as large as all its logits at once."""
  qkv = random_qkv(ROWS)
  all_logits = {(2, 2, 2, 13, 13), (2, 2, 2, 2, 7, 13), (2, 2, 2, 2, 7, 7)}

  def made(query_block):
    run = functools.partial(
      run_attend, rows=ROWS, window=4, cap=1.5, query_block=query_block
    )
    return set(tiny.intermediate_shapes(run, qkv))

  assert all_logits <= made(512)
  assert not all_logits & made(4)


def test_positions():
  rows = SequenceLayout(jnp.array([1, 3], jnp.int32), 3, 2, 2)
  np.testing.assert_array_equal(
    rows.positions(), [[0, 1, 2, 1, 2, 1, 2], [0, 1, 2, 3, 4, 3, 4]]
  )
  rows = SequenceLayout(jnp.array([2], jnp.int32), 3)
  np.testing.assert_array_equal(rows.positions(), [[0, 1, 2]])


def test_rows_of(batch):
  rows = SequenceLayout.from_batch(batch)
  sizes = rows.prompt_size, rows.num_generations, rows.generation_size
  assert sizes == (PROMPT_SIZE, 3, OWN_SIZE)
  alone = SequenceLayout.from_batch(Batch(batch.prompts, batch.prompt_lengths))
  assert (alone.prompt_size, alone.num_generations) == (PROMPT_SIZE, 0)
