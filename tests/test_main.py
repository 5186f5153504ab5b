"""The command line: mistakes of the user, exit codes, and a short run."""

import json
import os
import pathlib
import subprocess
import sys
import types

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from grm_jax import main
from grm_jax.errors import NonFiniteError, UserError
from grm_jax.stages.sft import train as sft_train
from tests.messages import lines_with, names
from tests.processes import HANG_TIMEOUT_S, RUN_FLAGS

ROOT = pathlib.Path(__file__).parents[1]


def environment():
  """Returns the environment of a run on one CPU device.

  It has the compilation cache of conftest.py.
  """
  return os.environ | {'XLA_FLAGS': RUN_FLAGS}


def run(*arguments, expect=0, env=None):
  """Runs main and checks its exit code; returns (stdout, stderr)."""
  process = subprocess.run(
    [sys.executable, '-m', 'grm_jax.main', *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_TIMEOUT_S,
    env=env,
  )
  assert process.returncode == expect, process.stderr
  return process.stdout, process.stderr


def error_of(*arguments, env=None):
  """Runs main and returns the one line that explains the user's mistake."""
  _, stderr = run(*arguments, expect=2, env=env)
  lines = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1, stderr
  assert 'Traceback' not in stderr
  return lines[0]


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/aot.py:tiny', '--config.mesh.tensr=2'], ['tensor']),
    (
      ['--config=configs/aot.py:tiny', '--config.promt_size=2'],
      ['prompt_size'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=two'],
      ['config.mesh.tensor', 'two'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.prompt_size=1.5'],
      ['config.prompt_size', '1.5'],
    ),
    (['--config=configs/aot.py:big'], [':tiny']),
    (['--config=configs/grpoo.py'], ['configs/grpoo.py']),
    (
      ['--config=configs/aot.py:tiny', '--config.stage=ppo'],
      ['config.stage', 'ppo', *main.STAGES],
    ),
    ([], ['--config']),
    (['--config'], ['--config']),
    (['--config=configs/score'], ['configs/score', 'configs/score.py']),
    (['--config=configs'], ['configs']),
    (['--config=configs/tpu.txt'], ['configs/tpu.txt']),
    (['--config=configs/sft.py', '--config.data=x'], ['config.data']),
    (['--config=configs/sft.py', '--steps=3'], ['steps', '--config.key']),
    (
      ['--config=configs/sft.py', '--workdir=/nowhere/x', '--config.stage=os'],
      ['config.stage', 'os'],
    ),
    (
      [
        '--config=configs/score.py:tiny',
        '--config.stage=sft',
        '--workdir=/nowhere/x',
      ],
      ['config.apart', 'config.stage'],
    ),
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
      [
        '--config=configs/score.py',
        '--workdir=runs/x',
        '--config.input=launch/demo/rows.jsonl',
      ],
      ['config.checkpoint'],
    ),
    (
      ['--config=configs/convert.py', '--workdir=x'],
      ['config.source'],
    ),
  ],
)
def test_mistake_is_one_line(arguments, words):
  line = error_of(*arguments)
  assert names(line, *words), line


@pytest.mark.parametrize(
  'text, words',
  [
    ('def get_config(:', [1]),
    ('\n\nimport nothing_here', [3, 'nothing_here']),
    ('def get_config():\n  return 1 / 0', [2, 'ZeroDivisionError']),
    ('x = 1', ['get_config']),
    ('def get_config():\n  return {}', ['ConfigDict']),
    ('def get_config():\n  return []', ['get']),
  ],
)
def test_a_damaged_config_file(tmp_path, text, words):
  path = tmp_path / 'own.py'
  path.write_text(text)
  assert names(error_of(f'--config={path}'), *words)


@pytest.mark.parametrize('platform', ['cuda', 'nothing', 'cpu,nothing', ' '])
def test_a_platform_without_plugin(tmp_path, platform):
  line = error_of(
    *('--config=configs/convert.py:tiny', f'--workdir={tmp_path}/new'),
    env=environment() | {'JAX_PLATFORMS': platform},
  )
  assert names(line, 'JAX_PLATFORMS', repr(platform))
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'arguments, buckets',
  [
    (['=(24,)', '=(0,)'], (0,)),
    (['=(24,)', '=()'], ()),
    (['=(24, 48)', ' [8]'], (8,)),
    (['=8,16', '=32'], (32,)),
  ],
)
@pytest.mark.parametrize('flag', ['-config', '--config'])
def test_the_last_value_of_a_tuple_counts(
  monkeypatch, flag, arguments, buckets
):
  argv = ['main', f'{flag}=configs/score.py']
  for argument in arguments:
    name = f'{flag}.sampling.prompt_buckets'
    argv += (
      f'{name}{argument}'.split(' ', 1)
      if argument[0] == ' '
      else [f'{name}{argument}']
    )
  assert parse(monkeypatch, argv).sampling.prompt_buckets == buckets


