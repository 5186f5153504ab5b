"""The GRPO objective, against numbers computed by hand."""

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
    # Clip-higher: 1.25 is inside of 0.8 to 1.28, below is as it was.
    (0.5, 2.0, 0.28, 2.56, True),
    (math.log(1.25), 1.0, 0.28, 1.25, False),
    (math.log(1.25), 1.0, 0.2, 1.2, True),
    (-0.5, -1.0, 0.28, -0.8, True),
    # The least a ratio can be is e^-20, the most e^20.
    (200.0, -1.0, 0.2, -485165195.4, False),
    (200.0, 0.0, 0.2, 0.0, False),
  ],
)
def test_surrogate(log_ratio, advantage, high, expected, clipped):
  """And its gradient: that of ratio * A, or none where clipped or held."""

  def total(logps):
    found, where = grpo_loss.surrogate(
      logps, cube(-1.0), cube(advantage)[..., 0], 0.2, high
    )
    return found.sum(), where

  (found, where), grad = jax.value_and_grad(total, has_aux=True)(
    cube(log_ratio - 1.0)
  )
  assert float(found) == pytest.approx(expected, rel=1e-4)
  assert bool(where.all()) == clipped
  still = clipped or log_ratio == 200.0
  assert float(grad.sum()) == pytest.approx(0 if still else expected, rel=1e-4)


@pytest.mark.parametrize('advantage', [2.0, -3.0])
def test_without_old_logps_the_ratio_is_one_with_a_gradient(advantage):
  def total(logps):
    a = cube(advantage)[..., 0]
    return grpo_loss.surrogate(logps, None, a, 0.2, 0.2)[0].sum()

  found, grad = jax.value_and_grad(total)(cube(-7.3))
  assert float(found) == advantage
  assert float(grad.sum()) == advantage


@pytest.mark.parametrize(
  'kind, d, expected, slope',
  [
    # The slope is by log policy: 1, -d, 1 - e^d.
    ('k1', LN2, -0.6931, 1.0),
    ('k2', LN2, 0.2402, -0.6931),
    ('k3', LN2, 0.3069, -1.0),
    ('k1', -LN2, 0.6931, 1.0),
    ('k2', -LN2, 0.2402, 0.6931),
    ('k3', -LN2, 0.19315, 0.5),
    ('k3', 0.0, 0.0, 0.0),
    # Held within -20 and 20: e^20 - 21, and e^-20 + 19.
    ('k3', 30.0, 485165174.4, 0.0),
    ('k3', -30.0, 19.0, 0.0),
    ('k1', 30.0, -30.0, 1.0),
    ('k2', 30.0, 450.0, -30.0),
  ],
)
def test_kl(kind, d, expected, slope):
  found, grad = jax.value_and_grad(
    lambda logp: grpo_loss.kl(logp, jnp.float32(d - 2.0), kind)
  )(jnp.float32(-2.0))
  assert float(found) == pytest.approx(expected, rel=2e-4)
  assert float(grad) == pytest.approx(slope, rel=2e-4)


def test_what_the_kls_estimate_and_what_their_gradients_do():
  """Over all three outcomes of a distribution, as the docstring says."""
  ref = jax.nn.log_softmax(jnp.array([0.3, -0.8, 0.1]))
  logits = jnp.array([-0.5, 0.4, 0.9])

  def expected(logits, kind):
    logps = jax.nn.log_softmax(logits)
    drawn = jax.lax.stop_gradient(jnp.exp(logps))
    return jnp.sum(drawn * grpo_loss.kl(logps, ref, kind))

  def divergence(logits):
    logps = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logps) * (logps - ref))

  def backward(logits):
    return jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(logits)))

  for kind in ('k1', 'k3'):
    assert float(expected(logits, kind)) == pytest.approx(
      float(divergence(logits)), rel=1e-5
    )
  for kind, goal in (
    ('k1', lambda logits: 0.0 * logits.sum()),
    ('k2', divergence),
    ('k3', backward),
  ):
    np.testing.assert_allclose(
      jax.grad(expected)(logits, kind), jax.grad(goal)(logits), atol=1e-6
    )


