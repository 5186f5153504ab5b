"""Evaluation from files as published to a report, by the command line."""

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
  """(arguments, environment) of runs that compile little, and once."""
  made = tmp_path_factory.mktemp('fast')
  (made / 'short.txt').write_text(TEMPLATE)
  rows = [
    {'input': f'q {i}', 'output_1': 'yes', 'output_2': 'no', 'label': 1 + i % 2}
    for i in range(20)
  ]
  folder = made / 'LLMBar' / 'Natural'
  folder.mkdir(parents=True)
  (folder / 'dataset.json').write_text(json.dumps(rows))
  arguments = [
    '--config=configs/evaluate.py:tiny',
    f'--config.prompt.template={made}/short.txt',
    f'--config.suites.llmbar={made}/LLMBar',
    '--config.sampling.max_new_tokens=8',
    '--config.sampling.decode_steps_per_call=4',
    '--config.sampling.prompt_buckets=(128,)',
    '--config.k=2',
  ]
  return arguments, test_main.environment(made / 'cache')


@pytest.fixture(scope='module')
def calm(fast, tmp_path_factory):
  """The folder of an undisturbed run."""
  made = tmp_path_factory.mktemp('calm')
  arguments, env = fast
  stdout, _ = test_main.run(*arguments, f'--workdir={made}', env=env)
  assert 'report.html' in stdout and 'llmbar' in stdout
  return made


def files_of(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_a_report_has(calm):
  found = files_of(calm)
  assert {'results.json', 'report.html', 'llmbar.samples.jsonl'} <= set(found)
  assert any(name.endswith('.png') for name in found)
  assert not [name for name in found if name.endswith(('.partial', '.greedy'))]
  rows = [json.loads(x) for x in found['llmbar.samples.jsonl'].splitlines()]
  assert len(rows) == 20
  for row in rows:
    assert len(row['samples']) == 2 and row['greedy'] is not None
  results = json.loads(found['results.json'])
  assert results['suites']['llmbar']['samples']['num_queries'] == 20


def test_killed_and_started_again_it_ends_the_same(calm, fast, tmp_path):
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
  assert files_of(tmp_path) == files_of(calm)


def test_the_report_again_without_a_model(calm, fast, tmp_path):
  arguments, env = fast
  test_main.run(
    arguments[0],
    f'--config.reuse_samples={calm}',
    f'--workdir={tmp_path}',
    env=env,
  )
  ours, theirs = files_of(tmp_path), files_of(calm)
  results = [json.loads(x['results.json']) for x in (ours, theirs)]
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


def test_a_workdir_is_needed(fast):
  assert names(test_main.error_of(*fast[0], env=fast[1]), '--workdir')
