"""What training runs have in common: asking whether to stop."""

import jax
import pytest

from grm_jax.training.run import PreemptionPoller


class Preemption:
  """Says yes at one call, as JAX's service does, or from then on."""

  def __init__(self, yes):
    self.yes, self.calls = yes, []

  def at(self, step):
    self.calls.append(step)
    return step == self.yes


@pytest.mark.parametrize('processes, calls', [(1, [2, 4, 4]), (2, [1, 2, 3])])
def test_several_processes_count_calls_without_gaps(
  monkeypatch, processes, calls
):
  """JAX stops at the number after the last that any process asked with."""
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  preemption = Preemption(yes=None)
  asked = PreemptionPoller(preemption)
  assert not any([asked.at(2), asked.at(4), asked.at(4)])
  assert preemption.calls == calls


def test_a_yes_stays_a_yes(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  asked = PreemptionPoller(Preemption(yes=2))
  assert [asked.at(10), asked.at(20), asked.at(30)] == [False, True, True]
