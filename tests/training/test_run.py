"""Run state, the parse failure stop, and polling for preemption."""

import dataclasses

import jax
import pytest

from grm_jax.errors import UserError
from grm_jax.training.run import (
  ParseFailureStop,
  PreemptionPoller,
  RunState,
  should_run,
)
from tests.messages import names, naming, setting


class FakePreemption:
  """Requests a stop at one number, like JAX's service; records all calls."""

  def __init__(self, stop_at):
    self.stop_at, self.calls = stop_at, []

  def should_stop(self, step):
    self.calls.append(step)
    return step == self.stop_at


@pytest.mark.parametrize('processes, calls', [(1, [2, 4, 4]), (2, [1, 2, 3])])
def test_several_processes_number_their_calls(monkeypatch, processes, calls):
  """JAX stops all processes at a number that none of them has used yet."""
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  preemption = FakePreemption(stop_at=None)
  poller = PreemptionPoller(preemption)
  assert not any(
    [poller.should_stop(2), poller.should_stop(4), poller.should_stop(4)]
  )
  assert preemption.calls == calls


def test_stop_request_persists(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  poller = PreemptionPoller(FakePreemption(stop_at=2))
  assert [
    poller.should_stop(10),
    poller.should_stop(20),
    poller.should_stop(30),
  ] == [False, True, True]


def test_run_state_round_trip():
  state = RunState(7, True, 2)
  metadata = {'data': {}, 'config': {}, **dataclasses.asdict(state)}
  assert RunState.from_metadata(metadata, evaluate_initial=False) == state
  assert RunState.from_metadata({}, evaluate_initial=True) == RunState(0, True)
  assert RunState.from_metadata({}) == RunState(0, False, 0)


@pytest.mark.parametrize(
  'every, total, stride, due',
  [
    (4, 10, 1, [4, 8, 10]),
    (0, 10, 1, [10]),
    (3, 10, 2, [4, 6, 10]),
    (4, 12, 4, [4, 8, 12]),
  ],
)
def test_periodic_actions(every, total, stride, due):
  steps = range(stride, total + 1, stride)
  assert [x for x in steps if should_run(x, every, total, stride)] == due


@pytest.mark.parametrize(
  'patience, rates, ends',
  [
    (2, [0.1, 0.3, 0.3], [2]),
    (2, [0.3, 0.2, 0.3, 0.2, 0.3], []),  # the bound itself is acceptable
    (1, [0.0, 0.21], [1]),
    (3, [1, 1, 0.1, 1, 1, 1], [5]),
    (0, [1.0] * 9, []),
    (2, [1.0] * 5, [1, 3]),  # a resumed run has the full patience again
  ],
)
def test_parse_failures_stop_a_run(patience, rates, ends):
  rule, state, reasons = ParseFailureStop(0.2, patience), RunState(5), []
  for rate in rates:
    state, reason = rule.update(state, rate)
    reasons.append(reason)
  assert [i for i, reason in enumerate(reasons) if reason] == ends
  for i in ends:
    assert names(reasons[i], f'{rates[i]:.0%}', patience)
    assert names(reasons[i], 'config.evaluation.max_parse_failure_rate', 0.2)
    assert names(reasons[i], 'config.loss.kl_coef')
  assert state.step == 5


def test_failures_before_a_resume_are_counted():
  state = RunState(3, consecutive_failures=2)
  assert ParseFailureStop(0.2, 3).update(state, 0.3)[1]


@pytest.mark.parametrize(
  'arguments, words',
  [
    ((1.5, 2), setting('evaluation.max_parse_failure_rate', 1.5)),
    ((-0.1, 2), setting('evaluation.max_parse_failure_rate', -0.1)),
    ((float('nan'), 2), setting('evaluation.max_parse_failure_rate', 'nan')),
    ((0.2, -1), setting('evaluation.patience', -1)),
  ],
)
def test_invalid_stop_settings_name_the_config_key(arguments, words):
  with pytest.raises(UserError, match=naming(*words)):
    ParseFailureStop(*arguments)
