"""Progress lines against a clock set by hand."""

import jax
import pytest

from grm_jax.training.progress import ProgressPrinter


@pytest.fixture
def clock():
  return {'seconds': 50.0}


def make_printer(clock, **options):
  return ProgressPrinter(4, 10, now=lambda: clock['seconds'], **options)


def test_a_line_has_step_value_rate_speed_and_eta(clock, capsys):
  printer = make_printer(clock)
  clock['seconds'] += 60
  printer.update(5, 'loss 1.2500', 2e-3, 1234.4)
  assert capsys.readouterr().out == (
    'step 5/10: loss 1.2500, learning rate 2.00e-03, 1234 tokens/s, '
    'ETA 0:05:00\n'
  )


def test_lines_are_limited_except_the_first_and_the_last(clock, capsys):
  printer = make_printer(clock, interval_s=10.0)
  for step in range(5, 11):
    clock['seconds'] += 4
    printer.update(step, f'loss {step}', 1e-3, 1.0)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(':')[0] for line in lines] == [
    'step 5/10',
    'step 8/10',
    'step 10/10',
  ]
  assert lines[-1].endswith('ETA 0:00:00')


def test_other_processes_print_nothing(clock, capsys, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  make_printer(clock).update(5, 'loss 1', 1e-3, 1.0)
  assert not capsys.readouterr().out
