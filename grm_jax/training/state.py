"""The training state: parameters, optimizer state, step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import params as params_lib
from grm_jax.model.gemma import Gemma
from grm_jax.training import host_moments
from grm_jax.training.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a step changes.

  Attributes:
    step: int32 scalar, updates done so far.
    params: the parameter tree.
    opt_state: optax's state; moments are split as their parameter is.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState


def abstract_state(model: Gemma, optimizer: Optimizer) -> TrainState:
  """The state as ShapeDtypeStructs with shardings; no array is made.

  An optimizer moment has its parameter's sharding, in the host's memory if the
  optimizer is an OnHost; counters are replicated.
  """
  params = params_lib.abstract_params(model)
  everywhere = jax.sharding.NamedSharding(
    model.layout.mesh, jax.sharding.PartitionSpec()
  )
  on_host = isinstance(optimizer, host_moments.OnHost)

  def moment(leaf, param):
    sharding = param.sharding
    if on_host:
      sharding = sharding.with_memory_kind(host_moments.KIND)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  def counter(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

  opt_state = host_moments.over_moments(
    optimizer,
    moment,
    jax.eval_shape(optimizer.init, params),
    params,
    counter,
  )
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  return TrainState(step, params, opt_state)


def init_state(model: Gemma, optimizer: Optimizer, params: dict) -> TrainState:
  """A fresh state around `params`, each moment made where it will live."""
  shardings = jax.tree.map(
    lambda x: x.sharding, abstract_state(model, optimizer)
  )
  init = jax.jit(optimizer.init, out_shardings=shardings.opt_state)
  step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
  return TrainState(step, params, init(params))
