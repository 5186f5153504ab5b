"""What a user may get wrong about GRPO: one line each, and nothing is written.

Most of it is seen before rows or weights are read.
"""

import json

import pytest

from grm_jax.errors import UserError
from grm_jax.stages.grpo import train as grpo_train
from tests import test_main
from tests.messages import names, naming, setting
from tests.stages import grpo_runs
from tests.stages.sft.test_train import steps_in, write_model


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  return grpo_runs.given(tmp_path_factory.mktemp('given'))


def mistake(config, workdir):
  with pytest.raises(UserError) as caught:
    grpo_train.run(config, str(workdir))
  assert '\n' not in str(caught.value)
  return str(caught.value)


# One setting is wrong: the message has its key and its value.
WRONG = {
  'group_size': 1,
  'prompts': 0,
  'minibatches': 0,
  'passes': 0,
  'resample': -1,
  'batch.micro_batch_prompts': 0,
  'rollout.prompts': 0,
  'rollout.generations_per_prompt': 0,
  'rollout.decode_steps_per_call': 0,
  'keep': 0,
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
SETTINGS = [
  ({'temperature': float('nan')}, setting('temperature', 'nan')),
  (
    {'minibatches': 32, 'steps': 64},
    (*setting('prompts', 16), *setting('minibatches', 32)),
  ),
  ({'minibatches': 3}, (*setting('steps', 16), 'config.num_minibatches', 3)),
  ({'steps': 1}, setting('optimizer.warmup_steps', 1)),
]


@pytest.mark.parametrize(
  'changes, words',
  [({k: v}, setting(k, v)) for k, v in WRONG.items()] + SETTINGS,
)
def test_settings(given, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(grpo_train.told, 'load', None)  # no row is read
  config = given.config(**changes)
  with pytest.raises(UserError, match=naming(*words)):
    grpo_train.check(config, str(tmp_path))
  mistake(config, tmp_path)


BEFORE_WEIGHTS = [
  ({'prompt.template': 'nowhere'}, setting('prompt.template', 'nowhere')),
  (
    {'prompt.template': 'critique'},
    (*setting('prompt.template', 'critique'), 'principles'),
  ),
  ({'prompt.too_long': 'cut'}, setting('prompt.too_long', 'cut')),
  ({'data': ''}, setting('data', "''")),
  ({'data': 'nowhere.jsonl'}, ['nowhere.jsonl']),
  ({'order': 'up'}, setting('order', 'up')),
  (
    {'batch.micro_batch_prompts': 12},
    (*setting('batch.micro_batch_prompts', 12), 8),
  ),
  ({'checkpoint': ''}, ['config.checkpoint']),
  ({'checkpoint': 'nowhere'}, ['nowhere']),
  ({'checkpoint': 'scratch'}, setting('checkpoint', 'scratch')),
  ({'step': 7}, [7, 0]),
  ({'mesh.tensor': 3}, ['tensor', 3]),
]


@pytest.mark.parametrize('changes, words', BEFORE_WEIGHTS)
def test_sources(given, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(grpo_train.runs, 'take_over', None)
  line = mistake(given.config(**changes), tmp_path)
  assert names(line, *words)
  assert not (tmp_path / 'model').exists()


AFTER = [
  ({'rollout.prompts': 3}, ['prompts', 3, 8]),
  ({'evaluation.data': 'nowhere.jsonl'}, ['nowhere.jsonl']),
  ({'reference.checkpoint': 'nowhere'}, ['nowhere']),
]


@pytest.mark.parametrize('changes, words', AFTER)
def test_before_the_first_rollout(given, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(grpo_train, '_train', None)
  assert names(mistake(given.config(**changes), tmp_path), *words)
  assert not steps_in(tmp_path)


def test_a_reference_of_another_size(given, tmp_path):
  grpo_runs.write_model(tmp_path / 'wide', mlp_width=64)
  config = given.config(**{'reference.checkpoint': f'{tmp_path}/wide'})
  line = mistake(config, tmp_path / 'run')
  assert names(line, *setting('reference.checkpoint', f'{tmp_path}/wide'))


def test_a_model_with_a_scalar_head(given, tmp_path):
  write_model(tmp_path / 'run/model', scalar=True)
  config = given.config(checkpoint=f'{tmp_path}/run/model')
  line = mistake(config, tmp_path / 'other')
  assert names(line, tmp_path / 'run/model', 'head')
  # The workdir of a run of the stage meta_rm.
  line = mistake(given.config(), tmp_path / 'run')
  assert names(line, tmp_path / 'run/model', 'head', '--workdir')


def test_the_workdir_of_another_stage(given, tmp_path):
  grpo_runs.write_model(tmp_path / 'model')
  line = mistake(given.config(), tmp_path)
  assert names(line, tmp_path / 'model', '--workdir')


@pytest.mark.parametrize(
  'row, word',
  [
    ({'responses': ['a', 'b']}, 'rewards'),
    ({'responses': ['a'], 'rewards': [1]}, 'config.prompt.single'),
  ],
)
def test_examples_that_cannot_be_rewarded(given, tmp_path, row, word):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'id': 'x', 'query': 'q', **row}))
  config = given.config(data=str(path), **{'prompt.single': ''})
  assert names(mistake(config, tmp_path), path, word)


def test_without_a_workdir(given):
  assert names(mistake(given.config(), ''), '--workdir')


def test_a_mistake_at_the_command_line_is_one_line(given, tmp_path):
  line = test_main.error_of(
    *given.arguments(group_size=1), f'--workdir={tmp_path}'
  )
  assert names(line, *setting('group_size', 1), 2)
