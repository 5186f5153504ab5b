"""A decoder's small parts: weights, RMSNorm, rotary positions, gated MLP.

Letters: P prompts, X = S + R * T tokens of a prompt and its generations,
D width, F MLP width, H head dim.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from grm_jax.model import quantization
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.sharding.rules import ShardingLayout

# Of the gated MLP, by Size.activation.
ACTIVATIONS = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'silu': nn.silu,
}


def sharded_param(
  module: nn.Module,
  name: str,
  shape: Sequence[int],
  axes: Sequence[str],
  fan_in: int,
) -> quantization.Weight:
  """A parameter of `module`, cast and laid out for use.

  Args:
    module: has attributes `compute` and `layout`.
    name: the parameter's name.
    shape: its sizes.
    axes: the logical name of each dimension, see sharding/rules.py.
    fan_in: initial values are normal with variance 1 / fan_in.

  Returns:
    The parameter in `compute.dtype`; its `embed` dimension gathered (cast
    first: half the bytes on the network). A parameter that rests as Int8 is
    gathered and returned as Int8.
  """
  init = nn.initializers.normal(fan_in**-0.5)
  value = module.param(
    name,
    nn.with_logical_partitioning(init, tuple(axes)),
    tuple(shape),
    jnp.dtype(module.compute.param_dtype),
  )
  axes = tuple(axes)
  used = tuple('gathered_embed' if axis == 'embed' else axis for axis in axes)
  value = quantization.constrain(module.layout, name, value, axes)
  if isinstance(value, quantization.QuantizedWeight):
    return quantization.constrain(module.layout, name, value, used)
  dtypes = value.dtype, module.compute.dtype
  return _gathered(module.layout, axes, used, dtypes, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _gathered(layout, axes, used, dtypes, value):
  """A kernel cast and laid out by `used`; its gradient is laid out by `axes`.

  The gradient of a cast and a gather would be reduced to all devices and only
  then split: this way XLA can scatter what it reduces, half the bytes.
  """
  return layout.constrain(value.astype(dtypes[1]), used)


def _gathered_forward(layout, axes, used, dtypes, value):
  return _gathered(layout, axes, used, dtypes, value), None


def _gathered_backward(layout, axes, used, dtypes, unused, gradient):
  return (layout.constrain(gradient, axes).astype(dtypes[0]),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


class RMSNorm(nn.Module):
  """x / rms(x) * (norm_offset + scale), in float32, cast back at the end."""

  size: ModelConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x):
    offset = self.size.norm_offset
    init = nn.initializers.constant(1.0 - offset)
    scale = self.param(
      'scale',
      nn.with_logical_partitioning(init, ('norm',)),
      (x.shape[-1],),
      jnp.dtype(self.compute.param_dtype),
    )
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(mean + self.size.norm_eps)
    scale = offset + scale.astype(jnp.float32)
    return (wide * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


class MLP(nn.Module):
  """Gated MLP: down(activation(gate(x)) * up(x))."""

  size: ModelConfig
  compute: ComputeConfig
  layout: ShardingLayout

  @nn.compact
  def __call__(self, x):
    d, f = self.size.width, self.size.mlp_width
    gate = sharded_param(self, 'gate', (d, f), ('embed', 'mlp'), d)
    up = sharded_param(self, 'up', (d, f), ('embed', 'mlp'), d)
    down = sharded_param(self, 'down', (f, d), ('mlp', 'embed'), f)
    activation = ACTIVATIONS[self.size.activation]
    hidden = activation(quantization.contract('PXD,DF->PXF', x, gate))
    hidden *= quantization.contract('PXD,DF->PXF', x, up)
    hidden = self.layout.constrain(hidden, ('prompts', 'tokens', 'mlp'))
    return quantization.contract('PXF,FD->PXD', hidden, down)


def apply_rope(
  x: jax.Array, positions: jax.Array, base: float, scale: float = 1.0
) -> jax.Array:
  """Rotary position embedding on split halves, times `scale`.

  Args:
    x: [P, X, heads, H].
    positions: int [P, X].
    base: frequencies are base ** (-2 i / H).
    scale: multiplied in before the cast: 144 ** -0.5 rounded to bfloat16
      would shift every attention logit of the 27B by 0.2 %.

  Returns:
    [P, X, heads, H] in x's dtype; angles and rotation are float32.
  """
  half = x.shape[-1] // 2
  frequency = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None].astype(jnp.float32) * frequency[None, None, :]
  sin = scale * jnp.sin(angle)[:, :, None, :]
  cos = scale * jnp.cos(angle)[:, :, None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Cap * tanh(x / cap), or x where there is no cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)
