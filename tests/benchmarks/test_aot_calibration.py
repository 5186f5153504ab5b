"""Measured against estimated times, by hand and from files."""

import gzip
import json
import subprocess
import sys

import pytest

from benchmarks import aot_calibration
from tests.aot.test_xla_estimate import TEXT
from tests.messages import lines_with, names

FACTS = {
  'topology': 'v5p:2x2x1',
  'coords': [[0, 0, 0], [1, 0, 0]],
  'sequence_size': 2048,
  'source': 'a report',
}


def test_factor_and_error():
  rows = [
    {'chip': 'v5p', 'measured': 8.0, 'xla': 10.0},
    {'chip': 'v5p', 'measured': 9.0, 'xla': 10.0},
    {'chip': 'v5p', 'measured': 10.0, 'xla': 10.0},
    {'chip': 'v6e', 'measured': 3.0, 'xla': 2.0},
  ]
  assert aot_calibration.calibrate(rows) == {
    # The program with a factor of 0.8 is predicted 0.9 / 0.8 times too long.
    'v5p': {'factor': 0.9, 'error': pytest.approx(0.125), 'programs': 3},
    'v6e': {'factor': 1.5, 'error': 0.0, 'programs': 1},
  }


def test_times_of_a_module():
  row = aot_calibration.times(TEXT, FACTS | {'measured_seconds': 2.0})
  # 4 times 50 cycles and 30 cycles, at 1.75 GHz.
  assert row['fusions'] == pytest.approx(230 / 1.75e9)
  assert row['exposed'] == 0.0
  assert row['xla'] == pytest.approx(row['fusions'] + row['kernels'])
  assert row['bound'] < row['kernels']
  assert row['measured'] == 2.0


def test_files(tmp_path):
  for name in ('a', 'b'):
    with gzip.open(tmp_path / f'{name}.txt.gz', 'wt') as file:
      file.write(TEXT)
  expected = aot_calibration.times(TEXT, FACTS | {'measured_seconds': 1.0})
  for name, factor in (('a', 0.5), ('b', 1.5)):
    facts = FACTS | {'measured_seconds': factor * expected['xla']}
    (tmp_path / f'{name}.json').write_text(json.dumps(facts))
  result_path = tmp_path / 'result'
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'benchmarks.aot_calibration', str(tmp_path)),
      f'--json={result_path}',
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  (line,) = lines_with(result.stdout, 'v5p:')
  assert names(line, '1.000', '100.0%', '2 programs')
  written = json.loads(result_path.read_text())
  assert written['chips']['v5p']['factor'] == pytest.approx(1.0)
  assert written['programs']['a']['calibrated'] == pytest.approx(
    expected['xla']
  )
