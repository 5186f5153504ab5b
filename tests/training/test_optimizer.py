"""AdamW by hand, Muon by matrices, schedules, and the state on a real tree."""

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


def updated(adamw, *gradients):
  """Parameters that begin at 2 after each gradient, and the last state."""
  params = {'kernel': jnp.float32(2.0), 'norm': {'scale': jnp.float32(2.0)}}
  opt_state = adamw.init(params)
  path = []
  for of_kernel, of_scale in gradients:
    grads = {
      'kernel': jnp.float32(of_kernel),
      'norm': {'scale': jnp.float32(of_scale)},
    }
    updates, opt_state = adamw.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    path.append((float(params['kernel']), float(params['norm']['scale'])))
  return path, opt_state


def test_two_steps_by_hand():
  adamw, _ = make(weight_decay=0.5)
  path, _ = updated(adamw, (0.5, 0.5), (-1.0, -1.0))
  # First: m 0.05 / 0.1 = 0.5, v 0.0025 / 0.01 = 0.25, so m / sqrt(v) = 1, and
  # the kernel's decay is 0.5 * 2.
  assert path[0] == pytest.approx((2 - 0.1 * (1 + 1), 2 - 0.1))
  # Second: m -0.055 / 0.19, v 0.012475 / 0.0199, so -0.3656077; the decay is
  # 0.5 * 1.8.
  assert path[1] == pytest.approx((1.7465608, 1.9365608), abs=1e-6)


def test_eps_is_outside_the_root():
  adamw, _ = make(eps=1.0)
  # 0.5 / (sqrt(0.25) + 1)
  path, _ = updated(adamw, (0.5, 0.5))
  assert path[0] == pytest.approx((2 - 0.1 / 3, 2 - 0.1 / 3))


@pytest.mark.parametrize(
  'clip, expected', [(0.0, (0.3, 0.4)), (10.0, (0.3, 0.4)), (1.0, (0.06, 0.08))]
)
def test_clipping_is_by_the_norm_of_all(clip, expected):
  adamw, _ = make(max_grad_norm=clip)
  _, opt_state = updated(adamw, (3.0, 4.0))
  moments = optax.tree.get(opt_state, 'mu')
  found = float(moments['kernel']), float(moments['norm']['scale'])
  assert found == pytest.approx(expected)


@pytest.mark.parametrize(
  'warmup, schedule, literals',
  [
    (3, 'cosine', {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 7: 0.44, 11: 0.08}),
    (3, 'constant', {0: 0.2, 2: 0.6, 3: 0.8, 4: 0.8, 11: 0.8}),
    (0, 'cosine', {0: 0.8, 5.5: 0.44, 11: 0.08, 20: 0.08}),
    (0, 'constant', {0: 0.8, 20: 0.8}),
  ],
)
def test_schedule(warmup, schedule, literals):
  _, rate = make(11, learning_rate=0.8, warmup_steps=warmup, schedule=schedule)
  found = {step: float(rate(step)) for step in literals}
  assert found == pytest.approx(literals)


def test_updates_follow_the_schedule():
  """With a constant gradient Adam moves by the learning rate exactly."""
  adamw, rate = make(learning_rate=0.8, warmup_steps=3)
  path, _ = updated(adamw, *[(1.0, 1.0)] * 4)
  scale = [2.0] + [scale for _, scale in path]
  steps = -np.diff(scale)
  np.testing.assert_allclose(steps, [0.2, 0.4, 0.6, 0.8], atol=1e-5)
  np.testing.assert_allclose(steps, [rate(n) for n in range(4)], atol=1e-5)


