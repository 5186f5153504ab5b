"""The stage score through main: bad rows, interruptions, baselines."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from grm_jax.io import run_lock
from tests import test_main
from tests.evaluation.suites import published
from tests.messages import lines_with, names
from tests.stages import stage_output, stage_runs

TEMPLATE = (
  '{% for turn in query %}{{ turn.text }}{% endfor %}\n'
  '{% for response in responses %}{{ response }}\n{% endfor %}'
)


@pytest.fixture(scope='module')
def fast(tmp_path_factory):
  """Returns (arguments, environment) of runs that compile little, once."""
  folder = tmp_path_factory.mktemp('fast')
  (folder / 'short.txt').write_text(TEMPLATE)
  arguments = [
    '--config=configs/score.py:tiny',
    f'--config.prompt.template={folder}/short.txt',
    '--config.sampling.max_new_tokens=12',
    '--config.sampling.decode_steps_per_call=4',
    '--config.sampling.prompt_buckets=(128,)',
  ]
  return arguments, test_main.environment()


@pytest.fixture
def run(fast):
  return lambda *more: test_main.run(*fast[0], *more, env=fast[1])


@pytest.fixture
def error_of(fast):
  return lambda *more: test_main.error_of(*fast[0], *more, env=fast[1])


def read_rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, count):
  path.write_text(
    ''.join(
      json.dumps({'id': f'r{i}', 'query': f'q {i}', 'responses': ['a', 'b']})
      + '\n'
      for i in range(count)
    )
  )


def test_the_tiny_config(tmp_path, run, error_of):
  stdout, _ = run(f'--workdir={tmp_path}')
  rows = read_rows(tmp_path / 'scores.jsonl')
  assert [row['id'] for row in rows] == ['sum', 'letters', 'tide']
  assert [row['line'] for row in rows] == [1, 2, 3]
  for row, n in zip(rows, (2, 3, 2), strict=True):
    assert len(row['samples']) == 4
    orders = [sample['order'] for sample in row['samples']]
    assert all(sorted(order) == list(range(n)) for order in orders)
    parsed = [s['scores'] for s in row['samples'] if s['scores']]
    assert row['failures'] == 4 - len(parsed)
  assert lines_with(stdout, stage_output.RANDOM)
  names_of_files = sorted(p.name for p in tmp_path.iterdir())
  assert names_of_files == ['config.json', 'scores.jsonl']
  # The finished workdir is not judged again, and not with other settings.
  before = (tmp_path / 'scores.jsonl').stat().st_mtime_ns
  stdout, _ = run(f'--workdir={tmp_path}', '--config.mesh.tensor=1')
  assert lines_with(stdout, tmp_path / 'scores.jsonl')
  line = error_of(
    f'--workdir={tmp_path}', '--config.k=2', '--config.temperature=0.7'
  )
  assert names(line, tmp_path, 'config.k', 4, 2)
  assert names(line, 'config.temperature', 0.5, 0.7)
  assert (tmp_path / 'scores.jsonl').stat().st_mtime_ns == before


def test_escape_sequences_do_not_reach_the_terminal(tmp_path, run):
  escape = '\x1b[31m\x9b2J\n'
  rows = [
    {'id': escape + '1', 'query': 'q', 'responses': ['a']},
    {'id': escape + '2', 'query': 'q', 'responses': [escape, 1]},
    {'id': escape + '3', 'query': 'q' * 10**6 * 2, 'responses': ['a']},
    {'id': '4' * 1000, 'query': 'q', 'responses': ['a']},
  ]
  (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  stdout, stderr = run(
    f'--workdir={tmp_path}/run', f'--config.input={tmp_path}/in.jsonl'
  )
  assert '\x1b' not in stdout + stderr and '\x9b' not in stdout + stderr
  assert names(stdout, r'\x1b[31m\x9b2J\n1') and '4' * 100 not in stdout
  written = read_rows(tmp_path / 'run/scores.jsonl')
  assert [x['id'] for x in written] == [escape + '1', '4' * 1000]


def test_meta_rm_and_greedy(tmp_path, run):
  run(
    '--config.sampling.prompt_buckets=(1024,)',
    '--config.meta_checkpoint=random',
    '--config.k=0',
    f'--workdir={tmp_path}',
  )
  for row in read_rows(tmp_path / 'scores.jsonl'):
    (sample,) = row['samples']
    assert isinstance(sample['meta'], float)


@pytest.mark.parametrize('judge', ['llm', 'token_probability'])
def test_llm_as_a_judge(tmp_path, run, judge):
  run(f'--config.judge={judge}', '--config.k=1', f'--workdir={tmp_path}')
  assert len(read_rows(tmp_path / 'scores.jsonl')) == 3


def test_semi_scalar_judge(tmp_path, run):
  run('--config.judge=semi_scalar', '--config.k=2', f'--workdir={tmp_path}')
  rows = read_rows(tmp_path / 'scores.jsonl')
  assert [len(row['votes']) for row in rows] == [2, 3, 2]
  for row in rows:
    assert row['failures'] == 0
    for sample in row['samples']:
      assert 'Critique of Response 2:' in sample['text']
    first, second = (sample['scores'] for sample in row['samples'])
    sums = [a + b for a, b in zip(first, second, strict=True)]
    assert row['votes'] == pytest.approx(sums)


def test_semi_scalar_judge_with_a_value_model(tmp_path, run):
  run(
    '--config.judge=semi_scalar',
    '--config.value_checkpoint=random',
    '--config.sampling.max_new_tokens=96',
    '--config.k=2',
    f'--workdir={tmp_path}',
  )
  rows = read_rows(tmp_path / 'scores.jsonl')
  assert [len(row['votes']) for row in rows] == [2, 3, 2]
  assert all('Critique of' in s['text'] for x in rows for s in x['samples'])


def test_principles_are_generated_once(tmp_path, run):
  (tmp_path / 'judge.txt').write_text('{{ principles }}' + TEMPLATE)
  (tmp_path / 'write.txt').write_text(TEMPLATE)
  run(
    f'--config.prompt.template={tmp_path}/judge.txt',
    f'--config.prompt.principles={tmp_path}/write.txt',
    f'--workdir={tmp_path}/out',
  )
  for row in read_rows(tmp_path / 'out' / 'scores.jsonl'):
    texts = [sample['text'] for sample in row['samples']]
    assert len(set(texts)) > 1
    shared = os.path.commonprefix(texts)
    assert len(shared.partition('\n\n')[0]) > 10


def test_scalar_judge(tmp_path, run):
  stdout, _ = run(
    '--config.judge=scalar',
    '--config.sampling.max_new_tokens=96',
    f'--workdir={tmp_path}',
  )
  rows = read_rows(tmp_path / 'scores.jsonl')
  assert [len(row['votes']) for row in rows] == [2, 3, 2]
  for row in rows:
    assert row['votes'][row['best']] == max(row['votes'])


BAD = [
  ('not json', ['JSON']),
  ('[' * 5000, ['JSON']),
  ('[1]', ['object']),
  ('{"query": "", "responses": ["a"]}', ['query']),
  ('{"query": "q", "responses": []}', ['responses']),
  ('{"query": "q", "responses": ["a", 3]}', ['responses']),
  ('{"query": 7, "responses": ["a"]}', ['query']),
  ('{"responses": ["a"]}', ['query', 'messages']),
  ('{"query": "q", "responses": ["a"], "best": 1}', ['best', 1]),
  (
    json.dumps({'query': 'q', 'responses': ['a' * 2_000_000]}),
    [2000000],
  ),
  (b'{"query": "\xff", "responses": ["a"]}', ['JSON']),
]


def test_bad_rows_are_reported_and_skipped(tmp_path, run, error_of):
  rows = tmp_path / 'rows.jsonl'
  good = b'{"query": "q", "responses": ["a", "b"]}'
  bad = [x if isinstance(x, bytes) else x.encode() for x, _ in BAD]
  rows.write_bytes(b'\n'.join([good, *bad, b'', good, b'  ']) + b'\n')
  arguments = [f'--config.input={rows}', f'--workdir={tmp_path}']
  stdout, stderr = run(*arguments)
  scored = read_rows(tmp_path / 'scores.jsonl')
  assert [row['line'] for row in scored] == [1, len(BAD) + 3]
  errors = read_rows(tmp_path / 'scores.errors.jsonl')
  assert [row['line'] for row in errors] == list(range(2, len(BAD) + 2))
  for error, (_, words) in zip(errors, BAD, strict=True):
    assert names(error['error'], *words)
    assert lines_with(stderr, rows, error['line'])
  assert lines_with(stdout, len(BAD), tmp_path / 'scores.errors.jsonl')
  arguments = [f'--config.input={rows}', f'--workdir={tmp_path}/again']
  line = error_of(*arguments, '--config.fail_on_bad_rows=true')
  assert names(line, rows, 2, 'JSON')


def test_ids_of_all_kinds_keep_their_type(tmp_path, run):
  rows = tmp_path / 'rows.jsonl'
  row = {'query': 'q', 'responses': ['a', 'b']}
  # Half a surrogate pair, an escape sequence, numbers, and no id.
  ids = ['\ud83d', 'x\x1b[2J', 3, '3', 2.0, None]
  bad = {'id': 7, 'query': 'q', 'responses': []}
  lines = [json.dumps(row | {'id': id}) for id in ids] + [json.dumps(bad)]
  rows.write_text('\n'.join(lines))
  stdout, stderr = run(
    f'--config.input={rows}', '--config.k=1', f'--workdir={tmp_path}'
  )
  scored = read_rows(tmp_path / 'scores.jsonl')
  assert [x['id'] for x in scored] == [*ids[:4], 2, 'row 6']
  assert [type(x['id']) for x in scored] == [str, str, int, str, int, str]
  assert read_rows(tmp_path / 'scores.errors.jsonl')[0]['id'] == 7
  assert '\x1b' not in stdout + stderr


def test_input_that_is_no_file_is_refused_at_once(tmp_path, error_of):
  pipe = tmp_path / 'rows.jsonl'
  os.mkfifo(pipe)
  for path in (pipe, '/dev/zero'):
    line = error_of(f'--config.input={path}', f'--workdir={tmp_path}/out')
    assert names(line, path)


@pytest.mark.parametrize('suffix', ['json', 'parquet'])
def test_other_formats_give_the_same_scores(tmp_path, run, suffix):
  rows = [
    {'id': f'r{i}', 'query': f'q {i}', 'responses': ['a', 'b'], 'best': i}
    for i in range(3)  # the last row is bad
  ]
  results = {}
  for name in ('jsonl', suffix):
    path = published.write(tmp_path / f'rows.{name}', rows)
    _, stderr = run(f'--config.input={path}', f'--workdir={tmp_path / name}')
    assert lines_with(stderr, path, 3)
    files = ('scores.jsonl', 'scores.errors.jsonl')
    results[name] = [(tmp_path / name / x).read_bytes() for x in files]
  assert results[suffix] == results['jsonl']
  scores = read_rows(tmp_path / suffix / 'scores.jsonl')
  assert [row['line'] for row in scores] == [1, 2]


def test_a_file_without_good_rows_is_an_error(tmp_path, run, error_of):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text('{"query": "q"}\nnonsense\n')
  arguments = [f'--config.input={rows}', f'--workdir={tmp_path}']
  line = error_of(*arguments)
  assert names(line, rows, 2, tmp_path / 'scores.errors.jsonl')
  assert names(line, 'responses')  # missing in the first row
  assert len(read_rows(tmp_path / 'scores.errors.jsonl')) == 2
  assert not list(tmp_path.glob('scores.jsonl*'))
  write_rows(rows, 2)  # the next run starts again
  run(*arguments)
  assert len(read_rows(tmp_path / 'scores.jsonl')) == 2


def kill_after(count, journal, fast, *arguments):
  """Starts a run and kills it when the journal has `count` lines."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'grm_jax.main', *fast[0], *arguments],
    cwd=test_main.ROOT,
    env=fast[1],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  while not journal.exists() or journal.read_bytes().count(b'\n') < count:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()


