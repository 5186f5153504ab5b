"""The command line: what a user types wrong, and every `:tiny` run."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments, expect=0):
  """Runs main; returns (stdout, stderr)."""
  out = subprocess.run(
    [sys.executable, '-m', 'grm_jax.main', *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert out.returncode == expect, out.stderr
  return out.stdout, out.stderr


def error_of(*arguments):
  """The one line that a mistake ends with."""
  _, stderr = run(*arguments, expect=2)
  lines = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1, stderr
  assert 'Traceback' not in stderr
  return lines[0]


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/aot.py:tiny', '--config.mesh.tensr=2'], ['"tensor"']),
    (['--config=configs/aot.py:tiny', '--config.promts=2'], ['"prompts"']),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=two'],
      ['config.mesh.tensor', 'two'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.prompts=1.5'],
      ['config.prompts', '1.5'],
    ),
    (['--config=configs/aot.py:big'], ['only :tiny exists']),
    (['--config=configs/grpoo.py'], ['configs/grpoo.py']),
    ([], ['--config']),
    (['--config=configs/aot.py:tiny', '--worksdir=x'], ['worksdir']),
    (['--config=configs/aot.py:tiny', 'extra'], ["'extra'"]),
    (
      ['--config=configs/aot.py:tiny', '--config.program=x'],
      ['config.program', 'prompts, generations'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=3'],
      ['tensor=3', '8', 'config.mesh.fsdp'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.mesh.tensor=4'],
      ['kv_heads has size 2', '4 devices', 'config.mesh.tensor'],
    ),
    (
      ['--config=configs/aot.py:tiny', '--config.compute.remat=some'],
      ['config.compute.remat', 'dots'],
    ),
    (['--config=configs/score.py:tiny'], ['--workdir']),
    (
      ['--config=configs/score.py', '--workdir=runs/x', '--config.batch=8'],
      ['config.checkpoint is empty'],
    ),
    (
      ['--config=configs/convert.py', '--workdir=x'],
      ['config.source is empty'],
    ),
  ],
)
def test_mistakes_are_one_line(arguments, words):
  line = error_of(*arguments)
  for word in words:
    assert word in line


def test_help_tells_how_to_run():
  stdout, _ = run('--help', expect=1)
  assert '--config=configs/STAGE.py --workdir=DIR' in stdout


def test_aot_tiny(tmp_path):
  report = tmp_path / 'report.json'
  stdout, _ = run('--config=configs/aot.py:tiny', f'--config.json={report}')
  assert 'compile seconds' in stdout
  report = json.loads(report.read_text())
  assert report['devices'] == 8
  assert report['mesh'] == {'data': 1, 'fsdp': 8, 'tensor': 1}
  # 4 bytes a parameter, split over 8 devices but for the norms.
  assert report['arguments_bytes'] >= 1_116_288 * 4 / 8
  assert report['peak_bytes'] >= report['temporary_bytes']


def test_score_tiny(tmp_path):
  workdir = tmp_path / 'run'
  # 8 virtual devices: 2 queries at once need a mesh of 2.
  arguments = ['--config=configs/score.py:tiny', f'--workdir={workdir}']
  mesh = ['--config.mesh.fsdp=2', '--config.mesh.data=-1']
  line = error_of(*arguments, *mesh)
  assert 'config.batch is 2' in line
  stdout, _ = run(*arguments, '--config.batch=8')
  text = (workdir / 'scores.jsonl').read_text()
  rows = [json.loads(x) for x in text.splitlines()]
  assert [row['id'] for row in rows] == ['sum', 'letters', 'tide']
  assert [len(row['scores']) for row in rows] == [2, 3, 2]
  assert all(
    row['best'] == row['scores'].index(max(row['scores'])) for row in rows
  )
  assert 'random weights' in stdout


@pytest.mark.parametrize(
  'line, words',
  [
    ('not json', [':2:']),
    ('[1]', [':2:', 'JSON object']),
    ('{"query": "", "responses": ["a"]}', [':2:', 'query']),
    ('{"query": "q", "responses": []}', [':2:', 'responses']),
    ('{"query": "q", "responses": ["a", 3]}', [':2:', 'response']),
    (
      json.dumps({'query': 'q' * 999, 'responses': ['a']}),
      [':2:', 'query has', 'config.max_prompt allows 128'],
    ),
  ],
)
def test_bad_rows_name_file_and_line(tmp_path, line, words):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text('{"query": "q", "responses": ["a"]}\n' + line + '\n')
  message = error_of(
    '--config=configs/score.py:tiny',
    f'--workdir={tmp_path}',
    f'--config.input={rows}',
    '--config.batch=8',
  )
  for word in ['rows.jsonl', *words]:
    assert word in message
  assert not (tmp_path / 'scores.jsonl').exists()
