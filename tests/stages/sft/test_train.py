"""Fine-tuning from the command line: killed, stopped, moved, and mistaken.

Runs share their texts, their base model and what XLA compiled; most tests
look at the same few runs.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.stages.sft import train as sft_train
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import full_disk, processes, test_main
from tests.messages import lines_with, names, naming, setting
from tests.model import tiny
from tests.stages import printed
from tests.stages.given import Given

STEPS = 20
SETTINGS = {
  'data.general': '',
  'data.general_fraction': 0.0,
  'optimizer.learning_rate': 2e-3,
  'batch.micro_batch_prompts': 8,
  'batch.packed': False,
  'batch.prompt_buckets': (24,),
  'batch.generation_buckets': (8,),
  'steps': STEPS,
  'optimizer.warmup_steps': 2,
  'save_every': 5,
  'evaluation.data': '',
}
BAD = [
  ('{"query": "1 + 1"}', 'generation'),
  ('{"query": "1 + 1", "generation": "2"', 'JSON'),
]


def write_texts(path):
  """40 sums, two bad rows in places 6 and 9, and a text that does not fit."""
  rng = np.random.default_rng(0)
  lines = []
  for i, (a, b) in enumerate(rng.integers(0, 10, (40, 2)).tolist()):
    row = {'id': f't{i}', 'query': f'{a} + {b}', 'generation': f'{a + b}'}
    lines.append(json.dumps(row))
  lines.insert(5, BAD[0][0])
  lines.insert(8, BAD[1][0])
  long = {'id': 'long', 'query': '1 + 1', 'generation': 'two ' * 30}
  lines.append(json.dumps(long))
  path.write_text('\n'.join(lines) + '\n')


def write_model(path, scalar=False):
  """A model directory with random weights; compiles nothing."""
  model = Transformer(
    model_config.named('tiny'), ComputeConfig(), mesh.one_device(), scalar
  )
  # Small weights: runs on other devices must not drift apart by chaos.
  params = jax.tree.map(lambda x: 0.1 * x, tiny.params(model))
  model_directory.save(str(path), 0, model, params, {})
  tiny_tokenizer.train(path / 'tokenizer.model')


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  made = tmp_path_factory.mktemp('given')
  write_texts(made / 'texts.jsonl')
  write_model(made / 'base')
  settings = SETTINGS | {
    'checkpoint': f'{made}/base',
    'data.texts': f'texts:{made}/texts.jsonl',
  }
  environment = test_main.environment(made / 'cache')
  return Given('configs/sft.py', made, settings, environment)


@pytest.fixture(scope='module')
def calm(given, tmp_path_factory):
  """(workdir, stdout, stderr) of a run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('calm')
  return workdir, *given.run(workdir)


def rows_of(workdir):
  return [json.loads(x) for x in (workdir / 'metrics.jsonl').open()]


def results(workdir):
  """Rows of metrics without what a clock says."""
  return [
    {k: v for k, v in row.items() if not _of_time(k)}
    for row in rows_of(workdir)
  ]


def _of_time(name):
  return name.startswith('time/') or name.endswith('_per_second')


def losses(workdir):
  return [row['loss'] for row in rows_of(workdir)]


def steps_in(workdir):
  return orbax_checkpoint.steps(workdir / 'model')


def params_of(workdir):
  directory = str(workdir / 'model')
  model = model_directory.build(
    directory, None, ComputeConfig(), mesh.one_device()
  )
  return model_directory.load_params(directory, None, model)


def wait_for(process, reached):
  while not reached():
    assert process.poll() is None, 'it ended before'
    time.sleep(0.01)


def lines_of(path):
  return path.read_bytes().count(b'\n') if path.exists() else 0


