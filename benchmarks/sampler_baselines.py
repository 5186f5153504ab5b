"""Other samplers behind one function, on the same weights as ours.

A contender is a function (case, prompts, temperature) -> (seed -> tokens
[P, R, T]). What it compiles may wait for the first call, so call it once
before timing. All of them draw from the whole distribution and stop nowhere.
"""

import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.workload import Case
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer

NO_ID = -1
PAD_ID, BOS_ID = 0, 2


Contender = Callable[[Case, np.ndarray, float], Callable[[int], np.ndarray]]


def peers(model: Transformer, params: dict) -> dict[str, Contender]:
  """The contenders that are installed, by name and version."""
  # Torch's threads would wait by spinning, which stalls them tens of times
  # longer than their work takes where anything else runs too. It is read when
  # torch is loaded, which tunix does as well.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  found = {}
  for module, package, make in (
    ('tunix', 'google-tunix', tunix),
    ('transformers', 'transformers', transformers),
  ):
    if importlib.util.find_spec(module):
      name = f'{package} {importlib.metadata.version(package)}'
      found[name] = make(model, params)
  return found


def transformers(model: Transformer, params: dict) -> Contender:
  """generate(num_return_sequences=R) of transformers, on all cores.

  Attention is 'eager': 'sdpa' has no soft cap, and transformers refuses it
  for Gemma-2. The key and value cache is the default one, which forgets
  what lies behind the window of local layers.
  """
  import torch
  from transformers import Gemma2ForCausalLM
  from transformers.utils import logging

  logging.disable_progress_bar()
  torch.set_num_threads(os.cpu_count())
  with tempfile.TemporaryDirectory() as directory:
    hf_save.save_directory(directory, params, model)
    network = Gemma2ForCausalLM.from_pretrained(
      directory, attn_implementation='eager', dtype=torch.float32
    )
  network.generation_config.eos_token_id = None
  network.generation_config.pad_token_id = PAD_ID

  def prepare(case, prompts, temperature):
    inputs = torch.tensor(prompts, dtype=torch.long)
    how = dict(do_sample=False)
    if temperature:
      how = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)

    def run(seed):
      torch.manual_seed(seed)
      found = network.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        num_return_sequences=case.rows,
        max_new_tokens=case.new_tokens,
        **how,
      )
      found = found[:, case.prompt_size :].numpy()
      return found.reshape(case.prompts, case.rows, -1)

    return run

  return prepare


def tunix(model: Transformer, params: dict) -> Contender:
  """generate.sampler.Sampler of google-tunix, each prompt given R times.

  Its cache is exactly S + T places long, and the prompt is padded to nothing,
  which are the cheapest settings that it has.
  """
  from tunix.generate import sampler

  network, size = tunix_model(model, params), model.config

  def prepare(case, prompts, temperature):
    places = case.prompt_size + case.new_tokens
    cache = sampler.CacheConfig(
      places, size.num_layers, size.num_kv_heads, size.head_dim
    )
    made = sampler.Sampler(network, Numbers(), cache)
    texts = [' '.join(map(str, p)) for p in prompts for _ in range(case.rows)]
    how = dict(temperature=temperature, top_p=1.0) if temperature else {}

    def run(seed):
      found = made(
        texts,
        max_generation_steps=case.new_tokens,
        max_prompt_length=case.prompt_size,
        eos_tokens=[NO_ID],
        seed=seed,
        **how,
      )
      return np.array(found.tokens).reshape(case.prompts, case.rows, -1)

    return run

  return prepare


def tunix_model(model: Transformer, params: dict):
  """The tunix Gemma of these parameters, which are not copied."""
  from flax import nnx
  from tunix.models.gemma import model as gemma

  config = _tunix_config(gemma, model.config)
  made = nnx.eval_shape(lambda: gemma.Gemma(config, rngs=nnx.Rngs(0)))
  graph, state = nnx.split(made)
  found = _tunix_values(params, model.config)
  flat = dict(nnx.to_flat_state(state))
  if set(flat) != set(found):
    raise RuntimeError(f'tunix has other parameters: {set(flat) ^ set(found)}')
  for path, variable in flat.items():
    if variable.shape != found[path].shape:
      raise RuntimeError(
        f'{path} is {found[path].shape} here, {variable.shape} in tunix'
      )
    flat[path] = variable.replace(found[path])
  return nnx.merge(graph, nnx.from_flat_state(flat.items()))


def _tunix_config(gemma, size: ModelConfig):
  if size.num_kv_heads in (1, size.num_heads):
    raise ValueError(
      f'num_kv_heads is {size.num_kv_heads} of {size.num_heads} heads; only '
      'groups are mapped to tunix'
    )
  if size.query_pre_attn_scalar != size.head_dim:
    raise ValueError(
      f'query_pre_attn_scalar is {size.query_pre_attn_scalar}; tunix scales '
      f'by head_dim {size.head_dim}'
    )
  kinds = gemma.AttentionType
  return gemma.ModelConfig(
    num_layers=size.num_layers,
    num_embed=size.padded_vocab_size,
    embed_dim=size.width,
    hidden_dim=size.mlp_width,
    num_heads=size.num_heads,
    head_dim=size.head_dim,
    num_kv_heads=size.num_kv_heads,
    final_logit_softcap=size.final_softcap,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL) * size.num_pairs,
    attn_logits_soft_cap=size.attn_softcap,
    sliding_window_size=size.window,
  )


def _tunix_values(params: dict, size: ModelConfig) -> dict[tuple, jax.Array]:
  """Path in tunix -> array."""
  found = {
    ('embedder', 'input_embedding'): params['embedder']['table'],
    ('final_norm', 'scale'): params['final_norm']['scale'],
  }
  for number in range(size.num_layers):
    kind = ('local', 'global')[number % 2]
    layer = jax.tree.map(lambda x, i=number // 2: x[i], params['pairs'][kind])
    for path, value in _tunix_layer(layer).items():
      found['layers', number, *path] = value
  return found


def _tunix_layer(layer):
  attention, mlp = layer['attention'], layer['mlp']
  turned = {
    name: np.swapaxes(attention[name], 0, 1)
    for name in ('query', 'key', 'value')
  }
  return {
    ('attn', 'q_einsum', 'w'): jax.numpy.asarray(turned['query']),
    ('attn', 'kv_einsum', 'w'): jax.numpy.stack(
      [turned['key'], turned['value']]
    ),
    ('attn', 'attn_vec_einsum', 'w'): attention['out'],
    ('mlp', 'gate_proj', 'kernel'): mlp['gate'],
    ('mlp', 'up_proj', 'kernel'): mlp['up'],
    ('mlp', 'down_proj', 'kernel'): mlp['down'],
    ('pre_attention_norm', 'scale'): layer['pre_attention_norm']['scale'],
    ('post_attn_norm', 'scale'): layer['post_attention_norm']['scale'],
    ('pre_ffw_norm', 'scale'): layer['pre_mlp_norm']['scale'],
    ('post_ffw_norm', 'scale'): layer['post_mlp_norm']['scale'],
  }


class Numbers:
  """A tokenizer for tunix whose texts are token ids."""

  def encode(self, text, **unused):
    del unused
    return [int(word) for word in text.split()]

  def decode(self, ids, **unused):
    del ids, unused
    return ''

  def bos_id(self):
    return BOS_ID

  def eos_id(self):
    return NO_ID

  def pad_id(self):
    return PAD_ID
