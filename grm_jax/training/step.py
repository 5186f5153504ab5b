"""One update of the parameters, by any loss, over one or several batches.

A loss is a pure function (params, batch) -> (numerator, denominator), both
float32 scalars. Gradients of numerators and the denominators are added up over
batches and devices and divided once: a mean of means is wrong for ragged
lengths (which is why optax.MultiSteps is not used).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import head
from grm_jax.model.batch import Batch
from grm_jax.model.gemma import Gemma
from grm_jax.training import state as states
from grm_jax.training.state import TrainState

Loss = Callable[[dict, Batch], tuple[jax.Array, jax.Array]]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
  """What batches add up to.

  Attributes:
    grads: of the numerators, a tree like the parameters.
    numerator, denominator: float32 scalars.
  """

  grads: dict
  numerator: jax.Array
  denominator: jax.Array


def supervised_loss(
  model: Gemma, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of generation tokens: (sum over tokens, token count).

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations, or packed rows; prompts carry no loss.

  Returns:
    float32 scalars.
  """
  if batch.segments is None:
    logps, _ = head.generation_logps(model, params, batch)
    count = jnp.sum(batch.generation_lengths)
  else:
    # Place s is predicted at s - 1, which is in the same text: a text begins
    # with its prompt.
    logps, _ = head.prompt_logps(model, params, batch)
    targets = batch.targets[:, 1:]
    logps, count = jnp.where(targets, logps, 0.0), jnp.sum(targets)
  return -jnp.sum(logps), count.astype(jnp.float32)


def first(loss: Loss, params: dict, batch: Batch) -> Sums:
  """The sums of one batch."""
  (numerator, denominator), grads = jax.value_and_grad(loss, has_aux=True)(
    params, batch
  )
  return Sums(grads, numerator, denominator)


def add(loss: Loss, params: dict, sums: Sums, batch: Batch) -> Sums:
  """`sums` with one more batch."""
  return jax.tree.map(jnp.add, sums, first(loss, params, batch))


def apply(
  optimizer: optax.GradientTransformation, state: TrainState, sums: Sums
) -> tuple[TrainState, Metrics]:
  """The update by the mean gradient of all that was summed.

  Returns:
    The next state, and float32 scalars: loss (the mean), count (the
    denominator), grad_norm, param_norm.
  """
  count = jnp.maximum(sums.denominator, 1.0)
  grads = jax.tree.map(lambda x: x / count.astype(x.dtype), sums.grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    'loss': sums.numerator / count,
    'count': sums.denominator,
    'grad_norm': optax.tree.norm(grads),
    'param_norm': optax.tree.norm(params),
  }
  return TrainState(state.step + 1, params, opt_state), metrics


def update(
  optimizer: optax.GradientTransformation,
  loss: Loss,
  state: TrainState,
  batch: Batch,
) -> tuple[TrainState, Metrics]:
  """`apply` of one batch: no sums are kept between two programs."""
  return apply(optimizer, state, first(loss, state.params, batch))


class Steps:
  """The programs of an update, jitted with shardings and donation.

  Batches of other shapes compile again: a stage has as many programs as its
  data has pairs of buckets.
  """

  def __init__(
    self, model: Gemma, optimizer: optax.GradientTransformation, loss: Loss
  ):
    """`loss` takes (params, batch); bind the model to it before."""
    abstract = states.abstract_state(model, optimizer)
    state = jax.tree.map(lambda x: x.sharding, abstract)
    whole = model.layout.sharding(())
    sums = Sums(state.params, whole, whole)
    self._update = jax.jit(
      functools.partial(update, optimizer, loss),
      donate_argnums=0,
      out_shardings=(state, whole),
    )
    self._first = jax.jit(functools.partial(first, loss), out_shardings=sums)
    self._add = jax.jit(
      functools.partial(add, loss), donate_argnums=1, out_shardings=sums
    )
    self._apply = jax.jit(
      functools.partial(apply, optimizer),
      donate_argnums=(0, 1),
      out_shardings=(state, whole),
    )

  def __call__(
    self, state: TrainState, batches: Sequence[Batch]
  ) -> tuple[TrainState, Metrics]:
    """One update by the mean over all batches; `state` is used up."""
    if len(batches) == 1:
      return self._update(state, batches[0])
    sums = self._first(state.params, batches[0])
    for batch in batches[1:]:
      sums = self._add(state.params, sums, batch)
    return self._apply(state, sums)
