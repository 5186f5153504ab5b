"""Frozen parameters: their dtype and place, and that they are the same ones."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.sharding import mesh, rules
from grm_jax.training import grpo_loss
from grm_jax.training.reference_policy import ReferencePolicy
from tests.messages import naming, setting
from tests.model import tiny

MODEL = tiny.gemma(num_layers=2)
BATCH = tiny.batch([5, 3], 6, [[4, 2], [1, 3]], 4)


def params(seed=0):
  return tiny.params(MODEL, seed)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Step 3, and step 7 with other parameters."""
  folder = tmp_path_factory.mktemp('saved')
  model_directory.save(str(folder), 3, MODEL, params(), {})
  model_directory.save(str(folder), 7, MODEL, params(1), {})
  return str(folder)


def reference(
  directory, step=3, model=MODEL, dtype='float32', offload_to_host=False
):
  return ReferencePolicy(
    directory, step, model, dtype=dtype, offload_to_host=offload_to_host
  )


@functools.cache
def expected(seed=0, dtype='float32'):
  cast = jax.tree.map(lambda x: x.astype(dtype), params(seed))
  return np.asarray(
    jax.jit(functools.partial(grpo_loss.logps, MODEL))(cast, BATCH)
  )


@pytest.mark.parametrize('offload_to_host', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_logps_are_those_of_its_parameters(saved, dtype, offload_to_host):
  made = reference(saved, dtype=dtype, offload_to_host=offload_to_host)
  assert {x.dtype for x in jax.tree.leaves(made._params)} == {jnp.dtype(dtype)}
  (found,) = made.logps([BATCH])
  np.testing.assert_allclose(found, expected(dtype=dtype), atol=1e-5)
  assert np.abs(found).max() > 1
  # Again, and of several batches at once.
  for again in made.logps([BATCH, BATCH]):
    np.testing.assert_array_equal(again, found)


def test_bfloat16_is_a_rounded_copy(saved):
  apart = np.abs(expected() - expected(dtype='bfloat16')).max()
  assert 1e-4 < apart < 0.1
  made = reference(saved, dtype='bfloat16')
  for ours, theirs in zip(
    jax.tree.leaves(made._params), jax.tree.leaves(params()), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16))


def test_on_the_host_between_two_uses(saved):
  made = reference(saved, offload_to_host=True)
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(made._params)}
  assert kinds == {'pinned_host'}
  before = {id(x) for x in jax.live_arrays()}
  found = made.logps([BATCH])
  left = [x for x in jax.live_arrays() if id(x) not in before]
  # No copy of the table stays on the devices.
  assert max(x.size for x in left) == found[0].size
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(made._params)}
  assert kinds == {'pinned_host'}


def test_split_as_the_policy_is(saved):
  layout = rules.layout(
    mesh.make_mesh(1, 2, 2, devices=jax.devices()[:4]), rules.RULES
  )
  model = tiny.gemma(layout, num_layers=2)
  for offload_to_host in (False, True):
    made = reference(saved, model=model, offload_to_host=offload_to_host)
    table = made._params['embedder']['table']
    assert table.sharding.spec == jax.sharding.PartitionSpec(('tensor', 'fsdp'))
    (found,) = made.logps([BATCH])
    np.testing.assert_allclose(found, expected(), atol=1e-5)


def test_the_newest_step_is_named(saved):
  made = reference(saved, None)
  assert made.provenance['step'] == 7
  assert made.provenance['checkpoint'] == saved
  np.testing.assert_allclose(made.logps([BATCH])[0], expected(1), atol=1e-5)


def test_a_run_that_goes_on_is_measured_from_the_same(saved, tmp_path):
  before = json.loads(json.dumps(reference(saved).provenance))
  reference(saved, dtype='bfloat16', offload_to_host=True).check(before)
  reference(saved, 7).check(None)  # it had none
  # The same parameters in another place are the same.
  model_directory.save(str(tmp_path), 5, MODEL, params(), {'other': 1})
  reference(str(tmp_path), None).check(before)
  words = 'config.reference.checkpoint', saved, 3, 7
  with pytest.raises(UserError, match=naming(*words)) as info:
    reference(saved, None).check(before)
  assert '\n' not in str(info.value)


def test_random_parameters_are_the_policys(monkeypatch):
  # Without a compilation.
  monkeypatch.setattr(model_directory, 'random', tiny.params)
  model, _, weights = model_directory.open_model(
    'random', None, MODEL.compute, MODEL.layout, seed=4
  )
  made = ReferencePolicy(
    'random', None, model, dtype='float32', offload_to_host=False, seed=4
  )
  for ours, theirs in zip(
    jax.tree.leaves(made._params), jax.tree.leaves(weights), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  other = ReferencePolicy(
    'random', None, model, dtype='float32', offload_to_host=False
  )
  with pytest.raises(
    UserError, match=naming('config.reference.checkpoint', 'random')
  ):
    other.check(made.provenance)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'dtype': 'float16'}, setting('reference.dtype', 'float16')),
    (
      {'model': tiny.gemma(num_layers=2, mlp_width=64)},
      ['config.reference.checkpoint', 64],
    ),
    (
      {'model': tiny.gemma(num_layers=2, scalar=True)},
      ['config.reference.checkpoint', 'head'],
    ),
    ({'step': 5}, [5, 3, 7]),
    ({'directory': 'nowhere', 'step': None}, ['nowhere']),
    (
      {'directory': ''},
      ['config.reference.checkpoint', 'config.checkpoint'],
    ),
  ],
)
def test_mistakes(saved, changes, words):
  with pytest.raises(UserError, match=naming(*words)) as caught:
    reference(**{'directory': saved} | changes)
  assert '\n' not in str(caught.value)
