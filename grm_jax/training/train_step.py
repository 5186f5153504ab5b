"""One update of the parameters, for any loss, over one or more micro-batches.

A loss is a pure function (params, batch) -> (numerator, denominator, aux):
float32 scalars and other metrics. A batch is any tree of arrays. Gradients of
numerators, and denominators, are summed over micro-batches and devices and
divided once. A mean of means would be wrong for sequences of different
lengths, which is why optax.MultiSteps is not used.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import compute_config, logprobs, lora
from grm_jax.model import init as model_init
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.training import host_offload, train_state
from grm_jax.training.optimizer import Optimizer
from grm_jax.training.train_state import TrainState

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AuxMetrics:
  """Metrics of a loss besides its value; no gradient flows through them.

  A name must not be one of the metrics of `apply_update`, and not both a mean
  and a maximum.

  Attributes:
    means: name -> (sum, count), float32 scalars, summed over micro-batches.
      The metric is sum / count, and 0 if count is 0.
    maxima: name -> float32 scalar, the maximum over micro-batches.
  """

  means: dict[str, tuple[jax.Array, jax.Array]] = dataclasses.field(
    default_factory=dict
  )
  maxima: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


Loss = Callable[[dict, Any], tuple[jax.Array, jax.Array, AuxMetrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AccumulatedGrads:
  """Sums over micro-batches.

  Attributes:
    grads: gradients of the numerators, a tree like the parameters.
    numerator: float32 scalar.
    denominator: float32 scalar.
    aux: sums of means, and maxima so far.
  """

  grads: dict
  numerator: jax.Array
  denominator: jax.Array
  aux: AuxMetrics


def supervised_loss(
  model: Transformer, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array, AuxMetrics]:
  """Cross-entropy of generation tokens: sum over tokens, number of tokens.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations, or packed rows; prompts carry no loss.

  Returns:
    float32 scalars, and no other metrics.
  """
  if batch.segment_ids is None:
    assert batch.generation_lengths is not None  # check_batch
    logps, _ = logprobs.generation_logps(model, params, batch)
    count = jnp.sum(batch.generation_lengths)
  else:
    # The token at s is predicted at s - 1. Both are of the same text, because
    # each packed text begins with its prompt.
    logps, _ = logprobs.prompt_logps(model, params, batch)
    assert batch.loss_mask is not None  # check_batch
    mask = batch.loss_mask[:, 1:]
    logps, count = jnp.where(mask, logps, 0.0), jnp.sum(mask)
  return -jnp.sum(logps), count.astype(jnp.float32), AuxMetrics()


def grad(
  loss: Loss,
  model: Transformer,
  params: dict,
  frozen: dict | None,
  batch: Any,
) -> AccumulatedGrads:
  """Computes the sums of one micro-batch.

  Args:
    loss: function of all parameters and the batch.
    model: for its dtypes and its adapter; sums have the dtype of parameters at
      rest.
    params: trained parameters, whose kernels may already be in the compute
      dtype.
    frozen: the other parameters of a model with an adapter; None without.
    batch: argument of the loss.
  """
  sums = _grad_in_compute_dtype(loss, model, params, frozen, batch)
  dtype = model.compute.param_dtype
  grads = jax.tree.map(lambda x: x.astype(dtype), sums.grads)
  return dataclasses.replace(sums, grads=grads)


def _grad_in_compute_dtype(
  loss: Loss,
  model: Transformer,
  params: dict,
  frozen: dict | None,
  batch: Any,
) -> AccumulatedGrads:
  """Computes `grad` with kernel gradients left in the compute dtype.

  A cast to float32 would add no precision and take twice the memory.
  """

  def numerator_first(params):
    """Returns the loss in the form of value_and_grad: (value, aux)."""
    whole = lora.attach(model.adapter, frozen, params)
    numerator, *count_and_aux = loss(whole, batch)
    return numerator, count_and_aux

  cast = model_init.cast_kernels(params, model.compute.dtype)
  if 'embedder' in cast:
    # The gradient of the table is summed over chunks of logits, in float32.
    table = cast['embedder']['table'].astype(jnp.float32)
    cast = {**cast, 'embedder': {'table': table}}
  value_and_grad = jax.value_and_grad(numerator_first, has_aux=True)
  (numerator, count_and_aux), grads = value_and_grad(cast)
  denominator, aux = count_and_aux
  return AccumulatedGrads(grads, numerator, denominator, aux)


def accumulate(
  loss: Loss,
  model: Transformer,
  params: dict,
  frozen: dict | None,
  sums: AccumulatedGrads,
  batch: Any,
) -> AccumulatedGrads:
  """Adds one micro-batch to `sums`; the other arguments are as in `grad`."""
  new = _grad_in_compute_dtype(loss, model, params, frozen, batch)
  maxima = jax.tree.map(jnp.maximum, sums.aux.maxima, new.aux.maxima)
  total = jax.tree.map(jnp.add, sums, new)
  aux = dataclasses.replace(total.aux, maxima=maxima)
  return dataclasses.replace(total, aux=aux)


def apply_update(
  optimizer: Optimizer, state: TrainState, sums: AccumulatedGrads
) -> tuple[TrainState, Metrics]:
  """Updates the parameters by the mean gradient of all summed micro-batches.

  Args:
    optimizer: the optimizer.
    state: state before the update.
    sums: from `grad` and `accumulate`.

  Returns:
    The next state, and float32 scalars: loss (the mean), count (the
    denominator), grad_norm, param_norm, and the metrics of `sums.aux`.

  Raises:
    ValueError: two metrics have the same name.
  """
  count = jnp.maximum(sums.denominator, 1.0)
  offload = isinstance(optimizer, host_offload.HostOffloadedOptimizer)
  update = _update_on_host if offload else _update_on_devices
  state, grad_norm, param_norm = update(optimizer, state, sums.grads, count)
  metrics = {
    'loss': sums.numerator / count,
    'count': sums.denominator,
    'grad_norm': grad_norm,
    'param_norm': param_norm,
  }
  for aux in (_means(sums.aux), sums.aux.maxima):
    if duplicates := metrics.keys() & aux.keys():
      raise ValueError(f'two metrics of a step are named {sorted(duplicates)}')
    metrics |= aux
  return state, metrics


def _update_on_devices(optimizer, state, grads, count):
  """The next state; norms of the mean gradient and of the new parameters."""
  grads = jax.tree.map(lambda x: x / count.astype(x.dtype), grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = TrainState(state.step + 1, params, opt_state)
  return state, optax.tree.norm(grads), optax.tree.norm(params)


def _update_on_host(optimizer, state, grads, count):
  """Does the same as `_update_on_devices` for a state in host memory."""
  offloaded = host_offload.OffloadedState(
    state.params, state.masters, state.opt_state
  )
  offloaded, *norms = host_offload.update(optimizer, grads, count, offloaded)
  state = TrainState(
    state.step + 1, offloaded.params, offloaded.opt_state, offloaded.masters
  )
  return state, *norms


def _means(aux: AuxMetrics) -> Metrics:
  return {
    name: total / jnp.maximum(count, 1.0)
    for name, (total, count) in aux.means.items()
  }


class TrainStep:
  """The jitted programs of an update, with shardings and donation.

  Micro-batches of another shape compile again: a stage has as many programs as
  its data has pairs of prompt and generation buckets. Gradients are a program
  of their own that does not depend on the optimizer or its schedule, so that
  stages with the same loss and shapes share it in JAX's compilation cache.

  Attributes:
    grad: (params, frozen, batch) -> AccumulatedGrads.
    accumulate: (params, frozen, sums, batch) -> AccumulatedGrads.
    apply_update: (state, sums) -> (state, metrics).
  """

  def __init__(self, model: Transformer, optimizer: Optimizer, loss: Loss):
    """`loss` takes (all params, batch); bind the model to it before."""
    abstract = train_state.abstract_state(model, optimizer)
    state = jax.tree.map(lambda x: x.sharding, abstract)
    replicated: Any = model.layout.sharding(())
    sums = AccumulatedGrads(state.params, replicated, replicated, replicated)
    options = compute_config.compiler_options(
      model.compute, model.layout.platform
    )
    self.grad = jax.jit(
      functools.partial(grad, loss, model),
      out_shardings=sums,
      compiler_options=options,
    )
    # Donation updates the sums, and then the state, in place.
    self.accumulate = jax.jit(
      functools.partial(accumulate, loss, model),
      donate_argnums=2,
      out_shardings=sums,
      compiler_options=options,
    )
    self.apply_update = jax.jit(
      functools.partial(apply_update, optimizer),
      donate_argnums=0,
      out_shardings=(state, replicated),
    )

  def __call__(
    self,
    state: TrainState,
    batches: Sequence[Any],
    frozen: dict | None = None,
  ) -> tuple[TrainState, Metrics]:
    """Makes one update by the mean over all micro-batches.

    Args:
      state: state before the update; donated.
      batches: micro-batches.
      frozen: the base of a model with an adapter.
    """
    sums = self.grad(state.params, frozen, batches[0])
    for batch in batches[1:]:
      sums = self.accumulate(state.params, frozen, sums, batch)
    return self.apply_update(state, sums)
