"""The mapping between grm_jax parameters and Hugging Face tensors.

The table lists every tensor once, with its dimensions in both layouts. Import
and export use the same table, so they cannot disagree. Only axes are permuted,
so a round trip is bit-identical.

Both sides store RMSNorm scales alike: w of 1 + w for Gemma-2, w itself for
Llama. Llama's norm before the MLP has the name that Gemma-2 uses for the norm
after attention. The output head is tied to the embedding table.

Letters: V vocabulary, D width, N query heads, K key/value heads, H head dim,
F MLP width, O outputs of the scalar head (1), Z rank of an adapter (peft.py).
"""

import dataclasses

import numpy as np

from grm_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParamMapping:
  """One grm_jax parameter and the Hugging Face tensors that it consists of.

  Attributes:
    path: path of the parameter below `params`.
    hf_key: name of the tensor; contains `{layer}` for a parameter that is
      stacked over layer pairs.
    dims: letters of the parameter's dimensions, without the leading pair axis.
    hf_dims: letters of each dimension of the tensor; two letters are flattened
      into one dimension.
    layer: 0 for local layers, 1 for global ones, None if not stacked.
    rank: size of the letter Z, the rank of an adapter.
  """

  path: tuple[str, ...]
  hf_key: str
  dims: str
  hf_dims: tuple[str, ...]
  layer: int | None = None
  rank: int = 0

  def hf_keys(self, config: ModelConfig) -> list[str]:
    """Returns the tensor names, in the order of the leading pair axis."""
    if self.layer is None:
      return [self.hf_key]
    layers = range(self.layer, config.num_layers, 2)
    return [self.hf_key.format(layer=layer) for layer in layers]

  def sizes(self, config: ModelConfig) -> dict[str, int]:
    """Returns the size of each letter."""
    return dim_sizes(config) | {'Z': self.rank}

  def hf_shape(self, config: ModelConfig) -> tuple[int, ...]:
    """Returns the shape of each tensor."""
    sizes = self.sizes(config)
    return tuple(
      int(np.prod([sizes[c] for c in letters])) for letters in self.hf_dims
    )


_MATRICES = (
  ('attention/query', 'self_attn.q_proj', 'DNH', ('NH', 'D')),
  ('attention/key', 'self_attn.k_proj', 'DKH', ('KH', 'D')),
  ('attention/value', 'self_attn.v_proj', 'DKH', ('KH', 'D')),
  ('attention/out', 'self_attn.o_proj', 'NHD', ('D', 'NH')),
  ('mlp/gate', 'mlp.gate_proj', 'DF', ('F', 'D')),
  ('mlp/up', 'mlp.up_proj', 'DF', ('F', 'D')),
  ('mlp/down', 'mlp.down_proj', 'FD', ('D', 'F')),
  ('pre_attention_norm/scale', 'input_layernorm', 'D', ('D',)),
)
_NORMS = (
  ('post_attention_norm/scale', 'post_attention_layernorm', 'D', ('D',)),
  ('pre_mlp_norm/scale', 'pre_feedforward_layernorm', 'D', ('D',)),
  ('post_mlp_norm/scale', 'post_feedforward_layernorm', 'D', ('D',)),
)
_NORMS_WITHOUT_POST = (
  ('pre_mlp_norm/scale', 'post_attention_layernorm', 'D', ('D',)),
)


def param_mappings(
  config: ModelConfig, scalar: bool
) -> tuple[ParamMapping, ...]:
  """Returns the table; `scalar` models have a scalar head (`score.weight`)."""
  norms = _NORMS if config.post_norms else _NORMS_WITHOUT_POST
  mappings = [
    ParamMapping(
      ('embedder', 'table'), 'model.embed_tokens.weight', 'VD', ('V', 'D')
    ),
    ParamMapping(('final_norm', 'scale'), 'model.norm.weight', 'D', ('D',)),
  ]
  if scalar:
    mappings.append(
      ParamMapping(('value_head', 'kernel'), 'score.weight', 'DO', ('O', 'D'))
    )
  for layer, kind in enumerate(('local', 'global')):
    for name, hf_name, dims, hf_dims in _MATRICES + norms:
      path = ('pairs', kind, *name.split('/'))
      hf_key = f'model.layers.{{layer}}.{hf_name}.weight'
      mappings.append(ParamMapping(path, hf_key, dims, hf_dims, layer))
  return tuple(mappings)


def dim_sizes(config: ModelConfig) -> dict[str, int]:
  """Returns the size of each letter; V is the unpadded vocabulary."""
  return {
    'V': config.vocab_size,
    'D': config.width,
    'N': config.num_heads,
    'K': config.num_kv_heads,
    'H': config.head_dim,
    'F': config.mlp_width,
    'O': 1,
  }
