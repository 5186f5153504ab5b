"""Logits equal stored ones from Hugging Face transformers.

tests/golden/make_gemma2.py computes the stored logits. `make peers` compares
more configs with transformers itself.
"""

import jax.numpy as jnp
import numpy as np

from grm_jax.checkpoint.huggingface import config as hf_config
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from tests import gemma2_files
from tests.golden import make_gemma2


def test_logits_equal_stored_logits(tmp_path):
  fields = gemma2_files.CONFIGS[make_gemma2.CONFIG]
  gemma2_files.write(tmp_path, fields, make_gemma2.SEED)
  config, scalar = hf_config.read_config(tmp_path)
  model = Transformer(config, ComputeConfig(), mesh.one_device(), scalar)
  source = hf_load.open_source(tmp_path)
  params = hf_load.load_params(source, model, 'source')
  tokens = jnp.asarray(make_gemma2.tokens(), jnp.int32)
  batch = Batch(tokens, jnp.full(tokens.shape[:1], tokens.shape[1]))
  hidden = model.apply({'params': params}, batch).prompt
  ours = logprobs.logits(model, params['embedder']['table'], hidden)
  expected = np.load(make_gemma2.FILE)['logits']
  assert expected.shape == (*make_gemma2.SHAPE, fields['vocab_size'])
  np.testing.assert_allclose(
    ours[..., : fields['vocab_size']], expected, atol=1e-4
  )
