"""Samplers of other libraries behind one interface, on the same weights.

A contender is a function (workload, prompts, temperature) -> (seed -> tokens
[P, R, T]). It may compile at its first call, so call it once before timing. All
contenders sample from the full distribution and have no stop token.
"""

import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.workload import Workload
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer

NO_ID = -1
PAD_ID, BOS_ID = 0, 2


Contender = Callable[[Workload, np.ndarray, float], Callable[[int], np.ndarray]]


def installed(model: Transformer, params: dict) -> dict[str, Contender]:
  """Returns the installed baselines by name and version."""
  # Idle torch threads spin by default, which on a busy machine delays the
  # working threads by a large factor. Torch reads the variable at its import,
  # and tunix imports torch too.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  baselines = {}
  for module, package, make in (
    ('tunix', 'google-tunix', tunix),
    ('transformers', 'transformers', transformers),
  ):
    if importlib.util.find_spec(module):
      name = f'{package} {importlib.metadata.version(package)}'
      baselines[name] = make(model, params)
  return baselines


def transformers(model: Transformer, params: dict) -> Contender:
  """Makes generate(num_return_sequences=R) of transformers on all cores.

  Attention is 'eager', because 'sdpa' has no softcap and transformers rejects
  it for Gemma-2. The KV cache is the default one, which drops keys outside the
  window of local layers.
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

  def prepare(workload, prompts, temperature):
    inputs = torch.tensor(prompts, dtype=torch.long)
    sampling = dict(do_sample=False)
    if temperature:
      sampling = dict(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0
      )

    def run(seed):
      torch.manual_seed(seed)
      tokens = network.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        num_return_sequences=workload.generations_per_prompt,
        max_new_tokens=workload.new_tokens,
        **sampling,
      )
      generations = tokens[:, workload.prompt_size :].numpy()
      return generations.reshape(
        workload.prompts, workload.generations_per_prompt, -1
      )

    return run

  return prepare


def tunix(model: Transformer, params: dict) -> Contender:
  """Makes generate.sampler.Sampler of google-tunix with R copies per prompt.

  Its cache has exactly S + T positions and prompts have no padding, which are
  its cheapest settings.
  """
  from tunix.generate import sampler

  network, config = tunix_model(model, params), model.config

  def prepare(workload, prompts, temperature):
    cache_length = workload.prompt_size + workload.new_tokens
    cache = sampler.CacheConfig(
      cache_length, config.num_layers, config.num_kv_heads, config.head_dim
    )
    tunix_sampler = sampler.Sampler(network, TokenIdTokenizer(), cache)
    texts = [
      ' '.join(map(str, p))
      for p in prompts
      for _ in range(workload.generations_per_prompt)
    ]
    sampling = {}
    if temperature:
      sampling = dict(temperature=temperature, top_p=1.0)

    def run(seed):
      output = tunix_sampler(
        texts,
        max_generation_steps=workload.new_tokens,
        max_prompt_length=workload.prompt_size,
        eos_tokens=[NO_ID],
        seed=seed,
        **sampling,
      )
      return np.array(output.tokens).reshape(
        workload.prompts, workload.generations_per_prompt, -1
      )

    return run

  return prepare


def tunix_model(model: Transformer, params: dict):
  """Makes a tunix Gemma that shares these parameters without a copy."""
  from flax import nnx
  from tunix.models.gemma import model as gemma

  config = _tunix_config(gemma, model.config)
  abstract_model = nnx.eval_shape(lambda: gemma.Gemma(config, rngs=nnx.Rngs(0)))
  graph, state = nnx.split(abstract_model)
  values = _tunix_params(params, model.config)
  flat = dict(nnx.to_flat_state(state))
  if set(flat) != set(values):
    raise RuntimeError(
      'parameter names differ between grm_jax and tunix: '
      f'{set(flat) ^ set(values)}'
    )
  for path, variable in flat.items():
    if variable.shape != values[path].shape:
      raise RuntimeError(
        f'{path} has shape {values[path].shape} in grm_jax and '
        f'{variable.shape} in tunix'
      )
    flat[path] = variable.replace(values[path])
  return nnx.merge(graph, nnx.from_flat_state(flat.items()))


def _tunix_config(gemma, config: ModelConfig):
  """Converts the config; `gemma` is the module tunix.models.gemma.model."""
  if config.num_kv_heads in (1, config.num_heads):
    raise ValueError(
      f'num_kv_heads={config.num_kv_heads} is not between 1 and '
      f'num_heads={config.num_heads}; the conversion to tunix needs grouped '
      'queries'
    )
  if config.query_pre_attn_scalar != config.head_dim:
    raise ValueError(
      f'query_pre_attn_scalar={config.query_pre_attn_scalar} differs from '
      f'head_dim={config.head_dim}, by which tunix scales'
    )
  kinds = gemma.AttentionType
  return gemma.ModelConfig(
    num_layers=config.num_layers,
    num_embed=config.padded_vocab_size,
    embed_dim=config.width,
    hidden_dim=config.mlp_width,
    num_heads=config.num_heads,
    head_dim=config.head_dim,
    num_kv_heads=config.num_kv_heads,
    final_logit_softcap=config.final_softcap,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL) * config.num_pairs,
    attn_logits_soft_cap=config.attn_softcap,
    sliding_window_size=config.window,
  )


def _tunix_params(params: dict, config: ModelConfig) -> dict[tuple, jax.Array]:
  """Returns the parameters by their path in tunix."""
  values = {
    ('embedder', 'input_embedding'): params['embedder']['table'],
    ('final_norm', 'scale'): params['final_norm']['scale'],
  }
  for number in range(config.num_layers):
    kind = ('local', 'global')[number % 2]
    layer = jax.tree.map(lambda x, i=number // 2: x[i], params['pairs'][kind])
    for path, value in _tunix_layer(layer).items():
      values['layers', number, *path] = value
  return values


def _tunix_layer(layer: dict) -> dict[tuple, jax.Array]:
  attention, mlp = layer['attention'], layer['mlp']
  # grm_jax stores [width, heads, head_dim], tunix [heads, width, head_dim].
  transposed = {
    name: np.swapaxes(attention[name], 0, 1)
    for name in ('query', 'key', 'value')
  }
  return {
    ('attn', 'q_einsum', 'w'): jax.numpy.asarray(transposed['query']),
    ('attn', 'kv_einsum', 'w'): jax.numpy.stack(
      [transposed['key'], transposed['value']]
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


class TokenIdTokenizer:
  """Tokenizer for tunix whose texts are space-separated token ids."""

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
