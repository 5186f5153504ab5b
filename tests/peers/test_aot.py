"""The 27B forward compiles for TPU pods, with splash, and fits.

All 46 layers: the scanned layer pair is compiled once, so depth costs nothing.
"""

import json

import pytest

from tests.test_main import error_of, run


@pytest.mark.parametrize('program', ['prompts', 'generations'])
@pytest.mark.parametrize(
  'topology, tensor, hbm', [('v5p:4x4x4', 1, 95), ('v6e:8x8', 4, 32)]
)
def test_compiles_and_fits(tmp_path, topology, tensor, hbm, program):
  report = tmp_path / 'report.json'
  stdout, stderr = run(
    '--config=configs/aot.py',
    f'--config.topology={topology}',
    f'--config.program={program}',
    f'--config.mesh.tensor={tensor}',
    f'--config.json={report}',
  )
  assert 'rematerialization' not in stderr
  report = json.loads(report.read_text())
  print(stdout)
  assert report['attention'] == 'splash'
  assert report['devices'] == 64
  assert report['fits'] is True
  assert report['memory_bytes'] == hbm * 2**30
  # float32 parameters over 64 devices, every one split but for the norms.
  expected = 4 * 27_227_128_320 / 64
  assert report['arguments_bytes'] == pytest.approx(expected, rel=0.01)


def test_too_much_does_not_fit():
  """512 prompts with 4 generations on four v5e chips need over 16 GiB."""
  stdout, _ = run(
    '--config=configs/aot.py',
    '--config.topology=v5e:2x2',
    '--config.num_layers=4',
    '--config.prompts=512',
  )
  assert 'fits               False' in stdout


def test_unknown_topologies():
  line = error_of('--config=configs/aot.py', '--config.topology=v9:2x2')
  assert "'v9:2x2'" in line and 'v5p' in line
  line = error_of('--config=configs/aot.py', '--config.topology=v5p:3x5x7x2')
  assert 'v5p:3x5x7x2' in line and 'libtpu' in line
