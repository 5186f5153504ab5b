"""Exported directories load in transformers: no warning, the same outputs."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from grm_jax.checkpoint import model_directory
from grm_jax.model import config as model_config
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from tests import gemma2_files
from tests.messages import lines_with, names
from tests.stages import stage_output
from tests.test_main import run


@pytest.fixture(scope='module', params=[False, True], ids=['lm', 'scalar'])
def exported(request, tmp_path_factory):
  """A random tiny checkpoint of ours, and what main exported of it."""
  root = tmp_path_factory.mktemp('export')
  run(
    '--config=configs/convert.py:tiny',
    f'--config.target={root}/ours',
    f'--config.scalar={request.param}',
  )
  stdout, _ = run(
    '--config=configs/convert.py',
    '--config.direction=huggingface',
    f'--config.source={root}/ours',
    f'--config.target={root}/theirs',
    '--config.verify=true',
  )
  return root, request.param, stdout


def test_verify_compares_with_transformers(exported):
  _, _, stdout = exported
  line = lines_with(stdout, stage_output.DIFFERENCE, 'transformers')[0]
  assert names(line, transformers.__version__)
  assert float(line.split()[-1]) <= 1e-4


def test_loads_without_a_warning(exported, caplog, recwarn):
  root, scalar, _ = exported
  kind = transformers.Gemma2ForCausalLM
  if scalar:
    kind = transformers.Gemma2ForSequenceClassification
  transformers.utils.logging.enable_propagation()
  theirs, report = kind.from_pretrained(
    root / 'theirs', output_loading_info=True, attn_implementation='eager'
  )
  assert not any(report.values()), report
  noise = [r.getMessage() for r in caplog.records if r.levelname != 'INFO']
  assert not noise
  assert not [w for w in recwarn if 'transformers' in str(w.filename)]
  assert theirs.dtype == torch.float32

  config = model_config.from_name('tiny')
  model = Transformer(config, ComputeConfig(), mesh.one_device(), scalar)
  params = model_directory.load_params(str(root / 'ours'), None, model)
  tokens = np.random.default_rng(0).integers(3, config.vocab_size, (2, 90))
  batch = Batch(jnp.asarray(tokens, jnp.int32), jnp.full((2,), 90))
  with torch.no_grad():
    expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
  if scalar:
    ours, expected = logprobs.values(model, params, batch), expected[:, 0]
  else:
    hidden = model.apply({'params': params}, batch).prompt
    ours = logprobs.logits(model, params['embedder']['table'], hidden)
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_what_transformers_saves_comes_in(tmp_path):
  """save_pretrained of a transformers model is a source we take."""
  fields = gemma2_files.CONFIGS['like_27b']
  config = transformers.Gemma2Config(**gemma2_files.config_json(fields))
  torch.manual_seed(0)
  theirs = transformers.Gemma2ForCausalLM(config)
  theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='200KB')
  assert len(list((tmp_path / 'theirs').glob('*.safetensors'))) > 1
  stdout, _ = run(
    '--config=configs/convert.py',
    f'--config.source={tmp_path}/theirs',
    f'--config.target={tmp_path}/ours',
    '--config.verify=true',
    '--config.mesh.data=-1',
    '--config.mesh.fsdp=2',
  )
  (line,) = lines_with(stdout, stage_output.DIFFERENCE, 'transformers')
  assert float(line.split()[-1]) <= 1e-4
