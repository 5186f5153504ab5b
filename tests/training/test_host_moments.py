"""Moments in the host's memory: the numbers of those on the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import params as params_lib
from grm_jax.model.compute import Compute
from grm_jax.model.gemma import Gemma
from grm_jax.parallel import mesh, rules
from grm_jax.training import checkpoints, optimizer, step
from grm_jax.training import state as states
from tests.model import tiny

DEFAULTS = dict(
  learning_rate=1e-2,
  warmup_steps=2,
  schedule='constant',
  weight_decay=0.1,
  clip=0.5,
  b2=0.95,
  moment_dtype='float32',
)


def made(on_host, sizes=(2, 2, 2), scalar=False, **changes):
  """A model and its optimizer on so many devices."""
  devices = jax.devices()[: int(np.prod(sizes))]
  layout = rules.layout(mesh.make_mesh(*sizes, devices=devices), rules.RULES)
  model = Gemma(tiny.SIZE, Compute(head_chunk=8), layout, scalar=scalar)
  optim, _ = optimizer.make(10, on_host=on_host, **{**DEFAULTS, **changes})
  return model, optim


def pulled(params, aim):
  """A loss of all parameters that is cheap to compile."""
  away = [jnp.sum(jnp.square(x - aim)) for x in jax.tree.leaves(params)]
  return sum(away), jnp.float32(100), step.Extras()


def train(model, optim, state=None, steps=3):
  if state is None:
    params = params_lib.init_params(model, jax.random.key(1))
    state = states.init_state(model, optim, params)
  update = step.Steps(model, optim, pulled)
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
    {'clip': 0.0, 'moment_dtype': 'bfloat16'},
    {'sizes': (1, 1, 1)},
    {'scalar': True, 'weight_decay': 0.0},
  ],
  ids=['adamw', 'muon', 'bfloat16', 'one_device', 'scalar'],
)
def test_three_steps_equal_moments_on_the_devices(changes):
  theirs, rows = train(*made(False, **changes))
  ours, our_rows = train(*made(True, **changes))
  if changes.get('clip', 1):
    assert min(row['grad_norm'] for row in rows) > 0.5  # clipping does happen
  for row, other in zip(our_rows, rows, strict=True):
    assert row == pytest.approx(other, rel=1e-5)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  assert_same(ours, theirs)


def test_only_moments_are_on_the_host():
  model, optim = made(True)
  state, _ = train(model, optim, steps=2)
  device = jax.devices()[0].default_memory().kind
  assert kinds(state.params) == {device}
  _, inner = state.opt_state
  (adam, *_) = inner
  assert kinds((adam.mu, adam.nu)) == {'pinned_host'}
  assert kinds(adam.count) == {device}
  assert int(adam.count) == int(state.step) == 2
  expected = states.abstract_state(model, optim)
  for leaf, other in zip(
    jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
  ):
    assert leaf.sharding == other.sharding
    assert leaf.shape == other.shape and leaf.dtype == other.dtype


@pytest.mark.parametrize('first', [True, False])
def test_a_checkpoint_goes_on_with_or_without(tmp_path, first):
  """Saved after one step with them here, then a second with them there."""
  model, optim = made(first)
  state, _ = train(model, optim, steps=1)
  with checkpoints.Checkpoints(tmp_path) as saved:
    saved.save(1, state.params, state.opt_state)
  model, other = made(not first)
  abstract = states.abstract_state(model, other)
  params, opt_state = checkpoints.restore(
    tmp_path, abstract.params, abstract.opt_state
  )
  assert kinds(opt_state[1][0].mu) == kinds(abstract.opt_state[1][0].mu)
  again = states.TrainState(jnp.int32(1), params, opt_state)
  found, _ = train(model, other, again, steps=1)
  model, same = made(first)
  expected, _ = train(model, same, state, steps=1)
  assert_same(found, expected)