def ragged(garbage=0.0):
  """A group of lengths 3, 1, 0 and 2; the last does not count.

  Returns:
    (logps, entropy, policy batch) with `garbage` wherever nothing counts.
  """
  lengths = np.array([[3, 1, 0, 2]], np.int32)
  batch = Batch(
    np.ones((1, 2), np.int32),
    np.ones(1, np.int32),
    np.ones((1, 4, 3), np.int32),
    lengths,
  )
  weights = np.array([[1, 1, 1, 0]], np.float32)
  counts = (np.arange(3)[None, None] < lengths[..., None]) & (
    weights[..., None] > 0
  )

  def fill(*values):
    x = np.full((1, 4, 3), garbage, np.float32)
    x[counts] = values
    return x

  known = PolicyBatch(
    batch,
    np.array([[3, -1, 2, garbage]], np.float32),
    weights,
    rollout_logps=fill(-1.0 - math.log(1.05), -2.0, -3.2, -4.0),
    ref_logps=fill(-1.0 + LN2, -2.0 + LN2, -3.0 + LN2, -4.0 + LN2),
  )
  return fill(-1.0, -2.0, -3.0, -4.0), fill(0.5, 1.0, 1.5, 2.0), known


# Sums of A over tokens: 3 * 3, -1, 0. k3 of ln 2 is 0.3069 at each token.
@pytest.mark.parametrize(
  'normalizer, policy_sum, kl_sum, denominator',
  [
    ('sequence', -2.0, 2 * 0.30685, 3.0),
    ('token', -8.0, 4 * 0.30685, 4.0),
    ('constant', -1.6, 0.8 * 0.30685, 3.0),
  ],
)
def test_normalizers(normalizer, policy_sum, kl_sum, denominator):
  objective = dataclasses.replace(GRPO, loss_agg_mode=normalizer, kl_coef=0.5)
  numerator, count, extras = grpo_loss.measure(objective, *ragged())
  assert float(numerator) == pytest.approx(policy_sum + kl_sum / 2, rel=1e-4)
  assert float(count) == denominator
  found = [float(x) for x in extras.means['policy_loss']]
  assert found == pytest.approx([policy_sum, denominator], rel=1e-5)


def test_metrics_are_of_tokens_that_count():
  logps, entropy, known = ragged(garbage=float('nan'))
  numerator, _, extras = grpo_loss.measure(GRPO, logps, entropy, known)
  assert float(numerator) == pytest.approx(-2.0)
  means = {k: [float(x) for x in v] for k, v in extras.means.items()}
  del means['policy_loss']
  assert means == {
    'entropy': [5.0, 4.0],
    'kl': [pytest.approx(4 * 0.30685, rel=1e-4), 4.0],
    'clip_fraction': [0.0, 4.0],
    # 1.05 is near enough, e^0.2 is not.
    'sampler_difference': [pytest.approx(0.2 + math.log(1.05), rel=1e-5), 4.0],
    'sampler_outside': [1.0, 4.0],
  }
  assert float(extras.maxima['sampler_difference_max']) == pytest.approx(0.2)


def test_with_old_logps():
  """Ratios e^0.5 of A = 3 are clipped, that of A = -1 is not."""
  logps, entropy, known = ragged()
  old = dataclasses.replace(known, old_logps=logps - np.float32(0.5))
  numerator, _, extras = grpo_loss.measure(GRPO, logps, entropy, old)
  assert float(numerator) == pytest.approx(-3.6 + 1.6487, rel=1e-4)
  assert float(extras.means['clip_fraction'][0]) == 3.0
  # The sampler is held against the policy that it was: -0.5 to each.
  expected = 3 * 0.5 + 0.3 - math.log(1.05)
  assert float(extras.means['sampler_difference'][0]) == pytest.approx(expected)
  assert float(extras.maxima['sampler_difference_max']) == pytest.approx(0.5)


