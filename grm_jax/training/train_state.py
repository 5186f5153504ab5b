"""The training state: parameters, optimizer state and step."""

import dataclasses
import functools
from typing import Any

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
  """Everything that a training step changes.

  Attributes:
    step: int32 scalar, number of finished updates.
    params: parameters that gradients are computed with and of; those of the
      adapter if the model has one.
    opt_state: optax state; a moment has its parameter's sharding.
    masters: None without host offload. With it, the float32 parameters of
      layers in the host's memory; those in `params` then have the dtype that
      layers compute in, see host_offload.py.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  masters: dict | None = None

  def master_params(self) -> dict:
    """Returns the parameters that updates add to and checkpoints contain."""
    return self.params | (self.masters or {})


def abstract_state(model: Transformer, optimizer: Optimizer) -> TrainState:
  """Returns the state as ShapeDtypeStructs with shardings, without arrays.

  An optimizer moment has its parameter's sharding, in the host's memory for a
  HostOffloadedOptimizer, and so have master parameters. Counters are
  replicated.

  Args:
    model: the network.
    optimizer: its optimizer.
  """
  params = model_init.abstract_trained(model)
  replicated = jax.sharding.NamedSharding(
    model.layout.mesh, jax.sharding.PartitionSpec()
  )
  offload = isinstance(optimizer, host_offload.HostOffloadedOptimizer)

  def moment(leaf, param):
    """Returns an abstract moment with its parameter's sharding."""
    sharding = param.sharding
    if offload:
      sharding = sharding.with_memory_kind(HOST_MEMORY)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  def counter(leaf):
    """Returns an abstract replicated counter."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

  opt_state = host_offload.map_moments(
    optimizer,
    moment,
    jax.eval_shape(optimizer.init, params),
    params,
    counter,
  )
  # A ShapeDtypeStruct stands for an array here.
  step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
  if not offload:
    return TrainState(step, params, opt_state)
  layers = {host_offload.LAYERS: params[host_offload.LAYERS]}
  masters = jax.tree.map(moment, layers, layers)
  return TrainState(step, _in_compute_dtype(model, params), opt_state, masters)


def _in_compute_dtype(model: Transformer, params: dict) -> dict:
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
  """Returns the state before the first update.

  Each moment is created with its own sharding, never unsharded.

  Args:
    model: the network.
    optimizer: its optimizer.
    params: its parameters; consumed, see `from_master_params`.
  """
  abstract = abstract_state(model, optimizer)
  shardings = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
  init = jax.jit(optimizer.init, out_shardings=shardings)
  return from_master_params(abstract, 0, params, init(params))


def from_master_params(
  abstract: TrainState, step: int, params: dict, opt_state: optax.OptState
) -> TrainState:
  """Returns the state for parameters as a checkpoint contains them.

  Args:
    abstract: from `abstract_state`.
    step: number of finished updates.
    params: parameters in full precision, on the devices or where
      `abstract.master_params()` has them. Consumed: those that become masters
      are freed on the devices.
    opt_state: optimizer state with its final shardings.
  """
  step_array = jax.device_put(np.int32(step), abstract.step.sharding)
  if abstract.masters is None:
    return TrainState(step_array, params, opt_state)
  masters = jax.tree.map(
    lambda x, target: jax.device_put(x, target.sharding),
    {name: params[name] for name in abstract.masters},
    abstract.masters,
  )
  # One parameter at a time: the devices may not have room for two copies of
  # all of them.
  compute_params = jax.tree.map(_to_compute_param, params, abstract.params)
  return TrainState(step_array, compute_params, opt_state, masters)


def _to_compute_param(x: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
  """Casts a parameter on the devices and frees its float32 copy there."""
  on_device = jax.device_put(x, target.sharding)
  if on_device.dtype == target.dtype:
    return on_device
  cast = on_device.astype(target.dtype).block_until_ready()
  on_device.delete()
  if x.sharding.memory_kind != HOST_MEMORY:
    x.delete()
  return cast
