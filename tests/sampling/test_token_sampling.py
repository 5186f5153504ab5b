"""Drawing a token: frequencies, truncation and log-probs against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

# Eight outcomes, no two alike, and one that must never come.
PROBABILITY = np.array([0.30, 0.22, 0.16, 0.12, 0.09, 0.06, 0.03, 0.02])
LOGITS = np.append(np.log(PROBABILITY), -1e30).astype(np.float32)[None]
DRAWS = 20_000


def expected(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """The distribution by definition, one outcome after the other."""
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


def settings(
  count, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
) -> SamplingParams:
  """The same settings for every row."""
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
  """Keys of samples 0, 1, ... of a request at a step."""
  request = Request(**({'id': 'a', 'prompt': [2]} | fields))
  rows = np.stack([row_key(request, i) for i in range(count)])
  return step_keys(rows, np.full(count, step))


@pytest.mark.parametrize('how', CASES, ids=str)
def test_frequencies_pass_a_chi_square_test(how):
  keys = keys_of(DRAWS)
  logits = jnp.broadcast_to(LOGITS, (DRAWS, 9))
  tokens, logps, model = jax.jit(sample_token)(
    logits, settings(DRAWS, **how), keys
  )
  counts = np.bincount(np.asarray(tokens), minlength=9)
  p = expected(**how)
  assert not counts[:8][p == 0].any()
  assert counts[8] == 0
  live = p > 0
  chi = np.sum((counts[:8] - DRAWS * p)[live] ** 2 / (DRAWS * p[live]))
  # The 99.99 % quantiles of chi-square with 1 to 7 degrees of freedom.
  limits = [1e-9, 15.14, 18.42, 21.11, 23.51, 25.74, 27.86, 29.88]
  assert chi <= limits[live.sum() - 1]
  chosen = p[np.asarray(tokens)]
  np.testing.assert_allclose(logps, np.log(chosen), atol=1e-5)
  np.testing.assert_allclose(model, LOGITS[0][np.asarray(tokens)], atol=1e-5)


def test_rows_may_differ():
  hows = [expected(**how) for how in CASES]
  fields = [settings(1, **how) for how in CASES]
  how = jax.tree.map(lambda *x: jnp.concatenate(x), *fields)
  assert isinstance(how, SamplingParams)
  logits = jnp.broadcast_to(LOGITS, (len(CASES), 9))
  found = jax.nn.softmax(truncate(logits, how), axis=-1)
  np.testing.assert_allclose(found[:, :8], hows, atol=1e-6)


def test_greedy_takes_the_first_of_the_likeliest():
  logits = jnp.array([[1.0, 3.0, 3.0, 2.0]])
  keys = keys_of(1)
  tokens, logps, model = sample_token(logits, settings(1, temperature=0), keys)
  assert tokens.tolist() == [1]
  assert logps.tolist() == [0.0]
  total = np.log(np.exp([1.0, 3.0, 3.0, 2.0]).sum())
  assert model[0] == pytest.approx(3.0 - total, abs=1e-6)


def test_ties_with_the_last_of_top_k_stay():
  logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
  cut = truncate(logits, settings(1, top_k=2))
  assert (cut[0] > -1e29).tolist() == [True, True, True, False]


def test_top_k_beyond_the_vocabulary_is_off():
  cut = truncate(LOGITS, settings(1, top_k=100))
  np.testing.assert_array_equal(cut, LOGITS)


def test_keys_are_of_the_row_not_of_its_place():
  data = jax.random.key_data
  rows = np.arange(6, dtype=np.uint32).reshape(3, 2)
  one = data(step_keys(rows, np.array([4, 4, 7])))
  other = data(step_keys(rows[[2, 0]], np.array([7, 4])))
  np.testing.assert_array_equal(one[jnp.array([2, 0])], other)


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


def test_row_keys_stay_as_they_are():
  """Written down once: a run resumed with a newer version draws the same."""
  key = row_key(Request('gsm8k-7', [2], seed=3), 5)
  assert key.dtype == np.uint32
  assert key.tolist() == [3883406680, 1812412192]


@pytest.mark.parametrize(
  'wrong',
  [
    {'temperature': -1},
    {'top_k': -1},
    {'top_p': 0},
    {'top_p': 1.1},
    {'min_p': 2},
  ],
  ids=str,
)
def test_settings_outside_their_range(wrong):
  ((name, value),) = wrong.items()
  right = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
  assert invalid_reason(**right) is None
  assert names(invalid_reason(**(right | wrong)), name, value)


def test_every_outcome_gets_its_share_of_the_interval():
  """1,000 outcomes over four blocks, half of them impossible."""
  rng = np.random.default_rng(0)
  weights = rng.random(1000) * (rng.random(1000) < 0.5)
  weights[-300:] = 0  # the last block has none at all
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
  # Inside its outcome's interval, to float32.
  assert (uniform <= ends[tokens] + 1e-6).all()
  assert (uniform >= ends[tokens] - exact[tokens] / exact.sum() - 1e-6).all()
  assert len(set(tokens.tolist())) > 300
