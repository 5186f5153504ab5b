"""Adapters against the library PEFT on transformers models (float32)."""

import json

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from grm_jax.checkpoint import model_directory
from grm_jax.model import logprobs, lora
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh
from grm_jax.stages import convert
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import gemma2_files
from tests.stages.stage_runs import write_adapter
from tests.stages.test_convert import FIELDS, load_config

TOKENS = np.random.default_rng(0).integers(3, FIELDS['vocab_size'], (2, 40))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A folder with hf/, a transformers model, and ours/, its import."""
  root = tmp_path_factory.mktemp('base')
  gemma2_files.write(root / 'hf', FIELDS, 3)
  tiny_tokenizer.train(root / 'hf' / 'tokenizer.model')
  convert_to(root / 'ours', source=root / 'hf')
  return root


def convert_to(target, **settings):
  settings = {
    k: v if isinstance(v, bool) else str(v) for k, v in settings.items()
  }
  convert.run(load_config(target=str(target), **settings), '')


def their_base(base, scalar=False):
  kind = transformers.AutoModelForCausalLM
  if scalar:
    kind = transformers.AutoModelForSequenceClassification
  return kind.from_pretrained(
    base / 'hf',
    attn_implementation='eager',
    dtype=torch.float32,
    **({'num_labels': 1, 'pad_token_id': 0} if scalar else {}),
  )


def their_outputs(model, scalar=False):
  with torch.no_grad():
    outputs = model.eval()(torch.tensor(TOKENS)).logits.numpy()
  return outputs[:, 0] if scalar else outputs


def our_outputs(directory):
  layout = mesh.one_device()
  model = model_directory.build_model(
    str(directory), None, ComputeConfig(), layout
  )
  params = model_directory.load_params(str(directory), None, model)
  return outputs_of(model, params)


def outputs_of(model, params):
  batch = Batch(jnp.asarray(TOKENS, jnp.int32), jnp.full((2,), 40))
  if model.scalar:
    return np.asarray(logprobs.values(model, params, batch))
  hidden = model.apply({'params': params}, batch).prompt
  logits = logprobs.logits(model, params['embedder']['table'], hidden)
  return np.asarray(logits)[..., : FIELDS['vocab_size']]


def assert_equal(ours, theirs, other):
  assert np.abs(theirs - other).max() > 0.1  # the adapter matters
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
  'rslora, scalar', [(False, False), (True, False), (False, True)]
)
def test_an_adapter_of_peft_comes_in(base, tmp_path, rslora, scalar):
  torch.manual_seed(0)
  theirs = peft.get_peft_model(
    their_base(base, scalar),
    peft.LoraConfig(
      r=4,
      lora_alpha=6,
      target_modules=['q_proj', 'o_proj', 'gate_proj', 'down_proj'],
      init_lora_weights=False,
      use_rslora=rslora,
      task_type='SEQ_CLS' if scalar else 'CAUSAL_LM',
    ),
  )
  with torch.no_grad():
    for name, value in theirs.named_parameters():
      if 'lora_' in name:
        value.mul_(2)
  theirs.save_pretrained(tmp_path / 'peft')
  convert_to(
    tmp_path / 'ours',
    source=tmp_path / 'peft',
    base=base / 'ours',
    verify=True,
  )
  ours = our_outputs(tmp_path / 'ours')
  theirs = their_outputs(theirs, scalar)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  if not scalar:
    assert np.abs(ours - our_outputs(base / 'ours')).max() > 0.1


def adapter_outputs(base, directory, scalar):
  """Writes an adapter of ours with random values; returns its outputs."""
  model, trained = write_adapter(directory, base / 'ours', scalar)
  frozen = model_directory.load_base(str(directory), model)
  # Not merged: the products of the adapter are computed.
  whole = lora.attach(model.adapter, frozen, trained)
  return outputs_of(model, whole)


def in_peft(base, folder, scalar):
  """Converts the adapter folder/ours to folder/peft; PEFT's model of it."""
  convert_to(
    folder / 'peft',
    source=folder / 'ours',
    direction='peft',
    base=base / 'hf',
  )
  return peft.PeftModel.from_pretrained(
    their_base(base, scalar), folder / 'peft'
  )


@pytest.mark.parametrize('scalar', [False, True])
def test_an_adapter_of_ours_loads_in_peft(base, tmp_path, scalar):
  ours = adapter_outputs(base, tmp_path / 'ours', scalar)
  theirs = in_peft(base, tmp_path, scalar)
  plain = their_outputs(their_base(base, scalar), scalar)
  assert_equal(ours, their_outputs(theirs, scalar), plain)
  fields = json.loads((tmp_path / 'peft/adapter_config.json').read_text())
  assert fields['r'] == 3 and len(fields['target_modules']) == 7


def test_a_merged_model_equals_peft_merged(base, tmp_path):
  ours = adapter_outputs(base, tmp_path / 'ours', False)
  convert_to(
    tmp_path / 'merged', source=tmp_path / 'ours', direction='huggingface'
  )
  merged = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'merged', attn_implementation='eager', dtype=torch.float32
  )
  np.testing.assert_allclose(their_outputs(merged), ours, atol=1e-4)
  theirs = in_peft(base, tmp_path, False).merge_and_unload()
  np.testing.assert_allclose(their_outputs(theirs), ours, atol=1e-4)
  for name, value in merged.state_dict().items():
    np.testing.assert_allclose(value, theirs.state_dict()[name], atol=1e-6)