def test_it_learns_and_says_how(calm):
  workdir, stdout, _ = calm
  rows = rows_of(workdir)
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  assert rows[-1]['loss'] < rows[0]['loss'] / 2
  for row in rows:
    assert row['perplexity'] == pytest.approx(np.exp(row['loss']), rel=1e-4)
    assert row['grad_norm'] > 0 and row['param_norm'] > 0
    assert 0 < row['padding/prompts'] < 1 and 0 < row['padding/generations'] < 1
    assert row['tokens_per_second'] > row['generation_tokens_per_second'] > 0
    assert row['time/total'] > 0
  assert all('time/data' in row and 'time/step' in row for row in rows[::5])
  # Warm-up by thirds of 2e-3, then down to its tenth.
  rates = [row['learning_rate'] for row in rows]
  assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
  assert rates[2:] == sorted(rates[2:], reverse=True)
  assert 2e-4 < rates[-1] < 2.5e-4
  assert list((workdir / 'tensorboard').glob('events*'))
  assert not (workdir / 'profile').exists()
  # 20 batches of 8 are 160 of 40 texts.
  assert lines_with(stdout, STEPS, 'texts', '4.00')
  assert str(workdir / 'model') in stdout


def test_only_the_last_checkpoints_are_kept(calm):
  assert steps_in(calm[0]) == [15, 20]


def test_a_full_disk_is_one_line_and_the_run_goes_on(given, calm, tmp_path):
  with full_disk.files_up_to(200_000):  # the tokenizer fits, the model not
    _, stderr = given.run(tmp_path, expect=2)
  model = tmp_path / 'model'
  (said,) = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert names(said, model, full_disk.WHY)
  assert 'Traceback' not in stderr and 'Exception ignored' not in stderr
  assert steps_in(tmp_path) == []
  given.run(tmp_path)
  assert results(tmp_path) == results(calm[0])


def test_bad_rows_and_long_texts_are_named_and_the_rest_goes_on(given, calm):
  _, _, stderr = calm
  path = given.folder / 'texts.jsonl'
  for number, (_, word) in zip((6, 9), BAD, strict=True):
    (line,) = lines_with(stderr, path, number)
    assert names(line, word)
  # The numbers of bad rows, and of texts that do not fit.
  assert lines_with(stderr, path, 2)
  assert lines_with(stderr, 'long', 'config.batch.generation_buckets')
  assert lines_with(stderr, 1, 41)


def test_the_first_bad_row_stops_a_strict_run(given, tmp_path):
  path = given.folder / 'texts.jsonl'
  with pytest.raises(UserError, match=naming(path, 6, 'generation')):
    sft_train.run(given.config(strict=True), str(tmp_path))


