"""From groups to the arrays of an update: micro-batches of alike lengths."""

from collections.abc import Sequence

import numpy as np

from grm_jax.model.batch import Batch
from grm_jax.stages.grpo.rollout import RolloutGroup
from grm_jax.training import advantages as advantages_lib
from grm_jax.training.grpo_loss import PolicyBatch


def divide(
  groups: Sequence[RolloutGroup], prompts: int, parts: int
) -> list[list[list[RolloutGroup]]]:
  """Minibatches of micro-batches of groups.

  Args:
    groups: of a rollout.
    prompts: groups of a micro-batch; the last may have fewer.
    parts: minibatches, each of which makes an update. Groups are dealt to
      them in turn, as they were visited.

  Returns:
    [minibatch][micro-batch][group]; in a minibatch groups of alike lengths
    share a micro-batch, since all are padded to the longest.
  """
  dealt = [list(groups[part::parts]) for part in range(parts)]
  for own in dealt:
    own.sort(key=_lengths)
  return [
    [own[i : i + prompts] for i in range(0, len(own), prompts)] for own in dealt
  ]


def _lengths(group: RolloutGroup) -> tuple[int, int]:
  return len(group.prompt), max(len(x.tokens) for x in group.generations)


def arrays(
  groups: Sequence[RolloutGroup],
  *,
  prompts: int,
  buckets: Sequence[int],
  sizes: Sequence[int],
  std: bool,
) -> PolicyBatch:
  """A micro-batch; places without a group weigh nothing.

  Args:
    groups: 1 to P of them, with R generations each.
    prompts: P.
    buckets: ascending lengths that prompts are padded to.
    sizes: ascending lengths that generations are padded to.
    std: whether advantages are divided by the group's deviation.

  Returns:
    NumPy arrays; ref_logps and old_logps are None.
  """
  rows = len(groups[0].generations)
  longest = map(max, zip(*map(_lengths, groups), strict=True))
  s, t = (
    next(size for size in among if size >= length)
    for among, length in zip((buckets, sizes), longest, strict=True)
  )
  batch = Batch(
    prompts=np.zeros((prompts, s), np.int32),
    prompt_lengths=np.ones(prompts, np.int32),
    generations=np.zeros((prompts, rows, t), np.int32),
    generation_lengths=np.zeros((prompts, rows), np.int32),
  )
  drawn = np.zeros((prompts, rows, t), np.float32)
  weights = np.zeros((prompts, rows), np.float32)
  earned = np.zeros((prompts, rows), np.float32)
  for p, group in enumerate(groups):
    batch.prompts[p, : len(group.prompt)] = group.prompt
    batch.prompt_lengths[p] = len(group.prompt)
    for r, item in enumerate(group.generations):
      n = len(item.tokens)
      batch.generations[p, r, :n] = item.tokens
      batch.generation_lengths[p, r] = n
      drawn[p, r, :n] = item.model_logps
    weights[p], earned[p] = 1.0, group.rewards
  found = advantages_lib.advantages(earned, std=std)
  return PolicyBatch(
    batch=batch,
    advantages=np.where(weights > 0, found, 0.0).astype(np.float32),
    weights=weights,
    rollout_logps=drawn,
    ref_logps=None,
    old_logps=None,
  )
