"""The profiler traces the requested steps and writes the trace."""

import jax
import jax.numpy as jnp
import pytest

from grm_jax.errors import UserError
from grm_jax.training import profiler as profiling
from tests.messages import lines_with, naming, setting


@pytest.mark.parametrize(
  'value, expected',
  [
    ('10,12', (10, 12)),
    (' 3, 3', (3, 3)),
    ('', None),
  ],
)
def test_parse(value, expected):
  assert profiling.parse(value) == expected


@pytest.mark.parametrize(
  'value', ['10', '10,12,14', 'a,b', '12,10', '0,3', '-1,3', (5,), (0, 0), ',']
)
def test_parse_rejects_invalid_ranges(value):
  with pytest.raises(UserError, match=naming(*setting('profile_steps', value))):
    profiling.parse(value)


@pytest.fixture
def calls(monkeypatch):
  """Records calls of the JAX profiler instead of making them."""
  log = []
  functions = {
    'start_trace': lambda folder: log.append(f'start {folder}'),
    'stop_trace': lambda: log.append('stop'),
  }
  for name, function in functions.items():
    monkeypatch.setattr(jax.profiler, name, function)
  monkeypatch.setattr(
    jax, 'block_until_ready', lambda x: log.append(f'wait {x}')
  )
  return log


def run(profiler, first, last, log):
  for step in range(first, last + 1):
    profiler.begin(step)
    log.append(step)
    profiler.end(step, f'results of {step}')


@pytest.mark.parametrize(
  'steps, first, last, expected',
  [
    ((2, 3), 1, 4, [1, 'start', 2, 3, 'wait results of 3', 'stop', 4]),
    ((1, 1), 1, 2, ['start', 1, 'wait results of 1', 'stop', 2]),
    # A run that resumes at step 3; a run that ends before the last step.
    ((2, 4), 3, 5, ['start', 3, 4, 'wait results of 4', 'stop', 5]),
    ((2, 9), 1, 2, [1, 'start', 2, 'stop']),
    ((7, 9), 1, 2, [1, 2]),
    ((1, 2), 3, 4, [3, 4]),
    (None, 1, 2, [1, 2]),
  ],
)
def test_traced_steps(calls, steps, first, last, expected):
  with profiling.Profiler(steps, 'runs/x') as profiler:
    run(profiler, first, last, calls)
  start = 'start runs/x/profile'
  assert calls == [start if x == 'start' else x for x in expected]


def test_failed_run_writes_its_trace(calls):
  with (
    pytest.raises(KeyError),
    profiling.Profiler((1, 5), 'runs/x') as profiler,
  ):
    run(profiler, 1, 2, calls)
    raise KeyError
  assert calls[-1] == 'stop'


@pytest.mark.parametrize(
  'steps, warned',
  [((7, 9), True), ((2, 3), False), ((2, 9), False), (None, False)],
)
def test_warning_if_the_steps_are_never_reached(calls, caplog, steps, warned):
  with profiling.Profiler(steps, 'runs/x') as profiler:
    run(profiler, 1, 4, calls)
  warnings = lines_with(caplog.text, *setting('profile_steps', '7,9'))
  assert bool(warnings) == bool(caplog.messages) == warned


def test_a_trace_is_written(tmp_path):
  double = jax.jit(lambda x: 2 * x)
  x = jnp.ones(3)
  with profiling.Profiler((2, 2), tmp_path) as profiler:
    for step in (1, 2, 3):
      profiler.begin(step)
      x = double(x)
      profiler.end(step, x)
      # Step 3 runs after the trace is on disk.
      assert bool(list(tmp_path.rglob('*.xplane.pb'))) == (step >= 2)
