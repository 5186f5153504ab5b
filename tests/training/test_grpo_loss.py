"""The GRPO loss against hand-computed numbers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grm_jax.errors import UserError
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.sharding import mesh, rules
from grm_jax.training import grpo_loss, train_state, train_step
from grm_jax.training.grpo_loss import GRPOLossConfig, PolicyBatch
from tests.messages import naming, setting
from tests.model import tiny

LN2 = math.log(2)
GRPO = GRPOLossConfig(
  kl_coef=0.0,
  clip_low=0.2,
  clip_high=0.2,
  kl_estimator='k3',
  loss_agg_mode='sequence',
  max_tokens=5,
)


def cube(x):
  return jnp.full((1, 1, 1), x, jnp.float32)


@pytest.mark.parametrize(
  'log_ratio, advantage, high, expected, clipped',
  [
    (0.5, 1.0, 0.2, 1.2, True),
    (0.5, -1.0, 0.2, -1.6487, False),
    (-0.5, -1.0, 0.2, -0.8, True),
    (-0.5, 1.0, 0.2, 0.6065, False),
    (0.5, 0.0, 0.2, 0.0, False),
    # Clip-higher: 1.25 is inside of [0.8, 1.28]; the lower bound is unchanged.
    (0.5, 2.0, 0.28, 2.56, True),
    (math.log(1.25), 1.0, 0.28, 1.25, False),
    (math.log(1.25), 1.0, 0.2, 1.2, True),
    (-0.5, -1.0, 0.28, -0.8, True),
    # The ratio is bounded to [e^-20, e^20].
    (200.0, -1.0, 0.2, -485165195.4, False),
    (200.0, 0.0, 0.2, 0.0, False),
  ],
)
def test_surrogate(log_ratio, advantage, high, expected, clipped):
  """Also the gradient: that of ratio * A, zero where clipped or bounded."""

  def total(logps):
    gain, is_clipped = grpo_loss.surrogate(
      logps, cube(-1.0), cube(advantage)[..., 0], 0.2, high
    )
    return gain.sum(), is_clipped

  (gain, is_clipped), grad = jax.value_and_grad(total, has_aux=True)(
    cube(log_ratio - 1.0)
  )
  assert float(gain) == pytest.approx(expected, rel=1e-4)
  assert bool(is_clipped.all()) == clipped
  slope = 0 if clipped or log_ratio == 200.0 else expected
  assert float(grad.sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize('advantage', [2.0, -3.0])
def test_without_old_logps_the_ratio_is_one_with_a_gradient(advantage):
  def total(logps):
    a = cube(advantage)[..., 0]
    return grpo_loss.surrogate(logps, None, a, 0.2, 0.2)[0].sum()

  gain, grad = jax.value_and_grad(total)(cube(-7.3))
  assert float(gain) == advantage
  assert float(grad.sum()) == advantage


@pytest.mark.parametrize(
  'kind, d, expected, slope',
  [
    # The slope is d/d(log policy): 1, -d, 1 - e^d.
    ('k1', LN2, -0.6931, 1.0),
    ('k2', LN2, 0.2402, -0.6931),
    ('k3', LN2, 0.3069, -1.0),
    ('k1', -LN2, 0.6931, 1.0),
    ('k2', -LN2, 0.2402, 0.6931),
    ('k3', -LN2, 0.19315, 0.5),
    ('k3', 0.0, 0.0, 0.0),
    # d is bounded to [-20, 20]: e^20 - 21 and e^-20 + 19.
    ('k3', 30.0, 485165174.4, 0.0),
    ('k3', -30.0, 19.0, 0.0),
    ('k1', 30.0, -30.0, 1.0),
    ('k2', 30.0, 450.0, -30.0),
  ],
)
def test_kl(kind, d, expected, slope):
  value, grad = jax.value_and_grad(
    lambda logp: grpo_loss.kl(logp, jnp.float32(d - 2.0), kind)
  )(jnp.float32(-2.0))
  assert float(value) == pytest.approx(expected, rel=2e-4)
  assert float(grad) == pytest.approx(slope, rel=2e-4)


def test_kl_estimates_and_their_gradients():
  """The claims of the docstring, summed over three outcomes."""
  ref = jax.nn.log_softmax(jnp.array([0.3, -0.8, 0.1]))
  logits = jnp.array([-0.5, 0.4, 0.9])

  def expected(logits, kind):
    logps = jax.nn.log_softmax(logits)
    probs = jax.lax.stop_gradient(jnp.exp(logps))
    return jnp.sum(probs * grpo_loss.kl(logps, ref, kind))

  def forward_kl(logits):
    logps = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logps) * (logps - ref))

  def reverse_kl(logits):
    return jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(logits)))

  for kind in ('k1', 'k3'):
    assert float(expected(logits, kind)) == pytest.approx(
      float(forward_kl(logits)), rel=1e-5
    )
  for kind, target in (
    ('k1', lambda logits: 0.0 * logits.sum()),
    ('k2', forward_kl),
    ('k3', reverse_kl),
  ):
    np.testing.assert_allclose(
      jax.grad(expected)(logits, kind), jax.grad(target)(logits), atol=1e-6
    )


def ragged_batch(garbage=0.0):
  """Returns one group with lengths 3, 1, 0 and 2; the last has weight 0.

  Returns:
    (logps, entropy, policy batch) with `garbage` at masked positions.
  """
  lengths = np.array([[3, 1, 0, 2]], np.int32)
  batch = Batch(
    np.ones((1, 2), np.int32),
    np.ones(1, np.int32),
    np.ones((1, 4, 3), np.int32),
    lengths,
  )
  weights = np.array([[1, 1, 1, 0]], np.float32)
  mask = (np.arange(3)[None, None] < lengths[..., None]) & (
    weights[..., None] > 0
  )

  def fill(*values):
    x = np.full((1, 4, 3), garbage, np.float32)
    x[mask] = values
    return x

  policy_batch = PolicyBatch(
    batch,
    np.array([[3, -1, 2, garbage]], np.float32),
    weights,
    rollout_logps=fill(-1.0 - math.log(1.05), -2.0, -3.2, -4.0),
    ref_logps=fill(-1.0 + LN2, -2.0 + LN2, -3.0 + LN2, -4.0 + LN2),
  )
  return fill(-1.0, -2.0, -3.0, -4.0), fill(0.5, 1.0, 1.5, 2.0), policy_batch


# The sums of A over tokens are 3 * 3, -1 and 0. k3 of ln 2 is 0.3069.
@pytest.mark.parametrize(
  'loss_agg_mode, policy_sum, kl_sum, denominator',
  [
    ('sequence', -2.0, 2 * 0.30685, 3.0),
    ('token', -8.0, 4 * 0.30685, 4.0),
    ('constant', -1.6, 0.8 * 0.30685, 3.0),
  ],
)
def test_loss_agg_modes(loss_agg_mode, policy_sum, kl_sum, denominator):
  loss_config = dataclasses.replace(
    GRPO, loss_agg_mode=loss_agg_mode, kl_coef=0.5
  )
  numerator, count, metrics = grpo_loss.token_loss(loss_config, *ragged_batch())
  assert float(numerator) == pytest.approx(policy_sum + kl_sum / 2, rel=1e-4)
  assert float(count) == denominator
  policy_loss = [float(x) for x in metrics.means['policy_loss']]
  assert policy_loss == pytest.approx([policy_sum, denominator], rel=1e-5)


def test_metrics_ignore_masked_tokens():
  logps, entropy, policy_batch = ragged_batch(garbage=float('nan'))
  numerator, _, metrics = grpo_loss.token_loss(
    GRPO, logps, entropy, policy_batch
  )
  assert float(numerator) == pytest.approx(-2.0)
  means = {k: [float(x) for x in v] for k, v in metrics.means.items()}
  del means['policy_loss']
  assert means == {
    'entropy': [5.0, 4.0],
    'kl': [pytest.approx(4 * 0.30685, rel=1e-4), 4.0],
    'clip_fraction': [0.0, 4.0],
    # A ratio of 1.05 is inside of [0.9, 1.1], e^0.2 is outside.
    'logp_diff_mean': [pytest.approx(0.2 + math.log(1.05), rel=1e-5), 4.0],
    'ratio_outside_0.9_1.1': [1.0, 4.0],
  }
  assert float(metrics.maxima['logp_diff_max']) == pytest.approx(0.2)


def test_with_old_logps():
  """Ratios e^0.5 with A = 3 are clipped, that with A = -1 is not."""
  logps, entropy, policy_batch = ragged_batch()
  old = dataclasses.replace(policy_batch, old_logps=logps - np.float32(0.5))
  numerator, _, metrics = grpo_loss.token_loss(GRPO, logps, entropy, old)
  assert float(numerator) == pytest.approx(-3.6 + 1.6487, rel=1e-4)
  assert float(metrics.means['clip_fraction'][0]) == 3.0
  # The sampler is compared with the old policy: -0.5 at each token.
  expected = 3 * 0.5 + 0.3 - math.log(1.05)
  assert float(metrics.means['logp_diff_mean'][0]) == pytest.approx(expected)
  assert float(metrics.maxima['logp_diff_max']) == pytest.approx(0.5)


@pytest.mark.parametrize('loss_agg_mode', grpo_loss.LOSS_AGG_MODES)
def test_masked_tokens_have_no_gradient(loss_agg_mode):
  loss_config = dataclasses.replace(
    GRPO, loss_agg_mode=loss_agg_mode, kl_coef=0.5
  )

  def grad(garbage):
    logps, entropy, policy_batch = ragged_batch(garbage)
    policy_batch = dataclasses.replace(
      policy_batch, old_logps=logps - np.float32(0.1)
    )
    return jax.grad(
      lambda x: grpo_loss.token_loss(loss_config, x, entropy, policy_batch)[0]
    )(jnp.asarray(logps))

  with_nan = grad(float('nan'))
  np.testing.assert_array_equal(with_nan, grad(0.0))
  mask = np.zeros((1, 4, 3), bool)
  mask[0, 0], mask[0, 1, 0] = True, True
  assert ((with_nan != 0) == mask).all()


def random_batch(model, params, prompts=4, seed=0):
  """Returns a ragged batch, R=2, with log-probabilities near the model's."""
  rng = np.random.default_rng(seed)
  batch = Batch(
    rng.integers(4, 250, (prompts, 6)).astype(np.int32),
    rng.integers(1, 7, prompts).astype(np.int32),
    rng.integers(4, 250, (prompts, 2, 5)).astype(np.int32),
    np.resize(
      np.array([[5, 2], [0, 1], [4, 4], [3, 5]], np.int32), (prompts, 2)
    ),
  )
  policy_logps = np.asarray(
    jax.jit(functools.partial(grpo_loss.logps, model))(params, batch)
  )

  def perturbed(scale):
    noise = scale * rng.standard_normal(policy_logps.shape)
    return (policy_logps + noise).astype(np.float32)

  return PolicyBatch(
    batch,
    rng.standard_normal((prompts, 2)).astype(np.float32),
    np.resize(
      np.array([[1, 1], [1, 1], [0, 1], [1, 1]], np.float32), (prompts, 2)
    ),
    perturbed(0.1),
    perturbed(0.5),
    perturbed(0.3),
  )


