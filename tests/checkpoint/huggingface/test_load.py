"""Import: every byte in its place, nothing read twice, every fault named."""

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
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from tests import gemma2_files
from tests.messages import naming, setting

FIELDS = gemma2_files.CONFIGS['odd_heads']  # 300 rows, so 212 dead ones
SHARDABLE = FIELDS | {'num_attention_heads': 4, 'hidden_size': 64}


def load(directory, layout=None, dtype='source'):
  size, scalar = config_lib.read_config(directory)
  source = hf_load.open_source(directory)
  hf_load.check_keys(source, size, scalar)
  model = Transformer(
    size, ComputeConfig(), layout or mesh.one_device(), scalar
  )
  return hf_load.load_params(source, model, dtype)


def open_and_check(directory):
  size, scalar = config_lib.read_config(directory)
  hf_load.check_keys(hf_load.open_source(directory), size, scalar)


def eight_devices():
  return rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)


def test_layout_of_a_few_tensors_by_hand(tmp_path):
  """The literal meaning of the table, without using it."""
  theirs = gemma2_files.write(tmp_path, FIELDS, seed=0, scalar=True)
  params = load(tmp_path)
  pairs = params['pairs']
  q = theirs['model.layers.2.self_attn.q_proj.weight']  # [6 * 16, 48]
  # Layer 2 is the local layer of pair 1; head 4, place 3 of it is row 67.
  ours = pairs['local']['attention']['query'][1]
  np.testing.assert_array_equal(ours[:, 4, 3], q[4 * 16 + 3])
  out = theirs['model.layers.1.self_attn.o_proj.weight']  # [48, 6 * 16]
  ours = pairs['global']['attention']['out'][0]
  np.testing.assert_array_equal(ours[5, 7], out[:, 5 * 16 + 7])
  down = theirs['model.layers.3.mlp.down_proj.weight']
  np.testing.assert_array_equal(pairs['global']['mlp']['down'][1], down.T)
  rows = params['embedder']['table']
  np.testing.assert_array_equal(rows[:300], theirs['model.embed_tokens.weight'])
  assert rows.shape == (512, 48)
  assert not np.any(rows[300:])
  np.testing.assert_array_equal(
    params['value_head']['kernel'][:, 0], theirs['score.weight'][0]
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_shards_equal_the_whole(tmp_path, dtype):
  gemma2_files.write(tmp_path, SHARDABLE, 1, dtype=dtype, files=3)
  whole, parts = load(tmp_path), load(tmp_path, eight_devices())
  flat = jax.tree_util.tree_leaves_with_path(whole)
  for (path, a), b in zip(flat, jax.tree.leaves(parts), strict=True):
    assert a.dtype == b.dtype == dtype, path
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), str(path))
  query = parts['pairs']['local']['attention']['query']
  assert query.addressable_shards[0].data.shape == (2, 32, 2, 16)


def test_a_device_reads_its_slices_only(tmp_path, monkeypatch):
  """Bytes touched are the bytes of the shards, not of the tensors."""
  theirs = gemma2_files.write(tmp_path, SHARDABLE, 2)
  read = []

  class Counted:
    def __init__(self, view):
      self.view = view

    def __getitem__(self, index):
      piece = self.view[index]
      read.append(piece.nbytes)
      return piece

    def get_dtype(self):
      return self.view.get_dtype()

  source = hf_load.open_source(tmp_path)
  size, _ = config_lib.read_config(tmp_path)
  lazy = hf_load.TensorSource.slice
  monkeypatch.setattr(
    hf_load.TensorSource, 'slice', lambda self, key: Counted(lazy(self, key))
  )
  model = Transformer(size, ComputeConfig(), eight_devices())
  params = hf_load.load_params(source, model, 'source')
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(params)
    # JAX asks once for what all devices share.
    for shard in leaf.addressable_shards[
      : 1 if leaf.is_fully_replicated else None
    ]
  )
  dead = (512 - 300) * 64 * 4 * 2  # zeros are not read; data=2 holds all twice
  assert sum(read) == held - dead
  total = sum(x.nbytes for x in theirs.values())
  assert sum(read) < 8 * total / 2  # far from eight whole copies


def test_cast_on_import(tmp_path):
  theirs = gemma2_files.write(tmp_path, FIELDS, 3)
  params = load(tmp_path, dtype='bfloat16')
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'bfloat16'}
  norm = theirs['model.norm.weight'].astype(ml_dtypes.bfloat16)
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
      # A transposed square would pass a check of sizes alone; this is not one.
      lambda t: t.update(
        {
          'model.layers.1.mlp.up_proj.weight': np.zeros((48, 80), np.float32),
        }
      ),
      ['model.layers.1.mlp.up_proj.weight', '(48, 80)', '(80, 48)'],
    ),
  ],
)
def test_strict_keys_and_shapes(tmp_path, change, words):
  tensors = gemma2_files.write(tmp_path, FIELDS, 5)
  change(tensors)
  gemma2_files.write_tensors(tmp_path, tensors)
  with pytest.raises(UserError, match=naming(tmp_path, *words)):
    open_and_check(tmp_path)


