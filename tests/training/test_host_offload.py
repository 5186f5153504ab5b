"""Host offload gives the same numbers as a state on the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.model import init as model_init
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from grm_jax.training import optimizer, train_state, train_step
from tests.model import tiny

DEFAULTS = dict(
  learning_rate=1e-2,
  warmup_steps=2,
  schedule='constant',
  weight_decay=0.1,
  max_grad_norm=0.5,
  b2=0.95,
  moment_dtype='float32',
)


def make_model_and_optimizer(
  offload_to_host, sizes=(2, 2, 2), scalar=False, dtype='float32', **changes
):
  """Returns a model and its optimizer on a mesh with these axis sizes."""
  devices = jax.devices()[: int(np.prod(sizes))]
  layout = rules.make_layout(
    mesh.make_mesh(*sizes, devices=devices), rules.RULES
  )
  model = Transformer(
    tiny.CONFIG, ComputeConfig(dtype=dtype, head_chunk=8), layout, scalar=scalar
  )
  optim, _ = optimizer.make(
    10, offload_to_host=offload_to_host, **{**DEFAULTS, **changes}
  )
  return model, optim


def quadratic_loss(params, target):
  """A loss of all parameters that compiles fast."""
  losses = [jnp.sum(jnp.square(x - target)) for x in jax.tree.leaves(params)]
  return sum(losses), jnp.float32(100), train_step.AuxMetrics()


def train(model, optim, state=None, steps=3):
  if state is None:
    params = model_init.init_params(model, jax.random.key(1))
    state = train_state.init_state(model, optim, params)
  update = train_step.TrainStep(model, optim, quadratic_loss)
  rows = []
  for target in (0.5, -2.0, 1.0)[:steps]:
    state, metrics = update(state, [np.float32(target), np.float32(target / 2)])
    rows.append({name: float(x) for name, x in metrics.items()})
  return state, rows


def memory_kinds(tree):
  return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def assert_same(left, right):
  """Compares the numbers, in whichever memory the arrays are."""
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    *(jax.tree.map(np.asarray, tree) for tree in (left, right)),
  )


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'kind': 'muon'},
    {'max_grad_norm': 0.0, 'moment_dtype': 'bfloat16'},
    {'sizes': (1, 1, 1)},
    {'scalar': True, 'weight_decay': 0.0},
    {'dtype': 'bfloat16'},
    {'dtype': 'bfloat16', 'kind': 'muon', 'sizes': (1, 1, 1)},
  ],
  ids=[
    'adamw',
    'muon',
    'bfloat16_moments',
    'one_device',
    'scalar',
    'bfloat16',
    'bfloat16_muon',
  ],
)
def test_three_steps_equal_those_without_offload(changes):
  expected, expected_rows = train(*make_model_and_optimizer(False, **changes))
  state, rows = train(*make_model_and_optimizer(True, **changes))
  if changes.get('max_grad_norm', 1):
    assert (
      min(row['grad_norm'] for row in expected_rows) > 0.5
    )  # clipping happens
  for row, expected_row in zip(rows, expected_rows, strict=True):
    assert row == pytest.approx(expected_row, rel=1e-5)
  assert expected.masters is None
  assert_same(
    (state.step, state.master_params(), state.opt_state),
    (expected.step, expected.params, expected.opt_state),
  )


def test_compute_params_are_on_the_devices():
  model, optim = make_model_and_optimizer(True, dtype='bfloat16')
  state, _ = train(model, optim, steps=2)
  device = jax.devices()[0].default_memory().kind
  assert memory_kinds(state.params) == {device}
  assert memory_kinds(state.masters) == {'pinned_host'}
  rounded = model_init.cast_kernels(state.master_params(), jnp.bfloat16)
  kernel = state.params['pairs']['local']['mlp']['gate']
  assert kernel.dtype == jnp.bfloat16
  jax.tree.map(
    np.testing.assert_array_equal,
    *(jax.tree.map(np.asarray, x) for x in (state.params, rounded)),
  )
  _, inner = state.opt_state
  (adam, *_) = inner
  assert memory_kinds((adam.mu, adam.nu)) == {'pinned_host'}
  assert memory_kinds(adam.count) == {device}
  assert int(adam.count) == int(state.step) == 2
  expected = train_state.abstract_state(model, optim)
  for leaf, target in zip(
    jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
  ):
    assert leaf.sharding == target.sharding
    assert leaf.shape == target.shape and leaf.dtype == target.dtype


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('after', [True, False])
@pytest.mark.parametrize('before', [True, False])
def test_offload_can_change_at_a_resume(tmp_path, before, after, dtype):
  """Saves after one step with `before`, takes a second step with `after`."""
  model, optim = make_model_and_optimizer(before, dtype=dtype)
  state, _ = train(model, optim, steps=1)
  with orbax_checkpoint.CheckpointManager(tmp_path) as writer:
    writer.save(1, state.master_params(), state.opt_state)
  model, new_optim = make_model_and_optimizer(after, dtype=dtype)
  abstract = train_state.abstract_state(model, new_optim)
  resumed = train_state.from_master_params(
    abstract,
    1,
    *orbax_checkpoint.restore(
      tmp_path, abstract.master_params(), abstract.opt_state
    ),
  )
  for leaf, target in zip(
    jax.tree.leaves(resumed), jax.tree.leaves(abstract), strict=True
  ):
    assert (leaf.dtype, leaf.sharding) == (target.dtype, target.sharding)
  result, _ = train(model, new_optim, resumed, steps=1)
  model, optim = make_model_and_optimizer(before, dtype=dtype)
  expected, _ = train(model, optim, state, steps=1)
  assert_same(
    (result.master_params(), result.opt_state),
    (expected.master_params(), expected.opt_state),
  )


def test_offloaded_masters_have_no_copy_on_the_devices():
  model, optim = make_model_and_optimizer(True, dtype='bfloat16')
  params = model_init.init_params(model, jax.random.key(1))
  kernel = params['pairs']['local']['mlp']['gate']
  state = train_state.init_state(model, optim, params)
  assert kernel.is_deleted()
  assert not any(x.is_deleted() for x in jax.tree.leaves(state))
