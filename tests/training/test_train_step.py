"""The training step: sharding, accumulation, token weighting, packing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grm_jax.model import init as model_init
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from grm_jax.training import grpo_loss, optimizer, train_state, train_step
from tests.model import tiny

OPTIMIZER = optax.adamw(1e-2, weight_decay=0.1)


def random_batches(count):
  """Yields ragged batches of 4 prompts with 2 generations each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    yield Batch(
      rng.integers(4, 250, (4, 10)).astype(np.int32),
      rng.integers(1, 11, 4).astype(np.int32),
      rng.integers(4, 250, (4, 2, 7)).astype(np.int32),
      rng.integers(0, 8, (4, 2)).astype(np.int32),
    )


def train(devices, sizes, remat, steps=3, optim=OPTIMIZER):
  layout = rules.make_layout(
    mesh.make_mesh(*sizes, devices=devices), rules.RULES
  )
  model = Transformer(
    tiny.CONFIG, ComputeConfig(remat=remat, head_chunk=8), layout
  )
  params = model_init.init_params(model, jax.random.key(1))
  state = train_state.init_state(model, optim, params)
  abstract = train_state.abstract_state(model, optim)
  loss = functools.partial(train_step.supervised_loss, model)
  update = train_step.TrainStep(model, optim, loss)
  losses = []
  for batch in random_batches(steps):
    state, metrics = update(state, [batch])
    losses.append(float(metrics['loss']))
  return state, abstract, losses


@pytest.fixture(scope='module')
def one_device():
  return train(jax.devices()[:1], (1, 1, 1), 'none')


@pytest.fixture(scope='module')
def eight_devices():
  return train(jax.devices(), (2, 2, 2), 'nothing_saveable')


def test_three_steps_equal_one_device(one_device, eight_devices):
  (single, _, expected), (sharded, _, losses) = one_device, eight_devices
  assert losses[0] != pytest.approx(losses[2], abs=1e-2)  # the loss changes
  np.testing.assert_allclose(losses, expected, atol=1e-5)
  assert int(sharded.step) == int(single.step) == 3
  for a, b in zip(
    jax.tree.leaves(sharded.params), jax.tree.leaves(single.params), strict=True
  ):
    # Adam divides by the root of tiny second moments, so the tolerance is much
    # larger than that of the loss.
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_three_steps_of_muon_equal_one_device():
  muon, _ = optimizer.make(
    10,
    kind='muon',
    learning_rate=1e-2,
    warmup_steps=0,
    schedule='constant',
    weight_decay=0.1,
    max_grad_norm=1.0,
    b2=0.95,
    moment_dtype='float32',
  )
  single, _, expected = train(jax.devices()[:1], (1, 1, 1), 'none', optim=muon)
  sharded, _, losses = train(jax.devices(), (2, 2, 2), 'none', optim=muon)
  assert losses[0] != pytest.approx(losses[2], abs=1e-2)
  np.testing.assert_allclose(losses, expected, atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
    sharded.params,
    single.params,
  )


def test_moments_are_sharded_like_their_parameters(eight_devices):
  state, abstract, _ = eight_devices
  moments = state.opt_state[0].mu
  for moment, param in zip(
    jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True
  ):
    assert moment.sharding.spec == param.sharding.spec
  query = moments['pairs']['local']['attention']['query']
  assert query.sharding.spec == jax.sharding.PartitionSpec(
    None, 'fsdp', 'tensor'
  )
  for leaf, expected in zip(
    jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


def test_loss_is_weighted_by_token():
  """The mean is over tokens, also with long and empty generations."""
  layout = mesh.one_device()
  model = Transformer(tiny.CONFIG, ComputeConfig(), layout)
  params = model_init.init_params(model, jax.random.key(2))
  batch = next(random_batches(1)).replace(
    generation_lengths=np.array([[7, 0], [1, 2], [0, 0], [3, 3]], np.int32)
  )
  total, count, _ = train_step.supervised_loss(model, params, batch)
  assert float(count) == 16.0
  sums = []
  for p, r in np.ndindex(4, 2):
    single = Batch(*(x[p : p + 1] for x in jax.tree.leaves(batch)))
    single = single.replace(
      generations=single.generations[:, r : r + 1],
      generation_lengths=single.generation_lengths[:, r : r + 1],
    )
    sums.append(float(train_step.supervised_loss(model, params, single)[0]))
  assert float(total) == pytest.approx(sum(sums), abs=1e-3)


def split(batch, sizes):
  """Splits a batch into batches with these numbers of prompts."""
  ends = np.cumsum(sizes)
  return [
    jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)
    for a, b in zip(ends - sizes, ends, strict=True)
  ]