def test_missing_keys_are_counted(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 5)
  some = {k: v for k, v in tensors.items() if 'layers.3' not in k}
  gemma2_files.write_tensors(tmp_path, some)
  with pytest.raises(UserError, match=naming(tmp_path, 6)):
    open_and_check(tmp_path)


def test_a_key_in_two_files(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 6, files=2)
  name = 'model-00001-of-00002.safetensors'
  gemma2_files.save_file(tensors, tmp_path / name, {'format': 'pt'})
  other = 'model-00002-of-00002.safetensors'
  with pytest.raises(UserError, match=naming(tmp_path, name, other)):
    open_and_check(tmp_path)


def test_missing_and_damaged_files(tmp_path):
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


def test_no_files(tmp_path):
  gemma2_files.write(tmp_path, FIELDS, 8)
  (tmp_path / 'model.safetensors').unlink()
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UserError, match=naming(tmp_path, '.safetensors')):
    open_and_check(tmp_path)


def test_odd_dtypes(tmp_path):
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
  whole = tensors | {key: tensors[key].astype(np.int8)}
  gemma2_files.write_tensors(tmp_path, whole)
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
    ({'rope_parameters': {'rope_type': 'yarn'}}, ['rope_type', 'yarn']),
    ({'layer_types': ['full_attention'] * 4}, ['layer_types']),
    ({'num_hidden_layers': 3}, ['num_layers', 3]),
    ({'num_key_value_heads': 4}, ['num_heads', 6, 'num_kv_heads', 4]),
  ],
)
def test_configs_that_we_are_not(tmp_path, change, words):
  config = gemma2_files.config_json(FIELDS) | change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming(*words)):
    config_lib.read_config(tmp_path)


def test_config_files_that_are_none(tmp_path):
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


def test_two_labels_are_refused(tmp_path):
  config = gemma2_files.config_json(FIELDS, scalar=True)
  config['id2label'] = {'0': 'bad', '1': 'good'}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming('labels', 2)):
    config_lib.read_config(tmp_path)


def test_sizes_survive_the_config(tmp_path):
  for name, fields in gemma2_files.ALL.items():
    config = gemma2_files.config_json(fields)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    size, scalar = config_lib.read_config(tmp_path)
    back = config_lib.to_hf_config(size, scalar, 'float32')
    (tmp_path / 'config.json').write_text(json.dumps(back))
    assert config_lib.read_config(tmp_path) == (size, False), name
    assert size.rope_base == fields.get('rope_theta', 10_000.0)


def test_a_llama_by_its_config(tmp_path):
  """What its config.json does not say is what every Llama is."""
  config = gemma2_files.config_json(gemma2_files.LLAMA)
  for name in ('head_dim', 'rope_theta', 'hidden_act'):
    del config[name]
  (tmp_path / 'config.json').write_text(json.dumps(config))
  size, scalar = config_lib.read_config(tmp_path)
  assert not scalar
  assert (size.head_dim, size.query_pre_attn_scalar) == (8, 8)
  assert (size.window, size.attn_softcap, size.final_softcap) == (None,) * 3
  assert (size.norm_offset, size.activation) == (0.0, 'silu')
  assert not size.post_norms and not size.embed_scale
  assert (size.rope_base, size.norm_eps) == (10_000.0, 1e-5)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'tie_word_embeddings': None}, ['tie_word_embeddings', None]),
    ({'hidden_act': 'gelu'}, ['hidden_act', 'gelu']),
    ({'mlp_bias': True}, ['mlp_bias', True]),
    ({'attention_bias': True}, ['attention_bias', True]),
    ({'rope_parameters': {'rope_type': 'llama3'}}, ['rope_type', 'llama3']),
    ({'architectures': ['Gemma2ForCausalLM']}, ['LlamaForCausalLM']),
  ],
)
def test_llamas_that_we_are_not(tmp_path, change, words):
  config = gemma2_files.config_json(gemma2_files.LLAMA) | change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=naming(*words)):
    config_lib.read_config(tmp_path)


@pytest.mark.parametrize('scalar', [False, True])
def test_table_has_every_tensor_of_a_llama_once(tmp_path, scalar):
  fields = gemma2_files.LLAMA
  gemma2_files.write(tmp_path, fields, 3, scalar=scalar)
  size, found = config_lib.read_config(tmp_path)
  assert found == scalar
  table_keys = [
    (key, entry.hf_shape(size))
    for entry in param_mapping.param_mappings(size, scalar)
    for key in entry.hf_keys(size)
  ]
  assert dict(table_keys) == gemma2_files.tensor_shapes(fields, scalar)
  assert len(table_keys) == len(dict(table_keys))


def test_table_has_every_tensor_once():
  fields = gemma2_files.CONFIGS['like_27b']
  for scalar in (False, True):
    expected = gemma2_files.tensor_shapes(fields, scalar)
    size = config_lib.Size(
      6, 72, 144, 4, 2, 16, 18, vocab_size=512, window=17, rope_base=500.0
    )
    found = [
      (key, entry.hf_shape(size))
      for entry in param_mapping.param_mappings(size, scalar)
      for key in entry.hf_keys(size)
    ]
    assert len(found) == len(expected)
    assert dict(found) == expected
