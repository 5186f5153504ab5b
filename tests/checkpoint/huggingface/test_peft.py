"""The format of PEFT: names, shapes and the settings that are refused.

tests/peers/test_peft.py compares with the library.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grm_jax.checkpoint.huggingface import peft
from grm_jax.errors import UserError
from grm_jax.model import init as model_init
from tests.messages import naming
from tests.model import tiny
from tests.model.test_lora import model_with, random_tree


def write(path, **changes):
  fields = {
    'peft_type': 'LORA',
    'r': 4,
    'lora_alpha': 8,
    'target_modules': ['v_proj', 'q_proj'],
  }
  path.mkdir(exist_ok=True)
  (path / 'adapter_config.json').write_text(json.dumps(fields | changes))
  return str(path)


def test_the_tensors_of_an_adapter(tmp_path):
  model = model_with(scalar=True, targets=('query', 'out', 'down'))
  trained = random_tree(model_init.abstract_trained(model), 0)
  peft.save_directory(str(tmp_path), trained, model, 'base')
  tensors = load_file(tmp_path / 'adapter_model.safetensors')
  assert len(tensors) == 4 * 3 * 2 + 1
  head = trained['value_head']['kernel']
  name = 'base_model.model.score.weight'
  np.testing.assert_array_equal(tensors[name], np.asarray(head).T)
  # Layer 2 is the local layer of the second pair; 4 heads of 8.
  attention = trained['pairs']['local']['attention']
  prefix = 'base_model.model.model.layers.2.self_attn'
  for module, kernel in (('q_proj', 'query'), ('o_proj', 'out')):
    a, b = (np.asarray(attention[kernel][x])[1] for x in 'ab')
    np.testing.assert_array_equal(
      tensors[f'{prefix}.{module}.lora_A.weight'], a.reshape(32, 3).T
    )
    np.testing.assert_array_equal(
      tensors[f'{prefix}.{module}.lora_B.weight'], b.reshape(3, 32).T
    )
  loaded = peft.load_trained(str(tmp_path), model)
  tiny.assert_close(loaded, trained, 0)
  fields = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert fields['target_modules'] == ['down_proj', 'o_proj', 'q_proj']
  assert fields['modules_to_save'] == ['score']
  assert peft.read_config(str(tmp_path), model.config) == {
    'rank': 3,
    'alpha': 6.0,
    'targets': ('query', 'out', 'down'),
    'scalar': True,
  }


def test_rank_stabilized_scale(tmp_path):
  # PEFT multiplies by alpha / sqrt(r) = 8 / 2, so alpha is 16 here.
  path = write(tmp_path, use_rslora=True)
  assert peft.read_config(path, tiny.CONFIG)['alpha'] == 16.0


def test_settings_without_effect(tmp_path):
  path = write(
    tmp_path,
    bias='none',
    lora_dropout=0.1,
    rank_pattern={},
    layers_to_transform=None,
    init_lora_weights='gaussian',
    modules_to_save=['classifier', 'score', 'score'],
    base_model_name_or_path='google/gemma-2-2b-it',
  )
  assert peft.read_config(path, tiny.CONFIG) == {
    'rank': 4,
    'alpha': 8.0,
    'targets': ('query', 'value'),
    'scalar': True,
  }
  assert peft.base_name(path) == 'google/gemma-2-2b-it'
  # A model with a leftover file is a model.
  assert peft.is_adapter(path)
  (tmp_path / 'config.json').write_text('{}')
  assert not peft.is_adapter(path)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('peft_type', 'IA3'),
    ('bias', 'all'),
    ('use_dora', True),
    ('fan_in_fan_out', True),
    ('rank_pattern', {'q_proj': 8}),
    ('alpha_pattern', {'q_proj': 8}),
    ('layers_to_transform', [0]),
    ('target_modules', 'all-linear'),
    ('target_modules', ['q_proj', 'lm_head']),
    ('modules_to_save', ['embed_tokens']),
    ('init_lora_weights', 'pissa_niter_16'),
    ('alora_invocation_tokens', [5]),
    ('loftq_config', {'loftq_bits': 4}),
    ('a_later_setting', 1),
    ('r', 0),
    ('r', None),
    ('lora_alpha', 'x'),
  ],
)
def test_what_is_not_supported_is_named(tmp_path, name, value):
  path = write(tmp_path, **{name: value})
  with pytest.raises(UserError, match=naming('adapter_config.json', name)):
    peft.read_config(path, tiny.CONFIG)


def test_other_tensors_are_refused(tmp_path):
  model = model_with(targets=('query',))
  trained = random_tree(model_init.abstract_trained(model), 0)
  peft.save_directory(str(tmp_path), trained, model, 'base')
  path = tmp_path / 'adapter_model.safetensors'
  tensors = load_file(path)
  name = 'base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight'
  save_file({k: v for k, v in tensors.items() if k != name}, path)
  with pytest.raises(UserError, match=naming(tmp_path, name)):
    peft.load_trained(str(tmp_path), model)
  save_file(tensors | {name: tensors[name][:2]}, path)
  with pytest.raises(UserError, match=naming(tmp_path, name)):
    peft.load_trained(str(tmp_path), model)
