"""Reward model runs from the command line, on rules that are easy to learn.

The runs share compiled programs; most tests look at the same few runs.
"""

import json
import signal

import jax
import numpy as np
import pytest

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.judgement import template
from grm_jax.judgement.example import from_row
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judges.meta_rm import MetaJudge
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.sharding import mesh
from grm_jax.stages.reward_model import train as rm_train
from grm_jax.training import run as training_run
from grm_jax.training import supervised
from tests import test_main
from tests.judges.fake import load_tokenizer
from tests.messages import lines_with, names, naming, setting
from tests.model import tiny
from tests.processes import HANG_TIMEOUT_S
from tests.stages import stage_output
from tests.stages.stage_runs import (
  StageRunner,
  assert_same_run,
  lines_of,
  meta_of,
  rows_of,
  steps_in,
  wait_for,
  write_model,
)

STEPS = 24
SETTINGS = {
  'prompt.single': 'single',
  'batch.micro_batch_prompts': 8,
  'batch.prompt_buckets': (192,),
  'batch.generation_buckets': (16,),
  'steps': STEPS,
  'optimizer.learning_rate': 2e-3,
  'optimizer.warmup_steps': 2,
  'save_every': 5,
  'evaluation.holdout_fraction': 0.2,
  'evaluation.every': 10,
  'evaluation.concurrent_prompts': 8,
}


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def judgement(right, best):
  """Returns a judgement if the best response is at position `best`."""
  word = 'sure' if right else 'perhaps'
  return rf'{word} \boxed{{{"9, 2" if right == (best == 0) else "2, 9"}}}'


def write_data(folder):
  """Writes 40 pairs whose best response says yes, with four judgements each.

  One or two of the four are right; those are the ones that say 'sure'.
  """
  rng = np.random.default_rng(0)
  rows, samples = [], []
  for i in range(40):
    best = int(rng.integers(2))
    responses = ['yes yes yes' if x == best else 'no no' for x in range(2)]
    name = f'e{i}'
    row = {'id': name, 'query': f'{i}?', 'responses': responses, 'best': best}
    rows.append(row)
    for right in rng.permutation(4) <= i % 2:
      order = [0, 1] if rng.integers(2) else [1, 0]
      text = judgement(right, order.index(best))
      samples.append({'id': name, 'order': order, 'text': text})
  write(folder / 'rows.jsonl', rows)
  write(folder / 'samples.jsonl', samples)


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fixtures')
  write_data(folder)
  write_model(folder / 'base')
  settings = SETTINGS | {
    'checkpoint': f'{folder}/base',
    'data': f'{folder}/rows.jsonl',
    'samples': f'{folder}/samples.jsonl',
  }
  return StageRunner(
    'configs/reward_model.py', folder, settings, test_main.environment()
  )


@pytest.fixture(scope='module')
def clean_run(runner, tmp_path_factory):
  """(workdir, stdout) of a run without interruptions."""
  workdir = tmp_path_factory.mktemp('clean_run')
  return workdir, runner.run(workdir)[0]


