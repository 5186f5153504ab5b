"""Reference and old log-probabilities, and the updates on a rollout."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.stages.grpo.collate import Minibatches
from grm_jax.training import grpo_loss
from grm_jax.training.grpo_loss import GRPOLossConfig
from grm_jax.training.optimizer import Optimizer
from grm_jax.training.reference_policy import ReferencePolicy
from grm_jax.training.train_state import TrainState
from grm_jax.training.train_step import TrainStep

Metrics = Mapping[str, Any]


def make_loss_config(config: ConfigDict, key: str = 'config') -> GRPOLossConfig:
  """Returns the GRPOLossConfig of `config.loss`.

  Args:
    config: config of the stage.
    key: config key of `config`, for messages.

  Raises:
    UserError: a value is wrong.
  """
  settings = dict(config.loss)
  del settings['normalize_by_std']  # belongs to the advantages
  return GRPOLossConfig(
    **settings,
    max_tokens=max(config.batch.generation_buckets),
    key=f'{key}.loss',
  )


def make_train_step(
  config: ConfigDict, model: Transformer, optimizer: Optimizer
) -> TrainStep:
  """Returns an update by the GRPO loss."""
  loss_config = make_loss_config(config)
  loss = functools.partial(grpo_loss.grpo_loss, model, loss_config)
  return TrainStep(model, optimizer, loss)


def add_reference_logps(
  reference: ReferencePolicy, minibatches: Minibatches
) -> Minibatches:
  """Adds the reference policy's log-probabilities, and waits for them."""
  # One call for all: an offloaded reference comes to the devices once.
  logps = iter(
    reference.logps([x.batch for micro in minibatches for x in micro])
  )
  with_logps = [
    [dataclasses.replace(x, ref_logps=next(logps)) for x in micro]
    for micro in minibatches
  ]
  return jax.block_until_ready(with_logps)


def add_old_logps(
  logps: Callable[[dict, Batch], jax.Array],
  params: dict,
  minibatches: Minibatches,
) -> Minibatches:
  """Adds log-probabilities under the policy that sampled; waits for them.

  Only several updates on a rollout need them. In a single update the policy is
  the one that sampled, and its ratio is 1.

  Args:
    logps: log-probabilities of a batch's generations.
    params: parameters that sampled the rollout.
    minibatches: the rollout.
  """
  with_logps = [
    [dataclasses.replace(x, old_logps=logps(params, x.batch)) for x in micro]
    for micro in minibatches
  ]
  return jax.block_until_ready(with_logps)


def update_policy(
  train_step: TrainStep,
  state: TrainState,
  minibatches: Minibatches,
  num_iterations: int,
  frozen: dict | None = None,
) -> tuple[TrainState, Metrics]:
  """Makes all updates on a rollout; `state` is donated.

  Args:
    train_step: one update.
    state: state before the first update.
    minibatches: one update for each.
    num_iterations: passes over the minibatches.
    frozen: the base of a model with an adapter.

  Returns:
    The new state, and the metrics of all updates; see `mean_metrics`.
  """
  metrics = []
  for micro_batches in minibatches * num_iterations:
    state, update_metrics = train_step(state, micro_batches, frozen)
    metrics.append(update_metrics)
  return state, mean_metrics(jax.device_get(metrics))


def mean_metrics(metrics: Sequence[Metrics]) -> Metrics:
  """Returns means over updates; maxima for metrics named *_max."""
  return {
    name: (np.max if name.endswith('_max') else np.mean)(
      [update[name] for update in metrics]
    )
    for name in metrics[0]
  }
