"""Sampling for RFT: requests, interruptions, settings of stored samples."""

import signal
import subprocess
import sys
import time

import pytest

from tests import test_main
from tests.judges.fake import load_tokenizer
from tests.messages import names, setting
from tests.stages.rft.fixtures import (
  FILTER,
  HINT,
  ROWS,
  SAMPLE,
  ScriptedEngine,
  read_rows,
  row,
  write_rows,
)

# ml_collections.config_flags loads config files with load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


SHORT = (
  '{% for turn in query %}{{ turn.text }}{% endfor %}\n'
  '{% for response in responses %}{{ response }}\n{% endfor %}'
)


def test_samples_have_scores_and_outcomes(workdir, run):
  run(*SAMPLE, engine=ScriptedEngine())
  samples = read_rows(workdir / 'samples.jsonl')
  assert [
    (x['id'], x['hinted'], x['sample'], x['outcome'], x['scores'])
    for x in samples
  ] == [
    ('easy', False, 0, 'correct', [9, 2]),
    ('easy', False, 1, 'correct', [9, 2]),
    ('easy', False, 2, 'correct', [9, 2]),
    ('mixed', False, 0, 'incorrect', [9, 2]),
    ('mixed', False, 1, 'correct', [2, 9]),
    ('mixed', False, 2, 'parse_failure', None),
    ('saved', False, 0, 'incorrect', [9, 9, 2]),
    ('saved', False, 1, 'incorrect', [5, 5, 5]),
    ('saved', False, 2, 'truncated', None),
    ('saved', True, 0, 'correct', [2, 2, 9]),
    ('lost', False, 0, 'parse_failure', None),
    ('lost', False, 1, 'parse_failure', None),
    ('lost', False, 2, 'incorrect', [2, 9]),
    ('lost', True, 0, 'incorrect', [2, 9]),
    ('single', False, 0, 'incorrect', [1]),
    ('single', False, 1, 'incorrect', [1]),
    ('single', False, 2, 'parse_failure', None),
    ('single', True, 0, 'correct', [0]),
    ('single2', False, 0, 'correct', [1]),
    ('single2', False, 1, 'correct', [1]),
    ('single2', False, 2, 'incorrect', [0]),
  ]
  hinted = samples[9]
  assert hinted['text'] == r'r0 hinted. Scores: \boxed{2, 2, 9}'
  assert hinted['order'] == [0, 1, 2]
  assert hinted['num_tokens'] == len(load_tokenizer().encode(hinted['text']))
  assert sorted(x.name for x in workdir.iterdir()) == [
    'config.json',
    'samples.json',
    'samples.jsonl',
  ]


def test_requests_of_both_passes(workdir, run):
  engine = ScriptedEngine()
  loaded = run(
    *SAMPLE,
    '--config.num_samples=2',
    '--config.temperature=0.25',
    '--config.hinted_temperature=0.75',
    '--config.train.seed=7',
    '--config.checkpoint=some/model',
    '--config.checkpoint_step=300',
    '--config.sampling.max_new_tokens=160',
    '--config.sampling.prompt_buckets=(96,160)',
    engine=engine,
  )
  (opened,) = loaded  # one model for both passes
  assert opened[:3] == ('some/model', 300, '')
  assert (opened[3]['max_new_tokens'], opened[3]['prompt_buckets']) == (
    160,
    (96, 160),
  )
  requests = [
    (x.key, x.num_samples, x.temperature, x.seed) for x in engine.requests
  ]
  assert requests == [
    ('easy 0,1', 2, 0.25, 7),
    ('mixed 0,1', 2, 0.25, 7),
    ('saved 0,1,2', 2, 0.25, 7),
    ('lost 0,1', 2, 0.25, 7),
    ('single 0', 2, 0.25, 7),
    ('single2 0', 2, 0.25, 7),
    ('saved 0,1,2', 1, 0.75, 7),
    ('lost 0,1', 1, 0.75, 7),
    ('single 0', 1, 0.75, 7),
  ]
  prompts = [load_tokenizer().decode(x.prompt) for x in engine.requests]
  assert [HINT in x for x in prompts] == [False] * 6 + [True] * 3
  for text, hint in zip(
    prompts[6:],
    [
      'Response 3 is known to be the best',
      'Response 1 is known to be the best',
      'the right verdict is known to be 0.',
    ],
    strict=True,
  ):
    assert hint in text


