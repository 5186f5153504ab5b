"""Export: a round trip is bit-identical, with one file or several."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from grm_jax.checkpoint.huggingface import config as config_lib
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.errors import UserError
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from tests import full_disk, gemma2_files
from tests.messages import naming

FIELDS = gemma2_files.CONFIGS['odd_heads'] | {
  'num_attention_heads': 4,
  'hidden_size': 64,
}


def round_trip(source, target, layout, file_bytes):
  config, scalar = config_lib.read_config(source)
  model = Transformer(config, ComputeConfig(), layout, scalar)
  params = hf_load.load_params(hf_load.open_source(source), model, 'source')
  hf_save.save_directory(target, params, model, file_bytes)


@pytest.mark.parametrize('scalar', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('devices', [1, 8])
def test_round_trip_is_bit_identical(tmp_path, dtype, devices, scalar):
  layout = mesh.one_device()
  if devices == 8:
    layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  check_round_trip(tmp_path, FIELDS, layout, dtype, scalar)


@pytest.mark.parametrize('scalar', [False, True])
def test_llama_round_trip(tmp_path, scalar):
  layout = mesh.one_device()
  check_round_trip(tmp_path, gemma2_files.LLAMA, layout, 'bfloat16', scalar)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  kind = 'SequenceClassification' if scalar else 'CausalLM'
  assert config['architectures'] == [f'LlamaFor{kind}']
  assert config['hidden_act'] == 'silu' and config['tie_word_embeddings']


def check_round_trip(tmp_path, fields, layout, dtype, scalar):
  tensors = gemma2_files.write(tmp_path / 'in', fields, 0, scalar, dtype, 2)
  round_trip(tmp_path / 'in', tmp_path / 'out', layout, 10**9)
  exported = load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(exported) == set(tensors)
  for key, tensor in tensors.items():
    assert exported[key].dtype == tensor.dtype, key
    assert exported[key].tobytes() == tensor.tobytes(), key
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['torch_dtype'] == dtype
  assert config_lib.read_config(tmp_path / 'out') == config_lib.read_config(
    tmp_path / 'in'
  )


def test_export_into_several_files(tmp_path):
  tensors = gemma2_files.write(tmp_path / 'in', FIELDS, 1)
  limit = 64 * 300 * 4  # the largest tensor
  round_trip(tmp_path / 'in', tmp_path / 'out', mesh.one_device(), limit)
  files = sorted((tmp_path / 'out').glob('*.safetensors'))
  assert len(files) > 3
  assert files[0].name == f'model-00001-of-{len(files):05d}.safetensors'
  index = json.loads((tmp_path / 'out' / hf_load.INDEX).read_text())
  assert set(index['weight_map']) == set(tensors)
  assert index['metadata']['total_size'] == sum(
    x.nbytes for x in tensors.values()
  )
  for file in files:
    content = load_file(file)
    assert sum(x.nbytes for x in content.values()) <= limit
    for key, tensor in content.items():
      assert index['weight_map'][key] == file.name
      np.testing.assert_array_equal(tensor, tensors[key])
  assert not list((tmp_path / 'out').glob('part-*'))
  # The exported directory can be imported.
  config, _ = config_lib.read_config(tmp_path / 'out')
  hf_load.check_keys(hf_load.open_source(tmp_path / 'out'), config, False)


def test_full_disk_is_reported(tmp_path):
  gemma2_files.write(tmp_path / 'in', FIELDS, 0, False, 'float32', 2)
  message = naming(f'{tmp_path}/out/part-0', full_disk.ERROR_TEXT)
  with (
    full_disk.limit_file_size(1000),
    pytest.raises(UserError, match=message),
  ):
    round_trip(tmp_path / 'in', tmp_path / 'out', mesh.one_device(), 10**9)
