"""What a user may get wrong about GRPO: one line each, and nothing is written.

Most of it is seen before rows or weights are read.
"""

import json
import re

import pytest

from grm_jax import main
from grm_jax.stages import grpo
from tests import test_main
from tests.stages import grpo_runs
from tests.stages.test_sft import steps_in, write_model


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  return grpo_runs.given(tmp_path_factory.mktemp('given'))


def mistake(config, workdir):
  with pytest.raises(ValueError) as caught:
    grpo.run(config, str(workdir))
  assert main._is_ours(caught.value)
  assert '\n' not in str(caught.value)
  return str(caught.value)


SETTINGS = [
  ({'group_size': 1}, 'config.group_size is 1; it must be 2 or more'),
  ({'prompts': 0}, 'config.prompts is 0'),
  ({'minibatches': 0}, 'config.minibatches is 0'),
  ({'passes': 0}, 'config.passes is 0'),
  ({'resample': -1}, 'config.resample is -1; it must be 0 or more'),
  ({'batch.prompts': 0}, 'config.batch.prompts is 0'),
  ({'rollout.prompts': 0}, 'config.rollout.prompts is 0'),
  ({'rollout.rows': 0}, 'config.rollout.rows is 0'),
  ({'rollout.chunk': 0}, 'config.rollout.chunk is 0'),
  ({'keep': 0}, 'config.keep is 0'),
  ({'evaluation.k': -1}, 'config.evaluation.k is -1'),
  ({'minibatches': 32, 'steps': 64}, 'config.prompts=16 groups make no'),
  ({'minibatches': 3}, 'config.steps=16 is no multiple of .* = 3, the updates'),
  ({'temperature': 0.0}, 'config.temperature is 0.0; it must be above 0'),
  ({'temperature': float('nan')}, 'config.temperature is nan'),
  ({'batch.buckets': (0, 8)}, r'config.batch.buckets is \(0, 8\)'),
  ({'batch.size': ()}, r'config.batch.size is \(\)'),
  ({'objective.kl_coef': -0.1}, 'config.objective.kl_coef is -0.1; use 0 or'),
  ({'objective.kl': 'k4'}, "config.objective.kl is 'k4'; use one of k1, k2"),
  ({'objective.clip_low': 0.0}, 'config.objective.clip_low is 0.0'),
  ({'objective.clip_high': -1.0}, 'config.objective.clip_high is -1.0'),
  ({'objective.normalizer': 'mean'}, "config.objective.normalizer is 'mean'"),
  ({'reference.dtype': 'int8'}, "config.reference.dtype is 'int8'"),
  ({'evaluation.most_failures': 2.0}, 'config.evaluation.most_failures is 2.0'),
  ({'evaluation.patience': -1}, 'config.evaluation.patience is -1'),
  ({'optimizer.schedule': 'linear'}, 'config.optimizer.schedule'),
  ({'steps': 1}, 'warmup_steps is 1, the run has 1 steps'),
  ({'profile_steps': '3'}, "config.profile_steps is '3'"),
]


@pytest.mark.parametrize('changes, words', SETTINGS)
def test_settings(given, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(grpo.told, 'load', None)  # no row is read
  config = given.config(**changes)
  with pytest.raises(ValueError, match=words):
    grpo.check(config, str(tmp_path))
  mistake(config, tmp_path)


BEFORE_WEIGHTS = [
  ({'prompt.template': 'nowhere'}, "config.prompt.template: 'nowhere'"),
  ({'prompt.template': 'critique'}, 'template=critique judges by given princ'),
  ({'prompt.too_long': 'cut'}, "config.prompt.too_long is 'cut'"),
  ({'data': ''}, "'' is no source; config.data"),
  ({'data': 'nowhere.jsonl'}, 'nowhere.jsonl cannot be read'),
  ({'order': 'up'}, "config.order is 'up'"),
  ({'batch.prompts': 12}, 'config.batch.prompts is 12; the mesh splits'),
  ({'checkpoint': ''}, 'config.checkpoint is empty'),
  ({'checkpoint': 'nowhere'}, 'no checkpoint in .*nowhere'),
  ({'checkpoint': 'scratch'}, 'only a model that writes judgements can be rew'),
  ({'step': 7}, r'no step 7 in .*steps there: \[0\]'),
  ({'mesh.tensor': 3}, 'tensor=3'),
]


@pytest.mark.parametrize('changes, words', BEFORE_WEIGHTS)
def test_sources(given, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(grpo.runs, 'take_over', None)
  line = mistake(given.config(**changes), tmp_path)
  assert re.search(words, line), line
  assert not (tmp_path / 'model').exists()


AFTER = [
  ({'rollout.prompts': 3}, 'prompts is 3; the mesh splits prompts 8 ways'),
  ({'evaluation.data': 'nowhere.jsonl'}, 'nowhere.jsonl cannot be read'),
  ({'reference.checkpoint': 'nowhere'}, 'no checkpoint in '),
]


@pytest.mark.parametrize('changes, words', AFTER)
def test_before_the_first_rollout(given, tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(grpo, '_train', None)
  assert words in mistake(given.config(**changes), tmp_path)
  assert not steps_in(tmp_path)


def test_a_reference_of_another_size(given, tmp_path):
  grpo_runs.write_model(tmp_path / 'wide', mlp_width=64)
  config = given.config(**{'reference.checkpoint': f'{tmp_path}/wide'})
  assert 'give one of the same size' in mistake(config, tmp_path / 'run')


def test_a_model_with_a_scalar_head(given, tmp_path):
  write_model(tmp_path / 'run/model', scalar=True)
  config = given.config(checkpoint=f'{tmp_path}/run/model')
  line = mistake(config, tmp_path / 'other')
  assert 'run/model has a scalar head; give a model that writes' in line
  # The workdir of a run of the stage meta_rm.
  line = mistake(given.config(), tmp_path / 'run')
  assert 'has a scalar head; choose another --workdir' in line


def test_the_workdir_of_another_stage(given, tmp_path):
  grpo_runs.write_model(tmp_path / 'model')
  line = mistake(given.config(), tmp_path)
  assert 'was written by another stage; choose another --workdir' in line


@pytest.mark.parametrize(
  'row, words',
  [
    ({'responses': ['a', 'b']}, 'no example says what is right'),
    ({'responses': ['a'], 'rewards': [1]}, 'config.prompt.single, which asks'),
  ],
)
def test_examples_that_cannot_be_rewarded(given, tmp_path, row, words):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'id': 'x', 'query': 'q', **row}))
  config = given.config(data=str(path), **{'prompt.single': ''})
  assert words in mistake(config, tmp_path)


def test_without_a_workdir(given):
  assert 'give --workdir=DIR' in mistake(given.config(), '')


def test_a_mistake_at_the_command_line_is_one_line(given, tmp_path):
  line = test_main.error_of(
    *given.arguments(group_size=1), f'--workdir={tmp_path}'
  )
  assert line == 'error: config.group_size is 1; it must be 2 or more'
