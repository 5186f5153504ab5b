"""What is logged about rollouts, and when a run has lost its format."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import voting
from grm_jax.stages.grpo.rollout import Rollout, RolloutGroup
from grm_jax.training.metric_writer import MetricWriter


def rollout_metrics(rolled: Rollout) -> dict[str, float]:
  """Means over all generations that were drawn, by metric name.

  no_spread is the share of groups whose rewards are all the same; of groups
  that were drawn again as well, and so are all other figures.
  first_position is the share of clear winners that were shown first.
  """
  groups = rolled.all_groups
  verdicts = collections.Counter(x for g in groups for x in g.verdicts)
  total = max(1, verdicts.total())
  items = [x for g in groups for x in g.generations]
  shown = [x for g in groups for x in _first_wins(g)]
  found = {
    'reward': _mean([float(x) for g in groups for x in g.rewards]),
    'accuracy': verdicts['correct'] / total,
    'parse_failures': verdicts['parse_failure'] / total,
    'truncated': verdicts['truncated'] / total,
    'no_spread': _mean([not g.spread for g in groups]),
    'tokens': _mean([len(x.tokens) for x in items]),
    'groups': float(len(groups)),
    'faults': float(rolled.faults),
  }
  if shown:
    found['first_position'] = _mean(shown)
  return {f'rollout/{name}': value for name, value in found.items()}


def throughput(
  rolled: Rollout, times: Mapping[str, float], passes: int
) -> dict[str, float]:
  """Tokens per second of each part of a step.

  Args:
    rolled: the rollout.
    times: seconds by name, time/PART as Clock has them.
    passes: times that the rollout was learnt from.

  Returns:
    PART/tokens_per_second: in the part rollout of tokens drawn, in the others
    of those of prompts and generations that went through the network. A part
    that there was not is left out.
  """
  drawn = sum(_tokens(group) for group in rolled.all_groups)
  read = sum(len(group.prompt) + _tokens(group) for group in rolled.groups)
  counts = {
    'rollout': drawn,
    'reference': read,
    'old': read,
    'update': passes * read,
  }
  return {
    f'{part}/tokens_per_second': count / times[f'time/{part}']
    for part, count in counts.items()
    if times.get(f'time/{part}')
  }


def scores(rolled: Rollout) -> np.ndarray:
  """All scores that were given, for a histogram; there may be none."""
  some = [s for g in rolled.all_groups for own in g.scores if own for s in own]
  return np.array(some, np.int32)


def lengths(rolled: Rollout) -> np.ndarray:
  """Of all generations, for a histogram."""
  groups = rolled.all_groups
  return np.array([len(x.tokens) for g in groups for x in g.generations])


def log_samples(
  writer: MetricWriter, step: int, rolled: Rollout, count: int
) -> None:
  """Histograms, and some generations as text, in TensorBoard."""
  writer.histogram(step, 'rollout/lengths', lengths(rolled))
  given = scores(rolled)
  if given.size:  # of nothing there is no histogram
    writer.histogram(step, 'rollout/scores', given)
  for i, text in enumerate(texts(rolled.groups, count)):
    writer.text(step, f'generations/{i}', text)


def texts(groups: Sequence[RolloutGroup], count: int) -> list[str]:
  """Some whole generations with what they are about, for a person."""
  found = []
  for group in groups[:count]:
    example, item = group.visit.example, group.generations[0]
    responses = [
      f'[{place}] {example.responses[index]}'
      for place, index in enumerate(group.visit.order, 1)
    ]
    found.append(
      '\n'.join(
        [
          f'{example.id}: {group.verdicts[0]}, reward {group.rewards[0]:+g}',
          example.query[-1].text,
          *responses,
          '---',
          item.text,
        ]
      )
    )
  return found


@dataclasses.dataclass
class ParseFailureStop:
  """Ends a run whose generations no longer parse.

  Attributes:
    most: highest share of parse failures that is fine.
    patience: evaluations in a row above it that end the run; 0 is off.
    above: how many there were in a row; 0 after `see` has ended the run, so
      that one that goes on with other settings has as many again.
    key: config key of these settings, for messages; not stored.
  """

  most: float
  patience: int
  above: int = 0
  key: dataclasses.InitVar[str] = 'config.evaluation'

  def __post_init__(self, key):
    if not 0 <= self.most <= 1:
      raise UserError(f'{key}.most_failures is {self.most}; it is a share')
    if self.patience < 0:
      raise UserError(f'{key}.patience is {self.patience}; 0 is off')

  def see(self, failures: float) -> str:
    """What to tell if the run should end now, else ''."""
    self.above = self.above + 1 if failures > self.most else 0
    if not self.patience or self.above < self.patience:
      return ''
    count, self.above = self.above, 0
    return (
      f'{failures:.0%} of held-out generations do not parse, above '
      f'config.evaluation.max_parse_failure_rate={self.most:g} for {count} '
      'evaluations: the format is being lost. Raise '
      'config.loss.kl_coef, or lower config.optimizer.learning_rate'
    )


def _first_wins(group: RolloutGroup) -> list[bool]:
  """Of each generation with a clear winner, whether it was shown first."""
  found = []
  if len(group.visit.order) == 1:
    return found
  for own in group.scores:
    top = voting.winners(own) if own else ()
    if len(top) == 1:
      found.append(group.visit.order[0] == top[0])
  return found


def _tokens(group: RolloutGroup) -> int:
  return sum(len(x.tokens) for x in group.generations)


def _mean(values) -> float:
  return sum(values) / len(values) if values else 0.0
