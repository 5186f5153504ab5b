"""The reference policy: dtype, memory, sharding and provenance."""

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
  """A model directory with step 3, and step 7 with other parameters."""
  folder = tmp_path_factory.mktemp('saved')
  model_directory.save(str(folder), 3, MODEL, params(), {})
  model_directory.save(str(folder), 7, MODEL, params(1), {})
  return str(folder)


def make_reference(
  directory, step=3, model=MODEL, dtype='float32', offload_to_host=False
):
  return ReferencePolicy.load(
    directory, step, model, dtype=dtype, offload_to_host=offload_to_host
  )


@functools.cache
def expected_logps(seed=0, dtype='float32'):
  cast = jax.tree.map(lambda x: x.astype(dtype), params(seed))
  return np.asarray(
    jax.jit(functools.partial(grpo_loss.logps, MODEL))(cast, BATCH)
  )


@pytest.mark.parametrize('offload_to_host', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_logps_use_the_stored_parameters(saved, dtype, offload_to_host):
  reference = make_reference(
    saved, dtype=dtype, offload_to_host=offload_to_host
  )
  assert {x.dtype for x in jax.tree.leaves(reference._params)} == {
    jnp.dtype(dtype)
  }
  (logps,) = reference.logps([BATCH])
  np.testing.assert_allclose(logps, expected_logps(dtype=dtype), atol=1e-5)
  assert np.abs(logps).max() > 1
  # A second call with several batches.
  for repeated in reference.logps([BATCH, BATCH]):
    np.testing.assert_array_equal(repeated, logps)


def test_bfloat16_is_a_rounded_copy(saved):
  difference = np.abs(expected_logps() - expected_logps(dtype='bfloat16')).max()
  assert 1e-4 < difference < 0.1
  reference = make_reference(saved, dtype='bfloat16')
  for x, original in zip(
    jax.tree.leaves(reference._params), jax.tree.leaves(params()), strict=True
  ):
    np.testing.assert_array_equal(x, original.astype(jnp.bfloat16))


def test_offloaded_parameters_are_on_the_host_between_uses(saved):
  reference = make_reference(saved, offload_to_host=True)
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(reference._params)}
  assert kinds == {'pinned_host'}
  before = {id(x) for x in jax.live_arrays()}
  logps = reference.logps([BATCH])
  new_arrays = [x for x in jax.live_arrays() if id(x) not in before]
  # No copy of the embedding table stays on the devices.
  assert max(x.size for x in new_arrays) == logps[0].size
  kinds = {x.sharding.memory_kind for x in jax.tree.leaves(reference._params)}
  assert kinds == {'pinned_host'}


def test_parameters_are_sharded_like_the_policy(saved):
  layout = rules.make_layout(
    mesh.make_mesh(1, 2, 2, devices=jax.devices()[:4]), rules.RULES
  )
  model = tiny.gemma(layout, num_layers=2)
  for offload_to_host in (False, True):
    reference = make_reference(
      saved, model=model, offload_to_host=offload_to_host
    )
    table = reference._params['embedder']['table']
    assert table.sharding.spec == jax.sharding.PartitionSpec(('tensor', 'fsdp'))
    (logps,) = reference.logps([BATCH])
    np.testing.assert_allclose(logps, expected_logps(), atol=1e-5)


def test_provenance_names_the_latest_step(saved):
  reference = make_reference(saved, None)
  assert reference.provenance['step'] == 7
  assert reference.provenance['checkpoint'] == saved
  np.testing.assert_allclose(
    reference.logps([BATCH])[0], expected_logps(1), atol=1e-5
  )


def test_a_resumed_run_needs_the_same_reference(saved, tmp_path):
  provenance = json.loads(json.dumps(make_reference(saved).provenance))
  make_reference(
    saved, dtype='bfloat16', offload_to_host=True
  ).check_provenance(provenance)
  make_reference(saved, 7).check_provenance(None)  # the run had none
  # The same parameters in another directory are accepted.
  model_directory.save(str(tmp_path), 5, MODEL, params(), {'other': 1})
  make_reference(str(tmp_path), None).check_provenance(provenance)
  expected = naming('config.reference.checkpoint', saved, 3, 7)
  with pytest.raises(UserError, match=expected) as info:
    make_reference(saved, None).check_provenance(provenance)
  assert '\n' not in str(info.value)


def test_random_parameters_are_those_of_the_policy(monkeypatch):
  # Avoids compiling the initialization.
  monkeypatch.setattr(model_directory, 'random_params', tiny.params)
  model, _, weights = model_directory.open_model(
    'random', None, MODEL.compute, MODEL.layout, seed=4
  )
  reference = ReferencePolicy.load(
    'random', None, model, dtype='float32', offload_to_host=False, seed=4
  )
  for x, original in zip(
    jax.tree.leaves(reference._params), jax.tree.leaves(weights), strict=True
  ):
    np.testing.assert_array_equal(x, original)
  other_seed = ReferencePolicy.load(
    'random', None, model, dtype='float32', offload_to_host=False
  )
  with pytest.raises(
    UserError, match=naming('config.reference.checkpoint', 'random')
  ):
    other_seed.check_provenance(reference.provenance)


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
def test_user_errors(saved, changes, words):
  with pytest.raises(UserError, match=naming(*words)) as caught:
    make_reference(**{'directory': saved} | changes)
  assert '\n' not in str(caught.value)