# Name -> the shape of two layers, and of each layer as a matrix [in, out].
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
def test_muon_takes_each_layer_as_a_matrix(name):
  """As optax does with the matrix alone."""
  shape, matrix = KERNELS[name]
  rng = np.random.default_rng(0)
  kernel, grad = rng.normal(size=(2, *shape)).astype(np.float32)
  muon, _ = make(kind='muon', weight_decay=0.5)
  params = {name: jnp.asarray(kernel)}
  found, _ = muon.update({name: grad}, muon.init(params), params)
  peer = contrib.muon(0.1, weight_decay=0.5, consistent_rms=0.2)
  for layer in range(2):
    flat = jnp.asarray(kernel[layer].reshape(matrix))
    expected, _ = peer.update(
      grad[layer].reshape(matrix), peer.init(flat), flat
    )
    np.testing.assert_allclose(
      found[name][layer].reshape(matrix), expected, atol=1e-6
    )
  # Alike in size, whatever the gradient's.
  tenth, _ = muon.update({name: grad / 10}, muon.init(params), params)
  np.testing.assert_allclose(tenth[name], found[name], atol=1e-4)


def test_muon_leaves_the_rest_to_nadam():
  params = abstract_params(tiny.gemma(scalar=True))
  flat = jax.tree_util.tree_leaves_with_path(
    optimizer.muon_dims(params), is_leaf=lambda x: isinstance(x, tuple)
  )
  assert {path[-1].key for path, _ in flat} == set(KERNELS)
  muon, adam = make(kind='muon')[0], optax.nadam(0.1, b2=0.99)
  rest = {
    'embedder': {'table': jnp.full((4, 2), 2.0)},
    'value_head': {'kernel': jnp.full((2, 1), 2.0)},
    'final_norm': {'scale': jnp.full(2, 2.0)},
  }
  grads = jax.tree.map(lambda x: x / 3, rest)
  found, expected = (
    one.update(grads, one.init(rest), rest)[0] for one in (muon, adam)
  )
  jax.tree.map(np.testing.assert_allclose, found, expected)


def test_only_norms_do_not_decay():
  params = abstract_params(tiny.gemma(scalar=True))
  flat, _ = jax.tree_util.tree_flatten_with_path(
    optimizer.weight_decay_mask(params)
  )
  names = {'/'.join(part.key for part in path): on for path, on in flat}
  assert {name for name, on in names.items() if not on} == {
    'final_norm/scale',
    *(
      f'pairs/{layer}/{when}_{what}_norm/scale'
      for layer in ('local', 'global')
      for when in ('pre', 'post')
      for what in ('attention', 'mlp')
    ),
  }
  assert {name for name, on in names.items() if on} == {
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


def test_state_has_the_shardings_of_its_parameters():
  layout = rules.layout(mesh.make_mesh(2, 2, 2), rules.RULES)
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
  assert len(counters) == 2  # Adam's, and the schedule's
  assert all(x.sharding.is_fully_replicated for x in counters)


def test_moments_of_muon_have_the_shardings_of_their_parameters():
  layout = rules.layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  muon, _ = make(kind='muon', moment_dtype='bfloat16')
  abstract = train_state.abstract_state(tiny.gemma(layout), muon)
  params = dict(jax.tree_util.tree_leaves_with_path(abstract.params))
  seen = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state):
    own = next((p for p in params if path[-len(p) :] == p), None)
    if own is None:
      assert leaf.sharding.is_fully_replicated
      continue
    seen.append(own)
    assert (leaf.shape, leaf.sharding) == (
      params[own].shape,
      params[own].sharding,
    )
  # One moment of each matrix, two of everything else.
  for path in params:
    assert seen.count(path) == (1 if path[-1].key in KERNELS else 2)


def test_the_state_has_one_structure():
  """Settings that may change between two starts of a run."""
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
def test_a_wrong_setting_is_named(changes):
  ((name, value),) = changes.items()
  words = setting(f'optimizer.{name}', value)
  with pytest.raises(UserError, match=naming(*words)):
    make(**changes)


def test_bounds_themselves_are_fine():
  make(
    warmup_steps=99,
    end_fraction=0.0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    b1=0.0,
  )
