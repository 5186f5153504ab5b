"""Rollouts by an engine that writes what the query asks it to."""

import dataclasses
import re

import numpy as np
import pytest

from grm_jax.data.rollout_prompts import RolloutPromptIterator
from grm_jax.errors import UserError
from grm_jax.judgement import correctness
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.stages.grpo.rollout import RolloutSampler, group_advantages
from tests.judges.fake import RuleEngine, load_tokenizer
from tests.messages import lines_with, naming, setting
from tests.stages.grpo.groups import make_group

PROMPT_FORMAT = PromptFormat('practice', 'practice_single')
REFUSING = PromptFormat('practice', 'practice_single', 'refuse')


class ScriptedEngine(RuleEngine):
  """Writes the generations that the query prescribes, a letter per sample.

  r is right, w wrong, t a tie, x does not parse, c is right but cut off. With
  several scripts, as in 'wwww|rwrw', the n-th is for epoch n. Generations end
  in another order than they were requested.
  """

  def __init__(self, **options):
    super().__init__(**options)
    self.weights = []  # of each run

  def run(self, weights, requests, **unused):
    self.weights.append(weights)
    return super().run(weights, requests)

  def generation(self, request, sample):
    text = load_tokenizer().decode(request.prompt)
    scripts = re.search(r'script=([a-z|]+)', text)[1].split('|')
    epoch = int(request.key.rsplit(' ', 1)[1])
    letter = scripts[epoch % len(scripts)][sample]
    responses = re.findall(r'(good|bad)\n\[End', text)
    high, low = (1, 0) if len(responses) == 1 else (9, 2)
    right = {'good': high, 'bad': low}
    wrong = {'good': low, 'bad': high}
    scores = [(wrong if letter == 'w' else right)[x] for x in responses]
    scores = {'t': [5] * len(responses), 'x': []}.get(letter, scores)
    boxed = ', '.join(map(str, scores))
    generation = self._generation(
      request, sample, rf'{letter}{sample} \boxed{{{boxed}}}'
    )
    finish = 'length' if letter == 'c' else 'stop'
    return dataclasses.replace(generation, finish=finish)


def example(name, script, good=0, n=2, query=''):
  texts = tuple('good' if i == good else 'bad' for i in range(n))
  label = {'best': good} if n > 1 else {'rewards': (float(good == 0),)}
  turn = Turn('user', f'{query}script={script}')
  return JudgingExample(name, (turn,), texts, **label)


def make_sampler(
  engine,
  prompt_format=PROMPT_FORMAT,
  seed=0,
  reward_fn=correctness.outcome_reward,
):
  return RolloutSampler(
    engine,
    load_tokenizer(),
    prompt_format,
    reward_fn,
    group_size=4,
    temperature=0.9,
    seed=seed,
  )


def sample(examples, count, attempts=0, order='random', engine=None, **options):
  prompts = RolloutPromptIterator(examples, order, 0)
  sampler = make_sampler(engine or ScriptedEngine(), **options)
  return sampler.sample('weights', prompts, count, attempts)


ROWS = [
  example('a', 'rwxc', good=1),
  example('b', 'trrr', good=2, n=3),
  example('right', 'rwxc', n=1),
  example('wrong', 'rwrw', good=1, n=1),
]
# Outcomes, rewards, scores in the example's own order.
EXPECTED = {
  'a': (
    'correct incorrect parse_failure truncated',
    [1, -1, -1, -1],
    ((2, 9), (9, 2), None, None),
  ),
  'b': (
    'incorrect correct correct correct',
    [-1, 1, 1, 1],
    ((5, 5, 5), *[(2, 2, 9)] * 3),
  ),
  'right': (
    'correct incorrect parse_failure truncated',
    [1, -1, -1, -1],
    ((1,), (0,), None, None),
  ),
  'wrong': (
    'correct incorrect correct incorrect',
    [1, -1, 1, -1],
    ((0,), (1,), (0,), (1,)),
  ),
}