def split(batch, sizes):
  """Splits a batch into batches with these numbers of prompts."""
  ends = np.cumsum(sizes)
  return [
    jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)
    for a, b in zip(ends - sizes, ends, strict=True)
  ]


def update_once(model, loss_config, batches):
  """Returns (parameters after one SGD step with rate 1, metrics)."""
  optimizer = optax.sgd(1.0)
  loss = functools.partial(grpo_loss.grpo_loss, model, loss_config)
  state = train_state.init_state(model, optimizer, tiny.params(model))
  state, metrics = train_step.TrainStep(model, optimizer, loss)(state, batches)
  return jax.device_get(state.params), jax.device_get(metrics)


def assert_same_update(left, right):
  (params, metrics), (other_params, other_metrics) = left, right
  assert metrics.keys() == other_metrics.keys()
  for name, value in metrics.items():
    assert other_metrics[name] == pytest.approx(value, rel=1e-4), name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    params,
    other_params,
  )


@pytest.fixture
def fast_model(monkeypatch):
  """Makes the network compile fast: a token's logp depends on its row only."""

  def generation_logps(model, params, batch):
    rows = params['embedder']['table'][batch.generations]
    logps = jax.nn.log_sigmoid(rows.sum(-1))
    positions = jnp.arange(batch.generations.shape[2])[None, None]
    is_real = positions < batch.generation_lengths[..., None]
    return jnp.where(is_real, logps, 0.0), jnp.where(is_real, -logps, 0.0)

  monkeypatch.setattr(logprobs, 'generation_logps', generation_logps)


