"""Builds the arrays of an update from groups: minibatches of micro-batches."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from grm_jax.data import global_arrays
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.model.batch import Batch
from grm_jax.sharding.rules import ShardingLayout
from grm_jax.stages.grpo.rollout import RolloutGroup
from grm_jax.training.grpo_loss import PolicyBatch

Minibatches = list[list[PolicyBatch]]  # [minibatch][micro-batch]


def make_minibatches(
  groups: Sequence[RolloutGroup],
  advantages: np.ndarray,
  *,
  num_minibatches: int,
  micro_batch_prompts: int,
  batch_shape: BatchShape,
  layout: ShardingLayout,
) -> Minibatches:
  """Returns the batches of a rollout on the devices.

  Args:
    groups: groups of a rollout, the same on all processes.
    advantages: float32 [groups, R].
    num_minibatches: number of updates that the rollout is split into.
    micro_batch_prompts: P, groups of a micro-batch.
    batch_shape: padded lengths.
    layout: layout of training.
  """
  local_indices = global_arrays.local_prompt_indices(
    layout, micro_batch_prompts
  )

  def to_devices(indices: Sequence[int]) -> PolicyBatch:
    """Returns the padded micro-batch of these groups as global arrays."""
    padded = pad_groups(
      [groups[i] for i in indices],
      advantages[list(indices)],
      micro_batch_prompts,
      batch_shape,
    )
    local = jax.tree.map(lambda x: x[local_indices], padded)
    return global_arrays.make_global_arrays(local, layout, micro_batch_prompts)

  return [
    [to_devices(indices) for indices in minibatch]
    for minibatch in split_groups(groups, num_minibatches, micro_batch_prompts)
  ]


def split_groups(
  groups: Sequence[RolloutGroup], num_minibatches: int, micro_batch_prompts: int
) -> list[list[list[int]]]:
  """Assigns groups to micro-batches.

  Args:
    groups: groups of a rollout.
    num_minibatches: groups are dealt to the minibatches in turn, in the order
      in which their prompts were taken.
    micro_batch_prompts: groups of a micro-batch; the last may have fewer.

  Returns:
    [minibatch][micro-batch] lists of indices into `groups`. Within a minibatch
    groups are sorted by length, because a micro-batch is padded to its longest
    sequence.
  """

  def lengths(index: int) -> tuple[int, int]:
    return _lengths(groups[index])

  dealt = [
    sorted(range(start, len(groups), num_minibatches), key=lengths)
    for start in range(num_minibatches)
  ]
  return [
    [
      indices[i : i + micro_batch_prompts]
      for i in range(0, len(indices), micro_batch_prompts)
    ]
    for indices in dealt
  ]


def _lengths(group: RolloutGroup) -> tuple[int, int]:
  """Returns the lengths of the prompt and of the longest generation."""
  return len(group.prompt), max(len(x.tokens) for x in group.generations)


def pad_groups(
  groups: Sequence[RolloutGroup],
  advantages: np.ndarray,
  num_prompts: int,
  batch_shape: BatchShape,
) -> PolicyBatch:
  """Returns a micro-batch of NumPy arrays; padding prompts have weight 0.

  Args:
    groups: 1 to P groups with R generations each.
    advantages: float32 [groups, R].
    num_prompts: P.
    batch_shape: prompts and generations are padded to its smallest bucket
      that holds the longest one.

  Returns:
    The batch; ref_logps and old_logps are None.
  """
  p, r = num_prompts, len(groups[0].generations)
  prompt_length, generation_length = map(
    max, zip(*map(_lengths, groups), strict=True)
  )
  s = _smallest_bucket(batch_shape.prompt_buckets, prompt_length)
  t = _smallest_bucket(batch_shape.generation_buckets, generation_length)
  # NumPy arrays; jax.Array is the declared type of the fields that they fill.
  prompts: Any = np.zeros((p, s), np.int32)
  # A padding prompt has length 1: attention needs at least one key.
  prompt_lengths: Any = np.ones(p, np.int32)
  generations: Any = np.zeros((p, r, t), np.int32)
  generation_lengths: Any = np.zeros((p, r), np.int32)
  padded_advantages: Any = np.zeros((p, r), np.float32)
  weights: Any = np.zeros((p, r), np.float32)
  rollout_logps: Any = np.zeros((p, r, t), np.float32)
  padded_advantages[: len(groups)] = advantages
  weights[: len(groups)] = 1.0
  for i, group in enumerate(groups):
    prompts[i, : len(group.prompt)] = group.prompt
    prompt_lengths[i] = len(group.prompt)
    for j, generation in enumerate(group.generations):
      length = len(generation.tokens)
      generations[i, j, :length] = generation.tokens
      generation_lengths[i, j] = length
      rollout_logps[i, j, :length] = generation.model_logps
  return PolicyBatch(
    batch=Batch(prompts, prompt_lengths, generations, generation_lengths),
    advantages=padded_advantages,
    weights=weights,
    rollout_logps=rollout_logps,
  )


def _smallest_bucket(buckets: Sequence[int], length: int) -> int:
  return next(bucket for bucket in buckets if bucket >= length)