@pytest.mark.parametrize('loss_agg_mode', grpo_loss.NORMALIZERS)
def test_what_does_not_count_has_no_part_in_the_gradient(normalizer):
  objective = dataclasses.replace(GRPO, loss_agg_mode=normalizer, kl_coef=0.5)

  def grad(garbage):
    logps, entropy, known = ragged(garbage)
    known = dataclasses.replace(known, old_logps=logps - np.float32(0.1))
    return jax.grad(
      lambda x: grpo_loss.measure(objective, x, entropy, known)[0]
    )(jnp.asarray(logps))

  found = grad(float('nan'))
  np.testing.assert_array_equal(found, grad(0.0))
  counts = np.zeros((1, 4, 3), bool)
  counts[0, 0], counts[0, 1, 0] = True, True
  assert ((found != 0) == counts).all()


def drawn(model, params, prompts=4, seed=0):
  """A ragged batch of 2 generations a prompt, policies near the model's."""
  rng = np.random.default_rng(seed)
  batch = Batch(
    rng.integers(4, 250, (prompts, 6)).astype(np.int32),
    rng.integers(1, 7, prompts).astype(np.int32),
    rng.integers(4, 250, (prompts, 2, 5)).astype(np.int32),
    np.resize(
      np.array([[5, 2], [0, 1], [4, 4], [3, 5]], np.int32), (prompts, 2)
    ),
  )
  ours = np.asarray(
    jax.jit(functools.partial(grpo_loss.logps, model))(params, batch)
  )

  def near(scale):
    noise = scale * rng.standard_normal(ours.shape)
    return (ours + noise).astype(np.float32)

  return PolicyBatch(
    batch,
    rng.standard_normal((prompts, 2)).astype(np.float32),
    np.resize(
      np.array([[1, 1], [1, 1], [0, 1], [1, 1]], np.float32), (prompts, 2)
    ),
    near(0.1),
    near(0.5),
    near(0.3),
  )


def parts_of(batch, sizes):
  ends = np.cumsum(sizes)
  return [
    jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)
    for a, b in zip(ends - sizes, ends, strict=True)
  ]


def updated(model, objective, batches):
  """(parameters after one step of the gradient itself, metrics)."""
  optimizer = optax.sgd(1.0)
  loss = functools.partial(grpo_loss.grpo_loss, model, objective)
  state = train_state.init_state(model, optimizer, tiny.params(model))
  state, metrics = train_step.TrainStep(model, optimizer, loss)(state, batches)
  return jax.device_get(state.params), jax.device_get(metrics)


def assert_same_update(ours, theirs):
  (params, metrics), (their_params, their_metrics) = ours, theirs
  assert metrics.keys() == their_metrics.keys()
  for name, value in metrics.items():
    assert their_metrics[name] == pytest.approx(value, rel=1e-4), name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    params,
    their_params,
  )


@pytest.fixture
def quick(monkeypatch):
  """A network that compiles fast: a token's probability is its own row's."""

  def generation_logps(model, params, batch):
    rows = params['embedder']['table'][batch.generations]
    logps = jax.nn.log_sigmoid(rows.sum(-1))
    places = jnp.arange(batch.generations.shape[2])[None, None]
    real = places < batch.generation_lengths[..., None]
    return jnp.where(real, logps, 0.0), jnp.where(real, -logps, 0.0)

  monkeypatch.setattr(logprobs, 'generation_logps', generation_logps)