def test_it_learns_which_judgements_are_right(clean_run):
  workdir, stdout = clean_run
  rows = [x for x in rows_of(workdir) if 'loss' in x]
  assert [x['step'] for x in rows] == list(range(1, STEPS + 1))
  # A new head gives everything the probability 1/2.
  assert rows[0]['loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert rows[0]['right_value'] == rows[0]['wrong_value'] == 0
  assert rows[-1]['loss'] < 0.3 and rows[-1]['accuracy'] > 0.9
  assert rows[-1]['right_value'] > 1 and rows[-1]['wrong_value'] < -1
  for row in rows:
    assert row['grad_norm'] > 0 and row['param_norm'] > 0
    assert 0 < row['padding/prompts'] < 1 and row['tokens_per_second'] > 0
    assert 'count' not in row and row['learning_rate'] > 0
  # 8 of 40 queries are held out.
  assert len(lines_with(stdout, 'AUC')) == 3
  assert lines_with(stdout, STEPS, 'judged')
  assert steps_in(workdir) == [20, STEPS]


def test_metrics_of_evaluations(clean_run):
  workdir, stdout = clean_run
  rows = [x for x in rows_of(workdir) if 'eval/auc' in x]
  assert [x['step'] for x in rows] == [10, 20, STEPS]
  last = {k.removeprefix('eval/'): v for k, v in rows[-1].items()}
  assert last['auc'] > 0.9 and last['accuracy'] > 0.8
  assert last['log_loss'] < 0.5 and 0 <= last['calibration_error'] < 0.4
  assert 1 / 4 < last['positive_rate'] < 1 / 2
  # One right judgement of four is outvoted, two make a tie.
  assert last['votes_examples'] == 8 and last['count'] == 32
  assert last['voting_4'] < 0.5 < last['guided_4'] < last['best_of_4']
  assert last['best_of_4'] > 0.9
  assert (workdir / 'calibration.png').read_bytes().startswith(b'\x89PNG')
  line = lines_with(stdout, 'AUC')[-1]
  printed = 'auc', 'accuracy', 'voting_4', 'guided_4', 'best_of_4'
  assert names(line, STEPS, *(f'{last[name]:.3f}' for name in printed))


def open_scalar_model(directory):
  return model_directory.open_model(
    str(directory), None, ComputeConfig(), mesh.one_device(), scalar=True
  )


def test_the_directory_is_a_meta_rm(runner, clean_run):
  """MetaJudge rates right judgements higher, in both orders."""
  model, tokenizer, params = open_scalar_model(clean_run[0] / 'model')
  assert model.scalar
  scorer = ScalarScorer(
    model, params, prompts=2, prompt_buckets=(192,), max_new_tokens=16
  )
  row = json.loads((runner.folder / 'rows.jsonl').read_text().splitlines()[0])
  example = from_row(
    row | {'best': 0, 'responses': ['yes yes yes', 'no no']}, 0
  )
  samples = tuple(
    Judgement(order, judgement(right, order.index(0)), 9, 'stop', None)
    for order in ((0, 1), (1, 0))
    for right in (True, False)
  )
  # The model directory stores the template of its prompts.
  trained = model_directory.read_trained_judge(str(clean_run[0] / 'model'))
  assert trained.kind == 'meta'
  assert trained.template == template.stored('practice_meta')
  rated = MetaJudge(scorer, tokenizer, trained.template).rate(
    JudgedExample(example, samples)
  )
  ratings = [x.meta for x in rated.samples]  # right, wrong, right, wrong
  assert min(ratings[::2]) > 0 > max(ratings[1::2])


def test_it_scores_and_is_exported(runner, clean_run, tmp_path):
  """Runs the commands of README."""
  model = clean_run[0] / 'model'
  write(
    tmp_path / 'rows.jsonl',
    [{'query': '3?', 'responses': ['yes yes yes', 'no no']}],
  )
  test_main.run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={runner.folder}/base',
    f'--config.meta_checkpoint={model}',
    f'--config.input={tmp_path}/rows.jsonl',
    '--config.k=2',
    '--config.sampling.max_new_tokens=8',
    '--config.sampling.decode_steps_per_call=4',
    '--config.sampling.prompt_buckets=(1024,)',
    f'--workdir={tmp_path}',
    env=runner.environment,
  )
  (row,) = (tmp_path / 'scores.jsonl').read_text().splitlines()
  assert all(isinstance(x['meta'], float) for x in json.loads(row)['samples'])
  test_main.run(
    '--config=configs/convert.py',
    '--config.direction=huggingface',
    f'--config.source={model}',
    f'--config.target={tmp_path}/exported',
    env=runner.environment,
  )
  config = json.loads((tmp_path / 'exported/config.json').read_text())
  assert config['architectures'] == ['Gemma2ForSequenceClassification']


def test_resume_is_bit_exact(runner, clean_run, tmp_path):
  process = runner.start(tmp_path)
  wait_for(process, lambda: lines_of(tmp_path / 'metrics.jsonl') >= 5)
  process.send_signal(signal.SIGTERM)
  stdout, _ = process.communicate(timeout=HANG_TIMEOUT_S)
  assert process.returncode == 0
  stopped = steps_in(tmp_path)[-1]
  assert 5 <= stopped < STEPS
  assert lines_with(stdout, stage_output.STOPPED, stopped, STEPS)
  runner.run(tmp_path)
  assert_same_run(tmp_path, clean_run[0])
  assert meta_of(tmp_path)['labels']


class PreemptionAt:
  """Preempts a run at a call, of which there is one per step."""

  def __init__(self, step):
    self.step, self.num_calls = step, 0

  def __call__(self):
    return self

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    pass

  def should_stop(self):
    self.num_calls += 1
    return self.num_calls == self.step


def test_a_resumed_run_does_the_pending_evaluation(
  runner, clean_run, tmp_path, monkeypatch
):
  """A run that is preempted when an evaluation is due resumes with it."""
  with monkeypatch.context() as patch:
    patch.setattr(supervised, 'Preemption', PreemptionAt(10))
    rm_train.run(runner.config(), str(tmp_path))
  assert meta_of(tmp_path)['eval_pending'] is True
  runner.run(tmp_path)
  kinds = [
    [(x['step'], 'loss' in x) for x in rows_of(workdir)]
    for workdir in (tmp_path, clean_run[0])
  ]
  assert kinds[0] == kinds[1]
  assert meta_of(tmp_path)['eval_pending'] is False


