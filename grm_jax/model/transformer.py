"""Gemma-2 in Flax Linen: one forward pass for prompts and their generations.

The tokens of a prompt and of all its generations are one row of X = S + R * T
places, so that every matrix product is computed once; only attention knows
which place belongs to what (attention.py). Layers are scanned over the
(local, global) pair: one compilation whatever the depth, static masks. What a
Size turns off (sizes.py: LLAMA) is left out.

The reference is google-deepmind/gemma and Hugging Face's modeling_gemma2;
tests/peers compares with the latter. Parameters, all below `params`:

  embedder/table                      [V, D]
  pairs/{local,global}/attention/query       [L/2, D, N, H]
                                key, value   [L/2, D, K, H]
                                out          [L/2, N, H, D]
  pairs/{local,global}/mlp/gate, up          [L/2, D, F]
                           down              [L/2, F, D]
  pairs/{local,global}/{pre,post}_{attention,mlp}_norm/scale  [L/2, D]
                    (post only with Size.post_norms)
  final_norm/scale                    [D]
  value_head/kernel                   [D, 1]   (scalar models only)

The embedding table is tied: the head (head.py) reads the same array. For
decoding, all but the norms and the value head may rest as int8 (int8.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from grm_jax.model import quantization
from grm_jax.model.attention import SequenceLayout, rows_of
from grm_jax.model.batch import Batch, check
from grm_jax.model.compute_config import REMAT, ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.kv_cache import DecodeContext
from grm_jax.model.layers import MLP, RMSNorm, apply_rope, sharded_param
from grm_jax.sharding.rules import ShardingLayout


@struct.dataclass
class HiddenStates:
  """Final hidden states, normed: prompt [P, S, D], generation [P, R, T, D]."""

  prompt: jax.Array
  generation: jax.Array | None = None


class Attention(nn.Module):
  """Grouped-query attention; `window` is static (None on global layers)."""

  size: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout
  window: int | None

  @nn.compact
  def __call__(self, x, rows: SequenceLayout | DecodeContext):
    s = self.size
    d, h = s.width, s.head_dim
    q_shape, kv_shape = (d, s.num_heads, h), (d, s.num_kv_heads, h)
    q_axes = ('embed', 'heads', 'head_dim')
    kv_axes = ('embed', 'kv_heads', 'head_dim')
    out_shape, out_axes = (s.num_heads, h, d), ('heads', 'head_dim', 'embed')
    w_q = sharded_param(self, 'query', q_shape, q_axes, d)
    w_k = sharded_param(self, 'key', kv_shape, kv_axes, d)
    w_v = sharded_param(self, 'value', kv_shape, kv_axes, d)
    w_out = sharded_param(self, 'out', out_shape, out_axes, s.num_heads * h)
    positions = rows.positions()
    query = quantization.contract('PXD,DNH->PXNH', x, w_q)
    key = quantization.contract('PXD,DKH->PXKH', x, w_k)
    value = quantization.contract('PXD,DKH->PXKH', x, w_v)
    scale = s.query_pre_attn_scalar**-0.5
    out, kept = rows.attend(
      apply_rope(query, positions, s.rope_base, scale),
      apply_rope(key, positions, s.rope_base),
      value,
      window=self.window,
      cap=s.attn_softcap,
      compute=self.compute,
      layout=self.layout,
    )
    return quantization.contract('PXNH,NHD->PXD', out, w_out), kept


class Block(nn.Module):
  """One layer: attention and MLP, each normed before and, in Gemma-2, after."""

  size: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout
  window: int | None

  @nn.compact
  def __call__(self, x, rows: SequenceLayout | DecodeContext):
    def norm(name):
      return RMSNorm(self.size, self.compute, name=name)

    def after(name, out):
      return norm(name)(out) if self.size.post_norms else out

    parts = (self.size, self.compute, self.layout)
    attention = Attention(*parts, self.window, name='attention')
    out, kept = attention(norm('pre_attention_norm')(x), rows)
    x += after('post_attention_norm', out)
    out = MLP(*parts, name='mlp')(norm('pre_mlp_norm')(x))
    x += after('post_mlp_norm', out)
    return self.layout.constrain(x, ('prompts', 'tokens', 'width')), kept


class LayerPair(nn.Module):
  """A local layer, then a global one; the unit of scan and of remat."""

  size: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout

  @nn.compact
  def __call__(self, x, rows: SequenceLayout):
    parts = (self.size, self.compute, self.layout)
    constrain = self.layout.constrain
    x = constrain(x, ('prompts', 'residual_tokens', 'width'))
    x = constrain(x, ('prompts', 'tokens', 'width'))
    x, local = Block(*parts, self.size.window, name='local')(x, rows)
    x, everything = Block(*parts, None, name='global')(x, rows)
    x = constrain(x, ('prompts', 'residual_tokens', 'width'))
    return x, {'local': local, 'global': everything}


class Embedder(nn.Module):
  """The tied table; rows times sqrt(D) rounded to the compute dtype, or not."""

  size: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout

  @nn.compact
  def __call__(self, tokens):
    init = nn.initializers.normal(self.size.width**-0.5)
    table = self.param(
      'table',
      nn.with_logical_partitioning(init, ('vocab', 'table_width')),
      (self.size.table_rows, self.size.width),
      jnp.dtype(self.compute.param_dtype),
    )
    layout, constrain = self.layout, self.layout.constrain
    dtype = self.compute.dtype
    # The gradient takes these layouts too, the resting one last.
    table = quantization.constrain(
      layout, 'table', table, ('vocab', 'table_width')
    )
    table = quantization.constrain(
      layout,
      'table',
      quantization.cast(table, dtype),
      ('lookup_vocab', 'lookup_width'),
    )
    tokens = constrain(tokens, ('lookup_prompts', 'tokens'))
    x = quantization.lookup(table, tokens, dtype)
    x = constrain(x, ('lookup_prompts', 'tokens', 'lookup_width'))
    # In two steps, or XLA gathers all tokens at full width in between.
    x = constrain(x, ('prompts', 'tokens', 'embed_to_residual_width'))
    x = constrain(x, ('prompts', 'tokens', 'width'))
    scale = self.size.width**0.5 if self.size.embed_scale else 1.0
    return x * jnp.asarray(scale, x.dtype)


class ValueHead(nn.Module):
  """Hidden states to one number each, in float32 (meta RM, Bradley-Terry)."""

  compute: ComputeConfig

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.normal(x.shape[-1] ** -0.5)
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(init, ('norm', 'value')),
      (x.shape[-1], 1),
      jnp.dtype(self.compute.param_dtype),
    )
    wide, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    return jnp.einsum('...D,DO->...O', wide, kernel)[..., 0]


class Transformer(nn.Module):
  """Gemma-2 without its logits; head.py turns hidden states into log-probs.

  Attributes:
    size: what the model is.
    compute: how it is computed.
    layout: mesh and rules.
    scalar: whether it has a value head (`value`) as well.
  """

  size: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout
  scalar: bool = False

  def setup(self):
    parts = (self.size, self.compute, self.layout)
    pair = LayerPair
    if self.compute.remat != 'none':
      policy = REMAT[self.compute.remat]
      pair = nn.remat(LayerPair, policy=policy, prevent_cse=False)
    scanned = nn.scan(
      pair,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast,),
      length=self.size.num_pairs,
      metadata_params={nn.PARTITION_NAME: 'pairs'},
    )
    self.embedder = Embedder(*parts)
    self.pairs = scanned(*parts)
    self.final_norm = RMSNorm(self.size, self.compute)
    if self.scalar:
      self.value_head = ValueHead(self.compute)

  def __call__(self, batch: Batch) -> HiddenStates:
    """Hidden states of every token of the batch, each prompt computed once."""
    check(batch)
    rows = rows_of(batch)
    tokens = batch.prompts
    if rows.num_generations:
      flat = batch.generations.reshape(tokens.shape[0], -1)
      tokens = jnp.concatenate([tokens, flat], axis=1)
    x, _ = self.pairs(self.embedder(tokens), rows)
    # Whole before it is cut: cuts of what is split send pieces around.
    x = self.layout.constrain(x, ('prompts', 'tokens', 'width'))
    x = self.final_norm(x)
    if self.scalar and self.is_initializing():
      self.value_head(x)
    if batch.generations is None:
      return HiddenStates(x)
    prompt, own = x[:, : rows.prompt_size], x[:, rows.prompt_size :]
    return HiddenStates(
      prompt, own.reshape(*batch.generations.shape, x.shape[-1])
    )

  def value(self, hidden: jax.Array) -> jax.Array:
    """[..., D] hidden states to [...] float32 values; scalar models only."""
    return self.value_head(hidden)
