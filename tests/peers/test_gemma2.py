"""Our decoder against Hugging Face transformers (torch, CPU, float32).

Gemma-2 in four small shapes, and a Llama.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
)

from grm_jax.checkpoint.huggingface import config as huggingface_config
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from tests import gemma2_files

TOKENS = 40


def load(directory):
  size, scalar = huggingface_config.read_config(directory)
  source = hf_load.open_source(directory)
  hf_load.check_keys(source, size, scalar)
  compute = ComputeConfig(query_block=16, head_chunk=24)
  model = Transformer(size, compute, mesh.one_device(), scalar)
  return model, hf_load.load_params(source, model, 'source')


def tokens_of(fields, seed, shape):
  rng = np.random.default_rng(seed)
  return rng.integers(0, fields['vocab_size'], shape)


@pytest.mark.parametrize('name', gemma2_files.ALL)
def test_logits_equal(tmp_path, name):
  fields = gemma2_files.ALL[name]
  gemma2_files.write(tmp_path, fields, seed=1, files=2)
  theirs = AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager', dtype=torch.float32
  ).eval()
  tokens = tokens_of(fields, 2, (3, TOKENS))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.numpy()
  model, params = load(tmp_path)
  batch = Batch(jnp.asarray(tokens, jnp.int32), jnp.full((3,), TOKENS))
  hidden = model.apply({'params': params}, batch).prompt
  ours = logprobs.logits(model, params['embedder']['table'], hidden)
  ours = np.asarray(ours)[..., : fields['vocab_size']]
  print(f'{name}: largest difference {np.abs(ours - expected).max():.1e}')
  assert np.abs(expected).max() > 0.5
  np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', gemma2_files.ALL)
def test_generation_logps_equal(tmp_path, name):
  """Shared prompts against transformers on each whole sequence alone."""
  fields = gemma2_files.ALL[name]
  gemma2_files.write(tmp_path, fields, seed=3)
  theirs = AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager', dtype=torch.float32
  ).eval()
  model, params = load(tmp_path)
  prompts, own = (
    tokens_of(fields, 4, (2, 13)),
    tokens_of(fields, 5, (2, 3, 20)),
  )
  lengths, own_lengths = np.array([13, 6]), np.array([[20, 1, 0], [7, 20, 12]])
  batch = Batch(*map(jnp.asarray, (prompts, lengths, own, own_lengths)))
  logps, entropy = jax.jit(lambda p, b: logprobs.generation_logps(model, p, b))(
    params, batch
  )
  for p, r in np.ndindex(2, 3):
    text = np.concatenate(
      [prompts[p, : lengths[p]], own[p, r, : own_lengths[p, r]]]
    )
    with torch.no_grad():
      table = theirs(torch.tensor(text)[None]).logits[0].log_softmax(-1)
    rows = table[lengths[p] - 1 : -1].numpy()
    count = own_lengths[p, r]
    expected = rows[np.arange(count), own[p, r, :count]]
    np.testing.assert_allclose(logps[p, r, :count], expected, atol=1e-4)
    spread = -(np.exp(rows) * rows).sum(-1)
    np.testing.assert_allclose(entropy[p, r, :count], spread, atol=1e-4)
    assert not np.any(logps[p, r, count:])


@pytest.mark.parametrize('name', ['odd_heads', 'llama'])
def test_values_equal(tmp_path, name):
  """The scalar head against transformers' ForSequenceClassification."""
  fields = gemma2_files.ALL[name]
  gemma2_files.write(tmp_path, fields, seed=6, scalar=True)
  theirs = AutoModelForSequenceClassification.from_pretrained(
    tmp_path, attn_implementation='eager', dtype=torch.float32
  ).eval()
  model, params = load(tmp_path)
  assert model.scalar
  # Token 0 is padding to transformers, which pools before it.
  prompts = 1 + tokens_of(fields, 7, (2, 9)) % 200
  own = 1 + tokens_of(fields, 8, (2, 3, 15)) % 200
  lengths, own_lengths = np.array([9, 4]), np.array([[15, 0, 3], [1, 8, 15]])
  batch = Batch(*map(jnp.asarray, (prompts, lengths, own, own_lengths)))
  ours = logprobs.values(model, params, batch)
  for p, r in np.ndindex(2, 3):
    text = np.concatenate(
      [prompts[p, : lengths[p]], own[p, r, : own_lengths[p, r]]]
    )
    with torch.no_grad():
      expected = theirs(torch.tensor(text)[None]).logits.item()
    np.testing.assert_allclose(ours[p, r], expected, atol=1e-4)


@pytest.mark.parametrize('name', ['odd_heads', 'like_27b', 'llama'])
def test_bfloat16_is_as_close_as_theirs(tmp_path, name):
  """bfloat16 strays from float32 no further than transformers does.

  A scale, norm or sum rounded where it should not be shows here.
  """
  fields = gemma2_files.ALL[name]
  gemma2_files.write(tmp_path, fields, seed=9)
  tokens = tokens_of(fields, 10, (4, TOKENS))
  theirs = {}
  for dtype in (torch.float32, torch.bfloat16):
    network = AutoModelForCausalLM.from_pretrained(
      tmp_path, attn_implementation='eager', dtype=dtype
    ).eval()
    with torch.no_grad():
      theirs[dtype] = network(torch.tensor(tokens)).logits.float().numpy()
  exact = theirs[torch.float32]
  model, params = load(tmp_path)
  model = model.clone(compute=ComputeConfig(dtype='bfloat16'))
  batch = Batch(jnp.asarray(tokens, jnp.int32), jnp.full((4,), TOKENS))
  hidden = model.apply({'params': params}, batch).prompt
  assert hidden.dtype == jnp.bfloat16
  ours = logprobs.logits(model, params['embedder']['table'], hidden)
  ours = np.asarray(ours)[..., : fields['vocab_size']]
  errors = [
    np.sqrt(np.mean((x - exact) ** 2)) for x in (ours, theirs[torch.bfloat16])
  ]
  print(f'{name}: bfloat16 error {errors[0]:.4f}, theirs {errors[1]:.4f}')
  assert errors[0] <= 1.1 * errors[1]
