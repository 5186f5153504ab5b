"""Greedy generations against transformers' generate, token for token."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Request
from tests import gemma2_files
from tests.peers.test_gemma2 import load

NEW = 64


@pytest.mark.parametrize('name', ['odd_heads', 'like_27b', 'llama'])
def test_greedy_equals_transformers(tmp_path, name):
  """Uneven prompts, windows of 8 and 17 crossed, one row stopped early."""
  fields = gemma2_files.ALL[name]
  gemma2_files.write(tmp_path, fields, seed=12)
  theirs = AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager', dtype=torch.float32
  ).eval()
  rng = np.random.default_rng(13)
  prompts = [
    rng.integers(4, fields['vocab_size'], n).tolist() for n in (5, 23, 40, 1)
  ]
  expected = []
  for prompt in prompts:
    out = theirs.generate(
      torch.tensor([prompt]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      max_new_tokens=NEW,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )
    expected.append(out[0, len(prompt) :].tolist())
  # A token that one of them does reach stops it there.
  stop = expected[1][20]
  cut = [
    tokens[: tokens.index(stop) + 1] if stop in tokens else tokens
    for tokens in expected
  ]
  model, params = load(tmp_path)
  weights, _ = decode_weights.place(model, params)
  engine = Engine(
    model,
    prompts=3,
    generations_per_prompt=2,
    max_new_tokens=NEW,
    prompt_buckets=(32, 48),
    decode_steps_per_call=17,
    stop_ids=[stop],
  )
  requests = [
    Request(str(i), prompt, 3, temperature=0.0, tag=i)
    for i, prompt in enumerate(prompts)
  ]
  found = list(engine.run(weights, requests))
  assert len(found) == 12
  for generation in found:
    assert generation.tokens.tolist() == cut[generation.tag]
