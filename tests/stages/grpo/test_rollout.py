"""Rollouts by an engine that follows a plan."""

import dataclasses
import re
import types

import numpy as np
import pytest

from grm_jax.data.rollout_prompts import RolloutPromptIterator
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.stages.grpo.rollout import RolloutSampler
from tests.judges.fake import RuleEngine, words
from tests.messages import lines_with, naming, setting

FORMS = PromptFormat('practice', 'practice_single')


class Planned(RuleEngine):
  """Writes as the query plans it, a letter for each sample of a visit.

  r is right, w wrong, t a tie, x unreadable, c right but cut off; of several
  plans, as in 'wwww|rwrw', the n-th is of the n-th visit. Generations come in
  another order than they were asked for.
  """

  def __init__(self, **how):
    super().__init__(**how)
    self.programs = types.SimpleNamespace(weights=None)
    self.seen = []

  def run(self, requests, **unused):
    self.seen.append(self.programs.weights)
    return super().run(requests)

  def generation(self, request, sample):
    text = words().decode(request.prompt)
    plans = re.search(r'plan=([a-z|]+)', text)[1].split('|')
    epoch = int(request.key.rsplit(' ', 1)[1])
    letter = plans[epoch % len(plans)][sample]
    shown = re.findall(r'(good|bad)\n\[End', text)
    high, low = (1, 0) if len(shown) == 1 else (9, 2)
    right = {'good': high, 'bad': low}
    wrong = {'good': low, 'bad': high}
    scores = [(wrong if letter == 'w' else right)[x] for x in shown]
    scores = {'t': [5] * len(shown), 'x': []}.get(letter, scores)
    boxed = ', '.join(map(str, scores))
    item = self._said(request, sample, rf'{letter}{sample} \boxed{{{boxed}}}')
    finish = 'length' if letter == 'c' else 'stop'
    return dataclasses.replace(item, finish=finish)


def example(name, plan, good=0, n=2, query=''):
  texts = tuple('good' if i == good else 'bad' for i in range(n))
  known = {'best': good} if n > 1 else {'rewards': (float(good == 0),)}
  turn = Turn('user', f'{query}plan={plan}')
  return JudgingExample(name, (turn,), texts, **known)


def roller(engine, forms=FORMS, size=4, seed=0):
  return RolloutSampler(
    engine, words(), forms, group_size=size, temperature=0.9, seed=seed
  )


def rolled(examples, count, attempts=0, order='random', engine=None, **how):
  engine = engine or Planned()
  visits = RolloutPromptIterator(examples, order, 0)
  return roller(engine, **how).roll('weights', visits, count, attempts)


ROWS = [
  example('a', 'rwxc', good=1),
  example('b', 'trrr', good=2, n=3),
  example('right', 'rwxc', n=1),
  example('wrong', 'rwrw', good=1, n=1),
]
# Verdicts, rewards, scores in the example's own order.
EXPECTED = {
  'a': (
    'correct incorrect parse_failure truncated',
    [1, -1, -1, -1],
    ((2, 9), (9, 2), None, (2, 9)),
  ),
  'b': (
    'incorrect correct correct correct',
    [-1, 1, 1, 1],
    ((5, 5, 5), *[(2, 2, 9)] * 3),
  ),
  'right': (
    'correct incorrect parse_failure truncated',
    [1, -1, -1, -1],
    ((1,), (0,), None, (1,)),
  ),
  'wrong': (
    'correct incorrect correct incorrect',
    [1, -1, 1, -1],
    ((0,), (1,), (0,), (1,)),
  ),
}


@pytest.mark.parametrize('order', ['fixed', 'random', 'balanced'])
def test_verdicts_and_rewards(order):
  engine = Planned()
  found = rolled(ROWS, 8, order=order, engine=engine)
  assert len(found.groups) == 8 and found.all_groups == found.groups
  assert found.faults == 0
  for group in found.groups:
    verdicts, rewards, scores = EXPECTED[group.visit.example.id]
    assert ' '.join(group.verdicts) == verdicts
    assert group.rewards.tolist() == rewards
    assert group.rewards.dtype == np.float32
    assert group.scores == scores
    assert [x.sample for x in group.generations] == [0, 1, 2, 3]
  # In the order of the visits, whatever order they were done in.
  visits = RolloutPromptIterator(ROWS, order, 0).take(8)
  assert [group.visit for group in found.groups] == visits


def test_what_is_asked_for():
  engine = Planned()
  found = rolled(ROWS, 8, engine=engine, seed=3)
  assert [r.prompt for r in engine.requests] == [g.prompt for g in found.groups]
  assert {(r.num_samples, r.temperature, r.seed) for r in engine.requests} == {
    (4, 0.9, 3)
  }
  # Of each example one at epoch 0 and one at 1: other draws.
  assert len({r.key for r in engine.requests}) == 8
  assert {r.max_tokens for r in engine.requests} == {None}


def test_weights_are_there_while_it_rolls_and_not_after():
  engine = Planned()
  rolled(ROWS, 4, engine=engine)
  assert engine.seen == ['weights'] and engine.programs.weights is None