@pytest.mark.parametrize(
  'values, hosts',
  [(['a.b'], ('a.b',)), (["('x',)", 'a.b, c-d:1'], ('a.b', 'c-d:1'))],
)
def test_texts_in_a_tuple(monkeypatch, values, hosts):
  flags_ = [f'--config.allowed_hosts={x}' for x in values]
  argv = ['main', '--config=configs/serve.py', *flags_]
  assert parse(monkeypatch, argv).allowed_hosts == hosts


def test_the_last_value_of_a_boolean_counts(monkeypatch):
  argv = ['main', '--config=configs/score.py', '--config.sampling.int8=true']
  assert parse(monkeypatch, argv).sampling.int8
  argv.append('--noconfig.sampling.int8')
  assert not parse(monkeypatch, argv).sampling.int8


def test_a_byte_order_mark_in_a_flag_file(tmp_path):
  path = tmp_path / 'flags.txt'
  path.write_text('\ufeff--config.k=x\n--config=configs/score.py:tiny\n')
  assert 'config.k' in error_of(f'--flagfile={path}')


def parse(monkeypatch, argv):
  """Returns the config of a command line."""
  monkeypatch.setattr(sys, 'argv', argv)
  values = flags.FlagValues()
  flag = config_flags.DEFINE_config_file('config', None, flag_values=values)
  values(argv)
  return flag.value


def run_failing_stage(monkeypatch, error):
  """Calls main for a stage that raises this error."""

  def run(config, workdir):
    raise error

  config = ConfigDict({'stage': 'sft'})
  monkeypatch.setattr(main, '_CONFIG', types.SimpleNamespace(value=config))
  monkeypatch.setattr(main, '_WORKDIR', types.SimpleNamespace(value=''))
  monkeypatch.setattr(sft_train, 'run', run)
  main.main(['main'])


@pytest.mark.parametrize(
  'error, status', [(UserError('why'), 2), (NonFiniteError('why'), 3)]
)
def test_known_errors_have_one_line_and_an_exit_code(
  monkeypatch, capsys, error, status
):
  with pytest.raises(SystemExit) as exit_info:
    run_failing_stage(monkeypatch, error)
  assert exit_info.value.code == status
  assert capsys.readouterr().err == 'error: why\n'


@pytest.mark.parametrize('kind', [ValueError, FloatingPointError])
def test_other_errors_keep_their_traceback(monkeypatch, kind):
  with pytest.raises(kind, match='why'):
    run_failing_stage(monkeypatch, kind('why'))


MAIN = [sys.executable, '-m', 'grm_jax.main']


@pytest.mark.parametrize('target', ['/dev/full', 'closed pipe'])
def test_a_run_ends_although_stdout_cannot_be_written(tmp_path, target):
  if target == 'closed pipe':
    reader, descriptor = os.pipe()
    os.close(reader)
  else:
    descriptor = os.open(target, os.O_WRONLY)
  process = subprocess.run(
    [*MAIN, '--config=configs/convert.py:tiny', f'--workdir={tmp_path}'],
    cwd=ROOT,
    env=environment(),
    stdout=descriptor,
    stderr=subprocess.PIPE,
    text=True,
    timeout=HANG_TIMEOUT_S,
  )
  os.close(descriptor)
  assert process.returncode == 2
  assert 'Traceback' not in process.stderr
  assert 'ignored' not in process.stderr
  assert (tmp_path / 'model' / '0').is_dir()
  lines = [x for x in process.stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1


def test_help_that_cannot_be_written_is_one_line():
  with open('/dev/full', 'w') as full:
    process = subprocess.run(
      [*MAIN, '--help'],
      cwd=ROOT,
      env=environment(),
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
      timeout=HANG_TIMEOUT_S,
    )
  assert process.returncode == 2
  (line,) = process.stderr.splitlines()
  assert names(line, 'standard output', 'No space left on device')


def test_an_empty_tuple_can_be_written_as_an_empty_text():
  parser = main._TupleParser()
  assert parser.parse('') == parser.parse('()') == ()


def test_help_lists_the_flags():
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
  # 4 bytes per parameter, sharded over 8 devices except for the norms.
  assert 1 <= report['parameters_bytes'] / (1_116_288 * 4 / 8) < 1.1
  assert report['peak_bytes'] >= report['programs'][0]['temporary_bytes']