def test_a_file_of_bad_rows_only(given, tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_text('\n'.join(text for text, _ in BAD) + '\n')
  config = given.config(**{'data.texts': f'texts:{path}'})
  with pytest.raises(UserError, match=naming(path, 2)):
    sft_train.run(config, str(tmp_path))


@dataclasses.dataclass(frozen=True)
class Disturbed:
  """A run that was stopped, started again, killed, and started again."""

  workdir: object
  stopped: subprocess.CompletedProcess
  stopped_steps: list
  stopped_rows: list
  killed_steps: list


@pytest.fixture(scope='module')
def disturbed(given, calm, tmp_path_factory):
  """After `calm`, so that all is compiled."""
  workdir = tmp_path_factory.mktemp('disturbed')
  process = given.begin(workdir)
  wait_for(process, lambda: lines_of(workdir / 'metrics.jsonl') >= 6)
  process.send_signal(signal.SIGTERM)
  stdout, _ = process.communicate(timeout=processes.HANG)
  stopped = subprocess.CompletedProcess([], process.returncode, stdout)
  seen = steps_in(workdir), results(workdir)
  process = given.begin(workdir)
  # Rows of step 11 or later are there, of which no checkpoint is.
  wait_for(
    process,
    lambda: (
      (workdir / 'model/10').exists()
      and lines_of(workdir / 'metrics.jsonl') > 10
    ),
  )
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  killed_steps = steps_in(workdir)
  given.run(workdir)
  return Disturbed(workdir, stopped, *seen, killed_steps)


def test_sigterm_saves_and_exits_well(disturbed):
  assert disturbed.stopped.returncode == 0
  steps, rows = disturbed.stopped_steps, disturbed.stopped_rows
  assert 6 <= steps[-1] < STEPS
  stdout = disturbed.stopped.stdout
  assert lines_with(stdout, printed.STOPPED, steps[-1], STEPS)
  # All rows up to the checkpoint are there, and none after it.
  assert [row['step'] for row in rows] == list(range(1, steps[-1] + 1))


def test_killed_and_stopped_it_ends_bit_for_bit_the_same(disturbed, calm):
  assert disturbed.killed_steps[-1] in (10, 15)
  workdir = calm[0]
  assert results(disturbed.workdir) == results(workdir)
  for a, b in zip(
    *(leaves(params_of(x)) for x in (workdir, disturbed.workdir)), strict=True
  ):
    assert a.tobytes() == b.tobytes()
  # The moments and the place in the data are the same, too.
  for item in ('index', 'meta'):
    one, two = (
      orbax_checkpoint.read_json(x / 'model', item, STEPS)
      for x in (workdir, disturbed.workdir)
    )
    assert one == two
  assert set(one['data']['drawn']) == {'texts'}


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_a_run_that_is_done_changes_nothing(given, calm, tmp_path, capsys):
  shutil.copytree(calm[0], tmp_path / 'run')
  before = (tmp_path / 'run/metrics.jsonl').read_bytes()
  sft_train.run(given.config(), str(tmp_path / 'run'))
  out = capsys.readouterr().out
  assert lines_with(out, tmp_path / 'run/model', STEPS)
  assert (tmp_path / 'run/metrics.jsonl').read_bytes() == before


def cut_back(workdir, target):
  """A copy of the run as it was after its checkpoint of step 15."""
  shutil.copytree(workdir, target)
  shutil.rmtree(target / 'model/20')
  return target


def test_it_goes_on_with_other_devices(given, calm, tmp_path):
  workdir = cut_back(calm[0], tmp_path / 'run')
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
  many = dataclasses.replace(
    given, environment=given.environment | {'XLA_FLAGS': flags}
  )
  _, stderr = many.run(workdir, **{'mesh.tensor': 2})
  assert lines_with(stderr, 8, 'cpu')
  rows = rows_of(workdir)
  assert results(workdir)[:15] == results(calm[0])[:15]
  assert [row['step'] for row in rows[15:]] == [16, 17, 18, 19, 20]
  expected = losses(calm[0])
  for row in rows[15:]:
    assert row['loss'] == pytest.approx(expected[row['step'] - 1], abs=1e-3)


def test_it_does_not_go_on_with_other_batches(given, calm, tmp_path):
  workdir = cut_back(calm[0], tmp_path / 'run')
  with pytest.raises(
    UserError, match=naming('config.batch.micro_batch_prompts', 8, 16)
  ):
    sft_train.run(
      given.config(**{'batch.micro_batch_prompts': 16}), str(workdir)
    )
  # Other texts are other batches as well.
  texts = tmp_path / 'texts.jsonl'
  texts.write_text('{"query": "q", "generation": "g"}\n' * 40)
  with pytest.raises(UserError, match=naming('records', 40, 'fingerprint')):
    sft_train.run(
      given.config(**{'data.texts': f'texts:{texts}'}), str(workdir)
    )
  assert steps_in(workdir) == [15]


def test_a_loss_that_is_not_finite_stops_the_run(given, tmp_path):
  """Two batches a step; every step would be saved."""
  _, stderr = given.run(
    tmp_path,
    expect=3,
    **{
      'checkpoint': 'random',
      'optimizer.learning_rate': 1e30,
      'batch.grad_accum_steps': 2,
      'save_every': 1,
    },
  )
  (line,) = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert 'Traceback' not in stderr
  (report,) = tmp_path.glob('nonfinite_*.json')
  found = json.loads(report.read_text())
  step = found['step']
  assert report.name == f'nonfinite_{step}.json'
  assert names(line, step, report)
  numbers = ('loss', 'grad_norm', 'param_norm')
  bad = {found['metrics'][name] for name in numbers}
  assert bad & {'nan', 'inf'}
  assert len(found['ids']) == 16
  assert set(found['ids']) <= {f't{i}' for i in range(40)}
  # Neither a checkpoint nor a row of the bad step is there to go on from.
  assert max(steps_in(tmp_path), default=0) < step
  assert [row['step'] for row in rows_of(tmp_path)] == list(range(1, step))


def test_packed_rows_train_and_a_trace_is_written(given, tmp_path):
  """8 rows of several texts each are more tokens a step, and less padding."""
  given.run(
    tmp_path,
    **{
      'batch.packed': True,
      'batch.prompt_buckets': (96,),
      'batch.generation_buckets': (8,),
      'batch.grad_accum_steps': 2,
      'profile_steps': '2,3',
      'steps': 12,
    },
  )
  rows = rows_of(tmp_path)
  assert rows[-1]['loss'] < rows[0]['loss'] / 2
  assert rows[-1]['padding/prompts'] < 0.25
  assert rows[-1]['padding/generations'] == 0
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


@pytest.fixture(scope='module')
def scratch(given, tmp_path_factory):
  """A new model, of practice judgements and general texts, judged twice."""
  workdir = tmp_path_factory.mktemp('scratch')
  stdout, _ = given.run(
    workdir,
    **{
      'checkpoint': 'scratch',
      'data.texts': 'practice:64',
      'data.general': f'texts:{given.folder}/texts.jsonl',
      'data.general_fraction': 0.25,
      'batch.generations_per_prompt': 2,
      'batch.packed': False,
      'batch.prompt_buckets': (256,),
      'batch.generation_buckets': (192,),
      'steps': 3,
      'save_every': 0,
      'evaluation.data': 'practice:4',
      'evaluation.every': 2,
      'evaluation.prompts': 4,
    },
  )
  return workdir, stdout


def test_held_out_examples_are_judged_at_their_steps(scratch):
  workdir, stdout = scratch
  rows = rows_of(workdir)
  assert [(row['step'], 'loss' in row) for row in rows] == [
    (1, True),
    (2, True),
    (2, False),
    (3, True),
    (3, False),
  ]
  for row in rows[2::2]:
    assert row['held_out/examples'] == 4
    assert 0 < row['held_out/tokens'] <= 192
    assert row['held_out/accuracy'] == 0 and row['held_out/parse_failures'] == 1
  assert len(lines_with(stdout, printed.HELD_OUT, '0.000')) == 2
  assert steps_in(workdir) == [3]


def test_both_sources_are_drawn_at_their_rates(scratch):
  _, stdout = scratch
  # Of 24 texts a quarter is of 40, and three quarters are of 64.
  assert lines_with(stdout, 'general', '0.15', 'texts', '0.28')


def test_a_model_from_scratch_is_a_model_directory(given, scratch, tmp_path):
  directory = scratch[0] / 'model'
  model = model_directory.build(
    str(directory), None, ComputeConfig(), mesh.one_device()
  )
  words = model_directory.load_tokenizer(str(directory), model.size)
  ours = tiny_tokenizer.train(tmp_path / 'tokenizer.model')
  text = 'Specific Criteria:'
  # It was trained on these very words, unlike the project's own.
  assert len(words.encode(text)) < len(ours.encode(text)) / 2
  rows = tmp_path / 'rows.jsonl'
  rows.write_text('{"query": "What is 2 + 3?", "responses": ["5", "6"]}\n')
  test_main.run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={directory}',
    f'--config.input={rows}',
    '--config.prompt.template=practice',
    '--config.k=1',
    '--config.sampling.max_new_tokens=8',
    '--config.sampling.decode_steps_per_call=4',
    '--config.sampling.prompt_buckets=(256,)',
    f'--workdir={tmp_path}',
    env=given.environment,
  )
  (row,) = (tmp_path / 'scores.jsonl').read_text().splitlines()
  assert len(json.loads(row)['samples']) == 1