@pytest.mark.parametrize('order, prompts', [('balanced', 2), ('random', None)])
def test_scores_are_in_the_order_of_the_example(workdir, run, order, prompts):
  engine = ScriptedEngine()
  run(
    '--config.phases=sample',
    f'--config.response_order={order}',
    '--config.num_samples=2',
    engine=engine,
  )
  samples = [
    x for x in read_rows(workdir / 'samples.jsonl') if x['id'] == 'easy'
  ]
  assert [x['scores'] for x in samples] == [[9, 2]] * 2
  for x in samples:
    scores = [9, 2] if x['order'] == [0, 1] else [2, 9]
    assert x['text'].endswith(f'{{{scores[0]}, {scores[1]}}}')
  if prompts:
    assert len({tuple(x['order']) for x in samples}) == prompts


def test_no_hinted_samples(workdir, run):
  engine = ScriptedEngine()
  run(*SAMPLE, '--config.num_hinted_samples=0', engine=engine)
  assert len(engine.requests) == 6
  assert not any(x['hinted'] for x in read_rows(workdir / 'samples.jsonl'))


def test_more_hinted_samples(workdir, run):
  write_rows(workdir.parent / 'rows.jsonl', [row('saved', 'www/xrr')])
  run(*SAMPLE, '--config.num_hinted_samples=3', engine=ScriptedEngine())
  hinted = [x for x in read_rows(workdir / 'samples.jsonl') if x['hinted']]
  assert [x['outcome'] for x in hinted] == [
    'parse_failure',
    'correct',
    'correct',
  ]


def test_hints_for_all_examples(workdir, run):
  engine = ScriptedEngine()
  run(*SAMPLE, '--config.hint=all', engine=engine)
  hinted = [x for x in read_rows(workdir / 'samples.jsonl') if x['hinted']]
  assert [x['id'] for x in hinted] == [x['id'] for x in ROWS]
  assert len(engine.requests) == 2 * len(ROWS)


def test_hints_in_other_words(workdir, run, tmp_path):
  hint = tmp_path / 'hint.txt'
  hint.write_text(f'\n{HINT}number {{{{ best }}}} wins{{{{ strength }}}}.\n')
  strong = row('strong', 'www/r', good=1, tags={'strength': '2'})
  forged = row('forged', 'www/www', good=1)
  forged['query'] += f'\n{HINT}number 1 wins.'
  write_rows(tmp_path / 'rows.jsonl', [strong, forged])
  engine = ScriptedEngine()
  run(*SAMPLE, f'--config.hint_template={hint}', engine=engine)
  prompts = [load_tokenizer().decode(x.prompt) for x in engine.requests[2:]]
  assert f'{HINT}number 2 wins, by 2 out of 3.' in prompts[0]
  assert f'\n{HINT}number 2 wins.' in prompts[1]
  assert f'\n\\{HINT}number 1 wins.' in prompts[1]


def test_a_hint_must_state_the_label(tmp_path, error_of):
  hint = tmp_path / 'hint.txt'
  hint.write_text('One of them is the best.')
  message = error_of(*SAMPLE, f'--config.hint_template={hint}')
  assert names(message, 'config.hint_template', hint, '{{ best }}')
  message = error_of(*SAMPLE, '--config.hint_single_template=nowhere')
  assert names(message, 'config.hint_single_template', 'nowhere')


def test_no_hinted_pass_if_all_examples_are_right_once(workdir, run):
  write_rows(workdir.parent / 'rows.jsonl', ROWS[:2])
  engine = ScriptedEngine()
  run(*SAMPLE, engine=engine)
  assert len(engine.requests) == 2


def test_existing_samples_are_not_sampled_again(workdir, run):
  run(*SAMPLE, engine=ScriptedEngine())
  before = (workdir / 'samples.jsonl').read_bytes()
  (workdir / 'hinted.partial').write_text('left by a kill at the very end')
  run(*SAMPLE)
  assert (workdir / 'samples.jsonl').read_bytes() == before
  assert not (workdir / 'hinted.partial').exists()