def test_a_resumed_run_refuses_other_labels(runner, clean_run, tmp_path):
  """The tokens are the same, but the other response is the best."""
  rows = [
    json.loads(x)
    for x in (runner.folder / 'rows.jsonl').read_text().splitlines()
  ]
  write(
    tmp_path / 'rows.jsonl', [row | {'best': 1 - row['best']} for row in rows]
  )
  config = runner.config(data=f'{tmp_path}/rows.jsonl')
  with pytest.raises(UserError, match=naming(clean_run[0], 'config.data')):
    rm_train.run(config, str(clean_run[0]))


def test_a_finished_run_changes_nothing(runner, clean_run, capsys):
  before = (clean_run[0] / 'metrics.jsonl').read_bytes()
  rm_train.run(runner.config(), str(clean_run[0]))
  assert lines_with(capsys.readouterr().out, clean_run[0] / 'model', STEPS)
  assert (clean_run[0] / 'metrics.jsonl').read_bytes() == before


def test_a_step_has_texts_per_step_texts_on_average(runner, tmp_path):
  # 128 judgements of 79 prompts: 64 are about 5 micro-batches of 8 prompts.
  changes = {'batch.texts_per_step': 64, 'steps': 3}
  stdout, _ = runner.run(tmp_path, **changes)
  assert lines_with(stdout, '40 prompts in 5 micro-batches', '65 texts')


BASELINES = {
  'bradley_terry': {'batch.prompt_buckets': (32,), 'batch.texts_per_step': 32},
  # Batches are unbalanced, and the more frequent label is learned first.
  'pair': {
    'batch.prompt_buckets': (136,),
    'optimizer.kind': 'adamw',
    'optimizer.learning_rate': 6e-3,
    'steps': 36,
  },
}


@pytest.mark.parametrize('kind', BASELINES)
def test_baselines_from_examples_alone(runner, tmp_path, kind):
  stdout, _ = runner.run(tmp_path, kind=kind, samples='', **BASELINES[kind])
  rows = rows_of(tmp_path)
  assert rows[0]['loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert rows[-2]['loss'] < 0.4 and rows[-2]['accuracy'] > 0.9
  assert rows[-1]['eval/accuracy'] > 0.8 and rows[-1]['eval/auc'] > 0.8
  assert lines_with(stdout, 'AUC')
  assert (tmp_path / 'calibration.png').exists()
  # The judge of this kind agrees.
  write(
    tmp_path / 'new.jsonl',
    [{'query': '77?', 'responses': ['yes yes yes', 'no no']}],
  )
  judge = {'bradley_terry': 'scalar', 'pair': 'pair'}[kind]
  test_main.run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={tmp_path}/model',
    f'--config.judge={judge}',
    f'--config.input={tmp_path}/new.jsonl',
    '--config.sampling.prompt_buckets=(192,)',
    '--config.sampling.max_new_tokens=16',
    f'--workdir={tmp_path}/scores',
    env=runner.environment,
  )
  row = json.loads((tmp_path / 'scores' / 'scores.jsonl').read_text())
  assert row['best'] == 0 and row['votes'][0] > row['votes'][1]


def test_a_value_model_of_critiques_for_the_semi_scalar_judge(runner, tmp_path):
  rows = [
    json.loads(x)
    for x in (runner.folder / 'rows.jsonl').read_text().splitlines()
  ]
  # Only critiques distinguish the responses.
  samples = [
    {'id': f'{x["id"]}/{i}', 'text': 'good' if i == x['best'] else 'bad'}
    for x in rows
    for i in range(2)
  ]
  write(
    tmp_path / 'rows.jsonl', [x | {'responses': ['no', 'no']} for x in rows]
  )
  write(tmp_path / 'samples.jsonl', samples)
  runner.run(
    tmp_path / 'run',
    kind='critique',
    data=f'{tmp_path}/rows.jsonl',
    samples=f'{tmp_path}/samples.jsonl',
    **BASELINES['bradley_terry'],
  )
  metrics = rows_of(tmp_path / 'run')
  assert metrics[0]['loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert metrics[-1]['eval/accuracy'] > 0.8
  stored = model_directory.read_trained_judge(f'{tmp_path}/run/model')
  assert (stored.kind, stored.template) == ('critique', None)
  # The judge reads it as its value model.
  row = {'query': '77?', 'responses': ['yes', 'no']}
  write(tmp_path / 'new.jsonl', [row])
  test_main.run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={runner.folder}/base',
    f'--config.value_checkpoint={tmp_path}/run/model',
    '--config.judge=semi_scalar',
    f'--config.input={tmp_path}/new.jsonl',
    '--config.sampling.prompt_buckets=(1024,)',
    '--config.sampling.max_new_tokens=4',
    f'--workdir={tmp_path}/scores',
    env=runner.environment,
  )
  row = json.loads((tmp_path / 'scores/scores.jsonl').read_text())
  assert len(row['votes']) == 2 and row['failures'] == 0


