"""Benchmarks go on without a contender that does not fit in memory."""

import pytest

from benchmarks import harness
from tests.messages import names, naming

# What a benchmark is when it is asked for one contender's bytes.
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
  raise ValueError('of another kind')
print('compiled')
print(len(contender), len(directory))
"""


@pytest.fixture
def peaks(tmp_path, monkeypatch):
  """Bytes and reasons of contenders of a benchmark made for this test."""
  (tmp_path / 'a_benchmark.py').write_text(_BENCHMARK)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  return lambda *names: harness.peaks('a_benchmark', 'case', names, 'dir', [])


def test_contenders_without_memory_are_named_and_left_out(peaks, capsys):
  found, left_out = peaks('ours', 'killed', 'numpy', 'jax', 'theirs')
  assert found == {'ours': 3, 'theirs': 3}
  assert names(left_out['killed'], 'killed')
  assert 'Unable to allocate 256. PiB' in left_out['numpy']
  assert 'RESOURCE_EXHAUSTED' in left_out['jax']
  lines = capsys.readouterr().out.splitlines()
  for name, why in left_out.items():
    assert len([x for x in lines if name in x and why in x]) == 1


def test_other_errors_end_the_benchmark(peaks):
  with pytest.raises(RuntimeError, match=naming('broken', 'of another kind')):
    peaks('ours', 'broken')


def test_ours_has_to_fit(peaks):
  with pytest.raises(RuntimeError, match=naming('numpy')):
    peaks('numpy', 'theirs')