def test_accumulation_equals_one_batch():
  """Micro-batches differ in token counts: a mean of means would be wrong."""
  model = Transformer(tiny.CONFIG, ComputeConfig(), mesh.one_device())
  optimizer = optax.sgd(1.0)  # the update is the gradient itself
  loss = functools.partial(train_step.supervised_loss, model)
  update = train_step.TrainStep(model, optimizer, loss)
  batch = next(random_batches(1)).replace(
    generation_lengths=np.array([[7, 6], [1, 0], [0, 0], [5, 7]], np.int32)
  )
  results = []
  for sizes in ((4,), (1, 2, 1)):
    params = model_init.init_params(model, jax.random.key(3))
    state = train_state.init_state(model, optimizer, params)
    state, metrics = update(state, split(batch, np.array(sizes)))
    results.append((jax.device_get(state.params), jax.device_get(metrics)))
  (params, metrics), (other_params, other_metrics) = results
  assert metrics['count'] == 26.0
  for name, value in metrics.items():
    assert other_metrics[name] == pytest.approx(value, rel=1e-5), name
  for a, b in zip(
    jax.tree.leaves(params), jax.tree.leaves(other_params), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradients_equal_those_of_float32_parameters():
  """Casting kernels before the differentiation gives the same gradient."""
  model = Transformer(
    tiny.CONFIG,
    ComputeConfig(dtype='bfloat16', head_chunk=8),
    mesh.one_device(),
  )
  loss = functools.partial(train_step.supervised_loss, model)
  params = model_init.init_params(model, jax.random.key(4))
  batch = next(random_batches(1))
  grads = train_step.grad(loss, model, params, None, batch)
  expected = jax.grad(lambda params: loss(params, batch)[0])(params)
  both = zip(
    jax.tree.leaves(grads.grads), jax.tree.leaves(expected), strict=True
  )
  for a, b in both:
    assert a.dtype == b.dtype == jnp.float32
    assert np.abs(b).max() > 1e-3
    np.testing.assert_array_equal(a, b)


def weighted_loss(params, batch):
  """A loss that compiles fast, with one mean and one maximum."""
  x, weights = batch['x'], batch['weights']
  total, count = jnp.sum(weights * x), jnp.sum(weights)
  aux = train_step.AuxMetrics({'x': (total, count)}, {'largest': jnp.max(x)})
  return total * jnp.mean(jax.tree.leaves(params)[0]), count, aux


def run_step(loss, weights, sizes):
  model, optimizer = tiny.gemma(), optax.sgd(1.0)
  state = train_state.init_state(model, optimizer, tiny.params(model))
  batch = {
    'x': np.array([-1, -2, -5, -7], np.float32),
    'weights': np.array(weights, np.float32),
  }
  batches = split(batch, np.array(sizes))
  return train_step.TrainStep(model, optimizer, loss)(state, batches)[1]


@pytest.mark.parametrize('sizes', [(4,), (1, 2, 1), (2, 2)])
def test_metrics_over_micro_batches(sizes):
  """The maximum is that of the values, not of the values and 0."""
  metrics = run_step(weighted_loss, [1, 0, 2, 1], sizes)
  assert float(metrics['x']) == -4.5  # (-1 - 10 - 7) / 4
  assert float(metrics['largest']) == -1.0
  assert float(metrics['count']) == 4.0


def test_mean_without_weights_is_zero():
  assert float(run_step(weighted_loss, [0, 0, 0, 0], (1, 3))['x']) == 0.0


@pytest.mark.parametrize('kind', ['means', 'maxima'])
def test_reserved_metric_names_are_rejected(kind):
  def loss(params, batch):
    numerator, count, _ = weighted_loss(params, batch)
    value = (count, count) if kind == 'means' else count
    return (
      numerator,
      count,
      train_step.AuxMetrics(**{kind: {'grad_norm': value}}),
    )

  with pytest.raises(ValueError, match='grad_norm'):
    run_step(loss, [1, 1, 1, 1], (4,))


def test_packed_rows_equal_separate_texts():
  """Losses and gradients, with texts longer than the window of 6."""
  model = Transformer(
    tiny.CONFIG, ComputeConfig(query_block=7), mesh.one_device()
  )
  params = model_init.init_params(model, jax.random.key(4))
  rng = np.random.default_rng(5)
  lengths = [(9, 8), (1, 3), (4, 12), (2, 0), (13, 5)]  # prompt, generation
  texts = [rng.integers(4, 250, sum(pair)).astype(np.int32) for pair in lengths]
  packed = packed_batch(texts, lengths, [[0, 1, 3], [2, 4]], 36)
  separate = separate_batch(texts, lengths)
  loss = functools.partial(train_step.supervised_loss, model)
  results = [
    jax.jit(functools.partial(train_step.grad, loss, model))(params, None, x)
    for x in (packed, separate)
  ]
  packed_sums, separate_sums = results
  assert (
    float(packed_sums.denominator) == float(separate_sums.denominator) == 28.0
  )
  assert float(packed_sums.numerator) == pytest.approx(
    float(separate_sums.numerator), rel=1e-6
  )
  for a, b in zip(
    jax.tree.leaves(packed_sums.grads),
    jax.tree.leaves(separate_sums.grads),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-4)


def packed_batch(texts, lengths, rows, size):
  shape = (len(rows), size)
  tokens, loss_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
  segments = np.full(shape, 99, np.int32)
  for row, members in enumerate(rows):
    at = 0
    for number, i in enumerate(members):
      end = at + len(texts[i])
      tokens[row, at:end], segments[row, at:end] = texts[i], number
      loss_mask[row, at + lengths[i][0] : end] = True
      at = end
  full = np.full(len(rows), size, np.int32)
  return Batch(tokens, full, segment_ids=segments, loss_mask=loss_mask)


def separate_batch(texts, lengths):
  count = len(texts)
  prompts = np.zeros((count, 13), np.int32)
  generations = np.zeros((count, 1, 12), np.int32)
  for i, (text, (n, size)) in enumerate(zip(texts, lengths, strict=True)):
    prompts[i, :n], generations[i, 0, :size] = text[:n], text[n:]
  sizes = np.array(lengths, np.int32)
  return Batch(prompts, sizes[:, 0], generations, sizes[:, 1:])


def test_compiler_options_reach_the_compiler(monkeypatch):
  """The compiler for CPU does not know the option, and says so."""
  monkeypatch.setattr(rules.ShardingLayout, 'platform', 'tpu')
  model = tiny.gemma(compute=ComputeConfig(scoped_vmem_kib=65536))
  loss = functools.partial(train_step.supervised_loss, model)
  update = train_step.TrainStep(model, OPTIMIZER, loss)
  params = model_init.abstract_params(model)
  (batch,) = random_batches(1)
  sums = jax.eval_shape(update.grad, params, None, batch)
  for program in (
    update.grad.lower(params, None, batch),
    update.accumulate.lower(params, None, sums, batch),
    grpo_loss.jit_logps(model).lower(params, batch),
  ):
    with pytest.raises(
      jax.errors.JaxRuntimeError, match='xla_tpu_scoped_vmem_limit_kib'
    ):
      program.compile()