class Failing(Planned):
  def generation(self, request, sample):
    raise KeyError(request.id)


def test_weights_are_given_back_after_an_error():
  engine = Failing()
  with pytest.raises(KeyError):
    rolled(ROWS, 4, engine=engine)
  assert engine.programs.weights is None


def names(groups):
  return [group.visit.example.id for group in groups]


FLAT = [example(f'f{i}', 'wwww') for i in range(3)]
MIXED = [example(f'm{i}', 'rwww') for i in range(3)]


def test_groups_without_spread_are_kept_where_nothing_is_resampled():
  found = rolled([*FLAT, *MIXED], 6)
  assert sorted(names(found.groups)) == ['f0', 'f1', 'f2', 'm0', 'm1', 'm2']
  assert [x.spread for x in found.groups] == [
    name.startswith('m') for name in names(found.groups)
  ]


def test_groups_without_spread_are_replaced():
  engine = Planned()
  visits = RolloutPromptIterator([*FLAT, *MIXED], 'fixed', 0)
  found = roller(engine).roll('weights', visits, 6, 20)
  assert all(x.spread for x in found.groups) and len(found.groups) == 6
  flat = [x for x in found.all_groups if not x.spread]
  assert len(found.all_groups) == len(found.groups) + len(flat)
  # All that was visited was looked at, and nothing else was visited.
  assert len(found.all_groups) == visits.drawn == len(engine.requests)
  # Only what was missing is asked for again: groups of later epochs too.
  assert {x.visit.epoch for x in found.groups} > {0}


@pytest.mark.parametrize('attempts', [1, 2, 5])
def test_resampling_ends(attempts):
  engine = Planned()
  visits = RolloutPromptIterator(FLAT, 'fixed', 0)
  found = roller(engine).roll('weights', visits, 3, attempts)
  assert len(engine.seen) == attempts + 1
  assert len(found.all_groups) == visits.drawn == 3 * (attempts + 1)
  # The first of those without spread fill up.
  assert found.groups == found.all_groups[:3]
  assert {x.visit.epoch for x in found.groups} == {0}


def test_what_has_spread_comes_before_what_fills_up():
  rows = [*FLAT, example('m', 'rwww|wwww')]
  found = rolled(rows, 4, attempts=1)
  assert names(found.groups)[0] == 'm' and found.groups[0].spread
  assert sorted(names(found.groups)) == ['f0', 'f1', 'f2', 'm']
  assert len(found.all_groups) == 4 + 3


def test_a_stopped_rollout_is_no_rollout():
  engine, visits = Planned(), RolloutPromptIterator(ROWS, 'fixed', 0)
  made = roller(engine)
  visits.take(3)
  calls = iter([False, False, True])
  assert made.roll('weights', visits, 4, 0, lambda: next(calls)) is None
  assert visits.drawn == 3 and engine.programs.weights is None
  # Drawn again, it is what it would have been.
  again = made.roll('weights', visits, 4, 0)
  other = RolloutPromptIterator(ROWS, 'fixed', 0)
  other.take(3)
  expected = roller(Planned()).roll('weights', other, 4, 0)
  assert [x.visit for x in again.groups] == [x.visit for x in expected.groups]


LONG = 'x y z ' * 100


def test_too_long_examples_are_left_out_and_counted(caplog):
  engine = Planned(limit=150)
  forms = PromptFormat('practice', 'practice_single', 'refuse')
  rows = [ROWS[0], example('long', 'rrrr', query=LONG), ROWS[2]]
  visits = RolloutPromptIterator(rows, 'fixed', 0)
  found = roller(engine, forms).roll('weights', visits, 6, 0)
  assert set(names(found.groups)) == {'a', 'right'}
  assert found.faults == visits.drawn - 6 > 1
  (line,) = lines_with(caplog.text, 'long')
  assert lines_with(line, *setting('prompt.too_long', 'refuse'))


def test_shortened_ones_are_asked():
  engine = Planned(limit=400)
  # The plan is at the end of the query, which is cut off first.
  row = dataclasses.replace(
    ROWS[0], query=(Turn('user', 'plan=rwxc ' + LONG * 3),)
  )
  found = rolled([row], 1, engine=engine)
  assert len(found.groups[0].prompt) <= 400 and found.faults == 0


def test_nothing_can_be_asked():
  engine = Planned(limit=10)
  forms = PromptFormat('practice', 'practice_single', 'refuse')
  words_ = naming(8, 10, 'config.batch.prompt_buckets')
  with pytest.raises(UserError, match=words_) as caught:
    rolled(ROWS, 4, engine=engine, forms=forms)
  assert '\n' not in str(caught.value)
  assert not engine.requests


def test_many_that_are_too_long_between_others_are_fine():
  """It is a row of them that ends a run, not their number."""
  engine = Planned(limit=150)
  forms = PromptFormat('practice', 'practice_single', 'refuse')
  rows = [example(f'long{i}', 'rrrr', query=LONG) for i in range(4)]
  found = rolled([*rows, ROWS[0]], 30, engine=engine, forms=forms)
  assert set(names(found.groups)) == {'a'} and found.faults > 100
