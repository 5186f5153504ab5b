"""What a user gets of an example that was judged: votes, scores, texts."""

import dataclasses
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import judgement, response_order
from grm_jax.judgement import voting as voting_module
from grm_jax.judgement.judgement import JudgedExample

# The last two need a meta RM.
KINDS = ('sum', 'mean', 'majority', 'guided', 'best')
_BY_META = ('guided', 'best')


@dataclasses.dataclass(frozen=True)
class VoteConfig:
  """How the scores of k samples become a vote.

  Attributes:
    kind: one of KINDS, see judgement/voting.py.
    k_meta: samples that `guided` keeps; 0 for half of them.
  """

  kind: str = 'sum'
  k_meta: int = 0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(
        f'config.vote is {self.kind!r}; it can be {", ".join(KINDS)}'
      )
    if self.k_meta < 0:
      raise UserError(f'config.k_meta is {self.k_meta}; 0 is half of k')

  @property
  def needs_meta(self) -> bool:
    return self.kind in _BY_META


def to_row(
  judged: JudgedExample, voting: VoteConfig, seed: int
) -> dict[str, Any]:
  """What a user gets of an example, as JSON values.

  Args:
    judged: the example and its samples.
    voting: how they vote.
    seed: of the draw between winners.

  Returns:
    `verdict` with {samples}.
  """
  samples = [judgement.to_row(sample) for sample in judged.samples]
  return verdict(judged, voting, seed) | {'samples': samples}


def verdict(
  judged: JudgedExample, voting: VoteConfig, seed: int
) -> dict[str, Any]:
  """What comes of an example's samples, as JSON values; see `report`.

  Returns:
    {id, votes, best, winners, failures}: votes are None if no sample parsed;
    best is one of the winners, picked by the id among several; failures counts
    samples that did not parse.
  """
  example = judged.example
  found = combine_votes(judged, voting)
  winners = () if found is None else voting_module.winners(found)
  # Not the first of them: that would favour a place.
  draw = response_order.orders(
    'random', max(1, len(winners)), 1, seed, example.id
  )
  return {
    'id': example.id,
    'votes': found,
    'best': winners[draw[0][0]] if winners else None,
    'winners': winners,
    'failures': sum(x.scores is None for x in judged.samples),
  }


def combine_votes(
  judged: JudgedExample, voting: VoteConfig
) -> tuple[float, ...] | None:
  """The votes of an example's samples; None if none parsed."""
  n = len(judged.example.responses)
  parsed = [judged.samples[i].scores for i in counted(judged, voting)]
  # With a meta RM: the sum over those that it picked.
  plain = {
    'mean': voting_module.mean_scores,
    'majority': voting_module.majority,
  }
  return plain.get(voting.kind, voting_module.sum_scores)(parsed, n)


def counted(judged: JudgedExample, voting: VoteConfig) -> tuple[int, ...]:
  """The samples whose scores are in the votes, ascending."""
  parsed = [sample.scores for sample in judged.samples]
  if not voting.needs_meta:
    return tuple(i for i, scores in enumerate(parsed) if scores is not None)
  metas = [sample.meta for sample in judged.samples]
  k_meta = 1 if voting.kind == 'best' else voting.k_meta or None
  n = len(judged.example.responses)
  return tuple(sorted(voting_module.top_by_meta(parsed, metas, n, k_meta)))
