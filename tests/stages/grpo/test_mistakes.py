"""Mistakes of a user of GRPO: one line each, and nothing is written.

Most are found before data or weights are read.
"""

import json

import pytest

from grm_jax.errors import UserError
from grm_jax.stages.grpo import settings as grpo_settings
from grm_jax.stages.grpo import train as grpo_train
from grm_jax.stages.grpo.rollout import RolloutSampler
from tests import test_main
from tests.messages import names, naming, setting
from tests.stages.grpo import fixtures
from tests.stages.stage_runs import steps_in, write_model


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  return fixtures.make_runner(tmp_path_factory.mktemp('fixtures'))


def error_of(config, workdir):
  with pytest.raises(UserError) as caught:
    grpo_train.run(config, str(workdir))
  assert '\n' not in str(caught.value)
  return str(caught.value)


# Wrong values; the message has the key and the value.
WRONG = {
  'group_size': 1,
  'prompts_per_rollout': 0,
  'num_minibatches': 0,
  'num_iterations': 0,
  'max_resample_attempts': -1,
  'batch.micro_batch_prompts': 0,
  'rollout.concurrent_prompts': 0,
  'rollout.generations_per_prompt': 0,
  'rollout.decode_steps_per_call': 0,
  'max_to_keep': 0,
  'evaluation.k': -1,
  'temperature': 0.0,
  'batch.prompt_buckets': (0, 8),
  'batch.generation_buckets': (),
  'loss.kl_coef': -0.1,
  'loss.kl_estimator': 'k4',
  'loss.clip_low': 0.0,
  'loss.clip_high': -1.0,
  'loss.loss_agg_mode': 'mean',
  'reference.dtype': 'int8',
  'evaluation.max_parse_failure_rate': 2.0,
  'evaluation.patience': -1,
  'optimizer.schedule': 'linear',
  'profile_steps': '3',
}
WITH_OTHER_WORDS = [
  ({'temperature': float('nan')}, setting('temperature', 'nan')),
  ({'temperature': 2e-38}, setting('temperature', 2e-38)),  # greedy
  (
    {'num_minibatches': 32, 'steps': 64},
    (*setting('num_minibatches', 32), *setting('prompts_per_rollout', 16)),
  ),
  (
    {'num_minibatches': 3},
    (*setting('steps', 16), 'config.num_minibatches', 3),
  ),
  ({'steps': 1}, setting('optimizer.warmup_steps', 1)),
]


@pytest.mark.parametrize(
  'changes, words',
  [({k: v}, setting(k, v)) for k, v in WRONG.items()] + WITH_OTHER_WORDS,
)
def test_settings_are_checked_before_data_is_read(
  runner, tmp_path, monkeypatch, changes, words
):
  monkeypatch.setattr(grpo_train.labelled_examples, 'load', None)
  config = runner.config(**changes)
  with pytest.raises(UserError, match=naming(*words)):
    grpo_settings.check(config, str(tmp_path))
  error_of(config, tmp_path)


BEFORE_WEIGHTS = [
  ({'prompt.template': 'nowhere'}, setting('prompt.template', 'nowhere')),
  (
    {'prompt.template': 'critique'},
    (*setting('prompt.template', 'critique'), 'principles'),
  ),
  ({'prompt.too_long': 'cut'}, setting('prompt.too_long', 'cut')),
  ({'data': ''}, setting('data', "''")),
  ({'data': 'nowhere.jsonl'}, ['nowhere.jsonl']),
  ({'reward': 'length'}, setting('reward', "'length'")),
  ({'response_order': 'up'}, setting('response_order', 'up')),
  (
    {'batch.micro_batch_prompts': 12},
    (*setting('batch.micro_batch_prompts', 12), 8),
  ),
  ({'checkpoint': ''}, ['config.checkpoint']),
  ({'checkpoint': 'nowhere'}, ['nowhere']),
  ({'checkpoint': 'scratch'}, setting('checkpoint', 'scratch')),
  ({'checkpoint_step': 7}, [7, 0]),
  ({'mesh.tensor': 3}, ['tensor', 3]),
]


@pytest.mark.parametrize('changes, words', BEFORE_WEIGHTS)
def test_mistakes_found_before_weights_are_read(
  runner, tmp_path, monkeypatch, changes, words
):
  monkeypatch.setattr(grpo_train.training_run, 'init_from_checkpoint', None)
  line = error_of(runner.config(**changes), tmp_path)
  assert names(line, *words)
  assert not (tmp_path / 'model').exists()


AFTER = [
  ({'rollout.concurrent_prompts': 3}, ['prompts', 3, 8]),
  ({'evaluation.data': 'nowhere.jsonl'}, ['nowhere.jsonl']),
  ({'reference.checkpoint': 'nowhere'}, ['nowhere']),
]


@pytest.mark.parametrize('changes, words', AFTER)
def test_mistakes_found_before_the_first_rollout(
  runner, tmp_path, monkeypatch, changes, words
):
  monkeypatch.setattr(RolloutSampler, 'sample', None)
  assert names(error_of(runner.config(**changes), tmp_path), *words)
  assert not steps_in(tmp_path)


def test_the_reference_has_another_size(runner, tmp_path):
  fixtures.write_model(tmp_path / 'wide', mlp_width=64)
  config = runner.config(**{'reference.checkpoint': f'{tmp_path}/wide'})
  line = error_of(config, tmp_path / 'run')
  assert names(line, *setting('reference.checkpoint', f'{tmp_path}/wide'))


def test_the_model_has_a_scalar_head(runner, tmp_path):
  write_model(tmp_path / 'run/model', scalar=True)
  config = runner.config(checkpoint=f'{tmp_path}/run/model')
  line = error_of(config, tmp_path / 'other')
  assert names(line, tmp_path / 'run/model', 'head')
  # The workdir of a reward model.
  line = error_of(runner.config(), tmp_path / 'run')
  assert names(line, tmp_path / 'run', '--workdir')


def test_the_workdir_belongs_to_another_stage(runner, tmp_path):
  fixtures.write_model(tmp_path / 'model')
  line = error_of(runner.config(), tmp_path)
  assert names(line, tmp_path, '--workdir')


@pytest.mark.parametrize(
  'row, word',
  [
    ({'responses': ['a', 'b']}, 'rewards'),
    ({'responses': ['a'], 'rewards': [1]}, 'config.prompt.single'),
  ],
)
def test_examples_that_cannot_be_rewarded(runner, tmp_path, row, word):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'id': 'x', 'query': 'q', **row}))
  config = runner.config(data=str(path), **{'prompt.single': 'none'})
  assert names(error_of(config, tmp_path), path, word)


def test_without_a_workdir(runner):
  assert names(error_of(runner.config(), ''), '--workdir')


def test_a_mistake_at_the_command_line_is_one_line(runner, tmp_path):
  line = test_main.error_of(
    *runner.arguments(group_size=1), f'--workdir={tmp_path}'
  )
  assert names(line, *setting('group_size', 1), 2)
