"""The network itself; tests/peers compares it with transformers.

Covers remat policies, published parameter counts, the names and shapes that
checkpoints rely on, roundings that bfloat16 makes visible, and errors for
unknown settings and malformed batches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.model import batch as batches
from grm_jax.model import config as model_config
from grm_jax.model import transformer
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import REMAT, ComputeConfig
from grm_jax.model.init import abstract_params, init_params
from grm_jax.model.layers import RMSNorm
from grm_jax.sharding import mesh
from tests.messages import naming
from tests.model import tiny


@pytest.mark.parametrize(
  'name, count',
  [
    ('gemma2_2b', 2_614_341_888),
    ('gemma2_9b', 9_241_705_984),
    ('gemma2_27b', 27_227_128_320),
    ('smollm2_135m', 134_515_008),
  ],
)
def test_published_parameter_counts(name, count):
  model = transformer.Transformer(
    model_config.from_name(name), ComputeConfig(), mesh.one_device()
  )
  leaves = jax.tree.leaves(abstract_params(model))
  assert sum(leaf.size for leaf in leaves) == count


def test_parameter_tree():
  """Checkpoints depend on these names and shapes (L 4, D 32, F 48, ...)."""
  leaves = jax.tree_util.tree_leaves_with_path(
    abstract_params(tiny.gemma(scalar=True))
  )
  block = {
    'attention/query': (2, 32, 4, 8),
    'attention/key': (2, 32, 2, 8),
    'attention/value': (2, 32, 2, 8),
    'attention/out': (2, 4, 8, 32),
    'mlp/gate': (2, 32, 48),
    'mlp/up': (2, 32, 48),
    'mlp/down': (2, 48, 32),
    'pre_attention_norm/scale': (2, 32),
    'post_attention_norm/scale': (2, 32),
    'pre_mlp_norm/scale': (2, 32),
    'post_mlp_norm/scale': (2, 32),
  }
  assert {'/'.join(k.key for k in path): x.shape for path, x in leaves} == {
    'embedder/table': (256, 32),
    **{f'pairs/local/{name}': shape for name, shape in block.items()},
    **{f'pairs/global/{name}': shape for name, shape in block.items()},
    'final_norm/scale': (32,),
    'value_head/kernel': (32, 1),
  }


def test_only_scalar_models_have_a_value_head():
  assert 'value_head' not in abstract_params(tiny.gemma())


def test_initial_values():
  """Norm scales are zero, kernels normal with variance 1 / fan-in."""
  params = init_params(tiny.gemma(), jax.random.key(0))
  local = jax.tree.map(np.asarray, params['pairs']['local'])
  assert not np.any(local['pre_mlp_norm']['scale'])
  for name, fan_in in (('gate', 32), ('down', 48)):
    assert local['mlp'][name].std() * fan_in**0.5 == pytest.approx(1, abs=0.1)
  out = local['attention']['out']
  assert out.std() * 32**0.5 == pytest.approx(1, abs=0.1)
  # All layers differ, in a pair and between pairs.
  gates = [params['pairs'][k]['mlp']['gate'] for k in ('local', 'global')]
  by_layer = np.concatenate(gates).reshape(4, -1)
  assert np.linalg.matrix_rank(by_layer) == 4


def test_parameters_have_param_dtype():
  model = tiny.gemma(compute=ComputeConfig(param_dtype='bfloat16'))
  dtypes = {x.dtype for x in jax.tree.leaves(abstract_params(model))}
  assert dtypes == {jnp.dtype('bfloat16')}


BATCH = tiny.batch([3, 5], 6, [[4, 0], [2, 7]], 7)


def loss(model, params):
  hidden = model.apply({'params': params}, BATCH)
  return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(hidden))


@functools.cache
def value_and_gradients(remat):
  model = tiny.gemma(compute=ComputeConfig(remat=remat))
  run = jax.jit(jax.value_and_grad(functools.partial(loss, model)))
  return run(tiny.params(model))


@pytest.mark.parametrize('remat', [name for name in REMAT if name != 'none'])
def test_remat_does_not_change_results(remat):
  tiny.assert_close(
    value_and_gradients(remat), value_and_gradients('none'), 5e-6
  )


def remat_policies(remat):
  """Returns the policies of all remats inside the scan over layer pairs."""
  model = tiny.gemma(compute=ComputeConfig(remat=remat))
  jaxpr = jax.make_jaxpr(model.apply)({'params': tiny.params(model)}, BATCH)
  (scan,) = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
  return [
    equation.params['policy']
    for equation in scan.params['jaxpr'].eqns
    if 'policy' in equation.params
  ]


def test_remat_is_around_each_pair():
  assert remat_policies('none') == []
  for name in (
    'dots',
    'dots_no_batch',
    'sublayers',
    'attention',
    'nothing_saveable',
  ):
    assert remat_policies(name) == [REMAT[name]]


@pytest.mark.parametrize(
  'field, words',
  [
    ({'num_layers': 3}, ['num_layers', 3]),
    ({'num_heads': 3}, ['num_heads', 3, 'num_kv_heads', 2]),
    ({'head_dim': 7}, ['head_dim', 7]),
    ({'window': 0}, ['window', 0]),
  ],
)
def test_impossible_fields_are_rejected(field, words):
  with pytest.raises(UserError, match=naming(*words)):
    tiny.gemma(**field)


@pytest.mark.parametrize(
  'dtype, factor', [('bfloat16', 55.5), ('float32', 3072**0.5)]
)
def test_embedding_scale_is_rounded_to_the_compute_dtype(dtype, factor):
  """sqrt(3072) is 55.4256, between 55.25 and 55.5 in bfloat16."""
  model = tiny.gemma(
    compute=ComputeConfig(dtype=dtype), width=3072, vocab_size=256
  )
  module = transformer.Embedder(model.config, model.compute, model.layout)
  table = np.ones((256, 3072), np.float32)
  table[3] = 0.3
  x = module.apply({'params': {'table': table}}, jnp.array([[0, 3]]))
  assert x.dtype == dtype
  assert np.all(np.float32(x[0, 0]) == np.float32(factor))
  rounded = jnp.asarray(0.3, dtype) * jnp.asarray(factor, dtype)
  assert np.all(x[0, 1] == rounded)


def test_norm_is_computed_in_float32():
  """The result is rounded once; bfloat16 would round after every operation."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 64, 512)), jnp.bfloat16)
  scale = rng.standard_normal(512).astype(np.float32)
  norm = RMSNorm(tiny.CONFIG, ComputeConfig(dtype='bfloat16'))
  ours = norm.apply({'params': {'scale': scale}}, x)
  wide = np.asarray(x, np.float64)
  root = np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
  expected = (wide / root * (1 + scale)).astype(jnp.bfloat16)
  assert ours.dtype == jnp.bfloat16
  assert np.mean(np.asarray(ours) == expected) > 0.999


