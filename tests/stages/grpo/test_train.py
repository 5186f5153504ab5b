"""Training by rewards: it learns, is stopped, killed, and goes on the same.

All but the run of two processes are in this process, on one of its devices,
and share what was compiled.
"""

import os
import shutil
import signal

import numpy as np
import pytest

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.stages.grpo import train as grpo_train
from grm_jax.training import run as training_run
from tests.messages import lines_with, naming, setting
from tests.processes import run_together
from tests.stages import grpo_runs
from tests.stages.grpo_runs import STEPS
from tests.stages.sft.test_train import (
  leaves,
  params_of,
  results,
  rows_of,
  steps_in,
)


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  made = tmp_path_factory.mktemp('given')
  with grpo_runs.compiled_once(made / 'cache'):
    yield grpo_runs.given(made)


@pytest.fixture(scope='module')
def calm(given, tmp_path_factory):
  """The workdir of a run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('calm')
  given.run(workdir)
  return workdir


def updates(workdir):
  return [row for row in rows_of(workdir) if 'loss' in row]


def meta_of(workdir, step=None):
  return orbax_checkpoint.read_json(workdir / 'model', 'meta', step)


def test_it_learns_what_is_rewarded(calm):
  rows = updates(calm)
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  rewards = [row['rollout/reward'] for row in rows]
  assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.4
  for row in rows:
    assert row['rollout/reward'] == pytest.approx(
      2 * row['rollout/accuracy'] - 1
    )
  # The right verdict is for what is shown first.
  assert rows[-1]['rollout/first_position'] > 0.8
  assert rows[0]['kl'] == 0 and rows[-1]['kl'] > 0.01


def test_sampler_and_trainer_agree(calm):
  """Though some tokens are never drawn that the trainer knows of."""
  for row in updates(calm):
    assert 0 < row['sampler_difference_max'] < 1e-4
    assert row['sampler_difference'] < 1e-5 and row['sampler_outside'] == 0


def test_what_a_row_says(calm):
  rows = updates(calm)
  for row in rows:
    assert row['entropy'] > 0 and row['clip_fraction'] == 0
    assert row['grad_norm'] > 0 and row['param_norm'] > 0
    shares = 'accuracy', 'parse_failures', 'truncated', 'no_spread'
    assert all(0 <= row[f'rollout/{name}'] <= 1 for name in shares)
    assert 1 <= row['rollout/tokens'] <= 8 and row['rollout/groups'] == 16
    for part in ('rollout', 'reference', 'update'):
      assert row[f'time/{part}'] > 0 and row[f'{part}/tokens_per_second'] > 0
    # One update by the parameters that drew: their ratio is 1.
    assert 'time/old' not in row and 'count' not in row
    assert row['tokens_per_second'] > row['generation_tokens_per_second'] > 0
  assert rows[0]['learning_rate'] == pytest.approx(0.0075)
  assert [row['epochs'] for row in rows[:2]] == [0.8, 1.6]
  assert list((calm / 'tensorboard').glob('events*'))


def test_held_out_figures(calm, capsys):
  found = [row for row in rows_of(calm) if 'held_out/accuracy' in row]
  assert [row['step'] for row in found] == [0, 4, 8, 12, 16]
  for row in found:
    assert row['held_out/examples'] == 8 and 0 <= row['held_out/voting_2'] <= 1
  # At first it ends its turn at once.
  assert [row['held_out/parse_failures'] for row in found][::4] == [1, 0]


def test_checkpoints(given, calm):
  assert steps_in(calm) == [14, 16]
  assert (calm / 'model/tokenizer.model').exists()
  meta = meta_of(calm)
  assert meta['reference']['checkpoint'] == given.settings['checkpoint']
  assert meta['reference']['step'] == 0
  assert meta['data']['drawn'] == 16 * STEPS
  assert meta['above'] == 0 and meta['owed'] is False


def on_call(patch, owner, name, number, action):
  """Acts before the call of that number, from 1."""
  real, calls = getattr(owner, name), []

  def counted(*arguments, **options):
    calls.append(name)
    if len(calls) == number:
      action()
    return real(*arguments, **options)

  patch.setattr(owner, name, counted)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


class Killed(Exception):
  """As SIGKILL: nothing of ours catches it."""


def kill():
  raise Killed


def disturb(given, workdir, owner, name, number, action, **changes):
  with pytest.MonkeyPatch.context() as patch:
    on_call(patch, owner, name, number, action)
    given.run(workdir, **changes)


@pytest.fixture(scope='module')
def disturbed(given, calm, tmp_path_factory):
  """(workdir, steps on disk after each of three ends)."""
  workdir, seen = tmp_path_factory.mktemp('disturbed'), []
  # In the rollout of step 6, which is then not done.
  disturb(given, workdir, grpo_train.Roller, 'roll', 6, terminate)
  seen.append(steps_in(workdir))
  # In the update to step 8, after which held-out examples would be judged.
  disturb(given, workdir, grpo_train.Updater, 'update', 3, terminate)
  seen.append(steps_in(workdir))
  assert [row['step'] for row in rows_of(workdir)][-2:] == [7, 8]
  # Between the rows of step 12 and its checkpoint.
  with pytest.raises(Killed):
    disturb(given, workdir, training_run, 'save', 2, kill)
  seen.append(steps_in(workdir))
  assert [row['step'] for row in rows_of(workdir)][-2:] == [12, 12]
  given.run(workdir)
  return workdir, seen


def test_sigterm_ends_a_rollout_and_saves(disturbed):
  assert disturbed[1] == [[4, 5], [6, 8], [8, 10]]


def test_disturbed_it_ends_bit_for_bit_the_same(disturbed, calm):
  workdir = disturbed[0]
  assert results(workdir) == results(calm)
  for a, b in zip(
    *(leaves(params_of(x)) for x in (calm, workdir)), strict=True
  ):
    assert a.tobytes() == b.tobytes()
  for item in ('index', 'meta'):
    one, two = (
      orbax_checkpoint.read_json(x / 'model', item, STEPS)
      for x in (calm, workdir)
    )
    assert one == two


def cut_back(calm, target):
  """A copy of the run as it was after its checkpoint of step 14."""
  shutil.copytree(calm, target)
  shutil.rmtree(target / 'model/16')
  return target


def test_the_reference_stays_the_same(given, calm, tmp_path):
  workdir = cut_back(calm, tmp_path / 'run')
  other = tmp_path / 'other'
  grpo_runs.write_model(other, seed=1)
  # Where the policy began has a newer step by now.
  base = tmp_path / 'base'
  shutil.copytree(given.settings['checkpoint'], base)
  shutil.copytree(other / '0', base / '1')
  for checkpoint, words in (
    (other, [given.settings['checkpoint'], other]),
    ('', ['config.checkpoint']),
  ):
    words = naming('config.reference.checkpoint', *words)
    with pytest.raises(UserError, match=words):
      given.run(workdir, checkpoint=str(checkpoint))
  given.run(workdir, checkpoint=str(base))
  assert results(workdir) == results(calm)


def test_it_does_not_go_on_with_others(given, calm, tmp_path):
  workdir = cut_back(calm, tmp_path / 'run')
  for changes, words in (
    ({'order': 'random'}, ['order', 'fixed', 'random']),
    ({'data': given.settings['evaluation.data']}, ['examples', 20, 8]),
    (
      {'minibatches': 4},
      [*setting('steps', 16), 2, 'config.num_minibatches', 4],
    ),
  ):
    with pytest.raises(UserError, match=naming(*words)):
      given.run(workdir, **changes)
  assert steps_in(workdir) == [14]


def test_a_run_that_is_done_changes_nothing(given, calm, capsys):
  before = (calm / 'metrics.jsonl').read_bytes()
  given.run(calm)
  assert lines_with(capsys.readouterr().out, calm / 'model', STEPS)
  assert (calm / 'metrics.jsonl').read_bytes() == before


DAPO = {
  'loss.loss_agg_mode': 'token',
  'loss.clip_high': 0.28,
  'loss.kl_coef': 0.0,
  'resample': 2,
}
DR_GRPO = {
  'loss.loss_agg_mode': 'constant',
  'loss.normalize_by_std': False,
  'loss.kl_coef': 0.0,
}


def test_dapo_with_minibatches_and_passes(given, tmp_path, monkeypatch):
  """Two minibatches of two micro-batches each, learnt from twice."""
  monkeypatch.setattr(grpo_train, 'Reference', None)  # there is none
  given.run(
    tmp_path,
    **DAPO,
    minibatches=2,
    passes=2,
    steps=8,
    profile_steps='6,6',
    **{'batch.micro_batch_prompts': 4, 'evaluation.data': ''},
  )
  rows = rows_of(tmp_path)
  assert [row['step'] for row in rows] == [4, 8]
  for row in rows:
    assert 'kl' not in row and 'time/reference' not in row
    assert row['old/tokens_per_second'] > 0
    # Before the first update the policy is the one that drew.
    assert row['sampler_difference_max'] < 1e-4
    assert row['rollout/groups'] >= 16
  assert max(row['clip_fraction'] for row in rows) > 0
  assert meta_of(tmp_path)['reference'] is None
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert steps_in(tmp_path) == [4, 8]


def test_dr_grpo_and_an_int8_sampler(given, tmp_path):
  given.run(
    tmp_path, **DR_GRPO, steps=2, **{'rollout.int8': True, 'evaluation.k': 0}
  )
  rows = rows_of(tmp_path)
  assert [row['step'] for row in rows] == [0, 1, 2, 2]
  assert 'held_out/voting_2' not in rows[0]
  for row in updates(tmp_path):
    assert row['grad_norm'] > 0 and 'kl' not in row
    # It draws by other numbers than it trains, which is measured.
    assert row['sampler_difference_max'] > 1e-4


def test_a_reference_in_bfloat16_on_the_host(given, calm, tmp_path):
  given.run(
    tmp_path,
    steps=2,
    **{'reference.dtype': 'bfloat16', 'reference.offload_to_host': True},
  )
  ours, theirs = updates(tmp_path), updates(calm)
  assert ours[0]['rollout/reward'] == theirs[0]['rollout/reward']
  assert 0 < ours[0]['kl'] < 1e-3  # of rounded parameters to exact ones


def test_a_state_on_the_host_goes_on_as_one_on_the_devices(given, tmp_path):
  """Kernels in bfloat16 beside exact ones, stopped after a step."""
  changes = {'compute.dtype': 'bfloat16', 'evaluation.data': '', 'steps': 3}
  given.run(tmp_path / 'devices', **changes)
  changes['optimizer.offload_to_host'] = True
  workdir = tmp_path / 'host'
  disturb(given, workdir, grpo_train.Roller, 'roll', 2, terminate, **changes)
  assert steps_in(workdir) == [1]
  given.run(workdir, **changes)
  both = updates(workdir), updates(tmp_path / 'devices')
  for ours, theirs in zip(*both, strict=True):
    assert ours['rollout/reward'] == theirs['rollout/reward']
    for name in ('loss', 'kl', 'grad_norm', 'param_norm'):
      assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6)
  for ours, theirs in zip(
    *(leaves(params_of(x)) for x in (workdir, tmp_path / 'devices')),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


BABBLE = {'evaluation.every': 1, 'evaluation.max_parse_failure_rate': 0.5}


@pytest.fixture(scope='module')
def babbler(given):
  """A model that writes anything."""
  grpo_runs.write_model(given.folder / 'babbler', likely=0.0)
  return BABBLE | {'checkpoint': f'{given.folder}/babbler'}


def test_a_run_without_a_format_stops(given, babbler, tmp_path):
  words = 'config.evaluation.max_parse_failure_rate', 'config.loss.kl_coef'
  with pytest.raises(UserError, match=naming(*words, 2, 16)) as caught:
    given.run(tmp_path, **babbler, save_every=0)
  assert '\n' not in str(caught.value)
  assert steps_in(tmp_path) == [2]
  assert [row['rollout/no_spread'] for row in updates(tmp_path)] == [1, 1]


def test_evaluations_before_a_stop_count(given, babbler, tmp_path):
  disturb(
    given,
    tmp_path,
    grpo_train.Roller,
    'roll',
    2,
    terminate,
    **babbler,
    save_every=0,
  )
  assert steps_in(tmp_path) == [1] and meta_of(tmp_path)['above'] == 1
  with pytest.raises(
    ValueError, match=naming('config.evaluation.max_parse_failure_rate', 2, 16)
  ):
    given.run(tmp_path, **babbler, save_every=0)


def test_all_examples_are_too_long(given, tmp_path):
  changes = {'prompt.too_long': 'refuse', 'evaluation.data': ''}
  with pytest.raises(
    UserError, match=naming('config.batch.prompt_buckets', 40)
  ):
    given.run(tmp_path, **changes, **{'batch.prompt_buckets': (8,)})
  assert not steps_in(tmp_path)


@pytest.mark.parametrize(
  'on_host, ends', [(False, [2]), (True, [2, 3])], ids=['devices', 'host']
)
def test_two_processes_train_as_one(
  given, calm, tmp_path, monkeypatch, on_host, ends
):
  """Both draw the same rollouts; each holds its own rows of batches.

  And its own part of a state on the host, with which they start again.
  """
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  changes = {'evaluation.data': '', 'optimizer.offload_to_host': on_host}
  for steps in ends:
    arguments = given.arguments(steps=steps, **changes)
    run_together(
      ['-m', 'grm_jax.main', *arguments, f'--workdir={tmp_path}'],
      devices=1,
    )
  ours, theirs = updates(tmp_path), updates(calm)[: ends[-1]]
  for one, two in zip(ours, theirs, strict=True):
    for name in ('rollout/reward', 'rollout/tokens', 'loss', 'kl', 'grad_norm'):
      assert one[name] == pytest.approx(two[name], abs=1e-3), name
  assert steps_in(tmp_path) == ends
