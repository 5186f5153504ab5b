"""Peak memory of contenders, and contenders that run out of memory."""

import pytest

from benchmarks import harness
from tests.messages import names, naming

# A benchmark module that implements --memory-of.
_BENCHMARK = """
import json, os, signal, sys
flag = next(x for x in sys.argv if x.startswith('--memory-of='))
case, contender, directory = json.loads(flag.partition('=')[2])
if contender == 'killed':
  os.kill(os.getpid(), signal.SIGKILL)
if contender == 'numpy':
  import numpy
  numpy.ones(1 << 55)
if contender == 'jax':
  import jax
  jax.numpy.ones(1 << 55, 'uint8').block_until_ready()
if contender == 'broken':
  raise ValueError('unrelated error')
print('compiled')
print(len(contender), len(directory))
"""


@pytest.fixture
def measure_peaks(tmp_path, monkeypatch):
  """Function that measures contenders of the module above."""
  (tmp_path / 'a_benchmark.py').write_text(_BENCHMARK)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  return lambda *names: harness.measure_peaks(
    'a_benchmark', 'case', names, 'dir', []
  )


def test_contenders_out_of_memory_are_reported_and_skipped(
  measure_peaks, capsys
):
  peaks, left_out = measure_peaks('ours', 'killed', 'numpy', 'jax', 'baseline')
  assert peaks == {'ours': 3, 'baseline': 3}
  assert names(left_out['killed'], 'killed')
  assert 'Unable to allocate 256. PiB' in left_out['numpy']
  assert 'RESOURCE_EXHAUSTED' in left_out['jax']
  lines = capsys.readouterr().out.splitlines()
  for name, reason in left_out.items():
    assert len([x for x in lines if name in x and reason in x]) == 1


def test_other_errors_raise(measure_peaks):
  with pytest.raises(RuntimeError, match=naming('broken', 'unrelated error')):
    measure_peaks('ours', 'broken')


def test_first_contender_out_of_memory_raises(measure_peaks):
  with pytest.raises(RuntimeError, match=naming('numpy')):
    measure_peaks('numpy', 'baseline')
