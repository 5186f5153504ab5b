"""A training step on 2x2x2 devices does what it does on one."""

import functools

import jax
import numpy as np
import optax
import pytest

from grm_jax.model import params as params_lib
from grm_jax.model.batch import Batch
from grm_jax.model.compute import Compute
from grm_jax.model.gemma import Gemma
from grm_jax.parallel import mesh, rules
from grm_jax.training import state as state_lib
from grm_jax.training import step
from tests.model import tiny

OPTIMIZER = optax.adamw(1e-2, weight_decay=0.1)


def batches(count):
  """Ragged batches of 4 prompts with 2 generations each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    yield Batch(
      rng.integers(4, 250, (4, 10)).astype(np.int32),
      rng.integers(1, 11, 4).astype(np.int32),
      rng.integers(4, 250, (4, 2, 7)).astype(np.int32),
      rng.integers(0, 8, (4, 2)).astype(np.int32),
    )


def train(devices, sizes, remat, steps=3):
  layout = rules.layout(mesh.make_mesh(*sizes, devices=devices), rules.RULES)
  model = Gemma(tiny.SIZE, Compute(remat=remat, head_chunk=8), layout)
  params = params_lib.init_params(model, jax.random.key(1))
  state = state_lib.init_state(model, OPTIMIZER, params)
  abstract = state_lib.abstract_state(model, OPTIMIZER)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  update = jax.jit(
    functools.partial(step.supervised_step, model, OPTIMIZER),
    donate_argnums=0,
    out_shardings=(shardings, None),
  )
  losses = []
  for batch in batches(steps):
    state, metrics = update(state, batch)
    losses.append(float(metrics['loss']))
  return state, abstract, losses


@pytest.fixture(scope='module')
def one_device():
  return train(jax.devices()[:1], (1, 1, 1), 'none')


@pytest.fixture(scope='module')
def eight_devices():
  return train(jax.devices(), (2, 2, 2), 'nothing_saveable')


def test_three_steps_equal_one_device(one_device, eight_devices):
  (one, _, losses), (many, _, their_losses) = one_device, eight_devices
  assert losses[0] != pytest.approx(losses[2], abs=1e-2)  # it does train
  np.testing.assert_allclose(their_losses, losses, atol=1e-5)
  assert int(many.step) == int(one.step) == 3
  for a, b in zip(
    jax.tree.leaves(many.params), jax.tree.leaves(one.params), strict=True
  ):
    # Adam divides by the root of tiny second moments: far looser than the loss.
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_moments_are_split_as_their_parameter(eight_devices):
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
  """One long and one empty generation: the mean is over tokens, literally."""
  layout = mesh.one_device()
  model = Gemma(tiny.SIZE, Compute(), layout)
  params = params_lib.init_params(model, jax.random.key(2))
  batch = next(batches(1)).replace(
    generation_lengths=np.array([[7, 0], [1, 2], [0, 0], [3, 3]], np.int32)
  )
  total, count = step.supervised_loss(model, params, batch)
  assert float(count) == 16.0
  parts = []
  for p, r in np.ndindex(4, 2):
    alone = Batch(*(x[p : p + 1] for x in jax.tree.leaves(batch)))
    alone = alone.replace(
      generations=alone.generations[:, r : r + 1],
      generation_lengths=alone.generation_lengths[:, r : r + 1],
    )
    parts.append(float(step.supervised_loss(model, params, alone)[0]))
  assert float(total) == pytest.approx(sum(parts), abs=1e-3)
