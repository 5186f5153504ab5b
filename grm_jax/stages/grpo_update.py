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

from grm_jax.data import placing, records
from grm_jax.data.padding import Meta
from grm_jax.model.gemma import Gemma
from grm_jax.stages import grpo_batches
from grm_jax.stages.grpo_rollout import Group
from grm_jax.training import policy
from grm_jax.training.optimizer import Optimizer
from grm_jax.training.policy import Objective, PolicyBatch
from grm_jax.training.reference import Reference
from grm_jax.training.state import TrainState
from grm_jax.training.step import Steps

Metrics = Mapping[str, Any]
Parts = list[list[PolicyBatch]]  # [minibatch][micro-batch]


def objective_of(config: ConfigDict, key: str = 'config') -> Objective:
  """The Objective of `config.objective`; UserError for a wrong value.

  Args:
    config: of the stage.
    key: config key of `config`, for messages.
  """
  # Advantages, not the objective, are divided by the deviation.
  own = {key: x for key, x in dict(config.objective).items() if key != 'std'}
  return Objective(
    **own, max_tokens=max(config.batch.size), key=f'{key}.objective'
  )


class Updater:
  """The programs between a rollout and the next parameters."""

  def __init__(
    self,
    config: ConfigDict,
    model: Gemma,
    optimizer: Optimizer,
    reference: Reference | None,
  ):
    """`reference` is None where the objective has no KL term."""
    b = config.batch
    self._layout, self._prompts = model.layout, b.prompts
    self._limits = records.limits(b.buckets, b.size, config.group_size)
    self._minibatches, self._passes = config.minibatches, config.passes
    self._std = config.objective.std
    self._rows = placing.process_rows(model.layout, b.prompts)
    self.reference = reference
    loss = functools.partial(policy.policy_loss, model, objective_of(config))
    self._steps = Steps(model, optimizer, loss)
    self._logps = jax.jit(functools.partial(policy.logps, model))

  @property
  def each(self) -> int:
    """Updates on a rollout."""
    return self._minibatches * self._passes

  def batches(self, groups: Sequence[Group]) -> Parts:
    """A rollout with its advantages, on the devices."""
    parts = grpo_batches.divide(groups, self._prompts, self._minibatches)
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

  def _place(self, groups: Sequence[Group]) -> PolicyBatch:
    made = grpo_batches.arrays(
      groups,
      prompts=self._prompts,
      buckets=self._limits.buckets,
      sizes=self._limits.sizes,
      std=self._std,
    )
    own = jax.tree.map(lambda x: x[self._rows], made)
    return placing.place(own, self._layout, self._prompts)


def meta(groups: Sequence[Group]) -> Meta:
  """Names and lengths of a rollout, for errors and for speed."""
  sizes = [[len(x.tokens) for x in group.generations] for group in groups]
  return Meta(
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
