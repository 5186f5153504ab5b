"""Epochs, response orders and resume of rollout prompts."""

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


def make_iterator(order='random', seed=0, examples=EXAMPLES):
  return RolloutPromptIterator(examples, order, seed)


def names(prompts):
  return [prompt.example.id for prompt in prompts]


def test_every_epoch_is_another_permutation():
  prompts = make_iterator().take(21)
  epochs = [names(prompts[i : i + 7]) for i in (0, 7, 14)]
  assert all(sorted(x) == [f'e{i}' for i in range(7)] for x in epochs)
  assert len(set(map(tuple, epochs))) == 3
  assert [prompt.epoch for prompt in prompts] == [0] * 7 + [1] * 7 + [2] * 7
  assert epochs[0] != names(make_iterator(seed=1).take(7))


@pytest.mark.parametrize('order', KINDS)
def test_take_is_independent_of_batching(order):
  whole = make_iterator(order).take(20)
  parts = make_iterator(order)
  assert [x for n in (1, 8, 0, 11) for x in parts.take(n)] == whole
  assert (parts.num_taken, parts.epochs) == (20, pytest.approx(20 / 7))


def test_response_orders_of_an_example_over_epochs():
  orders = {'random': set(), 'balanced': [], 'fixed': set()}
  for prompt in make_iterator('balanced', examples=[example('x', 3)]).take(6):
    orders['balanced'].append(prompt.order)
  for kind in ('random', 'fixed'):
    orders[kind] = {
      x.order for x in make_iterator(kind, examples=EXAMPLES[:1]).take(20)
    }
  # Three rotations, then the same again.
  assert orders['balanced'][:3] == orders['balanced'][3:]
  assert {order[0] for order in orders['balanced'][:3]} == {0, 1, 2}
  assert orders['random'] == {(0, 1), (1, 0)} and orders['fixed'] == {(0, 1)}


def best_positions(count, responses, best=1, **options):
  """Returns (n, position of the best response) of `count` prompts.

  Args:
    count: number of prompts, of 50 examples.
    responses: numbers of responses of the examples, in turn.
    best: index of the best response.
    options: for make_iterator.
  """
  examples = [
    JudgingExample(f'e{i}', (Turn('user', 'q'),), tuple('abcde'[:n]), best=best)
    for i, n in zip(range(50), itertools.cycle(responses))
  ]
  prompts = make_iterator('stratified', examples=examples, **options).take(
    count
  )
  for prompt in prompts:
    assert sorted(prompt.order) == list(range(len(prompt.order)))
  return [(len(x.order), x.order.index(best)) for x in prompts]


@pytest.mark.parametrize('best', [0, 1])
@pytest.mark.parametrize('seed', [0, 1])
def test_stratified_pairs_alternate_the_position_of_the_best(best, seed):
  assert best_positions(130, [2], best, seed=seed) == [(2, 0), (2, 1)] * 65


@pytest.mark.parametrize('n', [3, 4, 5])
def test_stratified_positions_are_balanced_in_every_batch(n):
  positions = [position for _, position in best_positions(150, [n])]
  for size, most in ((8, 2), (16, 2), (64, 2)):
    for first in range(0, 150 - size, 8):
      counts = [positions[first : first + size].count(i) for i in range(n)]
      assert max(counts) - min(counts) <= most
  # Approximately balanced if numbers of responses are mixed.
  mixed = [x for m, x in best_positions(600, [2, n, 4]) if m == n]
  counts = [mixed.count(i) for i in range(n)]
  assert min(counts) > 0.6 * len(mixed) / n


def test_stratified_shuffles_the_other_responses():
  rows = [example('x', 4)]
  prompts = make_iterator('stratified', examples=rows).take(120)
  assert len({x.order[1:] for x in prompts if x.order[0] == 0}) == 6
  rows = [dataclasses.replace(rows[0], best=None, rewards=(1, 0, 1, 1))]
  # Without a best response 'stratified' is 'random'.
  stratified, random = (
    make_iterator(kind, examples=rows) for kind in ('stratified', 'random')
  )
  assert stratified.take(20) == random.take(20)


def test_sample_keys_are_unique():
  prompts = make_iterator().take(14)
  assert len({prompt.sample_key for prompt in prompts}) == 14
  # An id that ends in a number does not collide with an epoch.
  first, second = (
    RolloutPrompt(example('x'), (0, 1), 1),
    RolloutPrompt(example('x 1'), (0, 1), 0),
  )
  assert first.sample_key != second.sample_key


def test_resume_is_exact_within_an_epoch():
  first = make_iterator()
  first.take(10)
  saved = json.loads(json.dumps(first.state()))
  again = make_iterator()
  again.restore(saved)
  assert again.take(9) == first.take(9)
  # Moving back, as after an interrupted rollout.
  first.restore(saved)
  assert first.num_taken == 10


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'seed': 1}, naming('seed', 0, 1)),
    ({'order': 'fixed'}, naming('response_order', 'random', 'fixed')),
    ({'examples': EXAMPLES[:6]}, naming('examples', 7, 6)),
    ({'examples': [*EXAMPLES[:6], example('e6', 4)]}, r'\b7\b.*\b7\b'),
  ],
)
def test_resume_rejects_another_stream(changes, words):
  saved = make_iterator().state()
  with pytest.raises(UserError, match=words) as caught:
    make_iterator(**changes).restore(saved)
  assert '\n' not in str(caught.value)


def test_resume_rejects_the_state_of_another_stage():
  with pytest.raises(UserError, match=naming('response_order', None, 'random')):
    make_iterator().restore({'num_drawn': {'texts': 3}, 'seed': 0})


@pytest.mark.parametrize(
  'arguments, words',
  [
    (([], 'random', 0), naming('examples', 0)),
    (([example('x'), example('x', 3)], 'random', 0), naming('examples', 2, 1)),
    ((EXAMPLES, 'up', 0), naming('config.response_order', 'up')),
  ],
)
def test_invalid_arguments(arguments, words):
  with pytest.raises(UserError, match=words):
    RolloutPromptIterator(*arguments)


def test_shuffles_once_per_epoch_and_hashes_examples_once(monkeypatch):
  """A rollout of 128 must not sort and hash 200,000 examples 128 times."""
  calls = []
  shuffle = mixture.permutation

  def counted(*arguments):
    calls.append(arguments)
    return shuffle(*arguments)

  monkeypatch.setattr(mixture, 'permutation', counted)
  prompts = make_iterator()
  prompts.take(7)
  assert len(calls) == 1
  prompts.take(8)
  assert len(calls) == 3
  saved = prompts.state()
  monkeypatch.setattr(json, 'dumps', None)
  assert prompts.state() == saved
