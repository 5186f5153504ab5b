"""Laps of StepTimer with a fake clock."""

import pytest

from grm_jax.training import step_timer


class FakeClock:
  """A clock that the test advances."""

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


def spend(timer, clock, name, seconds):
  with timer.part(name):
    clock.seconds += seconds


def test_lap_reports_parts_total_and_rates():
  clock = FakeClock()
  timer = step_timer.StepTimer(clock)
  spend(timer, clock, 'data', 2)
  spend(timer, clock, 'step', 3)
  clock.seconds += 4  # outside of all parts
  spend(timer, clock, 'data', 1)
  timer.add('tokens', 30)
  timer.add('tokens', 20)
  timer.add('generation_tokens', 5)
  assert timer.lap() == {
    'time/data': 3.0,
    'time/step': 3.0,
    'time/total': 10.0,
    'tokens_per_second': 5.0,
    'generation_tokens_per_second': 0.5,
  }


def test_next_lap_starts_empty_and_without_a_gap():
  clock = FakeClock()
  timer = step_timer.StepTimer(clock)
  spend(timer, clock, 'data', 2)
  timer.add('tokens', 7)
  timer.lap()
  clock.seconds += 1
  spend(timer, clock, 'step', 3)
  assert timer.lap() == {'time/step': 3.0, 'time/total': 4.0}


def test_failed_part_is_measured():
  clock = FakeClock()
  timer = step_timer.StepTimer(clock)
  with pytest.raises(KeyError), timer.part('data'):
    clock.seconds += 2
    raise KeyError
  assert timer.lap()['time/data'] == 2.0
