"""Losses of models with a scalar head, by values that are known to be right.

A row is a generation of a prompt. Its value is a logit: how likely the row is
what its label says (`bce_loss`), or by how much it is better than the others of
its prompt (`bradley_terry_loss`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.training.train_step import AuxMetrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardBatch:
  """Prompts with generations, and what is known of each.

  Attributes:
    batch: P prompts, R generations of each.
    labels: float32 [P, R], 0 or 1.
    weights: float32 [P, R], how much a row counts; 0 for padding. They should
      add up to 1 or more in any batch, since no update divides by less.
  """

  batch: Batch
  labels: jax.Array
  weights: jax.Array


Sums = tuple[jax.Array, jax.Array, AuxMetrics]


def bce_loss(model: Transformer, params: dict, batch: RewardBatch) -> Sums:
  """Binary cross-entropy of the values: -log sigmoid(v), or of -v for label 0.

  The meta RM of arXiv 2504.02495, and PairRM's loss (arXiv 2306.02561) where
  a row is an ordered pair.

  Args:
    model: with a scalar head.
    params: its parameters.
    batch: labels may be of any number of rows of a prompt.

  Returns:
    The weighted sum over rows, the sum of the weights, and as means: accuracy
    (value above 0 or not, weighted), right_value and wrong_value (of the rows
    with label 1 and 0, all alike).

  Raises:
    ValueError: labels or weights of another shape or dtype.
  """
  _check(batch)
  values = logprobs.values(model, params, batch.batch)
  losses = optax.sigmoid_binary_cross_entropy(values, batch.labels)
  total = jnp.sum(batch.weights)
  hits = (values > 0) == (batch.labels > 0.5)
  right = jnp.where(batch.weights > 0, batch.labels, 0.0)
  wrong = jnp.where(batch.weights > 0, 1.0 - batch.labels, 0.0)
  extras = AuxMetrics(
    means={
      'accuracy': (jnp.sum(batch.weights * hits), total),
      'right_value': _sum_and_count(values, right),
      'wrong_value': _sum_and_count(values, wrong),
    }
  )
  return jnp.sum(batch.weights * losses), total, extras


def bradley_terry_loss(
  model: Transformer, params: dict, batch: RewardBatch
) -> Sums:
  """-log sigmoid(v_best - v_other), of each other row of a prompt.

  Bradley and Terry (1952), as in Ouyang et al. (arXiv 2203.02155), who average
  over the pairs of a prompt: give each other row the weight 1 / (n - 1).

  Args:
    model: with a scalar head.
    params: its parameters.
    batch: a prompt has one row of label 1, the best, or no row at all; the
      weight of the best is not looked at.

  Returns:
    The weighted sum over the other rows, the sum of their weights, and as
    means: accuracy (of pairs, weighted), right_value and wrong_value (of the
    best rows and the others, all alike).

  Raises:
    ValueError: labels or weights of another shape or dtype.
  """
  _check(batch)
  values = logprobs.values(model, params, batch.batch)
  best = jnp.sum(values * batch.labels, axis=1, keepdims=True)
  weights = batch.weights * (1.0 - batch.labels)
  margins = best - values
  total = jnp.sum(weights)
  others = jnp.where(weights > 0, 1.0, 0.0)
  extras = AuxMetrics(
    means={
      'accuracy': (jnp.sum(weights * (margins > 0)), total),
      'right_value': _sum_and_count(values, batch.labels),
      'wrong_value': _sum_and_count(values, others),
    }
  )
  return -jnp.sum(weights * jax.nn.log_sigmoid(margins)), total, extras


def _sum_and_count(values, chosen):
  return jnp.sum(values * chosen), jnp.sum(chosen)


def _check(batch):
  if batch.batch.generations is None:
    raise ValueError('a ScalarBatch needs generations, which have the values')
  shape = batch.batch.generation_lengths.shape
  for name, x in (('labels', batch.labels), ('weights', batch.weights)):
    if x.shape != shape or x.dtype != jnp.float32:
      raise ValueError(
        f'{name} are {x.dtype} {x.shape}, expected float32 {shape}'
      )
