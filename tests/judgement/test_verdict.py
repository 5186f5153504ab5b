"""Verdicts: votes, winners and parse failures of an example."""

import json

import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import verdict
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judgement.verdict import VoteConfig
from tests.messages import naming

SCORES = [(9, 1), None, (1, 5), (2, 3)]
METAS = [0.2, None, 0.9, 0.5]


def judged(scores=SCORES, metas=METAS, id='a'):
  example = JudgingExample(id, (Turn('user', 'Why?'),), ('x', 'y'))
  samples = tuple(
    Judgement((0, 1), 'text', 3, 'stop', x, meta)
    for x, meta in zip(scores, metas, strict=True)
  )
  return JudgedExample(example, samples)


@pytest.mark.parametrize(
  'vote_config, counted, votes, winners',
  [
    (VoteConfig(), (0, 2, 3), (12, 9), (0,)),
    (VoteConfig('mean'), (0, 2, 3), (4.0, 3.0), (0,)),
    (VoteConfig('majority'), (0, 2, 3), (0.0, 1.0), (1,)),
    (VoteConfig('guided'), (2, 3), (3, 8), (1,)),
    (VoteConfig('guided', k_meta=3), (0, 2, 3), (12, 9), (0,)),
    (VoteConfig('best'), (2,), (1, 5), (1,)),
  ],
)
def test_verdict(vote_config, counted, votes, winners):
  assert verdict.counted_samples(judged(), vote_config) == counted
  assert verdict.combine_votes(judged(), vote_config) == votes
  assert verdict.verdict(judged(), vote_config, 0) == {
    'id': 'a',
    'votes': votes,
    'best': winners[0],
    'winners': winners,
    'failures': 1,
  }


def test_row_has_the_verdict_and_the_samples():
  row = verdict.to_row(judged(), VoteConfig(), 0)
  stored = json.loads(json.dumps(row))
  assert stored['votes'] == [12, 9]
  assert [x['scores'] for x in stored['samples']] == [
    [9, 1],
    None,
    [1, 5],
    [2, 3],
  ]
  assert [x['meta'] for x in stored['samples']] == METAS


def test_no_sample_parses():
  result = verdict.verdict(judged([None, None], [0.1, 0.2]), VoteConfig(), 0)
  assert (result['votes'], result['best']) == (None, None)
  assert (result['winners'], result['failures']) == ((), 2)


def test_one_of_several_winners_is_chosen_by_id_and_seed():
  def choices(seed):
    examples = [judged([(5, 5)], [None], str(i)) for i in range(400)]
    return [verdict.verdict(x, VoteConfig(), seed)['best'] for x in examples]

  assert 140 < sum(choices(0)) < 260  # mean 200, standard deviation 10
  assert choices(0) == choices(0)
  assert choices(0) != choices(1)


@pytest.mark.parametrize(
  'settings, words',
  [
    (('median',), ('config.vote', 'median', *verdict.KINDS)),
    (('guided', -1), ('config.k_meta', -1)),
  ],
)
def test_invalid_settings(settings, words):
  with pytest.raises(UserError, match=naming(*words)):
    VoteConfig(*settings)


@pytest.mark.parametrize(
  'kind, k_meta, has_meta, expected',
  [
    ('', 0, False, VoteConfig('sum')),
    ('', 0, True, VoteConfig('guided')),
    ('', 3, True, VoteConfig('guided', 3)),
    ('sum', 0, True, VoteConfig('sum')),
    ('best', 0, True, VoteConfig('best')),
  ],
)
def test_a_meta_rm_is_used_by_default(kind, k_meta, has_meta, expected):
  assert verdict.resolve_vote(kind, k_meta, has_meta) == expected


@pytest.mark.parametrize(
  'kind, k_meta, has_meta, words',
  [
    ('guided', 0, False, ('config.vote', 'config.meta_checkpoint')),
    ('', 2, False, ('config.k_meta', 2, 'config.meta_checkpoint')),
    ('sum', 2, True, ('config.k_meta', 2, 'sum', 'config.vote')),
    ('best', 2, True, ('config.k_meta', 2, 'best', 'config.vote')),
  ],
)
def test_settings_without_effect_raise(kind, k_meta, has_meta, words):
  with pytest.raises(UserError, match=naming(*words)):
    verdict.resolve_vote(kind, k_meta, has_meta)


def test_which_votes_need_a_meta_rm():
  needing = [kind for kind in verdict.KINDS if VoteConfig(kind).needs_meta]
  assert needing == ['guided', 'best']