def test_half_a_run_is_not_continued_with_other_inputs(
  tmp_path, run, fast, error_of
):
  rows, model = tmp_path / 'rows.jsonl', tmp_path / 'model'
  write_rows(rows, 40)
  stage_runs.write_model(model)
  command = [
    f'--config.input={rows}',
    f'--config.checkpoint={model}',
    '--config.k=2',
    f'--workdir={tmp_path}/run',
  ]
  output = tmp_path / 'run' / 'scores.jsonl'
  kill_after(5, output.with_name('scores.jsonl.partial'), fast, *command)
  content = rows.read_text()
  rows.write_text(content.replace('q 30', 'q 31'))
  assert names(error_of(*command), 'config.input', tmp_path / 'run')
  rows.write_text(content)
  stage_runs.write_model(model, step=1)
  line = error_of(*command)
  assert names(line, 'config.checkpoint', tmp_path / 'run')
  assert 'step 0' in line and 'step 1' in line
  assert not output.exists()
  run(*command, '--config.checkpoint_step=0')
  assert len(read_rows(output)) == 40


def test_resumes_after_kills_with_the_same_scores(tmp_path, run, fast):
  rows = tmp_path / 'rows.jsonl'
  write_rows(rows, 40)
  command = [f'--config.input={rows}', '--config.k=2']
  run(*command, f'--workdir={tmp_path}/clean')
  journal = tmp_path / 'killed' / 'scores.jsonl.partial'
  for count in (3, 14, 27):
    kill_after(count, journal, fast, *command, f'--workdir={tmp_path}/killed')
    assert not (tmp_path / 'killed' / 'scores.jsonl').exists()
  run(*command, f'--workdir={tmp_path}/killed')
  clean, killed = (
    (tmp_path / name / 'scores.jsonl').read_bytes()
    for name in ('clean', 'killed')
  )
  assert killed == clean
  assert not journal.exists()


