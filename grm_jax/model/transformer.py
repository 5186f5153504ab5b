"""Gemma-2 in Flax Linen, computing each prompt once for all its generations.

A row holds a prompt and all its generations, X = S + R * T tokens, so every
matrix product is computed once per row. Only attention depends on which token
belongs to which generation (attention.py). The logits are not here: logprobs.py
computes them in chunks.

References: google-deepmind/gemma and Hugging Face's modeling_gemma2. Deliberate
differences from them:

  * Layers are scanned over (local, global) pairs. The program compiles once
    whatever the depth, and each layer's window is static.
  * Queries are scaled in float32, inside the rotary embedding.
  * The embedding table has dead rows up to a multiple of 256, so that any mesh
    splits it evenly; logprobs.py gives them no probability.
  * Parameters have one array per projection: query, key, value are separate.

A Llama-style model is the same decoder with parts turned off (config.LLAMA).

Parameters below `params`, with letters from below:

  embedder/table                                  [V, D]
  pairs/{local,global}/attention/query            [L/2, D, N, H]
                                 key, value       [L/2, D, K, H]
                                 out              [L/2, N, H, D]
  pairs/{local,global}/mlp/gate, up               [L/2, D, F]
                           down                   [L/2, F, D]
  pairs/{local,global}/{pre,post}_{attention,mlp}_norm/scale   [L/2, D]
                      (post: only with ModelConfig.post_norms)
  final_norm/scale                                [D]
  value_head/kernel                               [D, 1]  (scalar models only)

The output head is tied to the table. For decoding, everything but the norms and
the scalar head may be int8 (quantization.py). Kernels may have adapters
(lora.py).

Letters in shapes and einsums:
  P  prompts                  L  layers             N  query heads
  S  prompt tokens            D  model width        K  key/value heads
  R  generations per prompt   F  MLP width          H  head dimension
  T  generation tokens        V  rows of the embedding table
  X  tokens of a row
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from grm_jax.model import lora, quantization
from grm_jax.model.attention import SequenceLayout
from grm_jax.model.batch import Batch, check_batch
from grm_jax.model.compute_config import (
  REMAT,
  SUBLAYER_OUTPUT,
  ComputeConfig,
)
from grm_jax.model.config import ModelConfig
from grm_jax.model.kv_cache import DecodeContext
from grm_jax.model.layers import (
  MLP,
  RMSNorm,
  apply_rope,
  sharded_param,
  with_stored_gradient,
)
from grm_jax.sharding.rules import ShardingLayout

# Token layout for attention: training and prefill use a SequenceLayout,
# decoding a DecodeContext. Both have positions() and attend().
AttentionContext = SequenceLayout | DecodeContext


@struct.dataclass
class HiddenStates:
  """Hidden states after the final norm.

  Attributes:
    prompt: [P, S, D]. Right-padded for prompts alone. With generations, as in
      the rows, the padding is on the left: the last true token is at S - 1.
    generation: [P, R, T, D]; None for a batch of prompts alone.
  """

  prompt: jax.Array
  generation: jax.Array | None = None


class Attention(nn.Module):
  """Grouped-query attention with rotary positions.

  Attributes:
    config: what the model is.
    compute: how it is computed.
    layout: mesh and rules.
    window: W on local layers, None on global ones.
  """

  config: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout
  window: int | None

  @nn.compact
  def __call__(self, x: jax.Array, context: AttentionContext):
    """Maps [P, X, D] to [P, X, D] and what `context.attend` returns besides."""
    c = self.config
    d, n, k, h = c.width, c.num_heads, c.num_kv_heads, c.head_dim
    q_axes = ('embed', 'heads', 'head_dim')
    kv_axes = ('embed', 'kv_heads', 'head_dim')
    out_axes = ('heads', 'head_dim', 'embed')
    w_query = sharded_param(self, 'query', (d, n, h), q_axes, d)
    w_key = sharded_param(self, 'key', (d, k, h), kv_axes, d)
    w_value = sharded_param(self, 'value', (d, k, h), kv_axes, d)
    w_out = sharded_param(self, 'out', (n, h, d), out_axes, n * h)
    positions = context.positions()  # [P, X]
    query = lora.einsum('PXD,DNH->PXNH', x, w_query)
    key = lora.einsum('PXD,DKH->PXKH', x, w_key)
    value = lora.einsum('PXD,DKH->PXKH', x, w_value)
    scale = c.query_pre_attn_scalar**-0.5
    out, kv = context.attend(
      apply_rope(query, positions, c.rope_base, scale),
      apply_rope(key, positions, c.rope_base),
      value,
      window=self.window,
      cap=c.attn_softcap,
      compute=self.compute,
      layout=self.layout,
    )  # [P, X, N, H]
    return lora.einsum('PXNH,NHD->PXD', out, w_out), kv


class Block(nn.Module):
  """One layer: attention and MLP, each with a norm before it.

  In Gemma-2 a second norm follows each of them, inside the residual branch
  (ModelConfig.post_norms).
  """

  config: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout
  window: int | None

  @nn.compact
  def __call__(self, x: jax.Array, context: AttentionContext):
    """Maps [P, X, D] to [P, X, D] and what `context.attend` returns besides."""

    def norm(name):
      return RMSNorm(self.config, self.compute, name=name)

    def post_norm(name, out):
      """Applies the norm after a sublayer where the model has one."""
      out = with_stored_gradient(checkpoint_name(out, SUBLAYER_OUTPUT))
      return norm(name)(out) if self.config.post_norms else out

    parts = (self.config, self.compute, self.layout)
    attention = Attention(*parts, self.window, name='attention')
    out, kv = attention(norm('pre_attention_norm')(x), context)
    x += post_norm('post_attention_norm', out)
    out = MLP(*parts, name='mlp')(norm('pre_mlp_norm')(x))
    x += post_norm('post_mlp_norm', out)
    return self.layout.constrain(x, ('prompts', 'tokens', 'width')), kv


class LayerPair(nn.Module):
  """A local layer, then a global one: the unit of scan and of remat."""

  config: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout

  @nn.compact
  def __call__(self, x: jax.Array, sequence: SequenceLayout):
    """Maps [P, X, D] to [P, X, D] and the keys and values of both layers."""
    parts = (self.config, self.compute, self.layout)
    constrain = self.layout.constrain
    # The input of a pair is what the backward pass saves. It is saved in the
    # layout of `residual_tokens` and gathered right after.
    x = constrain(x, ('prompts', 'residual_tokens', 'width'))
    x = constrain(x, ('prompts', 'tokens', 'width'))
    local_layer = Block(*parts, self.config.window, name='local')
    x, local_kv = local_layer(x, sequence)
    x, global_kv = Block(*parts, None, name='global')(x, sequence)
    x = constrain(x, ('prompts', 'residual_tokens', 'width'))
    return x, {'local': local_kv, 'global': global_kv}


class Embedder(nn.Module):
  """The tied embedding table and its lookup."""

  config: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps int [P, X] to [P, X, D] in the compute dtype."""
    init = nn.initializers.normal(self.config.width**-0.5)
    table: Any = self.param(
      'table',
      nn.with_logical_partitioning(init, ('vocab', 'table_width')),
      (self.config.padded_vocab_size, self.config.width),
      jnp.dtype(self.compute.param_dtype),
    )
    layout, constrain = self.layout, self.layout.constrain
    dtype = self.compute.dtype
    # The two constraints reshard the table from rows to width before the
    # lookup. In the backward pass they reshard its gradient the other way.
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
    # Two steps. In a single one XLA would gather all tokens at full width.
    x = constrain(x, ('prompts', 'tokens', 'embed_to_residual_width'))
    x = constrain(x, ('prompts', 'tokens', 'width'))
    # As in the reference, sqrt(D) is rounded to the compute dtype.
    scale = self.config.width**0.5 if self.config.embed_scale else 1.0
    return x * jnp.asarray(scale, x.dtype)


