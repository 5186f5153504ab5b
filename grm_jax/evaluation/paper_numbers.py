"""Published scores of DeepSeek-GRM-27B (arXiv 2504.02495, v3), by suite.

Tables 6 (RewardBench, PPE, RMB) and 13 (ReaLMistake, ROC-AUC), and the lengths
of Figure 7. The paper tested no other suite. MetaRM@k selects half of k.
"""

import dataclasses
from collections.abc import Collection, Mapping

_SOURCE = 'DeepSeek-GRM-27B, arXiv 2504.02495'


@dataclasses.dataclass(frozen=True)
class PaperNumbers:
  """Published scores by k.

  Attributes:
    label: source of the numbers.
    greedy: score of greedy decoding.
    voting: Voting@k by k.
    meta: MetaRM@k by k.
  """

  label: str
  greedy: float
  voting: Mapping[int, float]
  meta: Mapping[int, float]


_REWARDBENCH = PaperNumbers(
  f'{_SOURCE}, RewardBench',
  greedy=0.860,
  voting={1: 0.852, 8: 0.877, 32: 0.885},
  meta={8: 0.898, 32: 0.904},
)
_PPE_PREFERENCE = PaperNumbers(
  f'{_SOURCE}, PPE Preference',
  greedy=0.647,
  voting={1: 0.624, 8: 0.649, 32: 0.653},
  meta={8: 0.664, 32: 0.672},
)
_PPE_CORRECTNESS = PaperNumbers(
  f'{_SOURCE}, PPE Correctness',
  greedy=0.598,
  voting={1: 0.595, 8: 0.603, 32: 0.604},
  meta={8: 0.630, 32: 0.632},
)
# The score of the suite is the mean of its two sections.
_PPE = PaperNumbers(
  f'{_SOURCE}, mean of PPE Preference and PPE Correctness',
  greedy=0.6225,
  voting={1: 0.6095, 8: 0.626, 32: 0.6285},
  meta={8: 0.647, 32: 0.652},
)
_RMB = PaperNumbers(
  f'{_SOURCE}, RMB',
  greedy=0.690,
  voting={1: 0.644, 8: 0.695, 32: 0.697},
  meta={8: 0.688, 32: 0.703},
)
_REALMISTAKE = PaperNumbers(
  f'{_SOURCE}, ReaLMistake', greedy=0.722, voting={8: 0.744}, meta={}
)
# Suite -> mean length of the generations of each section, in Gemma-2 tokens.
LENGTHS = {
  'rewardbench': {
    'Chat': 265,
    'Chat Hard': 259,
    'Safety': 218,
    'Reasoning': 376,
  },
}
LENGTHS_LABEL = f'{_SOURCE}, Figure 7'
# Suite -> (its sections, the numbers of a run that has all of them).
_OF_SUITES: dict[str, list[tuple[set[str], PaperNumbers]]] = {
  'rewardbench': [({'Chat', 'Chat Hard', 'Safety', 'Reasoning'}, _REWARDBENCH)],
  'ppe': [
    ({'preference', 'correctness'}, _PPE),
    ({'preference'}, _PPE_PREFERENCE),
    ({'correctness'}, _PPE_CORRECTNESS),
  ],
  'rmb': [
    (
      {
        f'{goal} {kind}'
        for goal in ('Helpfulness', 'Harmlessness')
        for kind in ('Pairwise_set', 'BoN_set')
      },
      _RMB,
    )
  ],
}


def of_suite(suite: str, sections: Collection[str]) -> PaperNumbers | None:
  """Returns the published numbers to compare a score with, or None.

  Args:
    suite: name of the suite.
    sections: sections of which the score is the mean. A part of a suite is
      comparable with nothing that was published.
  """
  if suite == 'realmistake':
    return _REALMISTAKE
  published = _OF_SUITES.get(suite, [])
  return next((x for names, x in published if names == set(sections)), None)
