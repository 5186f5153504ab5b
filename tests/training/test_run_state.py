"""Run state, and the rule that ends a run by its parse failures."""

import dataclasses

import pytest

from grm_jax.training.run_state import ParseFailureStop, RunState
from tests.messages import names


def test_run_state_round_trip():
  state = RunState(7, True, 2)
  metadata = {'data': {}, 'config': {}, **dataclasses.asdict(state)}
  assert RunState.from_metadata(metadata, evaluate_initial=False) == state
  assert RunState.from_metadata({}, evaluate_initial=True) == RunState(0, True)
  assert RunState.from_metadata({}) == RunState(0, False, 0)


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