@pytest.mark.parametrize(
  'change, words',
  [
    ({'prompts': jnp.zeros((2, 6))}, ['prompts', 2, 'float32']),
    (
      {'prompts': jnp.zeros((6,), jnp.int32)},
      ['prompts', 2, '(6,)'],
    ),
    (
      {'prompt_lengths': jnp.ones((3,), jnp.int32)},
      ['prompt_lengths', '(3,)', '(2,)'],
    ),
    ({'generations': None}, ['generations', 'generation_lengths']),
    (
      {'generation_lengths': None},
      ['generations', 'generation_lengths'],
    ),
    (
      {'generations': jnp.zeros((2, 14), jnp.int32)},
      ['generations', 3, '(2, 14)'],
    ),
    (
      {'generations': jnp.zeros((1, 2, 7), jnp.int32)},
      ['generations', '(1, 2, 7)', '(2,)'],
    ),
    (
      {'generation_lengths': jnp.zeros((2, 2))},
      ['generation_lengths', 2, 'float32'],
    ),
    (
      {'generation_lengths': jnp.zeros((2, 3), jnp.int32)},
      ['generation_lengths', '(2, 3)', '(2, 2)'],
    ),
  ],
)
def test_malformed_batches_are_rejected(change, words):
  bad = BATCH.replace(**change)
  with pytest.raises(ValueError, match=naming(*words)):
    batches.check_batch(bad)
  # The model calls check_batch too.
  model = tiny.gemma()
  with pytest.raises(ValueError, match=naming(*words)):
    jax.eval_shape(model.apply, {'params': abstract_params(model)}, bad)


def test_valid_batches_are_accepted():
  batches.check_batch(BATCH)
  batches.check_batch(Batch(BATCH.prompts, BATCH.prompt_lengths))