def load_model(config, workdir):
  return training_run.load_model(
    config, str(workdir), mesh.one_device(), scalar=True
  )


def test_an_existing_head_is_kept(runner, tmp_path):
  write_model(tmp_path / 'scalar', scalar=True)
  config = runner.config(checkpoint=f'{tmp_path}/scalar')
  loaded, params = load_model(config, tmp_path / 'run')
  expected = 0.1 * tiny.params(loaded.model)['value_head']['kernel']
  np.testing.assert_array_equal(params['value_head']['kernel'], expected)
  assert np.abs(expected).max() > 0


def test_a_base_model_gets_a_head_of_zeros(runner, tmp_path):
  loaded, params = load_model(runner.config(), tmp_path / 'run')
  assert not params['value_head']['kernel'].any()
  base, _, base_params = open_scalar_model(runner.folder / 'base')
  assert not base.scalar and 'value_head' not in base_params
  rest = {k: v for k, v in params.items() if k != 'value_head'}
  for a, b in zip(
    jax.tree.leaves(base_params), jax.tree.leaves(rest), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert loaded.tokenizer.encode('yes') == load_tokenizer().encode('yes')


BOTH = 'config.evaluation.data', 'config.evaluation.samples', 'x'
MISTAKES = [
  ({'kind': 'rank'}, (*setting('kind', 'rank'), 'bradley_terry')),
  ({'samples': ''}, ['config.samples']),
  ({'kind': 'pair'}, (*setting('kind', 'pair'), 'config.samples')),
  (
    {'kind': 'bradley_terry', 'samples': '', 'batch.generations_per_prompt': 1},
    (
      *setting('batch.generations_per_prompt', 1),
      *setting('kind', 'bradley_terry'),
    ),
  ),
  ({'evaluation.samples': 'x'}, BOTH),
  ({'evaluation.data': 'x'}, BOTH),
  (
    {'evaluation.holdout_fraction': 1.0},
    setting('evaluation.holdout_fraction', 1.0),
  ),
  (
    {'evaluation.concurrent_prompts': 4},
    (*setting('evaluation.concurrent_prompts', 4), 8),
  ),
  ({'prompt.single': 'nowhere'}, ['nowhere']),
  ({'checkpoint': 'scratch'}, setting('checkpoint', 'scratch')),
  ({'checkpoint': ''}, ['config.checkpoint']),
  ({'data': ''}, setting('data', "''")),
  (
    {'batch.micro_batch_prompts': 12},
    (*setting('batch.micro_batch_prompts', 12), 8),
  ),
  ({'batch.prompt_buckets': (64,)}, ['64']),
  ({'steps': 2}, setting('optimizer.warmup_steps', 2)),
  ({'max_to_keep': 0}, setting('max_to_keep', 0)),
]


@pytest.mark.parametrize('changes, words', MISTAKES)
def test_mistakes(runner, tmp_path, changes, words):
  with pytest.raises(UserError, match=naming(*words)) as caught:
    rm_train.run(runner.config(**changes), str(tmp_path))
  assert '\n' not in str(caught.value)
  assert not steps_in(tmp_path)


def test_all_samples_are_right(runner, tmp_path):
  rows = [json.loads(x) for x in (runner.folder / 'rows.jsonl').open()]
  right = ['9, 2', '2, 9']
  write(
    tmp_path / 'samples.jsonl',
    [{'id': x['id'], 'text': rf'\boxed{{{right[x["best"]]}}}'} for x in rows],
  )
  line = test_main.error_of(
    *runner.arguments(samples=f'{tmp_path}/samples.jsonl'),
    f'--workdir={tmp_path}/run',
    env=runner.environment,
  )
  assert names(line, 32, 'wrong')


def test_the_workdir_belongs_to_another_stage(runner, tmp_path):
  write_model(tmp_path / 'model')
  with pytest.raises(UserError, match=naming(tmp_path, '--workdir')):
    rm_train.run(runner.config(), str(tmp_path))


def test_without_a_workdir(runner):
  with pytest.raises(UserError, match='--workdir'):
    rm_train.run(runner.config(), '')
