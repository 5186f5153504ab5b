"""Small parts of the decoder: parameters, RMSNorm, rotary embedding, MLP.

Letters in shapes and einsums:
  P  prompts                          D  model width
  X  tokens of a row: a prompt        F  MLP width
     and its generations              H  head dimension
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grm_jax.model import lora, quantization
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.sharding.rules import ShardingLayout

# ModelConfig.activation -> the activation of the gated MLP.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'silu': nn.silu,
}

# Logical axes of kernels at rest -> in use, where they differ.
_AXES_IN_USE = {'embed': 'gathered_embed', 'mlp_rows': 'mlp'}


def sharded_param(
  module: nn.Module,
  name: str,
  shape: Sequence[int],
  axes: Sequence[str],
  fan_in: int,
) -> quantization.Weight | lora.LoraWeight:
  """Declares a kernel and returns it cast and gathered for use.

  A kernel rests split over `fsdp`, see sharding/rules.py. It is gathered here,
  layer by layer, after the cast to the compute dtype, which halves the bytes on
  the network if parameters are float32.

  Args:
    module: has attributes `compute` and `layout`.
    name: the parameter's name.
    shape: its shape.
    axes: the logical name of each dimension, see sharding/rules.py.
    fan_in: initial values are normal with variance 1 / fan_in.

  Returns:
    The kernel in `compute.dtype`. A QuantizedWeight stays int8, and a
    LoraWeight has such parts.
  """
  init = nn.initializers.normal(fan_in**-0.5)
  # Linen types the parameter as the box of its initializer, but unboxes it.
  value: Any = module.param(
    name,
    nn.with_logical_partitioning(init, tuple(axes)),
    tuple(shape),
    jnp.dtype(module.compute.param_dtype),
  )
  if not isinstance(value, lora.LoraWeight):
    return _for_use(module, name, value, tuple(axes))
  a_axes, b_axes = lora.factors(name, tuple(axes), lora.RANK)
  return lora.LoraWeight(
    _for_use(module, name, value.base, tuple(axes)),
    _for_use(module, name, value.a, a_axes),
    _for_use(module, name, value.b, b_axes),
    value.scale,
  )


def _for_use(module, name, value, rest_axes):
  """Casts and gathers an array or a QuantizedWeight; see `sharded_param`."""
  layout = module.layout
  use_axes = tuple(_AXES_IN_USE.get(x, x) for x in rest_axes)
  value = quantization.constrain(layout, name, value, rest_axes)
  if isinstance(value, quantization.QuantizedWeight):
    return quantization.constrain(layout, name, value, use_axes)
  dtypes = value.dtype, module.compute.dtype
  return _cast_and_gather(layout, rest_axes, use_axes, dtypes, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _cast_and_gather(layout, rest_axes, use_axes, dtypes, value):
  """Casts a kernel and gathers it; its gradient is reduce-scattered.

  Autodiff would give the gradient the gathered sharding: XLA would all-reduce
  it and split it afterwards. Constraining it to `rest_axes` before the cast
  lets XLA reduce-scatter, which sends half the bytes.

  Args:
    layout: mesh and rules.
    rest_axes: logical axes of the kernel at rest, and of its gradient.
    use_axes: logical axes of the result.
    dtypes: (dtype at rest, dtype of the result).
    value: the kernel.
  """
  return layout.constrain(value.astype(dtypes[1]), use_axes)


def _cast_and_gather_forward(layout, rest_axes, use_axes, dtypes, value):
  return _cast_and_gather(layout, rest_axes, use_axes, dtypes, value), None


def _cast_and_gather_backward(layout, rest_axes, use_axes, dtypes, _, grad):
  return (layout.constrain(grad, rest_axes).astype(dtypes[0]),)


_cast_and_gather.defvjp(_cast_and_gather_forward, _cast_and_gather_backward)


# XLA fuses element-wise operations into the matrix products that read their
# results, and computes them again for every tile of a product. It does not fuse
# what one of these two functions stores. Nothing is stored without gradients.
@jax.custom_vjp
def stored(x):
  """Returns x, which gradient computations store."""
  return x


@jax.custom_vjp
def with_stored_gradient(x):
  """Returns x, whose gradient is stored."""
  return x


_barrier = jax.lax.optimization_barrier
stored.defvjp(lambda x: (_barrier(x), None), lambda _, grad: (grad,))
with_stored_gradient.defvjp(
  lambda x: (x, None), lambda _, grad: (_barrier(grad),)
)


class RMSNorm(nn.Module):
  """x / rms(x) * (norm_offset + scale), computed in float32."""

  config: ModelConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes the last dimension; returns the dtype of `x`."""
    offset = self.config.norm_offset
    # Initially the norm multiplies by 1, whatever the offset.
    init = nn.initializers.constant(1.0 - offset)
    scale: Any = self.param(
      'scale',
      nn.with_logical_partitioning(init, ('norm',)),
      (x.shape[-1],),
      jnp.dtype(self.compute.param_dtype),
    )
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(mean + self.config.norm_eps)
    scale = offset + scale.astype(jnp.float32)
    # Rounded once, after the multiplication by the scale.
    return (wide * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


class MLP(nn.Module):
  """Gated MLP: down(activation(gate(x)) * up(x))."""

  config: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [P, X, D] to [P, X, D]."""
    d, f = self.config.width, self.config.mlp_width
    gate = sharded_param(self, 'gate', (d, f), ('embed', 'mlp'), d)
    up = sharded_param(self, 'up', (d, f), ('embed', 'mlp'), d)
    down_axes = ('mlp_rows', 'gathered_embed')
    down = sharded_param(self, 'down', (f, d), down_axes, f)
    gated = lora.einsum('PXD,DF->PXF', x, gate)
    scale = lora.einsum('PXD,DF->PXF', x, up)
    hidden = ACTIVATIONS[self.config.activation](with_stored_gradient(gated))
    hidden = stored(hidden * with_stored_gradient(scale))
    hidden = self.layout.constrain(hidden, ('prompts', 'tokens', 'mlp'))
    return lora.einsum('PXF,FD->PXD', hidden, down)


@jax.named_scope('rope')
def apply_rope(
  x: jax.Array, positions: jax.Array, base: float, scale: float = 1.0
) -> jax.Array:
  """Applies the rotary position embedding and multiplies by `scale`.

  Dimension i is rotated together with dimension i + H / 2 (split halves, as in
  the published Gemma and Llama checkpoints of Hugging Face).

  Args:
    x: [P, X, heads, H].
    positions: int [P, X].
    base: the frequencies are base ** (-2 i / H).
    scale: applied in float32, before the result is rounded. The 27B's
      144 ** -0.5 rounded to bfloat16 would change its attention logits by
      0.2 %.

  Returns:
    [P, X, heads, H] in the dtype of `x`; angles and rotation are float32.
  """
  half = x.shape[-1] // 2
  frequency = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None].astype(jnp.float32) * frequency[None, None, :]
  sin = scale * jnp.sin(angle)[:, :, None, :]  # [P, X, 1, H / 2]
  cos = scale * jnp.cos(angle)[:, :, None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Returns cap * tanh(x / cap), or `x` if `cap` is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)
