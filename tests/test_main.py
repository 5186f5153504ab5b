"""The command line: what a user types wrong, and every `:tiny` run."""

import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from grm_jax import main
from grm_jax.errors import NonFiniteError, UserError
from grm_jax.stages import sft
from tests.messages import lines_with, names
from tests.processes import HANG

ROOT = pathlib.Path(__file__).parents[1]


def environment(cache):
  """Of a run on one CPU device, compiling nothing twice."""
  flags = '--xla_backend_optimization_level=0'
  return os.environ | {
    'XLA_FLAGS': f'{flags} --xla_llvm_disable_expensive_passes=true',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


def run(*arguments, expect=0, env=None):
  """Runs main; returns (stdout, stderr)."""
  out = subprocess.run(
    [sys.executable, '-m', 'grm_jax.main', *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG,
    env=env,
  )
  assert out.returncode == expect, out.stderr
  return out.stdout, out.stderr


def error_of(*arguments, env=None):
  """The one line that a mistake ends with."""
  _, stderr = run(*arguments, expect=2, env=env)
  lines = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1, stderr
  assert 'Traceback' not in stderr
  return lines[0]


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/aot.py:tiny', '--config.mesh.tensr=2'], ['tensor']),
    (['--config=configs/aot.py:tiny', '--config.promts=2'], ['prompts']),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=two'],
      ['config.mesh.tensor', 'two'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.prompts=1.5'],
      ['config.prompts', '1.5'],
    ),
    (['--config=configs/aot.py:big'], [':tiny']),
    (['--config=configs/grpoo.py'], ['configs/grpoo.py']),
    ([], ['--config']),
    (['--config=configs/aot.py:tiny', '--worksdir=x'], ['worksdir']),
    (['--config=configs/aot.py:tiny', 'extra'], ["'extra'"]),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensr=1'],
      ['config.mesh.tensr', 'tensor'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.seed=1', '--config.x.y=2'],
      ['config.x'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.program=x'],
      ['config.program', 'prompts', 'generations'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=3'],
      ['tensor=3', '8', 'config.mesh.fsdp'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=4'],
      ['kv_heads', 2, 4, 'config.mesh.tensor'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.compute.remat=some'],
      ['config.compute.remat', 'dots'],
    ),
    (['--config=configs/score.py:tiny'], ['--workdir']),
    (
      ['--config=configs/score.py', '--workdir=runs/x'],
      ['config.checkpoint'],
    ),
    (
      ['--config=configs/convert.py', '--workdir=x'],
      ['config.source'],
    ),
  ],
)
def test_mistakes_are_one_line(arguments, words):
  line = error_of(*arguments)
  assert names(line, *words), line


def end_with(monkeypatch, error):
  """main, of a stage that raises this error."""

  def run(config, workdir):
    raise error

  config = types.SimpleNamespace(stage='sft')
  monkeypatch.setattr(main, '_CONFIG', types.SimpleNamespace(value=config))
  monkeypatch.setattr(main, '_WORKDIR', types.SimpleNamespace(value=''))
  monkeypatch.setattr(sft, 'run', run)
  main.main(['main'])


@pytest.mark.parametrize(
  'error, status', [(UserError('why'), 2), (NonFiniteError('why'), 3)]
)
def test_errors_of_ours_are_one_line(monkeypatch, capsys, error, status):
  with pytest.raises(SystemExit) as end:
    end_with(monkeypatch, error)
  assert end.value.code == status
  assert capsys.readouterr().err == 'error: why\n'


@pytest.mark.parametrize('kind', [ValueError, FloatingPointError])
def test_other_errors_keep_their_traceback(monkeypatch, kind):
  with pytest.raises(kind, match='why'):
    end_with(monkeypatch, kind('why'))


def test_help_tells_how_to_run():
  stdout, _ = run('--help', expect=1)
  assert names(stdout, '--config', '--workdir')


def test_aot_tiny(tmp_path):
  report = tmp_path / 'report.json'
  stdout, _ = run('--config=configs/aot.py:tiny', f'--config.json={report}')
  for part in ('gradients', 'update'):
    assert lines_with(stdout, part, 1)
  report = json.loads(report.read_text())
  assert report['devices'] == 8
  assert report['mesh'] == {'data': 1, 'fsdp': 8, 'tensor': 1}
  # 4 bytes a parameter, split over 8 devices but for the norms.
  assert 1 <= report['parameters_bytes'] / (1_116_288 * 4 / 8) < 1.1
  assert report['peak_bytes'] >= report['parts'][0]['temporary_bytes']