@pytest.mark.parametrize('loss_agg_mode', grpo_loss.NORMALIZERS)
def test_small_batches_add_up_to_a_large_one(quick, normalizer):
  """Of other sizes, token counts and numbers of padding rows."""
  model = tiny.gemma()
  objective = dataclasses.replace(GRPO, loss_agg_mode=normalizer, kl_coef=0.1)
  batch = drawn(model, tiny.params(model))
  whole = updated(model, objective, [batch])
  parts = updated(model, objective, parts_of(batch, np.array([2, 1, 1])))
  assert_same_update(whole, parts)
  assert set(whole[1]) == {
    *('loss', 'count', 'grad_norm', 'param_norm', 'policy_loss', 'kl'),
    *('entropy', 'clip_fraction', 'sampler_difference', 'sampler_outside'),
    'sampler_difference_max',
  }
  assert whole[1]['count'] == (20.0 if normalizer == 'token' else 7.0)
  assert 0 < whole[1]['clip_fraction'] < 1
  assert whole[1]['grad_norm'] > 0.01


@pytest.mark.parametrize('loss_agg_mode', grpo_loss.NORMALIZERS)
def test_padding_rows_change_nothing(quick, normalizer):
  model = tiny.gemma()
  objective = dataclasses.replace(GRPO, loss_agg_mode=normalizer, kl_coef=0.1)
  batch = drawn(model, tiny.params(model), prompts=2)
  row = dataclasses.replace(
    jax.tree.map(lambda x: x[:1], batch),
    advantages=np.full((1, 2), 1e9, np.float32),
    weights=np.zeros((1, 2), np.float32),
    rollout_logps=np.full((1, 2, 5), np.nan, np.float32),
    ref_logps=np.full((1, 2, 5), np.nan, np.float32),
    old_logps=np.full((1, 2, 5), 1e9, np.float32),
  )
  padded = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, row)
  assert_same_update(
    updated(model, objective, [batch]), updated(model, objective, [padded])
  )


def test_eight_devices_and_two_batches_equal_one():
  """With the network itself."""
  layout = rules.layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  objective = dataclasses.replace(GRPO, kl_coef=0.1)
  one = tiny.gemma()
  batch = drawn(one, tiny.params(one), prompts=8)
  assert_same_update(
    updated(one, objective, [batch]),
    updated(tiny.gemma(layout), objective, parts_of(batch, np.array([4, 4]))),
  )


def test_at_ratio_one_it_is_the_policy_gradient():
  """-A grad log p, the mean over tokens of each generation; and no KL yet."""
  model = tiny.gemma()
  params = tiny.params(model)
  batch = drawn(model, params)
  own = jax.jit(functools.partial(grpo_loss.logps, model))(params, batch.batch)
  batch = dataclasses.replace(
    batch, rollout_logps=own, ref_logps=own, old_logps=None
  )
  objective = dataclasses.replace(GRPO, kl_coef=0.1)
  loss = functools.partial(grpo_loss.grpo_loss, model, objective)
  sums = jax.jit(functools.partial(train_step.grad, loss, model.compute))(
    params, batch
  )

  def by_hand(params):
    logps, _ = logprobs.generation_logps(model, params, batch.batch)
    means = logps.sum(-1) / np.maximum(batch.batch.generation_lengths, 1)
    return -jnp.sum(batch.advantages * batch.weights * means)

  tiny.assert_close(
    jax.device_get(sums.grads),
    jax.device_get(jax.jit(jax.grad(by_hand))(params)),
    1e-5,
  )
  assert float(sums.extras.means['kl'][0]) == pytest.approx(0, abs=1e-5)
  assert float(sums.extras.means['clip_fraction'][0]) == 0.0
  assert float(sums.extras.maxima['sampler_difference_max']) < 1e-5


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
    ('max_tokens', 0),
  ],
)
def test_wrong_settings_are_named(key, value):
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
def test_arrays_that_do_not_fit_are_named(name, x, words):
  model = tiny.gemma()
  objective = dataclasses.replace(GRPO, kl_coef=0.5)
  known = dataclasses.replace(ragged()[2], **{name: x})
  with pytest.raises(ValueError, match=naming(name, *words)):
    grpo_loss.grpo_loss(model, objective, {}, known)


def test_a_kl_of_no_kind():
  with pytest.raises(ValueError, match=naming('kl_estimator', 'k4')):
    grpo_loss.kl(cube(0.0), cube(0.0), 'k4')
