"""SmolLM2-135M-Instruct out of its GGUF, against transformers' own reading."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from grm_jax.checkpoint import gguf as gguf_file
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.tokenizer import chat_format, tokenizer
from tests.messages import lines_with, names
from tests.stages import stage_output
from tests.test_main import run

ROOT = pathlib.Path(__file__).parents[2]
# `make peers` downloads it.
GGUF = ROOT / 'runs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
TEXT = (
  'The judge reads the question first, then each of the answers. She writes '
  'down what a good answer would need, and only then does she say which of '
  'them has it. "How can you be sure?" asked the student. "I am not," she '
  'said, "but I can show you where the second one went wrong."'
)


@pytest.fixture(scope='module')
def ours():
  file = gguf_file.open_file(str(GGUF))
  config = gguf_file.read_config(file)
  source = gguf_file.tensor_source(file, config)
  hf_load.check_keys(source, config, False)
  model = Transformer(config, ComputeConfig(), mesh.one_device())
  params = hf_load.load_params(source, model, 'float32')
  text = gguf_file.tokenizer_json(file)
  return model, params, tokenizer.from_bytes(text.encode(), 'tokenizer.json')


@pytest.fixture(scope='module')
def theirs():
  return transformers.LlamaForCausalLM.from_pretrained(
    GGUF.parent,
    gguf_file=GGUF.name,
    dtype=torch.float32,
    attn_implementation='eager',
  ).eval()


def logits(ours, ids):
  model, params, _ = ours
  batch = Batch(jnp.asarray([ids], jnp.int32), jnp.asarray([len(ids)]))
  hidden = model.apply({'params': params}, batch).prompt
  x = logprobs.logits(model, params['embedder']['table'], hidden)
  return np.asarray(x)[0, :, : model.config.vocab_size]


def test_logits_equal(ours, theirs):
  ids = ours[2].encode(TEXT)
  with torch.no_grad():
    expected = theirs(torch.tensor([ids])).logits[0].numpy()
  found = logits(ours, ids)
  print(f'largest difference {np.abs(found - expected).max():.1e}')
  np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


def test_it_knows_english(ours):
  """Weights, RoPE and tokenizer are in order: prose surprises it little."""
  ids = ours[2].encode(TEXT)
  x = logits(ours, ids).astype(np.float64)
  rows = x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))[:, None]
  rows -= x.max(-1, keepdims=True)
  surprise = -rows[np.arange(len(ids) - 1), ids[1:]].mean()
  print(f'perplexity {np.exp(surprise):.1f}')
  assert np.exp(surprise) < 40  # 49,152 is no knowledge at all
  x = logits(ours, ours[2].encode('The capital of Italy is'))
  assert ours[2].decode([int(x[-1].argmax())]) == ' Rome'


def test_tokens_are_those_of_its_chat_template(ours):
  """Our ids of a chat, against the template in the file and its own tokens.

  transformers does not read the file's `tokenizer.ggml.pre`, and splits text
  as GPT-2 does. Its value here, smollm, means each digit by itself first
  (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM): blanks before a number are other
  tokens then.
  """
  tk = ours[2]
  theirs = transformers.AutoTokenizer.from_pretrained(
    GGUF.parent, gguf_file=GGUF.name
  )
  splits = tokenizers.pre_tokenizers
  theirs.backend_tokenizer.pre_tokenizer = splits.Sequence(
    [splits.Digits(individual_digits=True), splits.ByteLevel(False)]
  )
  messages = [
    {'role': 'system', 'content': 'You judge answers.'},
    {
      'role': 'user',
      'content': "Isn't that right?\n\n  12 345 times; as I said.",
    },
    {'role': 'assistant', 'content': 'It is.'},
    {'role': 'user', 'content': 'Caf\u00e9 na\u00efve \u2014 done'},
  ]
  text = theirs.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  expected = theirs(text, add_special_tokens=False)['input_ids']
  assert chat_format.render(tk, messages) == expected


def test_main_verifies_it(tmp_path):
  stdout, _ = run(
    '--config=configs/convert.py',
    f'--config.source={GGUF}',
    f'--config.target={tmp_path}/model',
    '--config.verify=true',
  )
  (line,) = lines_with(stdout, stage_output.DIFFERENCE, 'checkpoint')
  assert names(line, '0.00e+00')
  assert lines_with(stdout, stage_output.DIFFERENCE, 'transformers'), stdout
