"""Rotary embeddings: a config.json is read as transformers reads it or refused.

Both sides read the same file. Where grm_jax accepts it, the frequencies of
transformers are those of `rope_base` without scaling.
"""

import json

import numpy as np
import pytest
import transformers

from grm_jax.checkpoint.huggingface import config as hf_config
from grm_jax.errors import UserError
from tests import gemma2_files

LINEAR = {'factor': 8.0}
FORMS = [
  {},
  {'rope_theta': 500_000.0},
  {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}},
  {'rope_parameters': {'type': 'default', 'rope_theta': 500.0}},
  {'rope_scaling': None, 'rope_theta': 500.0},
  {'rope_scaling': {'rope_type': 'default'}, 'rope_theta': 500.0},
  {'rope_parameters': {'type': 'linear', **LINEAR}},
  {'rope_parameters': {'rope_type': 'linear', **LINEAR}},
  {'rope_scaling': {'type': 'linear', **LINEAR}},
  {'rope_scaling': {'rope_type': 'linear', **LINEAR}, 'rope_theta': 500.0},
  {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}},
  {
    'rope_scaling': {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    }
  },
  {
    'rope_scaling': {
      'rope_type': 'yarn',
      'factor': 4.0,
      'original_max_position_embeddings': 32,
    }
  },
]


def rotary_frequencies(folder):
  """Returns the frequencies of transformers, of every layer type."""
  config = transformers.AutoConfig.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_config(config)
  named = model.model.rotary_emb.named_buffers()
  return [np.asarray(x) for name, x in named if name.endswith('inv_freq')]


@pytest.mark.parametrize('form', FORMS, ids=json.dumps)
@pytest.mark.parametrize('family', ['llama', 'no_caps'])
def test_rope_is_read_as_transformers_reads_it(tmp_path, family, form):
  fields = gemma2_files.config_json(gemma2_files.ALL[family]) | form
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  is_plain = 'factor' not in json.dumps(form)
  try:
    config, _ = hf_config.read_config(str(tmp_path))
  except UserError:
    assert not is_plain
    return
  steps = np.arange(0, config.head_dim, 2) / config.head_dim
  frequencies = rotary_frequencies(tmp_path)
  assert frequencies
  for values in frequencies:
    np.testing.assert_allclose(values, config.rope_base**-steps, rtol=1e-6)
