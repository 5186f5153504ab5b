"""Laps against a clock set by hand."""

import pytest

from grm_jax.training import step_timer


class Hands:
  """A clock that shows what it is set to."""

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


def spend(watch, hands, name, seconds):
  with watch.part(name):
    hands.seconds += seconds


def test_a_lap():
  hands = Hands()
  watch = step_timer.StepTimer(hands)
  spend(watch, hands, 'data', 2)
  spend(watch, hands, 'step', 3)
  hands.seconds += 4  # in no part
  spend(watch, hands, 'data', 1)
  watch.add('tokens', 30)
  watch.add('tokens', 20)
  watch.add('generation_tokens', 5)
  assert watch.lap() == {
    'time/data': 3.0,
    'time/step': 3.0,
    'time/total': 10.0,
    'tokens_per_second': 5.0,
    'generation_tokens_per_second': 0.5,
  }


def test_the_next_lap_begins_empty_and_without_a_gap():
  hands = Hands()
  watch = step_timer.StepTimer(hands)
  spend(watch, hands, 'data', 2)
  watch.add('tokens', 7)
  watch.lap()
  hands.seconds += 1
  spend(watch, hands, 'step', 3)
  assert watch.lap() == {'time/step': 3.0, 'time/total': 4.0}


def test_a_part_that_fails_is_measured():
  hands = Hands()
  watch = step_timer.StepTimer(hands)
  with pytest.raises(KeyError), watch.part('data'):
    hands.seconds += 2
    raise KeyError
  assert watch.lap()['time/data'] == 2.0
