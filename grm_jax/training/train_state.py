"""The training state: parameters, optimizer state, step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grm_jax.model import init as model_init
from grm_jax.model.transformer import Transformer
from grm_jax.sharding.rules import HOST_MEMORY
from grm_jax.training import host_offload
from grm_jax.training.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a step changes.

  Attributes:
    step: int32 scalar, updates done so far.
    params: the parameter tree that gradients are computed with.
    opt_state: optax's state; moments are split as their parameter is.
    masters: None; with an optimizer that is an OnHost the exact parameters of
      layers, in the host's memory. Those in params are then in the dtype that
      layers compute in, see training/host_offload.py.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  masters: dict | None = None

  def exact(self) -> dict:
    """The parameters that an update adds to; a checkpoint has these."""
    return self.params | (self.masters or {})


def abstract_state(model: Transformer, optimizer: Optimizer) -> TrainState:
  """The state as ShapeDtypeStructs with shardings; no array is made.

  An optimizer moment has its parameter's sharding, in the host's memory if the
  optimizer is an OnHost, as masters are; counters are replicated.
  """
  params = model_init.abstract_params(model)
  everywhere = jax.sharding.NamedSharding(
    model.layout.mesh, jax.sharding.PartitionSpec()
  )
  has_masters = isinstance(optimizer, host_offload.HostOffloadedOptimizer)

  def moment(leaf, param):
    sharding = param.sharding
    if has_masters:
      sharding = sharding.with_memory_kind(HOST_MEMORY)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  def counter(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

  opt_state = host_offload.map_moments(
    optimizer,
    moment,
    jax.eval_shape(optimizer.init, params),
    params,
    counter,
  )
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  if not has_masters:
    return TrainState(step, params, opt_state)
  layers = {host_offload.LAYERS: params[host_offload.LAYERS]}
  masters = jax.tree.map(moment, layers, layers)
  return TrainState(step, _as_computed(model, params), opt_state, masters)


def _as_computed(model, params):
  """Abstract parameters with kernels in the dtype that layers compute in."""
  cast = functools.partial(model_init.cast_kernels, dtype=model.compute.dtype)
  return jax.tree.map(
    lambda x, y: jax.ShapeDtypeStruct(x.shape, y.dtype, sharding=x.sharding),
    params,
    jax.eval_shape(cast, params),
  )


def init_state(
  model: Transformer, optimizer: Optimizer, params: dict
) -> TrainState:
  """A fresh state around `params`, each moment made where it will live.

  The parameters are used up, see `of_exact`.
  """
  abstract = abstract_state(model, optimizer)
  shardings = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
  init = jax.jit(optimizer.init, out_shardings=shardings)
  return from_master_params(abstract, 0, params, init(params))


def from_master_params(
  abstract: TrainState, step: int, params: dict, opt_state: optax.OptState
) -> TrainState:
  """The state around exact parameters, as a checkpoint has them.

  Args:
    abstract: as of `abstract_state`.
    step: updates done so far.
    params: where `abstract.exact()` has them, or on the devices.
      Used up: what of them becomes a master is no longer on the devices.
    opt_state: where it rests.
  """
  step = jax.device_put(np.int32(step), abstract.step.sharding)
  if abstract.masters is None:
    return TrainState(step, params, opt_state)
  masters = jax.tree.map(
    lambda x, to: jax.device_put(x, to.sharding),
    {name: params[name] for name in abstract.masters},
    abstract.masters,
  )
  # One after another: the devices may have no room for all of them twice.
  made = jax.tree.map(_computed_with, params, abstract.params)
  return TrainState(step, made, opt_state, masters)


def _computed_with(x, to):
  """A parameter on the devices in its dtype there, the exact one freed."""
  found = jax.device_put(x, to.sharding)
  if found.dtype == to.dtype:
    return found
  made = found.astype(to.dtype).block_until_ready()
  found.delete()
  if x.sharding.memory_kind != HOST_MEMORY:
    x.delete()
  return made
