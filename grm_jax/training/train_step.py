"""One update of the parameters, by any loss, over one or several batches.

A loss is a pure function (params, batch) -> (numerator, denominator, extras):
float32 scalars, and what else is to be measured. A batch is any tree of
arrays. Gradients of numerators and the denominators are added up over batches
and devices and divided once: a mean of means is wrong for ragged lengths
(which is why optax.MultiSteps is not used).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import init as model_init
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.training import host_offload, train_state
from grm_jax.training.optimizer import Optimizer
from grm_jax.training.train_state import TrainState

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AuxMetrics:
  """What a loss measures beside itself; no gradient flows from here.

  The names are metrics, so that none may be one of `apply`'s own, or both a
  mean and a maximum.

  Attributes:
    means: name -> (sum, count), float32 scalars, added up over batches. The
      metric is sum / count, 0 where nothing was counted.
    maxima: name -> float32 scalar, the maximum over batches.
  """

  means: dict[str, tuple[jax.Array, jax.Array]] = dataclasses.field(
    default_factory=dict
  )
  maxima: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


Loss = Callable[[dict, Any], tuple[jax.Array, jax.Array, AuxMetrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AccumulatedGrads:
  """What batches add up to.

  Attributes:
    grads: of the numerators, a tree like the parameters.
    numerator, denominator: float32 scalars.
    extras: means added up, maxima so far.
  """

  grads: dict
  numerator: jax.Array
  denominator: jax.Array
  extras: AuxMetrics


def supervised_loss(
  model: Transformer, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array, AuxMetrics]:
  """Cross-entropy of generation tokens: (sum over tokens, token count).

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations, or packed rows; prompts carry no loss.

  Returns:
    float32 scalars, and no extras.
  """
  if batch.segments is None:
    logps, _ = logprobs.generation_logps(model, params, batch)
    count = jnp.sum(batch.generation_lengths)
  else:
    # Place s is predicted at s - 1, which is in the same text: a text begins
    # with its prompt.
    logps, _ = logprobs.prompt_logps(model, params, batch)
    targets = batch.targets[:, 1:]
    logps, count = jnp.where(targets, logps, 0.0), jnp.sum(targets)
  return -jnp.sum(logps), count.astype(jnp.float32), AuxMetrics()


def grad(
  loss: Loss, compute: ComputeConfig, params: dict, batch: Any
) -> AccumulatedGrads:
  """The sums of one batch.

  Args:
    loss: of the parameters and the batch.
    compute: of the model: the dtypes that layers compute in, and of the sums
      (as parameters at rest).
    params: the parameters, or with kernels already in the former dtype.
    batch: what the loss takes.
  """
  sums = _sums(loss, compute, params, batch)
  grads = jax.tree.map(lambda x: x.astype(compute.param_dtype), sums.grads)
  return dataclasses.replace(sums, grads=grads)


def _sums(loss, compute, params, batch) -> AccumulatedGrads:
  """As `first`, with gradients of kernels in the dtype they are computed in.

  They would only be cast, and in float32 take twice the memory.
  """

  def scalar(params):
    numerator, *others = loss(params, batch)
    return numerator, others

  cast = model_init.cast_kernels(params, compute.dtype)
  (numerator, others), grads = jax.value_and_grad(scalar, has_aux=True)(cast)
  denominator, extras = others
  return AccumulatedGrads(grads, numerator, denominator, extras)


def accumulate(
  loss: Loss,
  compute: ComputeConfig,
  params: dict,
  sums: AccumulatedGrads,
  batch: Any,
) -> AccumulatedGrads:
  """`sums` with one more batch."""
  more = _sums(loss, compute, params, batch)
  maxima = jax.tree.map(jnp.maximum, sums.extras.maxima, more.extras.maxima)
  total = jax.tree.map(jnp.add, sums, more)
  extras = dataclasses.replace(total.extras, maxima=maxima)
  return dataclasses.replace(total, extras=extras)


def apply_update(
  optimizer: Optimizer, state: TrainState, sums: AccumulatedGrads
) -> tuple[TrainState, Metrics]:
  """The update by the mean gradient of all that was summed.

  Returns:
    The next state, and float32 scalars: loss (the mean), count (the
    denominator), grad_norm, param_norm, and each of the extras by its name.

  Raises:
    ValueError: two metrics of one name.
  """
  count = jnp.maximum(sums.denominator, 1.0)
  on_host = isinstance(optimizer, host_offload.HostOffloadedOptimizer)
  update = _on_host if on_host else _on_devices
  state, grad_norm, param_norm = update(optimizer, state, sums.grads, count)
  metrics = {
    'loss': sums.numerator / count,
    'count': sums.denominator,
    'grad_norm': grad_norm,
    'param_norm': param_norm,
  }
  for more in (_means(sums.extras), sums.extras.maxima):
    if twice := metrics.keys() & more.keys():
      raise ValueError(f'two metrics of one step are named {sorted(twice)}')
    metrics |= more
  return state, metrics


def _on_devices(optimizer, state, grads, count):
  """The next state; norms of the mean gradient and the next parameters."""
  grads = jax.tree.map(lambda x: x / count.astype(x.dtype), grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = TrainState(state.step + 1, params, opt_state)
  return state, optax.tree.norm(grads), optax.tree.norm(params)


def _on_host(optimizer, state, grads, count):
  """As `_on_devices`, with what rests in the host's memory."""
  held = host_offload.OffloadedState(
    state.params, state.masters, state.opt_state
  )
  held, *norms = host_offload.update(optimizer, grads, count, held)
  state = TrainState(state.step + 1, held.params, held.opt_state, held.masters)
  return state, *norms


def _means(extras):
  return {
    name: total / jnp.maximum(count, 1.0)
    for name, (total, count) in extras.means.items()
  }


class TrainStep:
  """The programs of an update, jitted with shardings and donation.

  `first` makes the sums of a batch, `add` those of one more, `apply` the next
  state of both.

  Batches of other shapes compile again: a stage has as many programs as its
  data has pairs of buckets. Gradients are a program of their own, which knows
  neither schedule nor optimizer: stages that train by the same loss on the same
  shapes find it in JAX's compilation cache.
  """

  def __init__(self, model: Transformer, optimizer: Optimizer, loss: Loss):
    """`loss` takes (params, batch); bind the model to it before."""
    abstract = train_state.abstract_state(model, optimizer)
    state = jax.tree.map(lambda x: x.sharding, abstract)
    whole = model.layout.sharding(())
    sums = AccumulatedGrads(state.params, whole, whole, whole)
    compute = model.compute
    self.first = jax.jit(
      functools.partial(grad, loss, compute), out_shardings=sums
    )
    self.add = jax.jit(
      functools.partial(accumulate, loss, compute),
      donate_argnums=1,
      out_shardings=sums,
    )
    self.apply = jax.jit(
      functools.partial(apply_update, optimizer),
      donate_argnums=0,
      out_shardings=(state, whole),
    )

  def __call__(
    self, state: TrainState, batches: Sequence[Any]
  ) -> tuple[TrainState, Metrics]:
    """One update by the mean over all batches; `state` is used up."""
    sums = self.first(state.params, batches[0])
    for batch in batches[1:]:
      sums = self.add(state.params, sums, batch)
    return self.apply(state, sums)