def test_a_wrong_checkpoint_leaves_no_journal(tmp_path, run, error_of):
  rows = tmp_path / 'rows.jsonl'
  write_rows(rows, 2)
  arguments = [f'--config.input={rows}', f'--workdir={tmp_path}/out']
  assert 'nowhere' in error_of(*arguments, '--config.checkpoint=nowhere')
  run(*arguments)


def test_a_journal_with_other_settings_is_an_error(tmp_path, error_of):
  rows = tmp_path / 'rows.jsonl'
  write_rows(rows, 2)
  header = json.dumps({'judge': 'grm', 'k': 64}) + '\n'
  (tmp_path / 'scores.jsonl.partial').write_text(header)
  line = error_of(f'--config.input={rows}', f'--workdir={tmp_path}')
  assert names(line, tmp_path / 'scores.jsonl.partial')


def test_an_output_of_unknown_settings_is_an_error(tmp_path, error_of):
  rows, output = tmp_path / 'rows.jsonl', tmp_path / 'notes.jsonl'
  write_rows(rows, 2)
  output.write_text('{}\n')
  line = error_of(
    f'--config.input={rows}',
    f'--config.output={output}',
    f'--workdir={tmp_path}/out',
  )
  assert names(line, output, tmp_path / 'out')
  assert output.read_text() == '{}\n'


def test_one_run_at_a_time_in_a_workdir(tmp_path, error_of):
  rows = tmp_path / 'rows.jsonl'
  write_rows(rows, 2)
  with run_lock.hold_workdir(str(tmp_path)):
    line = error_of(
      f'--config.input={rows}',
      f'--config.output={tmp_path}/a.jsonl',
      f'--workdir={tmp_path}',
    )
  assert names(line, tmp_path, os.getpid())


@pytest.mark.parametrize(
  'change, words',
  [
    ('--config.input=nowhere.jsonl', ['nowhere.jsonl']),
    ('--config.judge=llms', ['config.judge', 'llms']),
    ('--config.response_order=up', ['config.response_order', 'up']),
    ('--config.prompt.template=nowhere', ['config.prompt.template', 'nowhere']),
    ('--config.sampling.weights=disk', ['config.sampling.weights', 'disk']),
    ('--config.vote=best', ['config.vote', 'best', 'config.meta_checkpoint']),
    ('--config.temperature=-1.0', ['config.temperature', -1.0]),
    ('--config.k=-1', ['config.k', -1]),
  ],
)
def test_mistakes_are_one_line(tmp_path, error_of, change, words):
  line = error_of(f'--workdir={tmp_path}', change)
  assert names(line, *words)