def test_two_processes_of_which_one_is_killed_train_as_one(
  given, calm, tmp_path, monkeypatch
):
  """Each holds its own rows; without one the other ends; both go on again."""
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  run = ['-m', 'grm_jax.main', *given.arguments(), f'--workdir={tmp_path}']
  for killed, rows in ((1, 7), (0, 12)):
    with processes.begun(run) as children:
      wait_for(
        children[0], lambda n=rows: lines_of(tmp_path / 'metrics.jsonl') > n
      )
      children[killed].kill()
      told = processes.ends(children)[1 - killed][1]
    assert children[1 - killed].returncode in (1, 134, -signal.SIGABRT), told
    assert printed.LEFT_ALONE.search(told), told
  processes.run_together(run)
  np.testing.assert_allclose(losses(tmp_path), losses(calm[0]), atol=1e-4)
  assert steps_in(tmp_path) == [15, 20]
  one, two = (x / 'model' for x in (calm[0], tmp_path))
  meta = [
    orbax_checkpoint.read_json(x, 'meta', STEPS)['data'] for x in (one, two)
  ]
  assert meta[0] == meta[1]


MISTAKES = [
  ({'checkpoint': ''}, ['config.checkpoint']),
  ({'checkpoint': 'nowhere'}, ['nowhere']),
  ({'step': 7}, [7, 0]),
  ({'checkpoint': 'scratch', 'size': 'huge'}, ['huge', 'gemma2_2b']),
  (
    {'checkpoint': 'scratch', 'size': 'gemma2_2b'},
    (*setting('size', 'gemma2_2b'), 256000),
  ),
  ({'data.texts': 'nowhere'}, setting('data.texts', 'nowhere')),
  ({'data.texts': 'texts:nowhere.jsonl'}, ['nowhere.jsonl']),
  ({'data.texts': 'practice:none'}, ['practice:none']),
  ({'data.general_fraction': 1.5}, setting('data.general_fraction', 1.5)),
  ({'data.general_fraction': -0.5}, setting('data.general_fraction', -0.5)),
  ({'data.general_fraction': 0.5}, setting('data.general', "''")),
  ({'prompt.template': 'nowhere'}, setting('prompt.template', 'nowhere')),
  ({'prompt.single': 'nowhere'}, ['nowhere']),
  ({'prompt.too_long': 'cut'}, setting('prompt.too_long', 'cut')),
  ({'steps': 2}, setting('optimizer.warmup_steps', 2)),
  ({'optimizer.schedule': 'linear'}, setting('optimizer.schedule', 'linear')),
  (
    {'batch.micro_batch_prompts': 12},
    (*setting('batch.micro_batch_prompts', 12), 8),
  ),
  (
    {'batch.generations_per_prompt': 0},
    setting('batch.generations_per_prompt', 0),
  ),
  ({'batch.grad_accum_steps': 0}, setting('batch.grad_accum_steps', 0)),
  ({'batch.prompt_buckets': (0, 24)}, setting('batch.prompt_buckets', (0, 24))),
  ({'batch.prompt_buckets': (4,)}, setting('batch.prompt_buckets', 4)),
  ({'batch.generation_buckets': (1,)}, setting('batch.generation_buckets', 1)),
  (
    {'batch.packed': True, 'batch.prompt_buckets': (4,)},
    setting('batch.prompt_buckets', 4),
  ),
  ({'keep': 0}, setting('keep', 0)),
  ({'profile_steps': '3'}, setting('profile_steps', 3)),
  ({'evaluation.data': 'nowhere.jsonl'}, ['nowhere.jsonl']),
  (
    {'evaluation.data': 'practice:4', 'evaluation.prompts': 3},
    ['prompts', 3, 8],
  ),
  ({'mesh.tensor': 3}, ['tensor', 3]),
]


