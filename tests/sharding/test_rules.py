"""Logical-axis rules: the shardings of Gemma-2, and what is rejected.

No name is ignored, no mesh axis splits two dimensions of one array, nothing is
split unevenly, and errors name the config key to change.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from grm_jax.errors import UserError
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.init import abstract_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from tests.messages import naming, setting


def make_layout(data=2, fsdp=2, tensor=2, **changed_rules):
  devices = mesh.make_mesh(data, fsdp, tensor)
  return rules.make_layout(devices, {**rules.RULES, **changed_rules})


@pytest.fixture(scope='module')
def layout():
  return make_layout()


BLOCK = {
  'attention/query': PartitionSpec(None, 'fsdp', 'tensor'),
  'attention/key': PartitionSpec(None, 'fsdp', 'tensor'),
  'attention/value': PartitionSpec(None, 'fsdp', 'tensor'),
  'attention/out': PartitionSpec(None, 'tensor', None, 'fsdp'),
  'mlp/gate': PartitionSpec(None, 'fsdp', 'tensor'),
  'mlp/up': PartitionSpec(None, 'fsdp', 'tensor'),
  'mlp/down': PartitionSpec(None, ('tensor', 'fsdp')),
  'pre_attention_norm/scale': PartitionSpec(),
  'post_attention_norm/scale': PartitionSpec(),
  'pre_mlp_norm/scale': PartitionSpec(),
  'post_mlp_norm/scale': PartitionSpec(),
}


def test_shardings_of_all_parameters_of_27b(layout):
  config = model_config.from_name('gemma2_27b')
  params = abstract_params(
    Transformer(config, ComputeConfig(), layout, scalar=True)
  )
  leaves = jax.tree_util.tree_leaves_with_path(params)
  specs = {'/'.join(k.key for k in path): x.sharding.spec for path, x in leaves}
  assert specs == {
    'embedder/table': PartitionSpec(('tensor', 'fsdp')),
    **{f'pairs/local/{name}': spec for name, spec in BLOCK.items()},
    **{f'pairs/global/{name}': spec for name, spec in BLOCK.items()},
    'final_norm/scale': PartitionSpec(),
    'value_head/kernel': PartitionSpec(),
  }


def test_specs_of_activations(layout):
  def spec(*names):
    return layout.spec(names)

  prompts = ('data', 'fsdp')
  assert spec('prompts', 'tokens', 'width') == PartitionSpec(prompts)
  assert spec('prompts', 'tokens', 'mlp') == PartitionSpec(
    prompts, None, 'tensor'
  )
  assert spec('logit_prompts', 'tokens', 'logit_vocab') == PartitionSpec(
    'data', None, ('tensor', 'fsdp')
  )
  assert spec() == PartitionSpec()


def test_sharding_has_spec_and_mesh(layout):
  sharding = layout.sharding(('embed', 'mlp'), (8, 4))
  assert sharding.mesh == layout.mesh
  assert sharding.spec == PartitionSpec('fsdp', 'tensor')
  assert sharding.shard_shape((8, 4)) == (4, 2)


def test_num_shards(layout):
  shards = {
    name: layout.num_shards(name) for name in ('prompts', 'heads', 'tokens')
  }
  assert shards == {'prompts': 4, 'heads': 2, 'tokens': 1}


def test_a_name_without_a_rule_is_rejected(layout):
  words = 'config.mesh.logical_axis_rules', 'kv_head'
  with pytest.raises(ValueError, match=naming(*words, 'kv_heads')):
    layout.spec(('embed', 'kv_head'))
  with pytest.raises(
    ValueError, match=naming('config.mesh.logical_axis_rules', 'zzz')
  ):
    layout.spec(('zzz',))


def test_mesh_axis_used_twice_on_one_array(layout):
  words = (
    'tensor',
    'config.mesh.logical_axis_rules.heads',
    'config.mesh.logical_axis_rules.mlp',
  )
  with pytest.raises(UserError, match=naming(*words)):
    layout.spec(('heads', 'embed', 'mlp'))


def test_contradicting_rules_of_a_parameter():
  model = Transformer(
    model_config.from_name('tiny'),
    ComputeConfig(),
    make_layout(table_width=('fsdp',)),
  )
  with pytest.raises(
    UserError,
    match=naming('fsdp', 'config.mesh.logical_axis_rules.table_width'),
  ):
    abstract_params(model)


def test_uneven_split_of_a_parameter():
  config = model_config.from_name('gemma2_2b')
  words = (
    'kv_heads',
    4,
    8,
    'config.mesh.tensor',
    'config.mesh.logical_axis_rules.kv_heads',
  )
  with pytest.raises(UserError, match=naming(*words)):
    abstract_params(Transformer(config, ComputeConfig(), make_layout(1, 1, 8)))


def test_uneven_split_over_two_axes(layout):
  keys = (
    f'config.mesh.{x}' for x in ('data', 'fsdp', 'logical_axis_rules.prompts')
  )
  with pytest.raises(UserError, match=naming('prompts', 6, 4, 2, *keys)):
    layout.constrain(jnp.zeros((6, 3)), ('prompts', 'tokens'))


def test_rule_with_an_unknown_mesh_axis():
  words = (
    *setting('mesh.logical_axis_rules.embed', 'model'),
    'data',
    'fsdp',
    'tensor',
  )
  with pytest.raises(UserError, match=naming(*words)):
    make_layout(embed=('model',))


def test_rule_with_one_axis_twice():
  with pytest.raises(
    UserError, match=naming(*setting('mesh.logical_axis_rules.embed', 'fsdp'))
  ):
    make_layout(embed=('fsdp', 'fsdp'))


@pytest.mark.parametrize('num_devices', [1, 8])
def test_constrain_with_the_wrong_rank(layout, num_devices):
  used = layout if num_devices == 8 else mesh.one_device()
  with pytest.raises(ValueError, match=naming('embed', '(4, 4)')):
    used.constrain(jnp.zeros((4, 4)), ('embed',))


def test_constrain_is_a_no_op_on_one_device():
  x = jnp.zeros((3, 5))
  assert mesh.one_device().constrain(x, ('prompts', 'width')) is x


def test_constrain_sets_the_sharding(layout):
  x = jax.jit(lambda x: layout.constrain(x, ('prompts', 'mlp')))(
    jnp.zeros((4, 6))
  )
  assert x.sharding.is_equivalent_to(
    layout.sharding(('prompts', 'mlp')), x.ndim
  )


def test_equal_layouts_have_equal_hashes(layout):
  """Layouts are static arguments of jit; equal ones must not recompile."""
  assert layout == make_layout() and hash(layout) == hash(make_layout())
  assert layout != make_layout(mlp=())
  reversed_rules = dict(reversed(rules.RULES.items()))
  assert layout == rules.make_layout(layout.mesh, reversed_rules)
