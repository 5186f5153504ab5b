"""Token sampling: frequencies, truncation and log-probabilities in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.judgement import temperature_range
from grm_jax.sampling.request import Request, row_key
from grm_jax.sampling.token_sampling import (
  SamplingParams,
  _inverse_cdf,
  invalid_reason,
  sample_token,
  step_keys,
  truncate,
)
from tests.messages import names

# Eight tokens with different probabilities, and one that cannot be sampled.
PROBABILITY = np.array([0.30, 0.22, 0.16, 0.12, 0.09, 0.06, 0.03, 0.02])
LOGITS = np.append(np.log(PROBABILITY), -1e30).astype(np.float32)[None]
NUM_SAMPLES = 20_000


def expected(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """Returns the distribution by definition, token by token."""
  p = PROBABILITY ** (1 / temperature)
  p /= p.sum()
  if top_k:
    p[top_k:] = 0
    p /= p.sum()
  total, kept = 0.0, np.zeros(8, bool)
  for i in range(8):
    kept[i] = total < top_p
    total += p[i]
  p = np.where(kept, p, 0)
  p = np.where(p >= min_p * p.max(), p, 0)
  return p / p.sum()


def make_params(
  count, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
) -> SamplingParams:
  """Returns the same parameters for every row."""
  return SamplingParams(
    jnp.full(count, temperature, jnp.float32),
    jnp.full(count, top_k, jnp.int32),
    jnp.full(count, top_p, jnp.float32),
    jnp.full(count, min_p, jnp.float32),
  )


CASES = [
  {},
  {'temperature': 0.5},
  {'temperature': 2.0},
  {'top_k': 3},
  {'top_p': 0.5},
  {'top_p': 0.7},
  {'top_p': 1e-6},
  {'min_p': 0.25},
  {'temperature': 1.5, 'top_k': 6, 'top_p': 0.8, 'min_p': 0.2},
]


def keys_of(count, step=0, **fields):
  """Returns the keys of samples 0, 1, ... of a request at a step."""
  request = Request(**({'id': 'a', 'prompt': [2]} | fields))
  rows = np.stack([row_key(request, i) for i in range(count)])
  return step_keys(rows, np.full(count, step))


@pytest.mark.parametrize('case', CASES, ids=str)
def test_frequencies_pass_a_chi_square_test(case):
  keys = keys_of(NUM_SAMPLES)
  logits = jnp.broadcast_to(LOGITS, (NUM_SAMPLES, 9))
  tokens, logps, model = jax.jit(sample_token)(
    logits, make_params(NUM_SAMPLES, **case), keys
  )
  counts = np.bincount(np.asarray(tokens), minlength=9)
  p = expected(**case)
  assert not counts[:8][p == 0].any()
  assert counts[8] == 0
  live = p > 0
  chi = np.sum(
    (counts[:8] - NUM_SAMPLES * p)[live] ** 2 / (NUM_SAMPLES * p[live])
  )
  # The 99.99 % quantiles of chi-square with 1 to 7 degrees of freedom.
  limits = [1e-9, 15.14, 18.42, 21.11, 23.51, 25.74, 27.86, 29.88]
  assert chi <= limits[live.sum() - 1]
  chosen = p[np.asarray(tokens)]
  np.testing.assert_allclose(logps, np.log(chosen), atol=1e-5)
  np.testing.assert_allclose(model, LOGITS[0][np.asarray(tokens)], atol=1e-5)


def test_rows_can_have_different_parameters():
  probabilities = [expected(**case) for case in CASES]
  rows = [make_params(1, **case) for case in CASES]
  params = jax.tree.map(lambda *x: jnp.concatenate(x), *rows)
  assert isinstance(params, SamplingParams)
  logits = jnp.broadcast_to(LOGITS, (len(CASES), 9))
  truncated = jax.nn.softmax(truncate(logits, params), axis=-1)
  np.testing.assert_allclose(truncated[:, :8], probabilities, atol=1e-6)


def test_greedy_takes_the_first_of_equal_logits():
  logits = jnp.array([[1.0, 3.0, 3.0, 2.0]])
  keys = keys_of(1)
  tokens, logps, model = sample_token(
    logits, make_params(1, temperature=0), keys
  )
  assert tokens.tolist() == [1]
  assert logps.tolist() == [0.0]
  total = np.log(np.exp([1.0, 3.0, 3.0, 2.0]).sum())
  assert model[0] == pytest.approx(3.0 - total, abs=1e-6)


@pytest.mark.parametrize('temperature', [0.0, 1e-45, 2e-38, 9e-6])
def test_temperatures_below_the_minimum_are_greedy(temperature):
  logits = jnp.array([[3.0, 1.0, 3.0 + 1e-6, 2.0, -1e30]])
  tokens, logps, _ = sample_token(
    jnp.broadcast_to(logits, (50, 5)),
    make_params(50, temperature),
    keys_of(50),
  )
  assert (tokens == 2).all() and (logps == 0).all()


@pytest.mark.parametrize('scale', [1e-6, 30.0, 1e4, 1e20, 3e29, 3e38])
@pytest.mark.parametrize(
  'temperature', [temperature_range.MIN, temperature_range.MAX, 1e30]
)
@pytest.mark.parametrize('truncation', [{}, {'top_k': 12, 'top_p': 0.99}])
def test_ends_of_the_temperature_range(scale, temperature, truncation):
  """Logits of any size; half of the tokens are dead or forbidden."""
  count, rng = 300, np.random.default_rng(0)
  logits = rng.uniform(-scale, scale, (count, 16)).astype(np.float32)
  logits = np.where(logits <= -1e30, -9e29, logits)  # below is dead
  forbidden = np.arange(16) % 4 == 0
  dead = np.arange(16) % 4 == 1
  logits = np.where(dead, -1e30, logits)
  logits[:, forbidden] = scale  # the model prefers them
  tokens, logps, model_logps = jax.jit(sample_token)(
    jnp.asarray(logits, jnp.float32),
    make_params(count, temperature, **truncation),
    keys_of(count),
    jnp.asarray(forbidden),
  )
  assert not (forbidden | dead)[np.asarray(tokens)].any()
  assert np.isfinite(logps).all() and (np.asarray(logps) <= 1e-6).all()
  assert np.isfinite(model_logps).all()


def test_top_k_keeps_ties_with_the_last():
  logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
  cut = truncate(logits, make_params(1, top_k=2))
  assert (cut[0] > -1e29).tolist() == [True, True, True, False]


def test_top_k_beyond_the_vocabulary_is_off():
  cut = truncate(LOGITS, make_params(1, top_k=100))
  np.testing.assert_array_equal(cut, LOGITS)


def test_keys_do_not_depend_on_the_position_of_the_row():
  data = jax.random.key_data
  rows = np.arange(6, dtype=np.uint32).reshape(3, 2)
  keys = data(step_keys(rows, np.array([4, 4, 7])))
  moved = data(step_keys(rows[[2, 0]], np.array([7, 4])))
  np.testing.assert_array_equal(keys[jnp.array([2, 0])], moved)


def test_keys_differ_by_seed_request_sample_and_step():
  seen = {
    tuple(key)
    for seed in range(3)
    for name in ('1', '11', 'a', '1 1')
    for step in range(3)
    for key in np.asarray(
      jax.random.key_data(keys_of(12, step, seed=seed, id=name))
    ).tolist()
  }
  assert len(seen) == 3 * 4 * 3 * 12


def test_row_keys_do_not_change_between_versions():
  """A run that a newer version resumes must sample the same tokens."""
  key = row_key(Request('gsm8k-7', [2], seed=3), 5)
  assert key.dtype == np.uint32
  assert key.tolist() == [3883406680, 1812412192]


@pytest.mark.parametrize(
  'invalid',
  [
    {'temperature': -1},
    {'temperature': 100.5},
    {'temperature': 1e30},
    {'temperature': float('nan')},
    {'top_k': -1},
    {'top_p': 0},
    {'top_p': 1.1},
    {'min_p': 2},
  ],
  ids=str,
)
def test_parameters_outside_their_range(invalid):
  ((name, value),) = invalid.items()
  valid = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
  assert invalid_reason(**valid) is None
  assert names(invalid_reason(**(valid | invalid)), name, value)


def test_inverse_cdf_gives_each_token_its_interval():
  """1,000 tokens over four blocks, half of them with weight zero."""
  rng = np.random.default_rng(0)
  weights = rng.random(1000) * (rng.random(1000) < 0.5)
  weights[-300:] = 0  # the last block has no weight
  logits = np.where(weights > 0, np.log(np.maximum(weights, 1e-9)), -1e30)
  uniform = np.append(rng.random(5000), [0.0, 1 - 2.0**-24])
  count = len(uniform)
  exact = np.exp(logits - logits.max())
  tokens = np.asarray(
    _inverse_cdf(
      jnp.broadcast_to(exact.astype(np.float32), (count, 1000)),
      jnp.asarray(uniform, jnp.float32),
    )
  )
  assert (weights[tokens] > 0).all()
  ends = np.cumsum(exact) / exact.sum()
  # Inside the token's interval, up to float32 rounding.
  assert (uniform <= ends[tokens] + 1e-6).all()
  assert (uniform >= ends[tokens] - exact[tokens] / exact.sum() - 1e-6).all()
  assert len(set(tokens.tolist())) > 300