class ScalarHead(nn.Module):
  """Maps hidden states to one float32 number each, for scalar reward models."""

  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., D] to float32 [...]."""
    init = nn.initializers.normal(x.shape[-1] ** -0.5)
    kernel: Any = self.param(
      'kernel',
      nn.with_logical_partitioning(init, ('norm', 'value')),
      (x.shape[-1], 1),
      jnp.dtype(self.compute.param_dtype),
    )
    wide, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    return jnp.einsum('...D,DO->...O', wide, kernel)[..., 0]


class Transformer(nn.Module):
  """The decoder without its logits; logprobs.py computes those.

  Attributes:
    config: what the model is.
    compute: how it is computed.
    layout: mesh and rules.
    scalar: whether the model has a scalar head, for `value`.
    adapter: what is trained in place of all parameters. It does not change what
      is computed: adapters are parts of weights (lora.py).
  """

  config: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout
  scalar: bool = False
  adapter: lora.AdapterConfig | None = None

  def setup(self):
    """Declares the embedder, the scanned layer pairs, the norm and the head."""
    parts = (self.config, self.compute, self.layout)
    pair = LayerPair
    if self.compute.remat != 'none':
      # Remat inside the scan: the backward pass recomputes one pair at a time.
      # The scan already prevents common-subexpression elimination.
      policy = REMAT[self.compute.remat]
      pair = nn.remat(LayerPair, policy=policy, prevent_cse=False)
    scanned = nn.scan(
      pair,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast,),
      length=self.config.num_pairs,
      metadata_params={nn.PARTITION_NAME: 'pairs'},
    )
    self.embedder = Embedder(*parts)
    self.pairs = scanned(*parts)
    self.final_norm = RMSNorm(self.config, self.compute)
    if self.scalar:
      self.value_head = ScalarHead(self.compute)

  def __call__(self, batch: Batch) -> HiddenStates:
    """Computes the hidden states of every token of the batch."""
    check_batch(batch)
    sequence = SequenceLayout.from_batch(batch)
    x, _ = self.pairs(self.embedder(sequence.row_tokens(batch)), sequence)
    # Gather before the slices below: slicing a split dimension would send
    # pieces between devices (collective-permute).
    x = self.layout.constrain(x, ('prompts', 'tokens', 'width'))
    x = self.final_norm(x)
    if self.scalar and self.is_initializing():
      self.value_head(x)
    if batch.generations is None:
      return HiddenStates(x)
    prompt = x[:, : sequence.prompt_size]
    generation = x[:, sequence.prompt_size :]
    # [P, R * T, D] -> [P, R, T, D]
    shape = (*batch.generations.shape, x.shape[-1])
    return HiddenStates(prompt, generation.reshape(shape))

  def value(self, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., D] to float32 [...]; scalar models only."""
    return self.value_head(hidden)