@pytest.mark.parametrize('order', ['fixed', 'random', 'balanced'])
def test_outcomes_and_rewards(order):
  rollout = sample(ROWS, 8, order=order)
  assert len(rollout.groups) == 8 and rollout.all_groups == rollout.groups
  assert rollout.skipped_prompts == 0
  for group in rollout.groups:
    outcomes, rewards, scores = EXPECTED[group.rollout_prompt.example.id]
    assert ' '.join(group.outcomes) == outcomes
    assert group.rewards.tolist() == rewards
    assert group.rewards.dtype == np.float32
    assert tuple(x.scores for x in group.judgements) == scores
    assert [x.sample for x in group.generations] == [0, 1, 2, 3]
  # Groups are in the order of the prompts, whichever ended first.
  prompts = RolloutPromptIterator(ROWS, order, 0).take(8)
  assert [group.rollout_prompt for group in rollout.groups] == prompts


class NamingEngine(RuleEngine):
  """Names responses 1, 2, 1 and none, in this order."""

  def generation(self, request, sample):
    text = rf'Best: \boxed{{{"121x"[sample]}}}'
    return self._generation(request, sample, text)


def test_an_llm_as_a_judge_is_rewarded_for_the_right_name():
  pair = example('a', 'none', good=1)
  naming_best = PromptFormat('best', reads='best')
  (group,) = sample(
    [pair], 1, order='fixed', engine=NamingEngine(), prompt_format=naming_best
  ).groups
  assert group.rewards.tolist() == [-1, 1, -1, -1]
  scores = [x.scores for x in group.judgements]
  assert scores == [(1, 0), (0, 1), (1, 0), None]


def test_another_reward_function():
  def length(example, judgement):
    return float(len(example.responses) + judgement.truncated)

  rollout = sample(ROWS[:1], 1, reward_fn=length)
  assert rollout.groups[0].rewards.tolist() == [2, 2, 2, 3]


@pytest.mark.parametrize('std, first', [(True, 1.7320), (False, 1.5)])
def test_advantages_of_groups(std, first):
  """Rewards 1, -1, -1, -1, and a group without spread."""
  tokens = ((3,), (4,), (5,), (6,))
  mixed = make_group('a', tokens=tokens, letters='rwxc')
  flat = make_group('b', tokens=tokens, letters='rrrr')
  advantages = group_advantages([mixed, flat], std)
  expected = [[first, *[-first / 3] * 3], [0] * 4]
  np.testing.assert_allclose(advantages, expected, rtol=1e-4)
  assert advantages.dtype == np.float32


def test_requests():
  engine = ScriptedEngine()
  rollout = sample(ROWS, 8, engine=engine, seed=3)
  assert [r.prompt for r in engine.requests] == [
    g.prompt for g in rollout.groups
  ]
  assert {(r.num_samples, r.temperature, r.seed) for r in engine.requests} == {
    (4, 0.9, 3)
  }
  # The keys of an example differ between epochs, and so do its samples.
  assert len({r.key for r in engine.requests}) == 8
  assert {r.max_tokens for r in engine.requests} == {None}
  assert engine.weights == ['weights']


class FailingEngine(ScriptedEngine):
  def generation(self, request, sample):
    raise KeyError(request.id)


def test_an_engine_error_is_raised():
  with pytest.raises(KeyError):
    sample(ROWS, 4, engine=FailingEngine())


def names(groups):
  return [group.rollout_prompt.example.id for group in groups]


def epochs(groups):
  return {group.rollout_prompt.epoch for group in groups}


FLAT = [example(f'f{i}', 'wwww') for i in range(3)]
MIXED = [example(f'm{i}', 'rwww') for i in range(3)]


def test_groups_without_spread_stay_without_resampling():
  rollout = sample([*FLAT, *MIXED], 6)
  assert sorted(names(rollout.groups)) == ['f0', 'f1', 'f2', 'm0', 'm1', 'm2']
  assert [x.has_spread for x in rollout.groups] == [
    name.startswith('m') for name in names(rollout.groups)
  ]


def test_resampling_replaces_groups_without_spread():
  engine = ScriptedEngine()
  prompts = RolloutPromptIterator([*FLAT, *MIXED], 'fixed', 0)
  rollout = make_sampler(engine).sample('weights', prompts, 6, 20)
  assert all(x.has_spread for x in rollout.groups) and len(rollout.groups) == 6
  flat = [x for x in rollout.all_groups if not x.has_spread]
  assert len(rollout.all_groups) == len(rollout.groups) + len(flat)
  # Every prompt that was taken was sampled once.
  assert len(rollout.all_groups) == prompts.num_taken == len(engine.requests)
  assert epochs(rollout.groups) > {0}


