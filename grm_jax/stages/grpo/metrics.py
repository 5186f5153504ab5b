"""Metrics, histograms and sample texts of rollouts."""

import collections
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from grm_jax.data.collate import BatchInfo
from grm_jax.judgement import voting
from grm_jax.stages.grpo.rollout import Rollout, RolloutGroup
from grm_jax.training.metric_writer import MetricWriter


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
  """Returns rollout/NAME metrics: means over all sampled generations.

  They include groups that dynamic sampling has replaced.
  frac_groups_zero_std is the fraction of groups whose rewards are equal, and
  first_position_win_rate the fraction of sole winners that stood first in the
  prompt. The latter is missing if there is no sole winner.
  """
  groups = rollout.all_groups
  outcomes = collections.Counter(x for g in groups for x in g.outcomes)
  num_generations = max(1, outcomes.total())
  metrics = {
    'reward': _mean(float(x) for g in groups for x in g.rewards),
    'accuracy': outcomes['correct'] / num_generations,
    'parse_failures': outcomes['parse_failure'] / num_generations,
    'truncated_fraction': _mean(
      x.truncated for g in groups for x in g.judgements
    ),
    'frac_groups_zero_std': _mean(not g.has_spread for g in groups),
    'mean_generation_length': _mean(_generation_lengths(groups)),
    'groups': float(len(groups)),
    'skipped_prompts': float(rollout.skipped_prompts),
  }
  first_wins = [x for g in groups for x in _first_position_wins(g)]
  if first_wins:
    metrics['first_position_win_rate'] = _mean(first_wins)
  return {f'rollout/{name}': value for name, value in metrics.items()}


def _first_position_wins(group: RolloutGroup) -> list[bool]:
  """Returns whether each sole winner stood first in the prompt."""
  order = group.rollout_prompt.order
  if len(order) == 1:
    return []
  wins = []
  for judgement in group.judgements:
    winners = voting.winners(judgement.scores) if judgement.scores else ()
    if len(winners) == 1:
      wins.append(order[0] == winners[0])
  return wins


def throughput(
  rollout: Rollout, times: Mapping[str, float], num_iterations: int
) -> dict[str, float]:
  """Returns PART/tokens_per_second for each part of a step that was done.

  The part `rollout` counts sampled tokens. The other parts count the tokens
  that pass through the network: prompts once per group, and generations.

  Args:
    rollout: the rollout of the step.
    times: seconds, under time/PART, from StepTimer.
    num_iterations: number of passes of the part `update` over the rollout.
  """
  num_sampled = sum(_generation_lengths(rollout.all_groups))
  num_read = sum(_generation_lengths(rollout.groups))
  num_read += sum(len(group.prompt) for group in rollout.groups)
  num_tokens = {
    'rollout': num_sampled,
    'reference': num_read,
    'old_logps': num_read,
    'update': num_iterations * num_read,
  }
  return {
    f'{part}/tokens_per_second': count / times[f'time/{part}']
    for part, count in num_tokens.items()
    if times.get(f'time/{part}')
  }


def batch_info(groups: Sequence[RolloutGroup]) -> BatchInfo:
  """Returns ids and lengths of the groups that an update trains on."""
  lengths = [tuple(_generation_lengths([group])) for group in groups]
  return BatchInfo(
    example_ids=tuple(g.rollout_prompt.example.id for g in groups),
    sources=('rollout',) * len(groups),
    epochs=tuple(g.rollout_prompt.epoch for g in groups),
    generation_indices=tuple(tuple(range(len(x))) for x in lengths),
    token_lengths=tuple(
      (len(group.prompt), generation_lengths)
      for group, generation_lengths in zip(groups, lengths, strict=True)
    ),
    num_tokens={
      'prompts': sum(len(group.prompt) for group in groups),
      'generations': sum(map(sum, lengths)),
    },
    num_positions={},
  )


def log_samples(
  writer: MetricWriter, step: int, rollout: Rollout, num_texts: int
) -> None:
  """Writes histograms and `num_texts` sample texts to TensorBoard."""
  groups = rollout.all_groups
  lengths = np.array(_generation_lengths(groups))
  writer.histogram(step, 'rollout/lengths', lengths)
  scores = [
    score
    for group in groups
    for judgement in group.judgements
    for score in judgement.scores or ()
  ]
  if scores:  # TensorBoard accepts no empty histogram
    writer.histogram(step, 'rollout/scores', np.array(scores, np.int32))
  for i, group in enumerate(rollout.groups[:num_texts]):
    writer.text(step, f'generations/{i}', format_sample(group))


def format_sample(group: RolloutGroup) -> str:
  """Returns the first generation of a group with its example, as text."""
  example, order = group.rollout_prompt.example, group.rollout_prompt.order
  responses = [
    f'[{position}] {example.responses[index]}'
    for position, index in enumerate(order, 1)
  ]
  return '\n'.join(
    [
      f'{example.id}: {group.outcomes[0]}, reward {group.rewards[0]:+g}',
      example.query[-1].text,
      *responses,
      '---',
      group.judgements[0].text,
    ]
  )


def _generation_lengths(groups: Iterable[RolloutGroup]) -> list[int]:
  return [len(x.tokens) for group in groups for x in group.generations]


def _mean(values: Iterable[float]) -> float:
  values = list(values)
  return sum(values) / len(values) if values else 0.0
