"""Optimizer state and master parameters in the host's memory.

AdamW's two moments are half of a training state, and layers compute gradients
with kernels of fewer bits than float32. With a HostOffloadedOptimizer, moments
and the float32 parameters of layers ("masters", arXiv 1710.03740) rest in the
host's memory while gradients are computed. An update moves those of one pair
of layers at a time to the devices and back. The devices keep the kernels in
the compute dtype, all other parameters, and the gradients.

A single program that moved everything would start all copies at once and need
device memory for all of them. A loop over layers bounds this to one pair.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

LAYERS = 'pairs'  # the branch of parameters with a leading axis of layer pairs
_COUNTER = ''  # the branch of a state that belongs to no parameter


@dataclasses.dataclass(frozen=True)
class HostOffloadedOptimizer:
  """An optimizer whose state train_state.py places in the host's memory.

  Its state has the structure of optax.chain(clip, optimizer), so that a run
  can resume with or without host offload.

  Attributes:
    optimizer: updates each parameter by its own gradient and moments.
    max_grad_norm: largest norm of the gradient of all parameters; 0 is off.
  """

  optimizer: optax.GradientTransformation
  max_grad_norm: float

  def init(self, params: Any) -> optax.OptState:
    """Returns the first state, as optax.GradientTransformation.init does."""
    return optax.EmptyState(), self.optimizer.init(params)


@dataclasses.dataclass(frozen=True)
class LayerSlice:
  """The arrays of one call of the optimizer: a layer pair, or all the others.

  Attributes:
    index: index of the layer pair; None for all parameters that are not in
      layers.
  """

  index: jax.Array | None

  def contains(self, branch: str) -> bool:
    """Returns whether a branch of the parameters is updated in this call.

    Counters are updated once, together with the parameters outside of layers.
    """
    return (branch == LAYERS) == (self.index is not None)

  def take(self, x: jax.Array, branch: str) -> jax.Array:
    """Returns the slice of an array that this call updates.

    For an array that it does not update, this is a single zero, so that the
    optimizer sees a tree of the same structure and does no work on it.
    """
    if branch == _COUNTER:
      return x
    if not self.contains(branch):
      return jnp.zeros((1,) * x.ndim, x.dtype)
    if self.index is None:
      return x
    return lax.dynamic_slice_in_dim(x, self.index, 1)

  def put(self, x: jax.Array, new: jax.Array, branch: str) -> jax.Array:
    """Returns the array with its slice replaced by `new`."""
    if not self.contains(branch):
      return x
    if self.index is None:
      return new
    return lax.dynamic_update_slice_in_dim(x, new, self.index, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OffloadedState:
  """The arrays that an update changes. Donate them, or all are copied.

  Attributes:
    params: parameters on the devices.
    masters: {LAYERS: float32 parameters of layers}, in the host's memory.
    opt_state: from HostOffloadedOptimizer.init; moments in the host's memory.
  """

  params: dict
  masters: dict
  opt_state: optax.OptState


def update(
  optimizer: HostOffloadedOptimizer,
  grads: dict,
  count: jax.Array,
  state: OffloadedState,
) -> tuple[OffloadedState, jax.Array, jax.Array]:
  """Makes an update; call it inside a jitted program.

  Args:
    optimizer: the optimizer.
    grads: sums of gradients, a tree like the parameters.
    count: float32 scalar that divides the sums.
    state: state before the update.

  Returns:
    The next state, the norm of the mean gradient, and the norm of the new
    master parameters.
  """
  norm = optax.tree.norm(grads) / count

  def mean_and_clip(x):
    """Divides the sum of a gradient by the count and clips by global norm."""
    x /= count.astype(x.dtype)
    if not optimizer.max_grad_norm:
      return x
    # The formula of optax.clip_by_global_norm, which would see only the norm
    # of one slice here.
    clipped = (x / norm.astype(x.dtype)) * optimizer.max_grad_norm
    return jnp.where(norm < optimizer.max_grad_norm, x, clipped)

  def update_slice(index, carry):
    """Updates one slice of the layers; adds its squared parameter norm."""
    state, squares = carry
    layer_slice = LayerSlice(index)
    state, slice_squares = _update_slice(
      optimizer, layer_slice, mean_and_clip, grads, state
    )
    return state, squares + slice_squares

  num_pairs = len(jax.tree.leaves(state.masters)[0])
  carry = lax.fori_loop(0, num_pairs, update_slice, (state, jnp.float32(0)))
  state, squares = update_slice(None, carry)
  return state, norm, jnp.sqrt(squares)


def _update_slice(
  optimizer: HostOffloadedOptimizer,
  layer_slice: LayerSlice,
  mean_and_clip: Callable,
  grads: dict,
  state: OffloadedState,
) -> tuple[OffloadedState, jax.Array]:
  """The state with one slice updated, and the sum of that slice's squares."""
  # For each array, the branch of the parameters that it belongs to.
  branches = {
    name: jax.tree.map(lambda _, name=name: name, tree)
    for name, tree in state.params.items()
  }
  state_branches = map_moments(
    optimizer,
    lambda _, branch: branch,
    state.opt_state,
    branches,
    lambda _: _COUNTER,
  )

  def fetch(x, branch):
    """Copies the slice of one array from host to device memory."""
    return jax.device_put(layer_slice.take(x, branch), jax.memory.Space.Device)

  params = jax.tree.map(fetch, state.params | state.masters, branches)
  slice_grads = jax.tree.map(
    lambda *x: mean_and_clip(layer_slice.take(*x)), grads, branches
  )
  clip_state, moments = jax.tree.map(fetch, state.opt_state, state_branches)
  changes, moments = optimizer.optimizer.update(slice_grads, moments, params)
  params = optax.apply_updates(params, changes)

  def put(x, new, branch):
    """Writes the new slice into x, in the dtype of x."""
    return layer_slice.put(x, new.astype(x.dtype), branch)

  def put_on_host(x, new, branch):
    """Writes the new slice into x after a copy to the host."""
    if branch != _COUNTER:
      new = jax.device_put(new, jax.memory.Space.Host)
    return layer_slice.put(x, new, branch)

  updated = OffloadedState(
    params=jax.tree.map(put, state.params, params, branches),
    masters=jax.tree.map(
      put_on_host,
      state.masters,
      {LAYERS: params[LAYERS]},
      {LAYERS: branches[LAYERS]},
    ),
    opt_state=jax.tree.map(
      put_on_host, state.opt_state, (clip_state, moments), state_branches
    ),
  )
  in_slice = {k: v for k, v in params.items() if layer_slice.contains(k)}
  return updated, optax.tree.norm(in_slice, squared=True)


def map_moments(
  optimizer: Any,
  function: Callable,
  state: optax.OptState,
  params: Any,
  counters: Callable,
) -> optax.OptState:
  """Maps functions over the arrays of an optimizer state.

  Args:
    optimizer: has `init`.
    function: takes a moment, and the leaf of `params` for its parameter.
    state: state of the optimizer.
    params: a tree like the parameters.
    counters: takes an array that belongs to no parameter.
  """

  def is_masked(x):
    # A parameter that another part of the optimizer updates.
    return isinstance(x, optax.MaskedNode)

  return optax.tree_map_params(
    optimizer,
    lambda x, param: x if is_masked(x) else function(x, param),
    state,
    params,
    transform_non_params=counters,
    is_leaf=is_masked,
  )
