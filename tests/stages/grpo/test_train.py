"""GRPO runs: they learn, resume after interruptions, and stop.

All runs except the one of two processes are in this process, on one of its
devices, and share compiled programs.
"""

import os
import shutil
import signal

import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.stages.grpo import train as grpo_train
from grm_jax.stages.grpo import update as grpo_update
from grm_jax.stages.grpo.rollout import RolloutSampler
from grm_jax.training import run as training_run
from tests.messages import lines_with, naming
from tests.processes import run_processes
from tests.stages.grpo import fixtures
from tests.stages.grpo.fixtures import STEPS
from tests.stages.stage_runs import (
  assert_same_run,
  leaves,
  meta_of,
  params_of,
  results,
  rows_of,
  steps_in,
)


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fixtures')
  return fixtures.make_runner(folder)


@pytest.fixture(scope='module')
def clean_run(runner, tmp_path_factory):
  """The workdir of a run without interruptions."""
  workdir = tmp_path_factory.mktemp('clean_run')
  runner.run(workdir)
  return workdir


def updates(workdir):
  """Returns the rows of updates, without those of evaluations."""
  return [row for row in rows_of(workdir) if 'loss' in row]


def test_it_learns_what_is_rewarded(clean_run):
  rows = updates(clean_run)
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  rewards = [row['rollout/reward'] for row in rows]
  assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.4
  for row in rows:
    assert row['rollout/reward'] == pytest.approx(
      2 * row['rollout/accuracy'] - 1
    )
  # The best response is always the first one.
  assert rows[-1]['rollout/first_position_win_rate'] > 0.8
  assert rows[0]['kl'] == 0 and rows[-1]['kl'] > 0.01


def test_sampler_and_trainer_agree(clean_run):
  """Although the sampler never samples some tokens that the trainer has."""
  for row in updates(clean_run):
    assert 0 < row['logp_diff_max'] < 1e-4
    assert row['logp_diff_mean'] < 1e-5 and row['ratio_outside_0.9_1.1'] == 0


def test_metrics_of_an_update(clean_run):
  rows = updates(clean_run)
  for row in rows:
    assert row['entropy'] > 0 and row['clip_fraction'] == 0
    assert row['grad_norm'] > 0 and row['param_norm'] > 0
    for name in (
      'accuracy',
      'parse_failures',
      'truncated_fraction',
      'frac_groups_zero_std',
    ):
      assert 0 <= row[f'rollout/{name}'] <= 1
    assert 1 <= row['rollout/mean_generation_length'] <= 8
    assert row['rollout/groups'] == 16
    for part in ('rollout', 'reference', 'update'):
      assert row[f'time/{part}'] > 0 and row[f'{part}/tokens_per_second'] > 0
    # A single update is by the policy that sampled: its ratio is 1.
    assert 'time/old_logps' not in row and 'count' not in row
    assert row['tokens_per_second'] > row['generation_tokens_per_second'] > 0
  assert rows[0]['learning_rate'] == pytest.approx(0.0075)
  assert [row['epochs'] for row in rows[:2]] == [0.8, 1.6]
  assert list((clean_run / 'tensorboard').glob('events*'))


def test_metrics_of_evaluations(clean_run):
  rows = [row for row in rows_of(clean_run) if 'eval/accuracy' in row]
  assert [row['step'] for row in rows] == [0, 4, 8, 12, 16]
  for row in rows:
    assert row['eval/examples'] == 8 and 0 <= row['eval/voting_2'] <= 1
  # At first the greedy generations end at once, later they are truncated.
  assert [row['eval/truncated_fraction'] for row in rows][::4] == [0, 1]
  assert [row['eval/parse_failures'] for row in rows][::4] == [1, 1]


def test_checkpoints(runner, clean_run):
  assert steps_in(clean_run) == [14, 16]
  assert (clean_run / 'model/tokenizer.model').exists()
  meta = meta_of(clean_run)
  assert meta['reference']['checkpoint'] == runner.settings['checkpoint']
  assert meta['reference']['step'] == 0
  assert meta['data']['num_taken'] == 16 * STEPS
  assert meta['consecutive_failures'] == 0 and meta['eval_pending'] is False


def act_on_call(patch, owner, name, number, action):
  """Makes call `number` (from 1) of a function act first."""
  function, calls = getattr(owner, name), []

  def counted(*arguments, **options):
    calls.append(name)
    if len(calls) == number:
      action()
    return function(*arguments, **options)

  patch.setattr(owner, name, counted)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


class Killed(Exception):
  """Stands for SIGKILL: no code of the run catches it."""


def kill():
  raise Killed


def interrupt(runner, workdir, owner, name, number, action, **changes):
  """Runs, and acts on a call of a function; see `act_on_call`."""
  with pytest.MonkeyPatch.context() as patch:
    act_on_call(patch, owner, name, number, action)
    runner.run(workdir, **changes)


