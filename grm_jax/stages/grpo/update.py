"""What a rollout changes: reference log-probabilities, then updates.

  groups -> minibatches of micro-batches (advantages) -> reference log-probs
         -> old log-probs, if there are several updates -> Steps

With one update per rollout the policy that drew is the policy that learns, its
ratio is 1 and no old log-probabilities are computed. With several, the same
program computes them once, before the first.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from grm_jax.data import global_arrays, tokenized_example
from grm_jax.data.collate import BatchInfo
from grm_jax.model.transformer import Transformer
from grm_jax.stages.grpo import collate as grpo_collate
from grm_jax.stages.grpo.rollout import RolloutGroup
from grm_jax.training import grpo_loss
from grm_jax.training.grpo_loss import GRPOLossConfig, PolicyBatch
from grm_jax.training.optimizer import Optimizer
from grm_jax.training.reference_policy import ReferencePolicy
from grm_jax.training.train_state import TrainState
from grm_jax.training.train_step import TrainStep

Metrics = Mapping[str, Any]
Parts = list[list[PolicyBatch]]  # [minibatch][micro-batch]


def objective_of(config: ConfigDict, key: str = 'config') -> GRPOLossConfig:
  """The Objective of `config.loss`; UserError for a wrong value.

  Args:
    config: of the stage.
    key: config key of `config`, for messages.
  """
  # Advantages, not the objective, are divided by the deviation.
  own = {
    key: x for key, x in dict(config.loss).items() if key != 'normalize_by_std'
  }
  return GRPOLossConfig(
    **own,
    max_tokens=max(config.batch.generation_buckets),
    key=f'{key}.objective',
  )


class PolicyUpdater:
  """The programs between a rollout and the next parameters."""

  def __init__(
    self,
    config: ConfigDict,
    model: Transformer,
    optimizer: Optimizer,
    reference: ReferencePolicy | None,
  ):
    """`reference` is None where the objective has no KL term."""
    b = config.batch
    self._layout, self._prompts = model.layout, b.micro_batch_prompts
    self._limits = tokenized_example.limits(
      b.prompt_buckets, b.generation_buckets, config.group_size
    )
    self._minibatches, self._passes = (
      config.num_minibatches,
      config.num_iterations,
    )
    self._std = config.loss.normalize_by_std
    self._rows = global_arrays.process_rows(model.layout, b.micro_batch_prompts)
    self.reference = reference
    loss = functools.partial(grpo_loss.grpo_loss, model, objective_of(config))
    self._steps = TrainStep(model, optimizer, loss)
    self._logps = jax.jit(functools.partial(grpo_loss.logps, model))

  @property
  def each(self) -> int:
    """Updates on a rollout."""
    return self._minibatches * self._passes

  def batches(self, groups: Sequence[RolloutGroup]) -> Parts:
    """A rollout with its advantages, on the devices."""
    parts = grpo_collate.divide(groups, self._prompts, self._minibatches)
    return [[self._place(micro) for micro in part] for part in parts]

  def with_reference(self, parts: Parts) -> Parts:
    """With ref_logps, which are waited for."""
    # All at once: a reference on the host comes to the devices once.
    found = iter(
      self.reference.logps([x.batch for part in parts for x in part])
    )
    done = [
      [dataclasses.replace(x, ref_logps=next(found)) for x in part]
      for part in parts
    ]
    return jax.block_until_ready(done)

  def with_old(self, params: dict, parts: Parts) -> Parts:
    """With old_logps, by the parameters that drew; they are waited for."""
    done = [
      [
        dataclasses.replace(x, old_logps=self._logps(params, x.batch))
        for x in part
      ]
      for part in parts
    ]
    return jax.block_until_ready(done)

  def update(
    self, state: TrainState, parts: Parts
  ) -> tuple[TrainState, Metrics]:
    """All updates on a rollout; `state` is used up.

    Returns:
      The next state, and the numbers of all updates as one row: means, and the
      largest of what is a maximum.
    """
    numbers = []
    for part in parts * self._passes:
      state, own = self._steps(state, part)
      numbers.append(own)
    return state, mean(jax.device_get(numbers))

  def _place(self, groups: Sequence[RolloutGroup]) -> PolicyBatch:
    made = grpo_collate.arrays(
      groups,
      prompts=self._prompts,
      buckets=self._limits.buckets,
      sizes=self._limits.sizes,
      std=self._std,
    )
    own = jax.tree.map(lambda x: x[self._rows], made)
    return global_arrays.place(own, self._layout, self._prompts)


def meta(groups: Sequence[RolloutGroup]) -> BatchInfo:
  """Names and lengths of a rollout, for errors and for speed."""
  sizes = [[len(x.tokens) for x in group.generations] for group in groups]
  return BatchInfo(
    ids=tuple(group.visit.example.id for group in groups),
    sources=('rollout',) * len(groups),
    epochs=tuple(group.visit.epoch for group in groups),
    chosen=tuple(tuple(range(len(own))) for own in sizes),
    lengths=tuple(
      (len(group.prompt), tuple(own))
      for group, own in zip(groups, sizes, strict=True)
    ),
    tokens={
      'prompts': sum(len(group.prompt) for group in groups),
      'generations': sum(map(sum, sizes)),
    },
    places={},
  )


def mean(numbers: Sequence[Metrics]) -> Metrics:
  """One row for several updates; the largest of what is a maximum."""
  return {
    name: (np.max if name.endswith('_max') else np.mean)(
      [one[name] for one in numbers]
    )
    for name in numbers[0]
  }