@pytest.mark.parametrize('attempts', [1, 2, 5])
def test_resampling_ends(attempts):
  engine = ScriptedEngine()
  prompts = RolloutPromptIterator(FLAT, 'fixed', 0)
  rollout = make_sampler(engine).sample('weights', prompts, 3, attempts)
  assert len(engine.weights) == attempts + 1
  assert len(rollout.all_groups) == prompts.num_taken == 3 * (attempts + 1)
  # The first groups without spread fill up the rollout.
  assert rollout.groups == rollout.all_groups[:3]
  assert epochs(rollout.groups) == {0}


def test_groups_with_spread_come_before_those_that_fill_up():
  rows = [*FLAT, example('m', 'rwww|wwww')]
  rollout = sample(rows, 4, attempts=1)
  assert names(rollout.groups)[0] == 'm' and rollout.groups[0].has_spread
  assert sorted(names(rollout.groups)) == ['f0', 'f1', 'f2', 'm']
  assert len(rollout.all_groups) == 4 + 3


def test_a_stopped_rollout_takes_no_prompts():
  prompts = RolloutPromptIterator(ROWS, 'fixed', 0)
  sampler = make_sampler(ScriptedEngine())
  prompts.take(3)
  polls = iter([False, False, True])
  assert sampler.sample('weights', prompts, 4, 0, lambda: next(polls)) is None
  assert prompts.num_taken == 3
  # Sampled again, it is the same as without the stop.
  rollout = sampler.sample('weights', prompts, 4)
  other = RolloutPromptIterator(ROWS, 'fixed', 0)
  other.take(3)
  expected = make_sampler(ScriptedEngine()).sample('weights', other, 4)
  for one, two in zip(rollout.groups, expected.groups, strict=True):
    assert one.rollout_prompt == two.rollout_prompt
    assert one.judgements == two.judgements


def test_a_stop_during_resampling_takes_no_prompts():
  prompts = RolloutPromptIterator(FLAT, 'fixed', 0)
  polls = iter([False] * 12 + [True])
  sampler = make_sampler(ScriptedEngine())
  assert sampler.sample('weights', prompts, 3, 5, lambda: next(polls)) is None
  assert prompts.num_taken == 0


LONG = 'x y z ' * 100


def test_long_examples_are_skipped_and_counted(caplog):
  rows = [ROWS[0], example('long', 'rrrr', query=LONG), ROWS[2]]
  prompts = RolloutPromptIterator(rows, 'fixed', 0)
  sampler = make_sampler(ScriptedEngine(limit=150), REFUSING)
  rollout = sampler.sample('weights', prompts, 6)
  assert set(names(rollout.groups)) == {'a', 'right'}
  assert rollout.skipped_prompts == prompts.num_taken - 6 > 1
  (line,) = lines_with(caplog.text, 'long')
  assert lines_with(line, *setting('prompt.too_long', 'refuse'))


def test_long_examples_can_be_shortened():
  # Shortening cuts the end of the query, so the script is at its start.
  row = dataclasses.replace(
    ROWS[0], query=(Turn('user', 'script=rwxc ' + LONG * 3),)
  )
  rollout = sample([row], 1, engine=ScriptedEngine(limit=400))
  assert len(rollout.groups[0].prompt) <= 400 and rollout.skipped_prompts == 0


def test_all_examples_are_too_long():
  engine = ScriptedEngine(limit=10)
  words = naming(8, 10, 'config.batch.prompt_buckets')
  with pytest.raises(UserError, match=words) as caught:
    sample(ROWS, 4, engine=engine, prompt_format=REFUSING)
  assert '\n' not in str(caught.value)
  assert not engine.requests


def test_many_long_examples_between_short_ones_do_not_end_a_run():
  """Only many long examples in a row do."""
  rows = [example(f'long{i}', 'rrrr', query=LONG) for i in range(4)]
  rollout = sample(
    [*rows, ROWS[0]],
    30,
    engine=ScriptedEngine(limit=150),
    prompt_format=REFUSING,
  )
  assert set(names(rollout.groups)) == {'a'}
  assert rollout.skipped_prompts > 100
