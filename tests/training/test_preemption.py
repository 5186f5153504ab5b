"""Being asked to stop: by a signal, in one process and in two."""

import os
import signal

import pytest

from grm_jax.training.preemption import Preemption
from tests import processes

# Steps that no data and no device slows down: 50 ms each.
LOOP = """
import pathlib, sys, time
from grm_jax.parallel import start
start.start()
from grm_jax.training.preemption import Preemption
with Preemption() as preemption:
  for step in range(1, 1000):
    time.sleep(0.05)
    if step == 5:
      print('begun', flush=True)
    if preemption.at(step):
      print('stopped at', step, flush=True)
      break
"""


def test_a_signal_is_seen_at_the_next_step():
  with Preemption() as preemption:
    assert not preemption.at(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.at(2)
    assert preemption.at(3)  # it stays asked


@pytest.mark.parametrize('ends_well', [True, False])
def test_the_handler_before_is_there_again(ends_well):
  seen = []
  before = signal.signal(signal.SIGTERM, lambda *unused: seen.append(1))
  try:
    try:
      with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.at(1) and not seen
        if not ends_well:
          raise FloatingPointError
    except FloatingPointError:
      pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [1]
    preemption.close()  # twice is once
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
  finally:
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('count, asked', [(1, 0), (2, 0), (2, 1)])
def test_all_processes_stop_after_the_same_step(count, asked):
  """Whichever of them got the signal; each exits with 0."""
  with processes.begun(['-c', LOOP], count, devices=1) as children:
    for child in children:
      assert child.stdout.readline() == 'begun\n', child.stderr.read()
    children[asked].send_signal(signal.SIGTERM)
    done = processes.ends(children)
  told = '\n'.join(out + err for out, err in done)
  assert [child.returncode for child in children] == [0] * count, told
  steps = {out for out, _ in done}
  assert len(steps) == 1 and steps.pop().startswith('stopped at '), told