@pytest.fixture(scope='module')
def interrupted_run(runner, clean_run, tmp_path_factory):
  """(workdir, steps on disk after each of three interruptions)."""
  workdir, steps = tmp_path_factory.mktemp('interrupted_run'), []
  # SIGTERM in the rollout of step 6, which is discarded.
  interrupt(runner, workdir, RolloutSampler, 'sample', 6, terminate)
  steps.append(steps_in(workdir))
  # SIGTERM in the update to step 8, before an evaluation is due.
  interrupt(runner, workdir, grpo_update, 'update_policy', 3, terminate)
  steps.append(steps_in(workdir))
  assert [row['step'] for row in rows_of(workdir)][-2:] == [7, 8]
  assert meta_of(workdir)['eval_pending'] is True
  # SIGKILL between the rows of step 12 and its checkpoint.
  with pytest.raises(Killed):
    interrupt(runner, workdir, training_run, 'save', 2, kill)
  steps.append(steps_in(workdir))
  assert [row['step'] for row in rows_of(workdir)][-2:] == [12, 12]
  runner.run(workdir)
  return workdir, steps


def test_sigterm_ends_a_rollout_and_saves(interrupted_run):
  assert interrupted_run[1] == [[4, 5], [6, 8], [8, 10]]


def test_resume_is_bit_exact(interrupted_run, clean_run):
  assert_same_run(interrupted_run[0], clean_run)


def cut_back(workdir, target):
  """Copies a run as it was after its checkpoint of step 14."""
  shutil.copytree(workdir, target)
  shutil.rmtree(target / 'model/16')
  return target


def test_a_resumed_run_keeps_its_reference(runner, clean_run, tmp_path):
  workdir = cut_back(clean_run, tmp_path / 'run')
  other = tmp_path / 'other'
  fixtures.write_model(other, seed=1)
  base = tmp_path / 'base'  # the initial checkpoint, moved
  shutil.copytree(runner.settings['checkpoint'], base)
  for checkpoint in (str(other), ''):
    with pytest.raises(UserError, match=naming('config.checkpoint')):
      runner.run(workdir, checkpoint=checkpoint)
  runner.run(workdir, checkpoint=str(base))
  assert results(workdir) == results(clean_run)


def test_a_resumed_run_refuses_other_settings(runner, clean_run, tmp_path):
  workdir = cut_back(clean_run, tmp_path / 'run')
  for changes, words in (
    ({'response_order': 'random'}, ['response_order', 'fixed', 'random']),
    ({'data': runner.settings['evaluation.data']}, ['config.data']),
    ({'num_minibatches': 4}, ['config.num_minibatches', 1, 4]),
  ):
    with pytest.raises(UserError, match=naming(*words)):
      runner.run(workdir, **changes)
  assert steps_in(workdir) == [14]


def test_a_finished_run_changes_nothing(runner, clean_run, capsys):
  before = (clean_run / 'metrics.jsonl').read_bytes()
  runner.run(clean_run)
  assert lines_with(capsys.readouterr().out, clean_run / 'model', STEPS)
  assert (clean_run / 'metrics.jsonl').read_bytes() == before


DAPO = {
  'loss.loss_agg_mode': 'token',
  'loss.clip_high': 0.28,
  'loss.kl_coef': 0.0,
  'max_resample_attempts': 2,
}
DR_GRPO = {
  'loss.loss_agg_mode': 'constant',
  'loss.normalize_by_std': False,
  'loss.kl_coef': 0.0,
}


def test_dapo_with_minibatches_and_iterations(runner, tmp_path, monkeypatch):
  """Two minibatches of two micro-batches each, in two passes."""
  monkeypatch.setattr(grpo_train, 'ReferencePolicy', None)  # not needed
  runner.run(
    tmp_path,
    **DAPO,
    num_minibatches=2,
    num_iterations=2,
    steps=8,
    profile_steps='6,6',
    **{'batch.micro_batch_prompts': 4, 'evaluation.data': ''},
  )
  rows = rows_of(tmp_path)
  assert [row['step'] for row in rows] == [4, 8]
  for row in rows:
    assert 'kl' not in row and 'time/reference' not in row
    assert row['old_logps/tokens_per_second'] > 0
    # Before the first update the policy is the one that sampled.
    assert row['logp_diff_max'] < 1e-4
    assert row['rollout/groups'] >= 16
  assert max(row['clip_fraction'] for row in rows) > 0
  assert meta_of(tmp_path)['reference'] is None
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert steps_in(tmp_path) == [4, 8]


def test_dr_grpo_with_an_int8_sampler(runner, tmp_path):
  runner.run(
    tmp_path, **DR_GRPO, steps=2, **{'rollout.int8': True, 'evaluation.k': 0}
  )
  rows = rows_of(tmp_path)
  assert [row['step'] for row in rows] == [0, 1, 2, 2]
  assert 'eval/voting_2' not in rows[0]
  for row in updates(tmp_path):
    assert row['grad_norm'] > 0 and 'kl' not in row
    # The sampler's numbers differ from the trainer's, and metrics show it.
    assert row['logp_diff_max'] > 1e-4


