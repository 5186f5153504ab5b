"""The verdict on a judged example: votes, winner and parse failures."""

import dataclasses
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import judgement, response_order
from grm_jax.judgement import voting as voting_lib
from grm_jax.judgement.judgement import JudgedExample

# 'guided' and 'best' need a meta RM.
KINDS = ('sum', 'mean', 'majority', 'guided', 'best')
_META_KINDS = ('guided', 'best')


@dataclasses.dataclass(frozen=True)
class VoteConfig:
  """Rule by which the scores of k samples become a vote.

  Attributes:
    kind: one of KINDS, see judgement/voting.py. 'guided' sums the scores of the
      k_meta samples with the highest meta RM scores, 'best' takes those of the
      highest only.
    k_meta: number of samples for 'guided'; 0 means half of k.
  """

  kind: str = 'sum'
  k_meta: int = 0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(
        f'config.vote is {self.kind!r}; it must be one of {", ".join(KINDS)}'
      )
    if self.k_meta < 0:
      raise UserError(
        f'config.k_meta is {self.k_meta}; give a positive number, or 0 for '
        'half of k'
      )

  @property
  def needs_meta(self) -> bool:
    """True if the vote needs scores by a meta RM."""
    return self.kind in _META_KINDS


def resolve_vote(kind: str, k_meta: int, has_meta: bool) -> VoteConfig:
  """Returns how samples vote.

  Args:
    kind: one of KINDS; '' for 'guided' with a meta RM and 'sum' without.
    k_meta: see VoteConfig.
    has_meta: whether a meta RM rates the samples.

  Raises:
    UserError: the vote needs a meta RM, or k_meta has no effect on it.
  """
  vote_config = VoteConfig(kind or ('guided' if has_meta else 'sum'), k_meta)
  if vote_config.needs_meta and not has_meta:
    raise UserError(
      f'config.vote={kind} needs a meta RM; set config.meta_checkpoint'
    )
  if k_meta and not has_meta:
    raise UserError(
      f'config.k_meta={k_meta} is the number of judgements that a meta '
      'RM selects; set config.meta_checkpoint, or set config.k_meta=0'
    )
  if k_meta and vote_config.kind != 'guided':
    raise UserError(
      f'config.k_meta={k_meta} has no effect with config.vote='
      f'{vote_config.kind}; set config.vote=guided, or set config.k_meta=0'
    )
  return vote_config


def to_row(
  judged: JudgedExample, vote_config: VoteConfig, seed: int
) -> dict[str, Any]:
  """Returns an example's verdict with its samples, as JSON values.

  Args:
    judged: the example and its samples.
    vote_config: how they vote.
    seed: seed of the choice among several winners.

  Returns:
    The fields of `verdict`, and samples.
  """
  samples = [judgement.to_row(sample) for sample in judged.samples]
  return verdict(judged, vote_config, seed) | {'samples': samples}


def verdict(
  judged: JudgedExample, vote_config: VoteConfig, seed: int
) -> dict[str, Any]:
  """Returns an example's verdict as JSON values.

  Args:
    judged: see `to_row`.
    vote_config: see `to_row`.
    seed: see `to_row`.

  Returns:
    id; votes, [C] or None if no sample parses; winners, the indices of the
    maximum votes; best, one of the winners or None; failures, the number of
    samples that do not parse.
  """
  example = judged.example
  votes = combine_votes(judged, vote_config)
  winners = () if votes is None else voting_lib.winners(votes)
  # A random winner: the first one would give earlier responses an advantage.
  (permutation,) = response_order.orders(
    'random', max(1, len(winners)), 1, seed, example.id
  )
  return {
    'id': example.stated_id,
    'votes': votes,
    'best': winners[permutation[0]] if winners else None,
    'winners': winners,
    'failures': sum(x.scores is None for x in judged.samples),
  }


def combine_votes(
  judged: JudgedExample, vote_config: VoteConfig
) -> tuple[float, ...] | None:
  """Returns the votes [C] of an example's samples; None if none parses."""
  n = len(judged.example.responses)
  scores = [
    judged.samples[i].scores for i in counted_samples(judged, vote_config)
  ]
  match vote_config.kind:
    case 'mean':
      return voting_lib.mean_scores(scores, n)
    case 'majority':
      return voting_lib.majority(scores, n)
    case _:  # with a meta RM: the sum over the samples that it selects
      return voting_lib.sum_scores(scores, n)


def counted_samples(
  judged: JudgedExample, vote_config: VoteConfig
) -> tuple[int, ...]:
  """Returns the indices of the samples that vote, ascending."""
  samples = judged.samples
  if not vote_config.needs_meta:
    return tuple(i for i, x in enumerate(samples) if x.scores is not None)
  k_meta = 1 if vote_config.kind == 'best' else vote_config.k_meta or None
  top = voting_lib.top_by_meta(
    [x.scores for x in samples],
    [x.meta for x in samples],
    len(judged.example.responses),
    k_meta,
  )
  return tuple(sorted(top))
