"""The order of visits, and going on in the middle of an epoch."""

import dataclasses
import itertools
import json

import pytest

from grm_jax.data import mixture
from grm_jax.data.rollout_prompts import (
  KINDS,
  RolloutPrompt,
  RolloutPromptIterator,
)
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from tests.messages import naming


def example(name, responses=2):
  texts = tuple('abcd'[:responses])
  return JudgingExample(name, (Turn('user', 'q'),), texts, best=0)


EXAMPLES = [example(f'e{i}', 2 + i % 3) for i in range(7)]


def made(order='random', seed=0, examples=EXAMPLES):
  return RolloutPromptIterator(examples, order, seed)


def names(visits):
  return [visit.example.id for visit in visits]


def test_every_epoch_visits_all_in_another_order():
  visits = made().take(21)
  epochs = [names(visits[i : i + 7]) for i in (0, 7, 14)]
  assert all(sorted(x) == [f'e{i}' for i in range(7)] for x in epochs)
  assert len(set(map(tuple, epochs))) == 3
  assert [visit.epoch for visit in visits] == [0] * 7 + [1] * 7 + [2] * 7
  assert epochs[0] != names(made(seed=1).take(7))


@pytest.mark.parametrize('order', KINDS)
def test_taken_at_once_or_in_parts(order):
  whole = made(order).take(20)
  parts = made(order)
  assert [x for n in (1, 8, 0, 11) for x in parts.take(n)] == whole
  assert (parts.drawn, parts.epochs) == (20, pytest.approx(20 / 7))


def test_orders_of_an_example_over_epochs():
  shown = {'random': set(), 'balanced': [], 'fixed': set()}
  for visit in made('balanced', examples=[example('x', 3)]).take(6):
    shown['balanced'].append(visit.order)
  for kind in ('random', 'fixed'):
    shown[kind] = {x.order for x in made(kind, examples=EXAMPLES[:1]).take(20)}
  # Three rotations, then the same again: each response was first twice.
  assert shown['balanced'][:3] == shown['balanced'][3:]
  assert {order[0] for order in shown['balanced'][:3]} == {0, 1, 2}
  assert shown['random'] == {(0, 1), (1, 0)} and shown['fixed'] == {(0, 1)}


def places(count, responses, best=1, **how):
  """Where the best one is shown at each of `count` visits of 50 examples."""
  examples = [
    JudgingExample(f'e{i}', (Turn('user', 'q'),), tuple('abcde'[:n]), best=best)
    for i, n in zip(range(50), itertools.cycle(responses))
  ]
  visits = made('stratified', examples=examples, **how).take(count)
  for visit in visits:
    assert sorted(visit.order) == list(range(len(visit.order)))
  return [(len(v.order), v.order.index(best)) for v in visits]


@pytest.mark.parametrize('best', [0, 1])
@pytest.mark.parametrize('seed', [0, 1])
def test_stratified_pairs_have_the_best_first_every_other_time(best, seed):
  assert places(130, [2], best, seed=seed) == [(2, 0), (2, 1)] * 65


@pytest.mark.parametrize('n', [3, 4, 5])
def test_stratified_places_are_as_frequent_wherever_a_batch_begins(n):
  found = [place for _, place in places(150, [n])]
  for size, most in ((8, 2), (16, 2), (64, 2)):
    for first in range(0, 150 - size, 8):
      counts = [found[first : first + size].count(i) for i in range(n)]
      assert max(counts) - min(counts) <= most
  # And of examples with other numbers of responses, about.
  mixed = [place for m, place in places(600, [2, n, 4]) if m == n]
  counts = [mixed.count(i) for i in range(n)]
  assert min(counts) > 0.6 * len(mixed) / n


def test_stratified_shuffles_the_others_and_those_without_a_best():
  rows = [example('x', 4)]
  visits = made('stratified', examples=rows).take(120)
  assert len({v.order[1:] for v in visits if v.order[0] == 0}) == 6
  rows = [dataclasses.replace(rows[0], best=None, rewards=(1, 0, 1, 1))]
  found, plain = (
    made(kind, examples=rows) for kind in ('stratified', 'random')
  )
  assert found.take(20) == plain.take(20)


def test_what_is_drawn_at_two_visits_has_two_names():
  visits = made().take(14)
  assert len({visit.name for visit in visits}) == 14
  # A number at the end of an id is no epoch.
  one, other = (
    RolloutPrompt(example('x'), (0, 1), 1),
    RolloutPrompt(example('x 1'), (0, 1), 0),
  )
  assert one.name != other.name


def test_goes_on_in_the_middle_of_an_epoch():
  first = made()
  first.take(10)
  saved = json.loads(json.dumps(first.state()))
  again = made()
  again.restore(saved)
  assert again.take(9) == first.take(9)
  # And back to where it was, as after a rollout that was stopped.
  first.restore(saved)
  assert first.drawn == 10


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'seed': 1}, naming('seed', 0, 1)),
    ({'order': 'fixed'}, naming('order', 'random', 'fixed')),
    ({'examples': EXAMPLES[:6]}, naming('examples', 7, 6)),
    ({'examples': [*EXAMPLES[:6], example('e6', 4)]}, r'\b7\b.*\b7\b'),
  ],
)
def test_does_not_go_on_with_others(changes, words):
  saved = made().state()
  with pytest.raises(UserError, match=words) as caught:
    made(**changes).restore(saved)
  assert '\n' not in str(caught.value)


def test_the_place_of_another_stage_is_refused():
  with pytest.raises(UserError, match=naming('order', None, 'random')):
    made().restore({'drawn': {'texts': 3}, 'seed': 0})


@pytest.mark.parametrize(
  'arguments, words',
  [
    (([], 'random', 0), naming('examples', 0)),
    (([example('x'), example('x', 3)], 'random', 0), naming('examples', 2, 1)),
    ((EXAMPLES, 'up', 0), naming('config.response_order', 'up')),
  ],
)
def test_mistakes(arguments, words):
  with pytest.raises(UserError, match=words):
    RolloutPromptIterator(*arguments)


def test_much_data_is_shuffled_once_an_epoch_and_read_once(monkeypatch):
  """A rollout of 128 must not sort and hash 200,000 examples 128 times."""
  calls = []
  shuffle = mixture.permutation

  def counted(*arguments):
    calls.append(arguments)
    return shuffle(*arguments)

  monkeypatch.setattr(mixture, 'permutation', counted)
  visits = made()
  visits.take(7)
  assert len(calls) == 1
  visits.take(8)
  assert len(calls) == 3
  saved = visits.state()
  monkeypatch.setattr(json, 'dumps', None)
  assert visits.state() == saved
