"""The stage evaluate through main, from published files to a report."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests import test_main
from tests.messages import names

TEMPLATE = (
  '{% for turn in query %}{{ turn.text }}{% endfor %}\n'
  '{% for response in responses %}{{ response }}\n{% endfor %}'
)


@pytest.fixture(scope='module')
def fast(tmp_path_factory):
  """Returns (arguments, environment) of runs that compile little, once."""
  folder = tmp_path_factory.mktemp('fast')
  (folder / 'short.txt').write_text(TEMPLATE)
  rows = [
    {'input': f'q {i}', 'output_1': 'yes', 'output_2': 'no', 'label': 1 + i % 2}
    for i in range(20)
  ]
  suite = folder / 'LLMBar' / 'Natural'
  suite.mkdir(parents=True)
  (suite / 'dataset.json').write_text(json.dumps(rows))
  arguments = [
    '--config=configs/evaluate.py:tiny',
    f'--config.prompt.template={folder}/short.txt',
    f'--config.suites.llmbar={folder}/LLMBar',
    '--config.sampling.max_new_tokens=8',
    '--config.sampling.decode_steps_per_call=4',
    '--config.sampling.prompt_buckets=(128,)',
    '--config.k=2',
  ]
  return arguments, test_main.environment()


@pytest.fixture(scope='module')
def clean_run(fast, tmp_path_factory):
  """Returns the workdir of a run without interruption."""
  workdir = tmp_path_factory.mktemp('clean')
  arguments, env = fast
  stdout, _ = test_main.run(*arguments, f'--workdir={workdir}', env=env)
  assert 'report.html' in stdout and 'llmbar' in stdout
  return workdir


def read_files(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_files_of_a_report(clean_run):
  files = read_files(clean_run)
  assert {'results.json', 'report.html', 'llmbar.samples.jsonl'} <= set(files)
  assert any(name.endswith('.png') for name in files)
  assert not [name for name in files if name.endswith(('.partial', '.greedy'))]
  rows = [json.loads(x) for x in files['llmbar.samples.jsonl'].splitlines()]
  assert len(rows) == 20
  for row in rows:
    assert len(row['samples']) == 2 and row['greedy'] is not None
  results = json.loads(files['results.json'])
  assert results['suites']['llmbar']['samples']['num_queries'] == 20


def test_resumes_after_kills_with_the_same_files(clean_run, fast, tmp_path):
  arguments, env = fast
  command = [sys.executable, '-m', 'grm_jax.main', *arguments]
  command.append(f'--workdir={tmp_path}')
  for journal, count in (('partial', 5), ('partial', 15), ('greedy', 8)):
    process = subprocess.Popen(
      command,
      cwd=test_main.ROOT,
      env=env,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    path = tmp_path / f'llmbar.samples.jsonl.{journal}'
    while not path.exists() or path.read_bytes().count(b'\n') < count:
      assert process.poll() is None
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
  test_main.run(*arguments, f'--workdir={tmp_path}', env=env)
  assert read_files(tmp_path) == read_files(clean_run)


def test_the_report_is_written_again_without_a_model(clean_run, fast, tmp_path):
  arguments, env = fast
  test_main.run(
    arguments[0],
    f'--config.reuse_samples={clean_run}',
    f'--workdir={tmp_path}',
    env=env,
  )
  results = [
    json.loads(read_files(x)['results.json']) for x in (tmp_path, clean_run)
  ]
  assert results[0]['suites'] == results[1]['suites']


def test_a_scalar_judge_on_some_rows(fast, tmp_path):
  arguments, env = fast
  test_main.run(
    *arguments,
    '--config.judge=scalar',
    '--config.sampling.max_new_tokens=16',
    '--config.max_rows=5',
    f'--workdir={tmp_path}',
    env=env,
  )
  lines = (tmp_path / 'llmbar.samples.jsonl').read_text().splitlines()
  assert len(lines) == 5
  test_main.run(
    arguments[0],
    f'--config.reuse_samples={tmp_path}',
    f'--workdir={tmp_path}/again',
    env=env,
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    (['--config.suites.llmbar='], ['llmbar']),
    (['--config.suites.llmbar=nowhere'], ['nowhere']),
    (['--config.reuse_samples=nowhere'], ['config.reuse_samples', 'nowhere']),
    (['--config.k=0', '--config.greedy=false'], ['config.k', 'config.greedy']),
  ],
  ids=str,
)
def test_mistakes_are_one_line(fast, tmp_path, changes, words):
  arguments, env = fast
  line = test_main.error_of(
    *arguments, f'--workdir={tmp_path}', *changes, env=env
  )
  assert names(line, *words)


def test_a_missing_workdir_is_an_error(fast):
  assert names(test_main.error_of(*fast[0], env=fast[1]), '--workdir')
