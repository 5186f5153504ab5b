"""What a model is, as plain numbers: Gemma-2's sizes, and what differs.

One decoder computes them all. Defaults are Gemma-2's; a Llama-style model is
the same decoder with a few of its parts off, which LLAMA names.

Sources: the Gemma 2 report (arXiv 2408.00118), SmolLM2's (arXiv 2502.02737),
and the published config.json files. Letters: L layers, D width, F MLP width,
N query heads, K key/value heads, H head dim, V vocabulary, W window.
"""

import dataclasses

import numpy as np

from grm_jax.errors import UserError

# The table is padded to a multiple of this many rows, so that any usual mesh
# splits it evenly; 256,000 is one already.
VOCAB_MULTIPLE = 256


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What a model is. Two models of equal Size share a checkpoint.

  Attributes:
    num_layers: L, even; layer 0 is local, then local and global alternate.
    width: D.
    mlp_width: F.
    num_heads: N.
    num_kv_heads: K, a divisor of N.
    head_dim: H, even; N * H need not be D.
    query_pre_attn_scalar: queries are multiplied by this number ** -0.5. It
      is H for 2B and 9B but D / N = 144 for 27B.
    vocab_size: live rows of the embedding table.
    window: W, the keys a local layer sees, the token itself included; None:
      the layers called local are global too.
    attn_softcap, final_softcap: s in s * tanh(x / s); None is off.
    rope_base: base of the rotary frequencies.
    norm_eps: epsilon of RMSNorm.
    norm_offset: what is added to the stored scales of RMSNorm.
    post_norms: whether attention and MLP are normed after as well as before.
    activation: of the gated MLP, a key of layers.ACTIVATIONS.
    embed_scale: whether embedded tokens are multiplied by sqrt(D).
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
        f'num_layers is {self.num_layers}; layers come in (local, global) pairs'
      )
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f'num_heads {self.num_heads} is not a multiple of num_kv_heads '
        f'{self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise UserError(f'head_dim is {self.head_dim}; RoPE needs it even')
    if self.window is not None and self.window < 1:
      raise UserError(f'window is {self.window}; a token sees itself at least')

  @property
  def num_pairs(self) -> int:
    """(local, global) layer pairs."""
    return self.num_layers // 2

  @property
  def table_rows(self) -> int:
    """Rows of the embedding table in memory: V padded; the rest are dead."""
    return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

  def near(self, keys):
    """How many of the last `keys` keys a local layer sees; ints or arrays."""
    return keys if self.window is None else np.minimum(keys, self.window)


# What a Llama-style model has in place of Gemma-2's ways.
LLAMA = dict(
  window=None,
  attn_softcap=None,
  final_softcap=None,
  norm_offset=0.0,
  post_norms=False,
  activation='silu',
  embed_scale=False,
)

SIZES: dict[str, ModelConfig] = {
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
  # For laptops and tests. Its vocabulary is that of tokenizer/tiny.py.
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


def named(name: str) -> ModelConfig:
  """The size called `name`; UserError lists the names there are."""
  if name not in SIZES:
    raise UserError(
      f'config.model.size is {name!r}; it can be {", ".join(SIZES)}'
    )
  return SIZES[name]