@pytest.mark.parametrize('loss_agg_mode', grpo_loss.LOSS_AGG_MODES)
def test_micro_batches_add_up_to_one_batch(fast_model, loss_agg_mode):
  """Micro-batches differ in size, token count and padding."""
  model = tiny.gemma()
  loss_config = dataclasses.replace(
    GRPO, loss_agg_mode=loss_agg_mode, kl_coef=0.1
  )
  batch = random_batch(model, tiny.params(model))
  full = update_once(model, loss_config, [batch])
  accumulated = update_once(
    model, loss_config, split(batch, np.array([2, 1, 1]))
  )
  assert_same_update(full, accumulated)
  assert set(full[1]) == {
    *('loss', 'count', 'grad_norm', 'param_norm', 'policy_loss', 'kl'),
    *('entropy', 'clip_fraction', 'logp_diff_mean', 'ratio_outside_0.9_1.1'),
    'logp_diff_max',
  }
  assert full[1]['count'] == (20.0 if loss_agg_mode == 'token' else 7.0)
  assert 0 < full[1]['clip_fraction'] < 1
  assert full[1]['grad_norm'] > 0.01


@pytest.mark.parametrize('loss_agg_mode', grpo_loss.LOSS_AGG_MODES)
def test_padding_rows_do_not_change_the_update(fast_model, loss_agg_mode):
  model = tiny.gemma()
  loss_config = dataclasses.replace(
    GRPO, loss_agg_mode=loss_agg_mode, kl_coef=0.1
  )
  batch = random_batch(model, tiny.params(model), prompts=2)
  padding_row = dataclasses.replace(
    jax.tree.map(lambda x: x[:1], batch),
    advantages=np.full((1, 2), 1e9, np.float32),
    weights=np.zeros((1, 2), np.float32),
    rollout_logps=np.full((1, 2, 5), np.nan, np.float32),
    ref_logps=np.full((1, 2, 5), np.nan, np.float32),
    old_logps=np.full((1, 2, 5), 1e9, np.float32),
  )
  padded = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, padding_row)
  assert_same_update(
    update_once(model, loss_config, [batch]),
    update_once(model, loss_config, [padded]),
  )


