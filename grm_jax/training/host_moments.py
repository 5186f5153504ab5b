"""Optimizer moments that rest in the host's memory.

AdamW's two moments are half of a training state. With an optimizer from here
they are in the host's memory while gradients are computed; an update moves
those of one pair of layers at a time to the devices and back. Parameters and
gradients stay where they are and are not copied.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

KIND = 'pinned_host'  # the host's memory, as jax.sharding names it
_LAYERS = 'pairs'  # the parameters that have a row for each pair of layers
_COUNTER = ''  # what of a state belongs to no parameter


@dataclasses.dataclass(frozen=True)
class OnHost:
  """An optimizer whose moments training/state.py puts into the host's memory.

  Its state has the form of optax.chain(clip, optimizer), so that a run may go
  on with or without it.

  Attributes:
    optimizer: updates each parameter by its own gradient and moments.
    clip: highest norm of the gradient of all parameters; 0 is off.
  """

  optimizer: optax.GradientTransformation
  clip: float

  def init(self, params: Any) -> optax.OptState:
    """The first state; see optax.GradientTransformation."""
    return optax.EmptyState(), self.optimizer.init(params)


@dataclasses.dataclass(frozen=True)
class _Part:
  """What one call of the optimizer updates: a pair of layers, or all else.

  Attributes:
    at: which pair; None is all else.
  """

  at: jax.Array | None

  def has(self, kind: str) -> bool:
    """Whether arrays of the kind are updated; counters are, after layers."""
    return (kind == _LAYERS) == (self.at is not None)

  def take(self, x: jax.Array, kind: str) -> jax.Array:
    """What is updated of an array; of others one zero, with no work behind."""
    if kind == _COUNTER:
      return x
    if not self.has(kind):
      return jnp.zeros((1,) * x.ndim, x.dtype)
    return x if self.at is None else lax.dynamic_slice_in_dim(x, self.at, 1)

  def put(self, x: jax.Array, new: jax.Array, kind: str) -> jax.Array:
    """The array with that updated."""
    if not self.has(kind):
      return x
    if self.at is None:
      return new
    return lax.dynamic_update_slice_in_dim(x, new, self.at, 0)


def update(
  host: OnHost, grads: dict, count: jax.Array, state: Any, params: dict
) -> tuple[dict, optax.OptState, jax.Array]:
  """Parameters and state after an update, within a jitted program.

  Args:
    host: the optimizer.
    grads: sums of gradients, a tree like the parameters.
    count: float32 scalar; sums are divided by it.
    state: as of `init`, its moments in the host's memory.
    params: donated, as the state is, or all of them are copied.

  Returns:
    The next parameters and state, and the mean gradient's norm.
  """
  clip, moments = state
  norm = optax.tree.norm(grads) / count

  def mean(x):
    x /= count.astype(x.dtype)
    if not host.clip:
      return x
    # As optax.clip_by_global_norm, which here would see a part of the norm.
    clipped = (x / norm.astype(x.dtype)) * host.clip
    return jnp.where(norm < host.clip, x, clipped)

  def step(at, both):
    return _updated(host.optimizer, _Part(at), mean, grads, *both)

  layers = len(jax.tree.leaves(params[_LAYERS])[0])
  both = lax.fori_loop(0, layers, step, (params, moments))
  params, moments = step(None, both)
  return params, (clip, moments), norm


def _updated(optimizer, part, mean, grads, params, state):
  """Parameters and the optimizer's state with one part of them updated."""
  # Of each array the branch of the parameters that it belongs to.
  kinds = {
    name: jax.tree.map(lambda _, name=name: name, tree)
    for name, tree in params.items()
  }
  held_kinds = over_moments(
    optimizer, lambda _, kind: kind, state, kinds, lambda _: _COUNTER
  )
  own = jax.tree.map(part.take, params, kinds)
  own_grads = jax.tree.map(lambda *x: mean(part.take(*x)), grads, kinds)
  held = jax.tree.map(
    lambda *x: jax.device_put(part.take(*x), jax.memory.Space.Device),
    state,
    held_kinds,
  )
  changes, new = optimizer.update(own_grads, held, own)
  own = optax.apply_updates(own, changes)

  def put_back(x, new, kind):
    if kind != _COUNTER:
      new = jax.device_put(new, jax.memory.Space.Host)
    return part.put(x, new, kind)

  state = jax.tree.map(put_back, state, new, held_kinds)
  return jax.tree.map(part.put, params, own, kinds), state


def over_moments(
  optimizer: Any,
  function: Callable,
  state: optax.OptState,
  params: Any,
  counters: Callable,
) -> optax.OptState:
  """The state of an optimizer with functions applied to all that it holds.

  Args:
    optimizer: has `init`.
    function: takes a moment, and what `params` has for its parameter.
    state: the optimizer's.
    params: a tree like the parameters.
    counters: takes what belongs to no parameter.
  """

  def masked(x):
    # Of a parameter that another part of the optimizer updates.
    return isinstance(x, optax.MaskedNode)

  return optax.tree_map_params(
    optimizer,
    lambda x, param: x if masked(x) else function(x, param),
    state,
    params,
    transform_non_params=counters,
    is_leaf=masked,
  )
