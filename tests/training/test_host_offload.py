"""A state in the host's memory: the numbers of one on the devices."""

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


def made(
  offload_to_host, sizes=(2, 2, 2), scalar=False, dtype='float32', **changes
):
  """A model and its optimizer on so many devices."""
  devices = jax.devices()[: int(np.prod(sizes))]
  layout = rules.layout(mesh.make_mesh(*sizes, devices=devices), rules.RULES)
  model = Transformer(
    tiny.SIZE, ComputeConfig(dtype=dtype, head_chunk=8), layout, scalar=scalar
  )
  optim, _ = optimizer.make(
    10, offload_to_host=offload_to_host, **{**DEFAULTS, **changes}
  )
  return model, optim


def pulled(params, aim):
  """A loss of all parameters that is cheap to compile."""
  away = [jnp.sum(jnp.square(x - aim)) for x in jax.tree.leaves(params)]
  return sum(away), jnp.float32(100), train_step.AuxMetrics()


def train(model, optim, state=None, steps=3):
  if state is None:
    params = model_init.init_params(model, jax.random.key(1))
    state = train_state.init_state(model, optim, params)
  update = train_step.TrainStep(model, optim, pulled)
  rows = []
  for aim in (0.5, -2.0, 1.0)[:steps]:
    state, metrics = update(state, [np.float32(aim), np.float32(aim / 2)])
    rows.append({name: float(x) for name, x in metrics.items()})
  return state, rows


def kinds(tree):
  return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def assert_same(ours, theirs):
  """Numbers, wherever the arrays are."""
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    *(jax.tree.map(np.asarray, tree) for tree in (ours, theirs)),
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
def test_three_steps_equal_a_state_on_the_devices(changes):
  theirs, rows = train(*made(False, **changes))
  ours, our_rows = train(*made(True, **changes))
  if changes.get('max_grad_norm', 1):
    assert min(row['grad_norm'] for row in rows) > 0.5  # clipping does happen
  for row, other in zip(our_rows, rows, strict=True):
    assert row == pytest.approx(other, rel=1e-5)
  assert theirs.masters is None
  assert_same(
    (ours.step, ours.exact(), ours.opt_state),
    (theirs.step, theirs.params, theirs.opt_state),
  )


def test_what_gradients_need_is_on_the_devices():
  model, optim = made(True, dtype='bfloat16')
  state, _ = train(model, optim, steps=2)
  device = jax.devices()[0].default_memory().kind
  assert kinds(state.params) == {device}
  assert kinds(state.masters) == {'pinned_host'}
  rounded = model_init.cast_kernels(state.exact(), jnp.bfloat16)
  kernel = state.params['pairs']['local']['mlp']['gate']
  assert kernel.dtype == jnp.bfloat16
  jax.tree.map(
    np.testing.assert_array_equal,
    *(jax.tree.map(np.asarray, x) for x in (state.params, rounded)),
  )
  _, inner = state.opt_state
  (adam, *_) = inner
  assert kinds((adam.mu, adam.nu)) == {'pinned_host'}
  assert kinds(adam.count) == {device}
  assert int(adam.count) == int(state.step) == 2
  expected = train_state.abstract_state(model, optim)
  for leaf, other in zip(
    jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
  ):
    assert leaf.sharding == other.sharding
    assert leaf.shape == other.shape and leaf.dtype == other.dtype


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('after', [True, False])
@pytest.mark.parametrize('before', [True, False])
def test_a_checkpoint_goes_on_with_or_without(tmp_path, before, after, dtype):
  """Saved after one step with a state here, then a second with it there."""
  model, optim = made(before, dtype=dtype)
  state, _ = train(model, optim, steps=1)
  with orbax_checkpoint.CheckpointManager(tmp_path) as saved:
    saved.save(1, state.exact(), state.opt_state)
  model, other = made(after, dtype=dtype)
  abstract = train_state.abstract_state(model, other)
  again = train_state.from_master_params(
    abstract,
    1,
    *orbax_checkpoint.restore(tmp_path, abstract.exact(), abstract.opt_state),
  )
  for leaf, like in zip(
    jax.tree.leaves(again), jax.tree.leaves(abstract), strict=True
  ):
    assert (leaf.dtype, leaf.sharding) == (like.dtype, like.sharding)
  found, _ = train(model, other, again, steps=1)
  model, same = made(before, dtype=dtype)
  expected, _ = train(model, same, state, steps=1)
  assert_same(
    (found.exact(), found.opt_state), (expected.exact(), expected.opt_state)
  )


def test_masters_leave_no_second_copy_on_the_devices():
  model, optim = made(True, dtype='bfloat16')
  params = model_init.init_params(model, jax.random.key(1))
  kernel = params['pairs']['local']['mlp']['gate']
  state = train_state.init_state(model, optim, params)
  assert kernel.is_deleted()
  assert not any(x.is_deleted() for x in jax.tree.leaves(state))