@pytest.mark.parametrize('changes, words', MISTAKES)
def test_mistakes(given, tmp_path, changes, words):
  with pytest.raises(UserError, match=naming(*words)) as caught:
    sft_train.run(given.config(**changes), str(tmp_path))
  assert '\n' not in str(caught.value)
  assert not steps_in(tmp_path)


def test_a_mistake_is_one_line(given):
  line = test_main.error_of(
    *given.arguments(**{'data.general_fraction': 1.5}), env=given.environment
  )
  assert names(line, '--workdir')


def test_held_out_examples_must_say_what_is_right(given, tmp_path):
  """Before the first step, and not after the last."""
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"id": "x", "query": "q", "responses": ["a", "b"]}\n')
  with pytest.raises(UserError, match=naming('x', 2, 'best')):
    sft_train.run(given.config(**{'evaluation.data': str(path)}), str(tmp_path))


def test_a_model_with_a_scalar_head_cannot_write(given, tmp_path):
  write_model(tmp_path / 'scalar', scalar=True)
  config = given.config(checkpoint=f'{tmp_path}/scalar')
  words = *setting('checkpoint', f'{tmp_path}/scalar'), 'head'
  with pytest.raises(UserError, match=naming(*words)):
    sft_train.run(config, str(tmp_path / 'run'))