def test_eight_devices_and_two_batches_equal_one():
  """Compares updates of the real network."""
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  loss_config = dataclasses.replace(GRPO, kl_coef=0.1)
  model = tiny.gemma()
  batch = random_batch(model, tiny.params(model), prompts=8)
  assert_same_update(
    update_once(model, loss_config, [batch]),
    update_once(
      tiny.gemma(layout), loss_config, split(batch, np.array([4, 4]))
    ),
  )


def test_gradient_at_ratio_one_is_the_policy_gradient():
  """-A grad log p, averaged over tokens of each generation; the KL is 0."""
  model = tiny.gemma()
  params = tiny.params(model)
  batch = random_batch(model, params)
  policy_logps = jax.jit(functools.partial(grpo_loss.logps, model))(
    params, batch.batch
  )
  batch = dataclasses.replace(
    batch,
    rollout_logps=policy_logps,
    ref_logps=policy_logps,
    old_logps=None,
  )
  loss_config = dataclasses.replace(GRPO, kl_coef=0.1)
  loss = functools.partial(grpo_loss.grpo_loss, model, loss_config)
  sums = jax.jit(functools.partial(train_step.grad, loss, model))(
    params, None, batch
  )

  def expected_loss(params):
    logps, _ = logprobs.generation_logps(model, params, batch.batch)
    means = logps.sum(-1) / np.maximum(batch.batch.generation_lengths, 1)
    return -jnp.sum(batch.advantages * batch.weights * means)

  tiny.assert_close(
    jax.device_get(sums.grads),
    jax.device_get(jax.jit(jax.grad(expected_loss))(params)),
    1e-5,
  )
  assert float(sums.aux.means['kl'][0]) == pytest.approx(0, abs=1e-5)
  assert float(sums.aux.means['clip_fraction'][0]) == 0.0
  assert float(sums.aux.maxima['logp_diff_max']) < 1e-5


@pytest.mark.parametrize(
  'key, value',
  [
    ('kl_coef', -0.1),
    ('kl_coef', math.nan),
    ('clip_low', 0.0),
    ('clip_low', 1.5),
    ('clip_high', 0.0),
    ('clip_high', math.inf),
    ('kl_estimator', 'k4'),
    ('loss_agg_mode', 'tokens'),
  ],
)
def test_invalid_settings_name_the_config_key(key, value):
  with pytest.raises(UserError, match=naming(*setting(f'loss.{key}', value))):
    dataclasses.replace(GRPO, **{key: value})


@pytest.mark.parametrize(
  'name, x, words',
  [
    (
      'advantages',
      np.zeros((1, 4, 1), np.float32),
      ['float32', '(1, 4, 1)', '(1, 4)'],
    ),
    ('advantages', np.zeros((1, 4)), ['float64', 'float32']),
    ('weights', np.ones((1, 4), np.int32), ['int32', 'float32']),
    ('rollout_logps', np.zeros((1, 4), np.float32), ['(1, 4)', '(1, 4, 3)']),
    ('old_logps', np.zeros((1, 4, 2), np.float32), ['(1, 4, 2)', '(1, 4, 3)']),
    ('ref_logps', jnp.zeros((1, 4, 3), jnp.bfloat16), ['bfloat16', 'float32']),
    ('ref_logps', None, setting('loss.kl_coef', 0.5)),
    (
      'batch',
      Batch(np.ones((1, 2), np.int32), np.ones(1, np.int32)),
      ['generations'],
    ),
  ],
)
def test_inconsistent_arrays_are_rejected(name, x, words):
  model = tiny.gemma()
  loss_config = dataclasses.replace(GRPO, kl_coef=0.5)
  policy_batch = dataclasses.replace(ragged_batch()[2], **{name: x})
  with pytest.raises(ValueError, match=naming(name, *words)):
    grpo_loss.grpo_loss(model, loss_config, {}, policy_batch)


def test_unknown_kl_estimator_is_rejected():
  with pytest.raises(ValueError, match=naming('kl_estimator', 'k4')):
    grpo_loss.kl(cube(0.0), cube(0.0), 'k4')
