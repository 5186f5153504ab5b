"""Preemption by a signal, in one process and in two."""

import os
import signal

import jax
import pytest
from jax.experimental import multihost_utils

from grm_jax.training.preemption import Preemption
from tests import processes

# Steps of 50 ms each, without data or devices.
LOOP = """
import pathlib, sys, time
from grm_jax.sharding import distributed
distributed.initialize()
from grm_jax.training.preemption import Preemption
with Preemption() as preemption:
  for step in range(1, 1000):
    time.sleep(0.05)
    if step == 5:
      print('started', flush=True)
    if preemption.should_stop():
      print('stopped at', step, flush=True)
      break
"""


def test_signal_stops_at_the_next_step():
  with Preemption() as preemption:
    assert not preemption.should_stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.should_stop()
    assert preemption.should_stop()  # it stays True


def test_calls_of_several_processes_have_numbers_without_gaps(monkeypatch):
  """JAX's service must not be called again after it has returned True."""
  numbers = []

  def reached(number):
    numbers.append(number)
    return number == 3

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', reached)
  preemption = Preemption()
  results = [preemption.should_stop() for _ in range(5)]
  assert results == [False, False, True, True, True]
  assert numbers == [1, 2, 3]


@pytest.mark.parametrize('succeeds', [True, False])
def test_previous_handler_is_restored(succeeds):
  signals = []
  previous = signal.signal(signal.SIGTERM, lambda *unused: signals.append(1))
  try:
    try:
      with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.should_stop() and not signals
        if not succeeds:
          raise FloatingPointError
    except FloatingPointError:
      pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals == [1]
    preemption.close()  # closing twice is allowed
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
  finally:
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize('count, receiver', [(1, 0), (2, 0), (2, 1)])
def test_all_processes_stop_after_the_same_step(count, receiver):
  """Whichever process receives the signal; all exit with 0."""
  with processes.start_processes(['-c', LOOP], count, devices=1) as children:
    for child in children:
      assert child.stdout.readline() == 'started\n', child.stderr.read()
    children[receiver].send_signal(signal.SIGTERM)
    outputs = processes.collect_output(children)
  log = '\n'.join(out + err for out, err in outputs)
  assert [child.returncode for child in children] == [0] * count, log
  steps = {out for out, _ in outputs}
  assert len(steps) == 1 and steps.pop().startswith('stopped at '), log
