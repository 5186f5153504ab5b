"""What only an update needs, resting in the host's memory.

AdamW's two moments are half of a training state, and gradients are computed
with kernels of fewer bits than the parameters have. With an optimizer from here
moments and the exact parameters of layers (masters, arXiv 1710.03740) are in
the host's memory while gradients are computed; an update moves those of one
pair of layers at a time to the devices and back. The devices hold kernels as
layers compute with them, all other parameters, and gradients: these stay where
they are and are not copied.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

LAYERS = 'pairs'  # the parameters that have a row for each pair of layers
_COUNTER = ''  # what of a state belongs to no parameter


@dataclasses.dataclass(frozen=True)
class HostOffloadedOptimizer:
  """An optimizer whose state training/train_state.py puts into the host's memory.

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
class LayerSlice:
  """What one call of the optimizer updates: a pair of layers, or all else.

  Attributes:
    at: which pair; None is all else.
  """

  at: jax.Array | None

  def has(self, kind: str) -> bool:
    """Whether arrays of the kind are updated; counters are, after layers."""
    return (kind == LAYERS) == (self.at is not None)

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OffloadedState:
  """What an update changes; donate all of it, or all of it is copied.

  Attributes:
    params: on the devices.
    masters: of the layers, {LAYERS: as params has, but exact}, on the host.
    opt_state: as of `OnHost.init`, its moments on the host.
  """

  params: dict
  masters: dict
  opt_state: optax.OptState


def update(
  host: HostOffloadedOptimizer,
  grads: dict,
  count: jax.Array,
  held: OffloadedState,
) -> tuple[OffloadedState, jax.Array, jax.Array]:
  """What is held after an update, within a jitted program.

  Args:
    host: the optimizer.
    grads: sums of gradients, a tree like the parameters.
    count: float32 scalar; sums are divided by it.
    held: before it.

  Returns:
    What is held next, the mean gradient's norm, and that of the next exact
    parameters.
  """
  norm = optax.tree.norm(grads) / count

  def mean(x):
    x /= count.astype(x.dtype)
    if not host.clip:
      return x
    # As optax.clip_by_global_norm, which here would see a part of the norm.
    clipped = (x / norm.astype(x.dtype)) * host.clip
    return jnp.where(norm < host.clip, x, clipped)

  def step(at, carried):
    held, squares = carried
    held, own = _updated(host, LayerSlice(at), mean, grads, held)
    return held, squares + own

  layers = len(jax.tree.leaves(held.masters)[0])
  carried = lax.fori_loop(0, layers, step, (held, jnp.float32(0)))
  held, squares = step(None, carried)
  return held, norm, jnp.sqrt(squares)


def _updated(host, part, mean, grads, held):
  """What is held with one part updated, and the sum of that part's squares."""
  # Of each array the branch of the parameters that it belongs to, its kind.
  kinds = {
    name: jax.tree.map(lambda _, name=name: name, tree)
    for name, tree in held.params.items()
  }
  held_kinds = map_moments(
    host, lambda _, kind: kind, held.opt_state, kinds, lambda _: _COUNTER
  )

  def fetch(x, kind):
    return jax.device_put(part.take(x, kind), jax.memory.Space.Device)

  own = jax.tree.map(fetch, held.params | held.masters, kinds)
  own_grads = jax.tree.map(lambda *x: mean(part.take(*x)), grads, kinds)
  clip, moments = jax.tree.map(fetch, held.opt_state, held_kinds)
  changes, moments = host.optimizer.update(own_grads, moments, own)
  own = optax.apply_updates(own, changes)

  def keep(x, new, kind):
    return part.put(x, new.astype(x.dtype), kind)

  def put_back(x, new, kind):
    if kind != _COUNTER:
      new = jax.device_put(new, jax.memory.Space.Host)
    return part.put(x, new, kind)

  masters = {LAYERS: own[LAYERS]}
  updated = OffloadedState(
    jax.tree.map(keep, held.params, own, kinds),
    jax.tree.map(put_back, held.masters, masters, {LAYERS: kinds[LAYERS]}),
    jax.tree.map(put_back, held.opt_state, (clip, moments), held_kinds),
  )
  mine = {name: tree for name, tree in own.items() if part.has(name)}
  return updated, optax.tree.norm(mine, squared=True)


def map_moments(
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
