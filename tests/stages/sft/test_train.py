"""SFT runs from the command line: they learn, resume, and report mistakes.

The runs share their texts, their base model and compiled programs; most tests
look at the same few runs.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess

import numpy as np
import pytest

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh
from grm_jax.stages.sft import train as sft_train
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import full_disk, processes, test_main
from tests.messages import lines_with, names, naming, setting
from tests.stages import stage_output
from tests.stages.stage_runs import (
  StageRunner,
  assert_same_run,
  lines_of,
  losses,
  meta_of,
  results,
  rows_of,
  steps_in,
  wait_for,
  write_model,
)

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
BAD_ROWS = [  # with a word of the message
  ('{"query": "1 + 1"}', 'generation'),
  ('{"query": "1 + 1", "generation": "2"', 'JSON'),
]


def write_texts(path):
  """Writes 40 sums, bad rows on lines 6 and 9, and a text that is too long."""
  rng = np.random.default_rng(0)
  lines = []
  for i, (a, b) in enumerate(rng.integers(0, 10, (40, 2)).tolist()):
    row = {'id': f't{i}', 'query': f'{a} + {b}', 'generation': f'{a + b}'}
    lines.append(json.dumps(row))
  lines.insert(5, BAD_ROWS[0][0])
  lines.insert(8, BAD_ROWS[1][0])
  long = {'id': 'long', 'query': '1 + 1', 'generation': 'two ' * 30}
  lines.append(json.dumps(long))
  path.write_text('\n'.join(lines) + '\n')


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fixtures')
  write_texts(folder / 'texts.jsonl')
  write_model(folder / 'base')
  settings = SETTINGS | {
    'checkpoint': f'{folder}/base',
    'data.texts': f'texts:{folder}/texts.jsonl',
  }
  return StageRunner(
    'configs/sft.py', folder, settings, test_main.environment()
  )


@pytest.fixture(scope='module')
def clean_run(runner, tmp_path_factory):
  """(workdir, stdout, stderr) of a run without interruptions."""
  workdir = tmp_path_factory.mktemp('clean_run')
  return workdir, *runner.run(workdir)


def test_it_learns_and_writes_metrics(clean_run):
  workdir, stdout, _ = clean_run
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
  # Two steps of warm-up to 2e-3, then a cosine to a tenth of it.
  rates = [row['learning_rate'] for row in rows]
  assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
  assert rates[2:] == sorted(rates[2:], reverse=True)
  assert 2e-4 < rates[-1] < 2.5e-4
  assert list((workdir / 'tensorboard').glob('events*'))
  assert not (workdir / 'profile').exists()
  # 20 batches of 8 are four epochs of 40 texts.
  assert lines_with(stdout, STEPS, 'texts', '4.00')
  assert str(workdir / 'model') in stdout


def test_only_the_last_checkpoints_are_kept(clean_run):
  assert steps_in(clean_run[0]) == [15, 20]


def test_a_full_disk_is_one_line_and_the_run_resumes(
  runner, clean_run, tmp_path
):
  with full_disk.limit_file_size(200_000):  # too small for the model
    _, stderr = runner.run(tmp_path, expect=2)
  model = tmp_path / 'model'
  (line,) = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert names(line, model, full_disk.ERROR_TEXT)
  assert 'Traceback' not in stderr and 'Exception ignored' not in stderr
  assert steps_in(tmp_path) == []
  runner.run(tmp_path)
  assert results(tmp_path) == results(clean_run[0])


def test_bad_rows_and_long_texts_are_logged_and_skipped(runner, clean_run):
  _, _, stderr = clean_run
  path = runner.folder / 'texts.jsonl'
  for number, (_, word) in zip((6, 9), BAD_ROWS, strict=True):
    (line,) = lines_with(stderr, path, number)
    assert names(line, word)
  # The number of bad rows, and of texts that do not fit.
  assert lines_with(stderr, path, 2)
  assert lines_with(stderr, 'long', 'config.batch.generation_buckets')
  assert lines_with(stderr, 1, 41)


def test_fail_on_bad_rows_stops_at_the_first(runner, tmp_path):
  path = runner.folder / 'texts.jsonl'
  with pytest.raises(UserError, match=naming(path, 6, 'generation')):
    sft_train.run(runner.config(fail_on_bad_rows=True), str(tmp_path))


def test_a_file_of_bad_rows_only(runner, tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_text('\n'.join(text for text, _ in BAD_ROWS) + '\n')
  config = runner.config(**{'data.texts': f'texts:{path}'})
  with pytest.raises(UserError, match=naming(path, 2)):
    sft_train.run(config, str(tmp_path))


@dataclasses.dataclass(frozen=True)
class InterruptedRun:
  """A run with SIGTERM, then SIGKILL, each followed by a resume.

  Attributes:
    workdir: folder of the run.
    stopped: the process that got SIGTERM.
    stopped_steps: steps on disk after it.
    stopped_rows: rows of metrics after it.
    killed_steps: steps on disk after SIGKILL.
  """

  workdir: pathlib.Path
  stopped: subprocess.CompletedProcess
  stopped_steps: list
  stopped_rows: list
  killed_steps: list


@pytest.fixture(scope='module')
def interrupted_run(runner, clean_run, tmp_path_factory):
  """Runs after `clean_run`, which compiles all programs."""
  workdir = tmp_path_factory.mktemp('interrupted_run')
  process = runner.start(workdir)
  wait_for(process, lambda: lines_of(workdir / 'metrics.jsonl') >= 6)
  process.send_signal(signal.SIGTERM)
  stdout, _ = process.communicate(timeout=processes.HANG_TIMEOUT_S)
  stopped = subprocess.CompletedProcess([], process.returncode, stdout)
  seen = steps_in(workdir), results(workdir)
  process = runner.start(workdir)
  # Killed after rows of step 11 or later, and before their checkpoint.
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
  runner.run(workdir)
  return InterruptedRun(workdir, stopped, *seen, killed_steps)


def test_sigterm_saves_and_exits_with_0(interrupted_run):
  assert interrupted_run.stopped.returncode == 0
  steps, rows = interrupted_run.stopped_steps, interrupted_run.stopped_rows
  assert 6 <= steps[-1] < STEPS
  stdout = interrupted_run.stopped.stdout
  assert lines_with(stdout, stage_output.STOPPED, steps[-1], STEPS)
  # The rows end at the checkpoint.
  assert [row['step'] for row in rows] == list(range(1, steps[-1] + 1))


def test_resume_is_bit_exact(interrupted_run, clean_run):
  assert interrupted_run.killed_steps[-1] in (10, 15)
  assert_same_run(interrupted_run.workdir, clean_run[0])
  # Checkpoints store the position in the data.
  assert set(meta_of(clean_run[0], STEPS)['data']['num_drawn']) == {'texts'}


def test_a_finished_run_changes_nothing(runner, clean_run, tmp_path, capsys):
  shutil.copytree(clean_run[0], tmp_path / 'run')
  before = (tmp_path / 'run/metrics.jsonl').read_bytes()
  sft_train.run(runner.config(), str(tmp_path / 'run'))
  out = capsys.readouterr().out
  assert lines_with(out, tmp_path / 'run/model', STEPS)
  assert (tmp_path / 'run/metrics.jsonl').read_bytes() == before


def cut_back(workdir, target):
  """Copies a run as it was after its checkpoint of step 15."""
  shutil.copytree(workdir, target)
  shutil.rmtree(target / 'model/20')
  return target


def test_resume_on_other_devices(runner, clean_run, tmp_path):
  workdir = cut_back(clean_run[0], tmp_path / 'run')
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
  many = dataclasses.replace(
    runner, environment=runner.environment | {'XLA_FLAGS': flags}
  )
  _, stderr = many.run(workdir, **{'mesh.tensor': 2})
  assert lines_with(stderr, 8, 'cpu')
  rows = rows_of(workdir)
  assert results(workdir)[:15] == results(clean_run[0])[:15]
  assert [row['step'] for row in rows[15:]] == [16, 17, 18, 19, 20]
  expected = losses(clean_run[0])
  for row in rows[15:]:
    assert row['loss'] == pytest.approx(expected[row['step'] - 1], abs=1e-3)


def test_a_resumed_run_refuses_other_batches(runner, clean_run, tmp_path):
  workdir = cut_back(clean_run[0], tmp_path / 'run')
  with pytest.raises(
    UserError, match=naming('config.batch.micro_batch_prompts', 8, 16)
  ):
    sft_train.run(
      runner.config(**{'batch.micro_batch_prompts': 16}), str(workdir)
    )
  # Other texts make other batches, too.
  texts = tmp_path / 'texts.jsonl'
  texts.write_text('{"query": "q", "generation": "g"}\n' * 40)
  with pytest.raises(UserError, match=naming('config.data.texts')):
    sft_train.run(
      runner.config(**{'data.texts': f'texts:{texts}'}), str(workdir)
    )
  assert steps_in(workdir) == [15]


def test_a_loss_that_is_not_finite_stops_the_run(runner, tmp_path):
  """Each step takes two batches; a checkpoint follows every step."""
  _, stderr = runner.run(
    tmp_path,
    expect=3,
    **{
      'checkpoint': 'random',
      # Each step multiplies the parameters by about -1e12.
      'optimizer.learning_rate': 1e6,
      'optimizer.weight_decay': 1e6,
      'batch.grad_accum_steps': 2,
      'save_every': 1,
    },
  )
  (line,) = [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert 'Traceback' not in stderr
  (report,) = tmp_path.glob('nonfinite_*.json')
  values = json.loads(report.read_text())
  step = values['step']
  assert report.name == f'nonfinite_{step}.json'
  assert names(line, step, report)
  numbers = ('loss', 'grad_norm', 'param_norm')
  bad = {values['metrics'][name] for name in numbers}
  assert bad & {'nan', 'inf'}
  assert len(values['ids']) == 16
  assert set(values['ids']) <= {f't{i}' for i in range(40)}
  # A resumed run must not start from the bad step.
  assert max(steps_in(tmp_path), default=0) < step
  assert [row['step'] for row in rows_of(tmp_path)] == list(range(1, step))


def test_packed_rows_train_and_a_trace_is_written(runner, tmp_path):
  """Packing puts several texts in each of the 8 rows, with less padding."""
  runner.run(
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
def scratch(runner, tmp_path_factory):
  """A new model of two sources, evaluated twice."""
  workdir = tmp_path_factory.mktemp('scratch')
  stdout, _ = runner.run(
    workdir,
    **{
      'checkpoint': 'scratch',
      'data.texts': 'practice:64',
      'data.general': f'texts:{runner.folder}/texts.jsonl',
      'data.general_fraction': 0.25,
      'batch.generations_per_prompt': 2,
      'batch.packed': False,
      'batch.prompt_buckets': (256,),
      'batch.generation_buckets': (192,),
      'steps': 3,
      'save_every': 0,
      'evaluation.data': 'practice:4',
      'evaluation.every': 2,
      'evaluation.concurrent_prompts': 4,
    },
  )
  return workdir, stdout


def test_evaluations_are_at_their_steps(scratch):
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
    assert row['eval/examples'] == 4
    assert 0 < row['eval/mean_generation_length'] <= 192
    assert row['eval/accuracy'] == 0 and row['eval/parse_failures'] == 1
  assert len(lines_with(stdout, stage_output.HELD_OUT, '0.000')) == 2
  assert steps_in(workdir) == [3]


def test_sources_have_their_rates(scratch):
  _, stdout = scratch
  # 24 prompts: 6 of 40 general texts, 18 of 64 practice texts.
  assert lines_with(stdout, 'general', '0.15', 'texts', '0.28')


def test_a_model_from_scratch_is_a_model_directory(runner, scratch, tmp_path):
  directory = scratch[0] / 'model'
  model = model_directory.build_model(
    str(directory), None, ComputeConfig(), mesh.one_device()
  )
  trained = model_directory.load_tokenizer(str(directory), model.config)
  default = tiny_tokenizer.train(tmp_path / 'tokenizer.model')
  text = 'Specific Criteria:'
  # It was trained on these words, unlike the default one.
  assert len(trained.encode(text)) < len(default.encode(text)) / 2
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
    env=runner.environment,
  )
  (row,) = (tmp_path / 'scores.jsonl').read_text().splitlines()
  assert len(json.loads(row)['samples']) == 1


def test_two_processes_train_as_one_after_kills(runner, clean_run, tmp_path):
  """Each holds its own rows. If one is killed, the other ends, too."""
  run = ['-m', 'grm_jax.main', *runner.arguments(), f'--workdir={tmp_path}']
  for killed, rows in ((1, 7), (0, 12)):
    with processes.start_processes(run, devices=1) as children:
      wait_for(
        children[0], lambda n=rows: lines_of(tmp_path / 'metrics.jsonl') > n
      )
      children[killed].kill()
      output = processes.collect_output(children)[1 - killed][1]
    assert children[1 - killed].returncode in (1, 134, -signal.SIGABRT), output
    assert stage_output.LEFT_ALONE.search(output), output
  processes.run_processes(run, devices=1)
  np.testing.assert_allclose(losses(tmp_path), losses(clean_run[0]), atol=1e-4)
  assert steps_in(tmp_path) == [15, 20]
  one, two = (meta_of(x, STEPS)['data'] for x in (clean_run[0], tmp_path))
  assert one == two


MISTAKES = [
  ({'checkpoint': ''}, ['config.checkpoint']),
  ({'checkpoint': 'nowhere'}, ['nowhere']),
  ({'checkpoint_step': 7}, [7, 0]),
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
  ({'max_to_keep': 0}, setting('max_to_keep', 0)),
  ({'profile_steps': '3'}, setting('profile_steps', 3)),
  ({'evaluation.data': 'nowhere.jsonl'}, ['nowhere.jsonl']),
  (
    {'evaluation.data': 'practice:4', 'evaluation.concurrent_prompts': 3},
    ['prompts', 3, 8],
  ),
  ({'mesh.tensor': 3}, ['tensor', 3]),
]


@pytest.mark.parametrize('changes, words', MISTAKES)
def test_mistakes(runner, tmp_path, changes, words):
  with pytest.raises(UserError, match=naming(*words)) as caught:
    sft_train.run(runner.config(**changes), str(tmp_path))
  assert '\n' not in str(caught.value)
  assert not steps_in(tmp_path)


def test_a_mistake_is_one_line(runner):
  line = test_main.error_of(
    *runner.arguments(**{'data.general_fraction': 1.5}), env=runner.environment
  )
  assert names(line, '--workdir')


def test_held_out_examples_need_labels(runner, tmp_path):
  """The error comes before the first step."""
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"id": "x", "query": "q", "responses": ["a", "b"]}\n')
  with pytest.raises(UserError, match=naming('x', 2, 'best')):
    sft_train.run(
      runner.config(**{'evaluation.data': str(path)}), str(tmp_path)
    )


def test_the_model_has_a_scalar_head(runner, tmp_path):
  write_model(tmp_path / 'scalar', scalar=True)
  config = runner.config(checkpoint=f'{tmp_path}/scalar')
  words = *setting('checkpoint', f'{tmp_path}/scalar'), 'head'
  with pytest.raises(UserError, match=naming(*words)):
    sft_train.run(config, str(tmp_path / 'run'))
