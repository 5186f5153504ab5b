"""AdamW against hand-computed numbers, Muon against optax, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from grm_jax.errors import UserError
from grm_jax.model.init import abstract_params
from grm_jax.sharding import mesh, rules
from grm_jax.training import optimizer, train_state
from tests.messages import naming, setting
from tests.model import tiny

DEFAULTS = dict(
  learning_rate=0.1,
  warmup_steps=0,
  schedule='constant',
  end_fraction=0.1,
  weight_decay=0.0,
  max_grad_norm=0.0,
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  moment_dtype='float32',
)


def make(total_steps=100, **changes):
  return optimizer.make(total_steps, **{**DEFAULTS, **changes})


def apply_gradients(adamw, *gradients):
  """Returns the parameters, initially 2, after each update; and the state."""
  params = {'kernel': jnp.float32(2.0), 'norm': {'scale': jnp.float32(2.0)}}
  opt_state = adamw.init(params)
  path = []
  for kernel_grad, scale_grad in gradients:
    grads = {
      'kernel': jnp.float32(kernel_grad),
      'norm': {'scale': jnp.float32(scale_grad)},
    }
    updates, opt_state = adamw.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    path.append((float(params['kernel']), float(params['norm']['scale'])))
  return path, opt_state


def test_two_adamw_steps():
  adamw, _ = make(weight_decay=0.5)
  path, _ = apply_gradients(adamw, (0.5, 0.5), (-1.0, -1.0))
  # First: m = 0.05 / 0.1 = 0.5 and v = 0.0025 / 0.01 = 0.25, so m / sqrt(v) is
  # 1. The weight decay of the kernel is 0.5 * 2.
  assert path[0] == pytest.approx((2 - 0.1 * (1 + 1), 2 - 0.1))
  # Second: m = -0.055 / 0.19 and v = 0.012475 / 0.0199, so -0.3656077. The
  # weight decay is 0.5 * 1.8.
  assert path[1] == pytest.approx((1.7465608, 1.9365608), abs=1e-6)


def test_eps_is_outside_the_square_root():
  adamw, _ = make(eps=1.0)
  # 0.5 / (sqrt(0.25) + 1)
  path, _ = apply_gradients(adamw, (0.5, 0.5))
  assert path[0] == pytest.approx((2 - 0.1 / 3, 2 - 0.1 / 3))


@pytest.mark.parametrize(
  'max_grad_norm, expected',
  [(0.0, (0.3, 0.4)), (10.0, (0.3, 0.4)), (1.0, (0.06, 0.08))],
)
def test_clipping_uses_the_global_norm(max_grad_norm, expected):
  adamw, _ = make(max_grad_norm=max_grad_norm)
  _, opt_state = apply_gradients(adamw, (3.0, 4.0))
  moments = optax.tree.get(opt_state, 'mu')
  clipped = float(moments['kernel']), float(moments['norm']['scale'])
  assert clipped == pytest.approx(expected)


@pytest.mark.parametrize(
  'warmup, schedule, expected',
  [
    (3, 'cosine', {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 7: 0.44, 11: 0.08}),
    (3, 'constant', {0: 0.2, 2: 0.6, 3: 0.8, 4: 0.8, 11: 0.8}),
    (0, 'cosine', {0: 0.8, 5.5: 0.44, 11: 0.08, 20: 0.08}),
    (0, 'constant', {0: 0.8, 20: 0.8}),
  ],
)
def test_schedule(warmup, schedule, expected):
  _, rate = make(11, learning_rate=0.8, warmup_steps=warmup, schedule=schedule)
  rates = {step: float(rate(step)) for step in expected}
  assert rates == pytest.approx(expected)


def test_updates_follow_the_schedule():
  """A constant gradient makes each step of Adam equal the learning rate."""
  adamw, rate = make(learning_rate=0.8, warmup_steps=3)
  path, _ = apply_gradients(adamw, *[(1.0, 1.0)] * 4)
  scale = [2.0] + [scale for _, scale in path]
  steps = -np.diff(scale)
  np.testing.assert_allclose(steps, [0.2, 0.4, 0.6, 0.8], atol=1e-5)
  np.testing.assert_allclose(steps, [rate(n) for n in range(4)], atol=1e-5)


# Name -> (shape of two stacked layers, shape of a layer as [in, out]).
KERNELS = {
  'query': ((2, 6, 4, 2), (6, 8)),
  'key': ((2, 6, 2, 2), (6, 4)),
  'value': ((2, 6, 2, 2), (6, 4)),
  'out': ((2, 4, 2, 6), (8, 6)),
  'gate': ((2, 6, 10), (6, 10)),
  'up': ((2, 6, 10), (6, 10)),
  'down': ((2, 10, 6), (10, 6)),
}


@pytest.mark.parametrize('name', KERNELS)
def test_muon_treats_each_layer_as_a_matrix(name):
  """Compares with optax on the single matrix."""
  shape, matrix = KERNELS[name]
  rng = np.random.default_rng(0)
  kernel, grad = rng.normal(size=(2, *shape)).astype(np.float32)
  muon, _ = make(kind='muon', weight_decay=0.5)
  params = {name: jnp.asarray(kernel)}
  updates, _ = muon.update({name: grad}, muon.init(params), params)
  optax_muon = contrib.muon(0.1, weight_decay=0.5, consistent_rms=0.2)
  for layer in range(2):
    flat = jnp.asarray(kernel[layer].reshape(matrix))
    expected, _ = optax_muon.update(
      grad[layer].reshape(matrix), optax_muon.init(flat), flat
    )
    np.testing.assert_allclose(
      updates[name][layer].reshape(matrix), expected, atol=1e-6
    )
  # The size of the update does not depend on that of the gradient.
  small_grad_updates, _ = muon.update(
    {name: grad / 10}, muon.init(params), params
  )
  np.testing.assert_allclose(small_grad_updates[name], updates[name], atol=1e-4)


def test_muon_uses_nadam_for_other_parameters():
  params = abstract_params(tiny.gemma(scalar=True))
  flat = jax.tree_util.tree_leaves_with_path(
    optimizer.muon_dims(params), is_leaf=lambda x: isinstance(x, tuple)
  )
  assert {path[-1].key for path, _ in flat} == set(KERNELS)
  muon, nadam = make(kind='muon')[0], optax.nadam(0.1, b2=0.99)
  rest = {
    'embedder': {'table': jnp.full((4, 2), 2.0)},
    'value_head': {'kernel': jnp.full((2, 1), 2.0)},
    'final_norm': {'scale': jnp.full(2, 2.0)},
  }
  grads = jax.tree.map(lambda x: x / 3, rest)
  updates, expected = (
    tx.update(grads, tx.init(rest), rest)[0] for tx in (muon, nadam)
  )
  jax.tree.map(np.testing.assert_allclose, updates, expected)


def test_norm_scales_have_no_weight_decay():
  params = abstract_params(tiny.gemma(scalar=True))
  flat, _ = jax.tree_util.tree_flatten_with_path(
    optimizer.weight_decay_mask(params)
  )
  decays = {'/'.join(part.key for part in path): on for path, on in flat}
  assert {name for name, on in decays.items() if not on} == {
    'final_norm/scale',
    *(
      f'pairs/{layer}/{when}_{what}_norm/scale'
      for layer in ('local', 'global')
      for when in ('pre', 'post')
      for what in ('attention', 'mlp')
    ),
  }
  assert {name for name, on in decays.items() if on} == {
    'embedder/table',
    'value_head/kernel',
    *(
      f'pairs/{layer}/{matrix}'
      for layer in ('local', 'global')
      for matrix in (
        'attention/query',
        'attention/key',
        'attention/value',
        'attention/out',
        'mlp/gate',
        'mlp/up',
        'mlp/down',
      )
    ),
  }


def test_moments_have_the_shardings_of_their_parameters():
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  model = tiny.gemma(layout)
  adamw, _ = make(
    max_grad_norm=1.0, weight_decay=0.1, warmup_steps=2, moment_dtype='bfloat16'
  )
  abstract = train_state.abstract_state(model, adamw)
  for name, dtype in (('mu', jnp.bfloat16), ('nu', jnp.float32)):
    moments = optax.tree.get(abstract.opt_state, name)
    for moment, param in zip(
      jax.tree.leaves(moments), jax.tree.leaves(abstract.params), strict=True
    ):
      assert moment.dtype == dtype
      assert moment.shape == param.shape
      assert moment.sharding == param.sharding
  counters = [x for x in jax.tree.leaves(abstract.opt_state) if not x.shape]
  assert len(counters) == 2  # of Adam and of the schedule
  assert all(x.sharding.is_fully_replicated for x in counters)


def test_muon_moments_have_the_shardings_of_their_parameters():
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  muon, _ = make(kind='muon', moment_dtype='bfloat16')
  abstract = train_state.abstract_state(tiny.gemma(layout), muon)
  params = dict(jax.tree_util.tree_leaves_with_path(abstract.params))
  param_paths = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state):
    param_path = next((p for p in params if path[-len(p) :] == p), None)
    if param_path is None:
      assert leaf.sharding.is_fully_replicated
      continue
    param_paths.append(param_path)
    assert (leaf.shape, leaf.sharding) == (
      params[param_path].shape,
      params[param_path].sharding,
    )
  # Muon has one moment per matrix, Adam two for every other parameter.
  for path in params:
    assert param_paths.count(path) == (1 if path[-1].key in KERNELS else 2)


def test_settings_do_not_change_the_structure_of_the_state():
  """These settings may change when a run resumes."""
  params = abstract_params(tiny.gemma())
  structures = {
    jax.tree.structure(jax.eval_shape(make(**changes)[0].init, params))
    for changes in (
      dict(),
      dict(max_grad_norm=1.0),
      dict(weight_decay=0.1),
      dict(warmup_steps=5, schedule='cosine'),
    )
  }
  assert len(structures) == 1


@pytest.mark.parametrize(
  'changes',
  [
    dict(learning_rate=0.0),
    dict(learning_rate=float('nan')),
    dict(learning_rate=float('inf')),
    dict(warmup_steps=-1),
    dict(warmup_steps=100),
    dict(schedule='linear'),
    dict(end_fraction=1.5),
    dict(weight_decay=-0.1),
    dict(max_grad_norm=-1.0),
    dict(b1=1.0),
    dict(b2=-0.1),
    dict(eps=0.0),
    dict(moment_dtype='float16'),
    dict(kind='sgd'),
  ],
)
def test_invalid_settings_name_the_config_key(changes):
  ((name, value),) = changes.items()
  words = setting(f'optimizer.{name}', value)
  with pytest.raises(UserError, match=naming(*words)):
    make(**changes)


def test_bounds_are_valid():
  make(
    warmup_steps=99,
    end_fraction=0.0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    b1=0.0,
  )
