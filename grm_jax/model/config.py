"""Model architectures as plain numbers: Gemma-2's, and how others differ.

One decoder computes them all. The defaults are Gemma-2's. A Llama-style model
is the same decoder with parts turned off (LLAMA).

Sources: the reports of Gemma 2 (arXiv 2408.00118) and SmolLM2 (arXiv
2502.02737), and the published config.json files. Letters: L layers, D model
width, F MLP width, N query heads, K key/value heads, H head dimension, V
vocabulary, W window.
"""

import dataclasses
from typing import Any

import numpy as np

from grm_jax import settings
from grm_jax.errors import UserError

# The embedding table has a multiple of this many rows, so that any common mesh
# splits it evenly. Gemma's 256,000 already is one.
_VOCAB_MULTIPLE = 256


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """An architecture. Models with equal configs can load the same checkpoint.

  Attributes:
    num_layers: L, even. Layer 0 is local; local and global layers alternate.
    width: D.
    mlp_width: F.
    num_heads: N.
    num_kv_heads: K, a divisor of N.
    head_dim: H, even. N * H may differ from D.
    query_pre_attn_scalar: queries are multiplied by this number ** -0.5. It is
      H for Gemma-2 2B and 9B, and D / N = 144 for 27B.
    vocab_size: V.
    window: W, the keys that a token of a local layer attends to, itself
      included. None makes local layers global.
    attn_softcap: s in s * tanh(x / s) for attention logits; None turns it off.
    final_softcap: the same for the logits over the vocabulary.
    rope_base: base of the rotary frequencies.
    norm_eps: epsilon of RMSNorm.
    norm_offset: added to the stored scales of RMSNorm.
    post_norms: whether attention and MLP have a norm after them, too.
    activation: of the gated MLP, a key of layers.ACTIVATIONS.
    embed_scale: whether embeddings are multiplied by sqrt(D).
  """

  num_layers: int
  width: int
  mlp_width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  query_pre_attn_scalar: float
  vocab_size: int = 256_000
  window: int | None = 4096
  attn_softcap: float | None = 50.0
  final_softcap: float | None = 30.0
  rope_base: float = 10_000.0
  norm_eps: float = 1e-6
  norm_offset: float = 1.0
  post_norms: bool = True
  activation: str = 'gelu_tanh'
  embed_scale: bool = True

  def __post_init__(self):
    if self.num_layers % 2:
      raise UserError(
        f'num_layers is {self.num_layers}; it must be even, because layers are '
        '(local, global) pairs'
      )
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f'num_heads is {self.num_heads}; it must be a multiple of num_kv_heads,'
        f' {self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise UserError(
        f'head_dim is {self.head_dim}; the rotary embedding needs an even one'
      )
    if self.window is not None and self.window < 1:
      raise UserError(
        f'window is {self.window}; it must be at least 1, or None for no window'
      )

  @property
  def num_pairs(self) -> int:
    """The number of (local, global) layer pairs."""
    return self.num_layers // 2

  @property
  def padded_vocab_size(self) -> int:
    """The number of rows of the embedding table; rows from V on are unused."""
    return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

  def visible_keys(self, keys):
    """Returns how many of the last `keys` keys a local layer attends to.

    Args:
      keys: an int or an integer array.
    """
    return keys if self.window is None else np.minimum(keys, self.window)


# The fields in which a Llama-style model differs from the defaults.
LLAMA: dict[str, Any] = dict(
  window=None,
  attn_softcap=None,
  final_softcap=None,
  norm_offset=0.0,
  post_norms=False,
  activation='silu',
  embed_scale=False,
)

MODEL_CONFIGS: dict[str, ModelConfig] = {
  'gemma2_2b': ModelConfig(
    num_layers=26,
    width=2304,
    mlp_width=9216,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    query_pre_attn_scalar=256,
  ),
  'gemma2_9b': ModelConfig(
    num_layers=42,
    width=3584,
    mlp_width=14336,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    query_pre_attn_scalar=256,
  ),
  'gemma2_27b': ModelConfig(
    num_layers=46,
    width=4608,
    mlp_width=36864,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    query_pre_attn_scalar=144,
  ),
  'smollm2_135m': ModelConfig(
    num_layers=30,
    width=576,
    mlp_width=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    query_pre_attn_scalar=64,
    vocab_size=49_152,
    rope_base=100_000.0,
    norm_eps=1e-5,
    **LLAMA,
  ),
  # For laptops and tests. The vocabulary is the one of tokenizer/tiny.py.
  'tiny': ModelConfig(
    num_layers=4,
    width=128,
    mlp_width=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32,
    vocab_size=1024,
    window=128,
  ),
}
# Rule of config.size.
SIZE = settings.one_of(*MODEL_CONFIGS)


def from_name(name: str) -> ModelConfig:
  """Returns the architecture that `config.size` names.

  Args:
    name: a key of MODEL_CONFIGS; '' for 'tiny'.
  """
  return MODEL_CONFIGS[name or 'tiny']
