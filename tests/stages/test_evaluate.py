"""The stage evaluate through main, from published files to a report."""

import json
import signal
import subprocess
import sys
import time

import pytest

from configs import evaluate as evaluate_config
from grm_jax.evaluation import scaling_curves
from grm_jax.evaluation.suites import rewardbench
from grm_jax.stages import evaluate
from tests import test_main
from tests.evaluation.fake import judged
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


def test_k_of_0_is_one_greedy_judgement(fast, tmp_path):
  arguments, env = fast
  test_main.run(
    *arguments,
    '--config.k=0',
    '--config.max_rows=2',
    f'--workdir={tmp_path}',
    env=env,
  )
  lines = (tmp_path / 'llmbar.samples.jsonl').read_text().splitlines()
  for row in map(json.loads, lines):
    assert row['samples'] == [] and row['greedy'] is not None
  suite = json.loads((tmp_path / 'results.json').read_text())['suites'][
    'llmbar'
  ]
  assert suite['curves']['voting'] == []
  assert suite['curves']['greedy']['k'] == 0


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


# Outputs on pairs with the labels 1, 2, 1, 2; the last pair has none.
OUTPUTS = [
  {'scores': [[7, 5], [4, 6], [8, 2]], 'metas': [1, 0, 2], 'greedy': [9, 1]},
  {'scores': [[3, 5], [6, 6], None], 'metas': [0, 1, None]},
  {'scores': [[2, 9], [5, 4], [6, 5]], 'metas': [0, 2, 1], 'greedy': [1, 9]},
]


def write_outputs(path, outputs):
  rows = [
    {'id': f'llmbar/Natural/Natural/{i}', **x} for i, x in enumerate(outputs, 1)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_outputs_of_another_judge(fast, tmp_path):
  arguments, env = fast
  write_outputs(tmp_path / 'outputs.jsonl', OUTPUTS)
  command = [
    arguments[0],
    arguments[2],
    f'--config.from_outputs={tmp_path}/outputs.jsonl',
    '--config.max_rows=4',
    f'--workdir={tmp_path}/run',
  ]
  test_main.run(*command, env=env)
  files = read_files(tmp_path / 'run')
  results = json.loads(files['results.json'])
  curves = results['suites']['llmbar']['curves']
  # By hand. One sample is right in 2/3, 1/2 (a tie and a failure), 2/3 and 0 of
  # the cases; two samples in 5/6, 5/6, 1/3 and 0; all three in 1, 1, 0 and 0.
  voting = [(x['k'], x['value']) for x in curves['voting']]
  assert voting == [(1, pytest.approx(11 / 24)), (2, 0.5), (3, 0.5)]
  # The better one of two: 1, 2/3, 1, 0. The better two of three: 1, 1, 1, 0.
  guided = [(x['k'], x['num_meta'], x['value']) for x in curves['meta']]
  assert guided == [
    (1, 1, pytest.approx(11 / 24)),
    (2, 1, pytest.approx(2 / 3)),
    (3, 2, 0.75),
  ]
  assert curves['greedy']['value'] == 0.25
  assert '1 of 4 (25.0%)' in results['facts'].values()
  assert {'report.html', 'llmbar-scores.png', 'llmbar.samples.jsonl'} <= set(
    files
  )
  test_main.run(*command, env=env)
  assert read_files(tmp_path / 'run') == files
  write_outputs(tmp_path / 'outputs.jsonl', OUTPUTS[:2])
  line = test_main.error_of(*command, env=env)
  assert names(line, 'config.from_outputs', 'run')


def test_the_seed_is_that_of_subsets_and_intervals():
  queries = judged(100, 16)
  config = evaluate_config.get_config()
  first = evaluate._report(config, 'rewardbench', queries)
  assert first.curves == scaling_curves.suite_curves(
    queries, scaling_curves.mean_of_terms(rewardbench.terms)
  )
  config.seed = 1
  other = evaluate._report(config, 'rewardbench', queries)
  two, two_of_other = first.curves.voting[1], other.curves.voting[1]
  assert two.value != two_of_other.value  # random subsets of two samples
  last, last_of_other = first.curves.voting[-1], other.curves.voting[-1]
  assert last.value == last_of_other.value and last != last_of_other
  assert first.lengths['Chat'] != other.lengths['Chat']


def test_given_principles(fast, tmp_path):
  arguments, env = fast
  (tmp_path / 'critique.txt').write_text(TEMPLATE + '{{ principles }}')
  id = 'llmbar/Natural/Natural/2'
  path = tmp_path / 'principles.jsonl'
  path.write_text(json.dumps({'id': id, 'principles': 'Be short.'}))
  command = [
    *arguments,
    f'--config.prompt.template={tmp_path}/critique.txt',
    f'--config.prompt.principles={tmp_path}/short.txt',
    f'--config.principles={path}',
    '--config.max_rows=2',
    '--config.greedy=false',
    f'--workdir={tmp_path}/run',
  ]
  (tmp_path / 'short.txt').write_text(TEMPLATE)
  test_main.run(*command, env=env)
  lines = (tmp_path / 'run/llmbar.samples.jsonl').read_text().splitlines()
  written, given = (json.loads(x)['example']['principles'] for x in lines)
  assert written != given == 'Be short.'
  test_main.run(*command, env=env)  # the report again, from its samples


@pytest.mark.parametrize(
  'row, words',
  [
    ({'id': 'x', 'principles': 'p'}, ['config.principles', 'llmbar/Natural']),
    (
      {'id': 'llmbar/Natural/Natural/2', 'principles': 'p'},
      ['config.principles', 'template', 'critique'],
    ),
    ({'id': 'x'}, ['given.jsonl', 'row 1', 'principles']),
  ],
)
def test_principles_that_no_prompt_shows(fast, tmp_path, row, words):
  arguments, env = fast
  path = tmp_path / 'given.jsonl'
  path.write_text(json.dumps(row))
  line = test_main.error_of(
    *arguments,
    f'--workdir={tmp_path}/run',
    f'--config.principles={path}',
    env=env,
  )
  assert names(line, *words)


@pytest.mark.parametrize(
  'changes, words',
  [
    (['--config.suites.llmbar='], ['llmbar']),
    (['--config.suites.llmbar=nowhere'], ['nowhere']),
    (['--config.reuse_samples=nowhere'], ['config.reuse_samples', 'nowhere']),
    (['--config.from_outputs=nowhere.json'], ['nowhere.json']),
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
