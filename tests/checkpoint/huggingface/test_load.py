"""Import: correct layout, each byte read once, clear errors."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from grm_jax.checkpoint.huggingface import config as config_lib
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.checkpoint.huggingface import param_mapping
from grm_jax.errors import UserError
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from tests import gemma2_files
from tests.messages import naming, setting

FIELDS = gemma2_files.CONFIGS['odd_heads']  # 300 rows and 212 padding rows
SHARDABLE = FIELDS | {'num_attention_heads': 4, 'hidden_size': 64}


def load(directory, layout=None, dtype='source'):
  model_config, scalar = config_lib.read_config(directory)
  source = hf_load.open_source(directory)
  hf_load.check_keys(source, model_config, scalar)
  model = Transformer(
    model_config, ComputeConfig(), layout or mesh.one_device(), scalar
  )
  return hf_load.load_params(source, model, dtype)


def open_and_check(directory):
  model_config, scalar = config_lib.read_config(directory)
  hf_load.check_keys(hf_load.open_source(directory), model_config, scalar)


def eight_devices():
  return rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)


def test_layout_of_some_tensors(tmp_path):
  """Checks the layout without the mapping table."""
  tensors = gemma2_files.write(tmp_path, FIELDS, seed=0, scalar=True)
  params = load(tmp_path)
  pairs = params['pairs']
  q = tensors['model.layers.2.self_attn.q_proj.weight']  # [6 * 16, 48]
  # Layer 2 is the local layer of pair 1; head 4, component 3 is row 67.
  ours = pairs['local']['attention']['query'][1]
  np.testing.assert_array_equal(ours[:, 4, 3], q[4 * 16 + 3])
  out = tensors['model.layers.1.self_attn.o_proj.weight']  # [48, 6 * 16]
  ours = pairs['global']['attention']['out'][0]
  np.testing.assert_array_equal(ours[5, 7], out[:, 5 * 16 + 7])
  down = tensors['model.layers.3.mlp.down_proj.weight']
  np.testing.assert_array_equal(pairs['global']['mlp']['down'][1], down.T)
  rows = params['embedder']['table']
  np.testing.assert_array_equal(
    rows[:300], tensors['model.embed_tokens.weight']
  )
  assert rows.shape == (512, 48)
  assert not np.any(rows[300:])
  np.testing.assert_array_equal(
    params['value_head']['kernel'][:, 0], tensors['score.weight'][0]
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_shards_equal_the_unsharded_parameters(tmp_path, dtype):
  gemma2_files.write(tmp_path, SHARDABLE, 1, dtype=dtype, files=3)
  unsharded, sharded = load(tmp_path), load(tmp_path, eight_devices())
  flat = jax.tree_util.tree_leaves_with_path(unsharded)
  for (path, a), b in zip(flat, jax.tree.leaves(sharded), strict=True):
    assert a.dtype == b.dtype == dtype, path
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), str(path))
  query = sharded['pairs']['local']['attention']['query']
  assert query.addressable_shards[0].data.shape == (2, 32, 2, 16)


def test_a_device_reads_only_its_slices(tmp_path, monkeypatch):
  """The bytes that are read are those of the shards, not of the tensors."""
  tensors = gemma2_files.write(tmp_path, SHARDABLE, 2)
  bytes_read = []

  class CountedSlice:
    def __init__(self, view):
      self.view = view

    def __getitem__(self, index):
      values = self.view[index]
      bytes_read.append(values.nbytes)
      return values

    def get_dtype(self):
      return self.view.get_dtype()

  source = hf_load.open_source(tmp_path)
  model_config, _ = config_lib.read_config(tmp_path)
  read_slice = hf_load.TensorSource.slice
  monkeypatch.setattr(
    hf_load.TensorSource,
    'slice',
    lambda self, key: CountedSlice(read_slice(self, key)),
  )
  model = Transformer(model_config, ComputeConfig(), eight_devices())
  params = hf_load.load_params(source, model, 'source')
  shard_bytes = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(params)
    # JAX reads a fully replicated array once.
    for shard in leaf.addressable_shards[
      : 1 if leaf.is_fully_replicated else None
    ]
  )
  # Padding rows are not read; data=2 stores everything twice.
  padding_bytes = (512 - 300) * 64 * 4 * 2
  assert sum(bytes_read) == shard_bytes - padding_bytes
  total = sum(x.nbytes for x in tensors.values())
  assert sum(bytes_read) < 8 * total / 2  # far less than eight full copies


def test_import_casts_to_the_requested_dtype(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 3)
  params = load(tmp_path, dtype='bfloat16')
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'bfloat16'}
  norm = tensors['model.norm.weight'].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(params['final_norm']['scale'], norm)


def test_a_copy_of_the_tied_head_is_accepted(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 4)
  head = tensors['model.embed_tokens.weight'].copy()
  gemma2_files.write_tensors(tmp_path, tensors | {'lm_head.weight': head})
  open_and_check(tmp_path)
  head[299, 47] += 1
  gemma2_files.write_tensors(tmp_path, tensors | {'lm_head.weight': head})
  with pytest.raises(
    UserError, match=naming('lm_head.weight', 'model.embed_tokens.weight')
  ):
    open_and_check(tmp_path)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda t: t.pop('model.norm.weight'), ['model.norm.weight']),
    (
      lambda t: t.update({'model.extra': np.zeros(3, np.float32)}),
      ['model.extra'],
    ),
    (
      lambda t: t.update({'model.norm.weight': np.zeros(7, np.float32)}),
      ['model.norm.weight', '(7,)', '(48,)'],
    ),
    (
      # The same number of elements, transposed.
      lambda t: t.update(
        {
          'model.layers.1.mlp.up_proj.weight': np.zeros((48, 80), np.float32),
        }
      ),
      ['model.layers.1.mlp.up_proj.weight', '(48, 80)', '(80, 48)'],
    ),
  ],
)
def test_wrong_keys_and_shapes_are_rejected(tmp_path, change, words):
  tensors = gemma2_files.write(tmp_path, FIELDS, 5)
  change(tensors)
  gemma2_files.write_tensors(tmp_path, tensors)
  with pytest.raises(UserError, match=naming(tmp_path, *words)):
    open_and_check(tmp_path)


def test_missing_keys_are_counted(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 5)
  incomplete = {k: v for k, v in tensors.items() if 'layers.3' not in k}
  gemma2_files.write_tensors(tmp_path, incomplete)
  with pytest.raises(UserError, match=naming(tmp_path, 6)):
    open_and_check(tmp_path)


def test_duplicate_key_is_rejected(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 6, files=2)
  name = 'model-00001-of-00002.safetensors'
  gemma2_files.save_file(tensors, tmp_path / name, {'format': 'pt'})
  other = 'model-00002-of-00002.safetensors'
  with pytest.raises(UserError, match=naming(tmp_path, name, other)):
    open_and_check(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
  gemma2_files.write(tmp_path, FIELDS, 7, files=2)
  part = tmp_path / 'model-00002-of-00002.safetensors'
  data = part.read_bytes()
  part.write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match=naming(part)):
    open_and_check(tmp_path)
  part.unlink()
  with pytest.raises(UserError, match=naming(hf_load.INDEX, part.name)):
    open_and_check(tmp_path)
  (tmp_path / hf_load.INDEX).write_text('{')
  with pytest.raises(UserError, match=naming(tmp_path / hf_load.INDEX)):
    open_and_check(tmp_path)


def test_directory_without_safetensors_is_rejected(tmp_path):
  gemma2_files.write(tmp_path, FIELDS, 8)
  (tmp_path / 'model.safetensors').unlink()
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UserError, match=naming(tmp_path, '.safetensors')):
    open_and_check(tmp_path)


def test_unsupported_dtypes_are_rejected(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 9)
  half = {k: v.astype(np.float16) for k, v in tensors.items()}
  gemma2_files.write_tensors(tmp_path, half)
  with pytest.raises(
    UserError, match=naming('float16', *setting('dtype', 'float32'))
  ):
    load(tmp_path)
  assert load(tmp_path, dtype='float32')
  key = 'model.layers.2.mlp.up_proj.weight'
  mixed = tensors | {key: tensors[key].astype(ml_dtypes.bfloat16)}
  gemma2_files.write_tensors(tmp_path, mixed)
  with pytest.raises(
    UserError, match=naming('mlp.up_proj.weight', 'config.dtype')
  ):
    load(tmp_path)
  quantized = tensors | {key: tensors[key].astype(np.int8)}
  gemma2_files.write_tensors(tmp_path, quantized)
  with pytest.raises(UserError, match=naming(key, 'I8')):
    load(tmp_path)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'model_type': 'gemma'}, ['model_type', 'gemma']),
    (
      {'architectures': ['Gemma2Model']},
      ['Gemma2Model', 'Gemma2ForCausalLM'],
    ),
    ({'attention_bias': True}, ['attention_bias', True]),
    ({'tie_word_embeddings': False}, ['tie_word_embeddings', False]),
    ({'hidden_activation': 'relu'}, ['hidden_activation', 'relu']),
    ({'rope_scaling': {'factor': 2}}, ['rope_scaling']),
    *[
      ({name: value}, words)
      for name in ('rope_parameters', 'rope_scaling')
      for value, words in (
        ({'rope_type': 'yarn'}, ['rope_type', 'yarn']),
        ({'type': 'linear', 'factor': 8.0}, ['factor', 8.0]),
        ({'type': 'linear', 'rope_theta': 1e4}, ['type', 'linear']),
        ({'rope_type': 'linear', 'factor': 8.0}, ['factor', 8.0]),
        ({'rope_type': 'default', 'type': 'linear'}, ['type', 'linear']),
        ({'rope_type': 'linear', 'type': 'default'}, ['rope_type', 'linear']),
        ({'rope_type': None}, ['rope_type', None]),
        ({'rope_type': 'default', 'factor': 8.0}, ['factor', 8.0]),
        ({'partial_rotary_factor': 0.5}, ['partial_rotary_factor', 0.5]),
        ({'rope_theta': None}, ['rope_theta', None]),
        ({'rope_theta': '1e4'}, ['rope_theta']),
        ('linear', ['linear']),
        (
          {
            'full_attention': {'rope_type': 'linear', 'factor': 8.0},
            'sliding_attention': {'rope_type': 'default'},
          },
          ['full_attention'],
        ),
      )
    ],
    (
      {
        'rope_scaling': {'rope_type': 'default', 'rope_theta': 5.0},
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 6.0},
      },
      ['rope_scaling', 'rope_parameters'],
    ),
    ({'rope_theta': None}, ['rope_theta', None]),
    ({'rope_theta': -1.0}, ['rope_theta', -1.0]),
    ({'partial_rotary_factor': 0.5}, ['partial_rotary_factor', 0.5]),
    ({'rope_local_base_freq': 1e4}, ['rope_local_base_freq', 10000.0]),
    ({'attention_multiplier': 0.5}, ['attention_multiplier', 0.5]),
    ({'logit_scale': 0.0625}, ['logit_scale', 0.0625]),
    ({'sliding_window_pattern': 6}, ['sliding_window_pattern', 6]),
    ({'use_qk_norm': True}, ['use_qk_norm', True]),
    ({'quantization_config': {'bits': 4}}, ['quantization_config']),
    ({'hidden_act': 'relu'}, ['hidden_act', 'relu']),
    ({'is_causal': False}, ['is_causal', False]),
    ({'sliding_window_size': 9}, ['sliding_window_size', 9]),
    ({'sliding_window': 0}, ['sliding_window', 0]),
    ({'attn_logit_softcapping': 0.0}, ['attn_logit_softcapping', 0.0]),
    ({'query_pre_attn_scalar': '11'}, ['query_pre_attn_scalar']),
    ({'num_hidden_layers': 4.5}, ['num_hidden_layers', 4.5]),
    ({'hidden_size': True}, ['hidden_size', True]),
    ({'rms_norm_eps': None}, ['rms_norm_eps', None]),
    ({'layer_types': ['full_attention'] * 4}, ['layer_types']),
    (
      {'layer_types': ['full_attention', 'sliding_attention'] * 2},
      ['layer_types'],
    ),
    ({'num_hidden_layers': 3}, ['num_layers', 3]),
    ({'num_key_value_heads': 4}, ['num_heads', 6, 'num_kv_heads', 4]),
  ],
)
def test_unsupported_gemma2_configs_are_rejected(tmp_path, change, words):
  config = gemma2_files.config_json(FIELDS) | change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming(*words)):
    config_lib.read_config(tmp_path)


@pytest.mark.parametrize(
  'change, base',
  [
    ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}}, 5e5),
    ({'rope_parameters': {'type': 'default', 'rope_theta': 5e5}}, 5e5),
    ({'rope_parameters': {'rope_theta': 7}, 'rope_theta': 9.0}, 7.0),
    ({'rope_scaling': {'rope_type': 'default'}, 'rope_theta': 9.0}, 9.0),
    ({'rope_scaling': None, 'rope_parameters': None}, 10_000.0),
    ({'rope_parameters': {}, 'rope_scaling': {}}, 10_000.0),
  ],
)
def test_unscaled_rope_in_every_form(tmp_path, change, base):
  config = gemma2_files.config_json(FIELDS) | change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert config_lib.read_config(tmp_path)[0].rope_base == base


# The fields of published files that change no output.
PUBLISHED = {
  '_name_or_path': 'google/gemma-2-2b',
  'attention_dropout': 0.0,
  'cache_implementation': 'hybrid',
  'eos_token_id': [1, 107],
  'hidden_act': 'gelu_pytorch_tanh',
  'initializer_range': 0.02,
  'max_position_embeddings': 8192,
  'sliding_window_size': FIELDS['sliding_window'],
  'transformers_version': '4.42.4',
  'use_cache': True,
  'rope_interleaved': False,
}


def test_published_fields_are_accepted(tmp_path):
  config = gemma2_files.config_json(FIELDS)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  expected = config_lib.read_config(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(config | PUBLISHED))
  assert config_lib.read_config(tmp_path) == expected
  llama = gemma2_files.config_json(gemma2_files.LLAMA) | {
    'is_llama_config': True,
    'pretraining_tp': 1,
    'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
  }
  (tmp_path / 'config.json').write_text(json.dumps(llama))
  assert config_lib.read_config(tmp_path)[0].head_dim == 8


def test_invalid_config_files_are_rejected(tmp_path):
  with pytest.raises(UserError, match=naming(tmp_path / 'config.json')):
    config_lib.read_config(tmp_path)
  config = gemma2_files.config_json(FIELDS)
  del config['head_dim'], config['sliding_window']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming('head_dim', 'sliding_window')):
    config_lib.read_config(tmp_path)
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(UserError, match=naming('model_type', None)):
    config_lib.read_config(tmp_path)


def test_two_labels_are_rejected(tmp_path):
  config = gemma2_files.config_json(FIELDS, scalar=True)
  config['id2label'] = {'0': 'bad', '1': 'good'}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming('labels', 2)):
    config_lib.read_config(tmp_path)


def test_config_round_trip(tmp_path):
  for name, fields in gemma2_files.ALL.items():
    config = gemma2_files.config_json(fields)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    model_config, scalar = config_lib.read_config(tmp_path)
    exported = config_lib.to_hf_config(model_config, scalar, 'float32')
    (tmp_path / 'config.json').write_text(json.dumps(exported))
    assert config_lib.read_config(tmp_path) == (model_config, False), name
    assert model_config.rope_base == fields.get('rope_theta', 10_000.0)


def test_llama_config_defaults(tmp_path):
  """Missing fields have the defaults of Llama."""
  config = gemma2_files.config_json(gemma2_files.LLAMA)
  for name in ('head_dim', 'rope_theta', 'hidden_act'):
    del config[name]
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model_config, scalar = config_lib.read_config(tmp_path)
  assert not scalar
  assert (model_config.head_dim, model_config.query_pre_attn_scalar) == (8, 8)
  assert (
    model_config.window,
    model_config.attn_softcap,
    model_config.final_softcap,
  ) == (None,) * 3
  assert (model_config.norm_offset, model_config.activation) == (0.0, 'silu')
  assert not model_config.post_norms and not model_config.embed_scale
  assert (model_config.rope_base, model_config.norm_eps) == (10_000.0, 1e-5)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'tie_word_embeddings': None}, ['tie_word_embeddings', None]),
    ({'hidden_act': 'gelu'}, ['hidden_act', 'gelu']),
    ({'mlp_bias': True}, ['mlp_bias', True]),
    ({'attention_bias': True}, ['attention_bias', True]),
    ({'rope_parameters': {'rope_type': 'llama3'}}, ['rope_type', 'llama3']),
    ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, ['rope_scaling']),
    ({'rope_interleaved': True}, ['rope_interleaved', True]),
    ({'sliding_window': 128}, ['sliding_window', 128]),
    ({'layer_types': ['sliding_attention'] * 4}, ['layer_types']),
    ({'head_dim': 0}, ['head_dim', 0]),
    ({'architectures': ['Gemma2ForCausalLM']}, ['LlamaForCausalLM']),
  ],
)
def test_unsupported_llama_configs_are_rejected(tmp_path, change, words):
  config = gemma2_files.config_json(gemma2_files.LLAMA) | change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming(*words)):
    config_lib.read_config(tmp_path)


@pytest.mark.parametrize('scalar', [False, True])
def test_mapping_has_every_llama_tensor_once(tmp_path, scalar):
  fields = gemma2_files.LLAMA
  gemma2_files.write(tmp_path, fields, 3, scalar=scalar)
  model_config, is_scalar = config_lib.read_config(tmp_path)
  assert is_scalar == scalar
  shapes = [
    (key, mapping.hf_shape(model_config))
    for mapping in param_mapping.param_mappings(model_config, scalar)
    for key in mapping.hf_keys(model_config)
  ]
  assert dict(shapes) == gemma2_files.tensor_shapes(fields, scalar)
  assert len(shapes) == len(dict(shapes))


def test_mapping_has_every_gemma2_tensor_once():
  fields = gemma2_files.CONFIGS['like_27b']
  for scalar in (False, True):
    expected = gemma2_files.tensor_shapes(fields, scalar)
    model_config = ModelConfig(
      6, 72, 144, 4, 2, 16, 18, vocab_size=512, window=17, rope_base=500.0
    )
    shapes = [
      (key, mapping.hf_shape(model_config))
      for mapping in param_mapping.param_mappings(model_config, scalar)
      for key in mapping.hf_keys(model_config)
    ]
    assert len(shapes) == len(expected)
    assert dict(shapes) == expected


@pytest.mark.parametrize(
  'change',
  [
    {'use_rope': False},
    {'rotary_pct': 0.0},
    {'rope_dim': 0},
    {'residual_multiplier': 0.0},
    {'use_rms_norm': False},
    {'architectures': 5},
    {'architectures': {'a': 1}},
    {'vocab_size': 10**400},
    {'rope_theta': 10**400},
    {'rope_scaling': 0},
    {'rope_parameters': ''},
  ],
)
@pytest.mark.parametrize('name', ['odd_heads', 'llama'])
def test_a_value_that_is_off_or_wrong_is_not_defaulted(tmp_path, name, change):
  fields = gemma2_files.config_json(gemma2_files.ALL[name]) | change
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(UserError, match=naming(*change)):
    config_lib.read_config(tmp_path)


def test_null_is_no_head_dim_of_gemma2_and_a_list_no_labels(tmp_path):
  fields = gemma2_files.config_json(FIELDS) | {'head_dim': None}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(UserError, match=naming('head_dim', 'None')):
    config_lib.read_config(tmp_path)
  fields = gemma2_files.config_json(FIELDS, scalar=True) | {'id2label': 5}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(UserError, match=naming('id2label', 5)):
    config_lib.read_config(tmp_path)
