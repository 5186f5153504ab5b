"""Writes random Gemma-2 and Llama models in Hugging Face's format.

Keys and shapes are listed here, not taken from the project's mapping, so each
checks the other. NumPy's PCG64 gives the same numbers for a seed on every
machine, so logits can be stored (tests/golden). Needs no torch.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from grm_jax.tokenizer import tiny as tiny_tokenizer

# Small models; each detects other mistakes that public ports have made.
CONFIGS = {
  # head_dim is not width / heads, and the query scale is neither of them.
  'odd_heads': dict(
    num_hidden_layers=4,
    hidden_size=48,
    intermediate_size=80,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    query_pre_attn_scalar=11,
    vocab_size=300,
    sliding_window=8,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
  ),
  # Tight softcaps: without one of them every logit changes.
  'tight_caps': dict(
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    query_pre_attn_scalar=8,
    vocab_size=256,
    sliding_window=8,
    attn_logit_softcapping=1.5,
    final_logit_softcapping=2.0,
  ),
  # No softcaps, one key/value head, a window of one token.
  'no_caps': dict(
    num_hidden_layers=4,
    hidden_size=24,
    intermediate_size=40,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    query_pre_attn_scalar=6,
    vocab_size=131,
    sliding_window=1,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
  ),
  # Like the 27B: head_dim below width / heads. Another rotary base.
  'like_27b': dict(
    num_hidden_layers=6,
    hidden_size=72,
    intermediate_size=144,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    query_pre_attn_scalar=18,
    vocab_size=512,
    sliding_window=17,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    rope_theta=500.0,
  ),
}

# No post norms, softcaps or windows; SiLU; norms without an offset.
LLAMA = dict(
  model_type='llama',
  hidden_act='silu',
  num_hidden_layers=4,
  hidden_size=48,
  intermediate_size=80,
  num_attention_heads=6,
  num_key_value_heads=2,
  head_dim=8,
  vocab_size=300,
  rms_norm_eps=1e-5,
  rope_theta=100_000.0,
)
# All models that are compared with transformers.
ALL = {**CONFIGS, 'llama': LLAMA}

_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}


def config_json(fields, scalar=False, dtype='float32'):
  """Returns a full config.json for one of ALL."""
  kind = 'SequenceClassification' if scalar else 'CausalLM'
  name = 'Llama' if _is_llama(fields) else 'Gemma2'
  config = {
    'architectures': [f'{name}For{kind}'],
    'model_type': 'gemma2',
    'rms_norm_eps': 1e-6,
    'rope_theta': 10000.0,
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    'tie_word_embeddings': True,
    'torch_dtype': dtype,
    'bos_token_id': 2,
    'eos_token_id': 1,
    'pad_token_id': 0,
    **fields,
  }
  if scalar:
    config |= {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
  return config


def _is_llama(fields):
  return fields.get('model_type') == 'llama'


def tensor_shapes(fields, scalar=False):
  """Returns {key: shape} of every tensor in the checkpoint."""
  d, f = fields['hidden_size'], fields['intermediate_size']
  n = fields['num_attention_heads'] * fields['head_dim']
  k = fields['num_key_value_heads'] * fields['head_dim']
  shapes = {'model.embed_tokens.weight': (fields['vocab_size'], d)}
  for i in range(fields['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    shapes |= {
      layer + 'self_attn.q_proj.weight': (n, d),
      layer + 'self_attn.k_proj.weight': (k, d),
      layer + 'self_attn.v_proj.weight': (k, d),
      layer + 'self_attn.o_proj.weight': (d, n),
      layer + 'mlp.gate_proj.weight': (f, d),
      layer + 'mlp.up_proj.weight': (f, d),
      layer + 'mlp.down_proj.weight': (d, f),
      layer + 'input_layernorm.weight': (d,),
      layer + 'post_attention_layernorm.weight': (d,),
    }
    if not _is_llama(fields):
      shapes |= {
        layer + 'pre_feedforward_layernorm.weight': (d,),
        layer + 'post_feedforward_layernorm.weight': (d,),
      }
  shapes['model.norm.weight'] = (d,)
  if scalar:
    shapes['score.weight'] = (1, d)
  return shapes


def random_tensors(fields, seed, scalar=False, dtype='float32'):
  """Returns {key: array}: kernels of unit gain, and random norm scales."""
  rng = np.random.Generator(np.random.PCG64(seed))
  tensors = {}
  for key, shape in tensor_shapes(fields, scalar).items():
    scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
    values = rng.standard_normal(shape).astype(np.float32) * scale
    if len(shape) == 1 and _is_llama(fields):
      values += 1.0
    tensors[key] = values.astype(_DTYPES[dtype])
  return tensors


def write(directory, fields, seed, scalar=False, dtype='float32', files=1):
  """Writes config.json, safetensors, and an index for several files."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config_json(fields, scalar, dtype), indent=2)
  (directory / 'config.json').write_text(text)
  tensors = random_tensors(fields, seed, scalar, dtype)
  write_tensors(directory, tensors, files)
  return tensors


def write_tensors(directory, tensors, files=1):
  """Writes the tensors, distributed over `files` files."""
  if files == 1:
    save_file(tensors, directory / 'model.safetensors', {'format': 'pt'})
    return
  weight_map = {}
  for part in range(files):
    name = f'model-{part + 1:05d}-of-{files:05d}.safetensors'
    keys = list(tensors)[part::files]
    save_file({k: tensors[k] for k in keys}, directory / name, {'format': 'pt'})
    weight_map |= dict.fromkeys(keys, name)
  index = {'metadata': {}, 'weight_map': weight_map}
  text = json.dumps(index)
  (directory / 'model.safetensors.index.json').write_text(text)


def write_with_tokenizer(directory, **options):
  """Writes a model with the tiny tokenizer and its vocabulary."""
  fields = CONFIGS['odd_heads'] | {'vocab_size': tiny_tokenizer.VOCAB_SIZE}
  write(directory, fields, 3, **options)
  tiny_tokenizer.train(pathlib.Path(directory) / 'tokenizer.model')