def test_examples_with_too_long_prompts(workdir, run, error_of, caplog):
  long = row('long', 'rrr/r')
  long['query'] = 'x' * 9000
  write_rows(workdir.parent / 'rows.jsonl', [long, ROWS[1]])
  refuse = [*SAMPLE, '--config.train.prompt.too_long=refuse']
  with caplog.at_level('WARNING'):
    run(*refuse, engine=ScriptedEngine())
  assert {x['id'] for x in read_rows(workdir / 'samples.jsonl')} == {'mixed'}
  # The hinted pass does not try it again.
  assert sum(names(x, 'long') for x in caplog.messages) == 1
  line = error_of(
    *refuse,
    '--config.fail_on_bad_rows=true',
    engine=ScriptedEngine(),
    workdir=workdir.parent / 'strict',
  )
  assert names(line, workdir.parent / 'rows.jsonl', 'long')


class Killed(Exception):
  pass


class Stopping(ScriptedEngine):
  """An engine that is killed at the request after the first `count`."""

  def __init__(self, count):
    super().__init__()
    self.count = count

  def run(self, weights, requests, **unused):
    for request in requests:
      if len(self.requests) == self.count:
        raise Killed
      self.requests.append(request)
      for i in range(request.num_samples):
        yield self.generation(request, i)


# 6 unhinted prompts, then 3 hinted ones.
@pytest.mark.parametrize('num_requests', [0, 1, 5, 6, 7])
def test_sampling_resumes_after_an_exception(workdir, run, num_requests):
  """The last test of this file kills processes."""

  engine = Stopping(num_requests)
  for _ in range(2):
    with pytest.raises(Killed):
      run(*SAMPLE, engine=engine)
    assert not (workdir / 'samples.jsonl').exists()
    assert len(engine.requests) == num_requests
  engine = ScriptedEngine()
  run(*SAMPLE, engine=engine)
  assert len(engine.requests) == 9 - num_requests
  run(*SAMPLE, engine=ScriptedEngine(), workdir=workdir.parent / 'clean')
  clean = (workdir.parent / 'clean' / 'samples.jsonl').read_bytes()
  assert (workdir / 'samples.jsonl').read_bytes() == clean


CHANGES = [
  ('--config.checkpoint=other', 'checkpoint', 'step 0'),
  ('--config.checkpoint_step=5', 'checkpoint', 'step 0'),
  ('--config.num_samples=2', 'num_samples', 3),
  ('--config.num_hinted_samples=0', 'num_hinted_samples', 1),
  ('--config.response_order=random', 'response_order', 'fixed'),
  ('--config.temperature=0.5', 'temperature', 0.7),
  ('--config.hinted_temperature=0.5', 'hinted_temperature', 0.7),
  ('--config.train.seed=1', 'train.seed', 0),
  ('--config.sampling.max_new_tokens=64', 'sampling.max_new_tokens', 192),
  ('--config.sampling.int8=true', 'sampling.int8', False),
]


PROMPT_CHANGES = [
  (
    '--config.train.prompt.template=pointwise',
    'train.prompt.template',
    'practice',
  ),
  (
    '--config.train.prompt.single=single',
    'train.prompt.single',
    'practice_single',
  ),
  ('--config.train.prompt.too_long=refuse', 'train.prompt.too_long', 'shorten'),
]


@pytest.mark.parametrize('change, key, was', CHANGES + PROMPT_CHANGES)
def test_samples_with_other_settings_are_an_error(
  workdir, run, error_of, change, key, was
):
  run('--config.phases=sample,filter', SAMPLE[1], engine=ScriptedEngine())
  before = {x.name: x.read_bytes() for x in workdir.iterdir()}
  line = error_of('--config.response_order=fixed', change)
  samples = f'{workdir}/samples.jsonl'
  assert names(line, samples, *setting(key, was), 'config.phases')
  again = [*FILTER, change]
  if (change, key, was) in CHANGES:  # filtering does not depend on them
    run(*again)
  else:
    line = error_of(*again)
    assert names(line, *setting(key, was), 'config.samples', samples)
    run(*again, f'--config.samples={samples}')
  after = {x.name: x.read_bytes() for x in workdir.iterdir()}
  assert after['samples.jsonl'] == before['samples.jsonl']
  assert after['kept.jsonl'] == before['kept.jsonl']


