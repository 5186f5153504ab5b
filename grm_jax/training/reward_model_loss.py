"""Losses of models with a scalar head, trained on labelled generations.

A model reads a prompt with a generation and returns a value. The value is a
logit: the probability of label 1 (`bce_loss`), or of being preferred to another
generation of the same prompt (`bradley_terry_loss`).

Letters: P prompts, R generations per prompt.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.training.train_step import AuxMetrics

# Numerator, denominator and metrics of a batch, see train_step.Loss.
LossSums = tuple[jax.Array, jax.Array, AuxMetrics]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardBatch:
  """Prompts with labelled generations.

  Attributes:
    batch: P prompts with R generations each.
    labels: float32 [P, R], 0 or 1.
    weights: float32 [P, R], 0 for padding. The weights of a batch should sum to
      1 or more, since an update divides by at least 1.
  """

  batch: Batch
  labels: jax.Array
  weights: jax.Array


def bce_loss(model: Transformer, params: dict, batch: RewardBatch) -> LossSums:
  """Binary cross-entropy: -log sigmoid(v) for label 1, of -v for label 0.

  The loss of the meta RM (arXiv 2504.02495), and of PairRM (arXiv 2306.02561)
  if a generation is an ordered pair of responses.

  Args:
    model: network with a scalar head.
    params: its parameters.
    batch: any number of generations of a prompt may have label 1.

  Returns:
    (weighted sum of losses, sum of weights, metrics). Means: accuracy (of the
    sign of the value; weighted), right_value and wrong_value (of generations
    with label 1 and 0; not weighted).

  Raises:
    ValueError: labels or weights of another shape or dtype; no generations.
  """
  _check(batch)
  values = logprobs.values(model, params, batch.batch)  # [P, R]
  losses = optax.sigmoid_binary_cross_entropy(values, batch.labels)
  total_weight = jnp.sum(batch.weights)
  is_correct = (values > 0) == (batch.labels > 0.5)
  right = jnp.where(batch.weights > 0, batch.labels, 0.0)
  wrong = jnp.where(batch.weights > 0, 1.0 - batch.labels, 0.0)
  metrics = AuxMetrics(
    means={
      'accuracy': (jnp.sum(batch.weights * is_correct), total_weight),
      'right_value': _sum_and_count(values, right),
      'wrong_value': _sum_and_count(values, wrong),
    }
  )
  return jnp.sum(batch.weights * losses), total_weight, metrics


def bradley_terry_loss(
  model: Transformer, params: dict, batch: RewardBatch
) -> LossSums:
  """-log sigmoid(v_best - v) of every generation but the best of its prompt.

  Bradley and Terry (1952), as in Ouyang et al. (arXiv 2203.02155), who average
  over the pairs of a prompt: weigh each of its n - 1 pairs by 1 / (n - 1).

  Args:
    model: network with a scalar head.
    params: its parameters.
    batch: a prompt has one generation with label 1, the best, or only padding.
      The weight of the best is ignored.

  Returns:
    (weighted sum of losses, sum of the weights of the pairs, metrics). Means:
    accuracy (of pairs; weighted), right_value and wrong_value (of the best
    generations and the rest; not weighted).

  Raises:
    ValueError: labels or weights of another shape or dtype; no generations.
  """
  _check(batch)
  values = logprobs.values(model, params, batch.batch)  # [P, R]
  best = jnp.sum(values * batch.labels, axis=1, keepdims=True)  # [P, 1]
  weights = batch.weights * (1.0 - batch.labels)
  margins = best - values
  total_weight = jnp.sum(weights)
  wrong = jnp.where(weights > 0, 1.0, 0.0)
  metrics = AuxMetrics(
    means={
      'accuracy': (jnp.sum(weights * (margins > 0)), total_weight),
      'right_value': _sum_and_count(values, batch.labels),
      'wrong_value': _sum_and_count(values, wrong),
    }
  )
  return (
    -jnp.sum(weights * jax.nn.log_sigmoid(margins)),
    total_weight,
    metrics,
  )


def _sum_and_count(
  values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return jnp.sum(values * mask), jnp.sum(mask)


def _check(batch: RewardBatch) -> None:
  lengths = batch.batch.generation_lengths
  if batch.batch.generations is None or lengths is None:
    raise ValueError('a RewardBatch needs generations; the loss scores them')
  for name, x in (('labels', batch.labels), ('weights', batch.weights)):
    if x.shape != lengths.shape or x.dtype != jnp.float32:
      raise ValueError(
        f'{name} are {x.dtype} {x.shape}, expected float32 {lengths.shape}'
      )
