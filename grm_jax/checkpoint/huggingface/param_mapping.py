"""One strict table between our parameters and Hugging Face's tensors.

It names every tensor once, with its dimensions in both layouts. Import and
export read it in opposite directions, so neither can know a tensor that the
other does not. Only axes are permuted: a round trip gives back every bit.

RMSNorm scales are stored alike by both sides: w in 1 + w by Gemma-2, w itself
by Llama, which calls the norm before the MLP what Gemma-2 calls the one after
attention. The head is tied to the embedding table.

Letters: V vocabulary, D width, N query heads, K key/value heads, H head dim,
F MLP width, O outputs of the scalar head (1).
"""

import dataclasses

import numpy as np

from grm_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParamMapping:
  """One parameter of ours and the tensors of theirs that it is made of.

  Attributes:
    path: below `params`.
    key: their name; `{layer}` for a parameter stacked over layer pairs.
    ours: letters of our dimensions, without the leading pair axis.
    theirs: letters of each of their dimensions; two letters are flattened.
    layer: 0 for local layers, 1 for global ones, None if not stacked.
  """

  path: tuple[str, ...]
  key: str
  ours: str
  theirs: tuple[str, ...]
  layer: int | None = None

  def keys(self, size: ModelConfig) -> list[str]:
    """Their names, in the order of our leading axis."""
    if self.layer is None:
      return [self.key]
    layers = range(self.layer, size.num_layers, 2)
    return [self.key.format(layer=layer) for layer in layers]

  def shape(self, size: ModelConfig) -> tuple[int, ...]:
    """The shape of each of their tensors."""
    sizes = letter_sizes(size)
    return tuple(
      int(np.prod([sizes[c] for c in letters])) for letters in self.theirs
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


def entries(size: ModelConfig, scalar: bool) -> tuple[ParamMapping, ...]:
  """The table. `scalar` models have a value head (`score.weight`)."""
  norms = _NORMS if size.post_norms else _NORMS_WITHOUT_POST
  rows = [
    ParamMapping(
      ('embedder', 'table'), 'model.embed_tokens.weight', 'VD', ('V', 'D')
    ),
    ParamMapping(('final_norm', 'scale'), 'model.norm.weight', 'D', ('D',)),
  ]
  if scalar:
    rows.append(
      ParamMapping(('value_head', 'kernel'), 'score.weight', 'DO', ('O', 'D'))
    )
  for number, kind in enumerate(('local', 'global')):
    for path, key, ours, theirs in _MATRICES + norms:
      path = ('pairs', kind, *path.split('/'))
      key = f'model.layers.{{layer}}.{key}.weight'
      rows.append(ParamMapping(path, key, ours, theirs, number))
  return tuple(rows)


def letter_sizes(size: ModelConfig) -> dict[str, int]:
  """Sizes by letter; V counts live rows."""
  return {
    'V': size.vocab_size,
    'D': size.width,
    'N': size.num_heads,
    'K': size.num_kv_heads,
    'H': size.head_dim,
    'F': size.mlp_width,
    'O': 1,
  }