def test_a_reward_function_of_the_user(runner, tmp_path):
  path = tmp_path / 'rewards.py'
  path.write_text(
    'def shortness(example, judgement):\n'
    '  return -float(judgement.num_tokens)\n'
  )
  runner.run(
    tmp_path / 'run',
    steps=2,
    reward=f'{path}:shortness',
    **{'evaluation.data': ''},
  )
  for row in updates(tmp_path / 'run'):
    assert row['rollout/reward'] == pytest.approx(
      -row['rollout/mean_generation_length']
    )


def test_a_bfloat16_reference_in_host_memory(runner, clean_run, tmp_path):
  runner.run(
    tmp_path,
    steps=2,
    **{'reference.dtype': 'bfloat16', 'reference.offload_to_host': True},
  )
  rows, clean_rows = updates(tmp_path), updates(clean_run)
  assert rows[0]['rollout/reward'] == clean_rows[0]['rollout/reward']
  assert 0 < rows[0]['kl'] < 1e-3  # rounded parameters against exact ones


def test_an_offloaded_state_resumes_like_one_on_the_devices(runner, tmp_path):
  """The state has bfloat16 and float32 kernels; the run stops after a step."""
  changes = {'compute.dtype': 'bfloat16', 'evaluation.data': '', 'steps': 3}
  runner.run(tmp_path / 'devices', **changes)
  changes['optimizer.offload_to_host'] = True
  workdir = tmp_path / 'host'
  interrupt(runner, workdir, RolloutSampler, 'sample', 2, terminate, **changes)
  assert steps_in(workdir) == [1]
  runner.run(workdir, **changes)
  for one, two in zip(
    updates(workdir), updates(tmp_path / 'devices'), strict=True
  ):
    assert one['rollout/reward'] == two['rollout/reward']
    for name in ('loss', 'kl', 'grad_norm', 'param_norm'):
      assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-6)
  for one, two in zip(
    *(leaves(params_of(x)) for x in (workdir, tmp_path / 'devices')),
    strict=True,
  ):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def unparseable_policy(runner):
  """Settings of a run whose policy writes random text."""
  fixtures.write_model(runner.folder / 'unparseable', likely=0.0)
  return {
    'checkpoint': f'{runner.folder}/unparseable',
    'evaluation.every': 1,
    'evaluation.max_parse_failure_rate': 0.5,
  }


def test_a_run_stops_when_its_generations_do_not_parse(
  runner, unparseable_policy, tmp_path
):
  words = 'config.evaluation.max_parse_failure_rate', 'config.loss.kl_coef'
  with pytest.raises(UserError, match=naming(*words, 2, 16)) as caught:
    runner.run(tmp_path, **unparseable_policy, save_every=0)
  assert '\n' not in str(caught.value)
  assert steps_in(tmp_path) == [2]
  flat = [row['rollout/frac_groups_zero_std'] for row in updates(tmp_path)]
  assert flat == [1, 1]


def test_failed_evaluations_before_a_resume_count(
  runner, unparseable_policy, tmp_path
):
  interrupt(
    runner,
    tmp_path,
    RolloutSampler,
    'sample',
    2,
    terminate,
    **unparseable_policy,
    save_every=0,
  )
  assert steps_in(tmp_path) == [1]
  assert meta_of(tmp_path)['consecutive_failures'] == 1
  words = naming('config.evaluation.max_parse_failure_rate', 2, 16)
  with pytest.raises(UserError, match=words):
    runner.run(tmp_path, **unparseable_policy, save_every=0)


def test_all_examples_are_too_long(runner, tmp_path):
  changes = {'prompt.too_long': 'refuse', 'evaluation.data': ''}
  with pytest.raises(
    UserError, match=naming('config.batch.prompt_buckets', 40)
  ):
    runner.run(tmp_path, **changes, **{'batch.prompt_buckets': (8,)})
  assert not steps_in(tmp_path)


@pytest.mark.parametrize(
  'offload, ends', [(False, [2]), (True, [2, 3])], ids=['devices', 'host']
)
def test_two_processes_train_as_one(runner, clean_run, tmp_path, offload, ends):
  """Both sample the same rollouts, and hold their own rows of batches.

  With an offloaded state each also holds its own part of it, and resumes.
  """
  changes = {
    'evaluation.data': '',
    'optimizer.offload_to_host': offload,
    'optimizer.schedule': 'constant',  # steps may grow
  }
  for steps in ends:
    arguments = runner.arguments(steps=steps, **changes)
    run_processes(
      ['-m', 'grm_jax.main', *arguments, f'--workdir={tmp_path}'],
      devices=1,
    )
  for one, two in zip(
    updates(tmp_path), updates(clean_run)[: ends[-1]], strict=True
  ):
    for name in (
      'rollout/reward',
      'rollout/mean_generation_length',
      'loss',
      'kl',
      'grad_norm',
    ):
      assert one[name] == pytest.approx(two[name], abs=1e-3), name
  assert steps_in(tmp_path) == ends