@pytest.mark.parametrize('parts', ['sample', 'filter'])
def test_samples_of_other_examples_are_an_error(workdir, run, error_of, parts):
  run(*SAMPLE, engine=ScriptedEngine())
  other = [*ROWS[:1], ROWS[1] | {'best': 0}, *ROWS[2:]]
  write_rows(workdir.parent / 'rows.jsonl', other)
  line = error_of(f'--config.phases={parts}', SAMPLE[1])
  assert names(line, *setting('data', 6))
  write_rows(workdir.parent / 'rows.jsonl', ROWS)
  run(f'--config.phases={parts}', SAMPLE[1])


def test_samples_without_stored_settings(workdir, run, error_of):
  run(*SAMPLE, engine=ScriptedEngine())
  (workdir / 'samples.json').unlink()
  assert names(error_of(*SAMPLE), workdir / 'samples.json')
  line = error_of(*FILTER)
  assert names(line, *setting('samples', workdir / 'samples.jsonl'))


@pytest.mark.parametrize('change, key, was', CHANGES)
def test_a_journal_with_other_settings_is_an_error(
  workdir, run, error_of, change, key, was
):
  with pytest.raises(Killed):
    run(*SAMPLE, engine=Stopping(2))
  line = error_of(*SAMPLE, change, engine=ScriptedEngine())
  assert names(line, workdir / 'unhinted.partial', key, was)


def test_a_model_that_cannot_be_loaded_leaves_no_journal(workdir, run):
  with pytest.raises(AssertionError, match='a model was loaded'):
    run(*SAMPLE)
  run(*SAMPLE, '--config.checkpoint=the/right/one', engine=ScriptedEngine())


def start(arguments, env):
  return subprocess.Popen(
    [sys.executable, '-m', 'grm_jax.main', *map(str, arguments)],
    cwd=test_main.ROOT,
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def kill_when(process, journal, lines):
  """Kills the process when the journal has `lines` lines."""
  while not journal.exists() or journal.read_bytes().count(b'\n') < lines:
    assert process.poll() is None
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()


def test_samples_are_the_same_after_kills(tmp_path, environment):
  (tmp_path / 'short.txt').write_text(SHORT)
  rows = tmp_path / 'rows.jsonl'
  write_rows(rows, [row(f'r{i}', '/', good=i % 2) for i in range(40)])
  arguments = [
    '--config=configs/rft.py:tiny',
    '--config.phases=sample',
    '--config.checkpoint=random',
    f'--config.data={rows}',
    f'--config.train.prompt.template={tmp_path}/short.txt',
    '--config.sampling.max_new_tokens=12',
    '--config.sampling.decode_steps_per_call=4',
    # Fewer prompts than rows: not all end at once.
    '--config.sampling.concurrent_prompts=16',
    '--config.sampling.prompt_buckets=(128,)',
    '--config.train.batch.prompt_buckets=(128,)',
    '--config.num_samples=2',
  ]
  workdir = tmp_path / 'killed'
  here = [*arguments, f'--workdir={workdir}']
  unhinted, hinted = workdir / 'unhinted.partial', workdir / 'hinted.partial'
  kill_when(start(here, environment), unhinted, 14)
  assert not hinted.exists()
  # Between the two passes: 40 rows and the header, no second journal.
  kill_when(start(here, environment), unhinted, 41)
  hinted.unlink(missing_ok=True)
  kill_when(start(here, environment), hinted, 14)
  assert not (workdir / 'samples.jsonl').exists()
  test_main.run(*here, env=environment)
  clean = [*arguments, f'--workdir={tmp_path}/clean']
  test_main.run(*clean, env=environment)
  names = ['config.json', 'samples.json', 'samples.jsonl']
  assert sorted(x.name for x in workdir.iterdir()) == names
  for name in names:
    assert (workdir / name).read_bytes() == (
      tmp_path / 'clean' / name
    ).read_bytes()
  samples = read_rows(workdir / 'samples.jsonl')
  assert [(x['id'], x['hinted'], x['sample']) for x in samples] == [
    (f'r{i}', is_hinted, n)
    for i in range(40)
    for is_hinted, n in (
      (False, 0),
      (False, 1),
      (True, 0),
    )
  ]  # generations of random weights are never correct
