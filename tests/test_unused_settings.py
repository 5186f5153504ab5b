"""Given settings that other settings leave without effect are reported."""

import functools
import importlib
import operator

import pytest

from grm_jax import main, unused_settings
from tests import test_configs, test_settings
from tests.messages import names
from tests.test_main import run

# (stage, given, the one of them without effect, the leaf that is the cause)
CASES = [
  ('score', {'temperature': 0.7, 'k': 0}, 'temperature', 'k'),
  ('score', {'temperature': 0.7, 'k': 1}, '', ''),
  ('score', {'judge': 'scalar', 'k': 8}, 'k', 'judge'),
  (
    'score',
    {'judge': 'pair', 'prompt.template': 'a'},
    'prompt.template',
    'judge',
  ),
  (
    'score',
    {'judge': 'llm', 'prompt.score_range': (1, 5)},
    'prompt.score_range',
    'judge',
  ),
  ('score', {'judge': 'semi_scalar', 'prompt.template': 'a'}, '', ''),
  ('score', {'judge': 'pair', 'response_order': 'random'}, '', ''),
  (
    'reward_model',
    {'kind': 'meta', 'response_order': 'random'},
    'response_order',
    'kind',
  ),
  (
    'grpo',
    {'prompt.reads': 'best', 'prompt.score_range': (1, 5)},
    'prompt.score_range',
    'prompt.reads',
  ),
  (
    'score',
    {'judge': 'semi_scalar', 'prompt.single': 'a'},
    'prompt.single',
    'judge',
  ),
  ('score', {'compute.splash_block': 128}, '', ''),
  (
    'score',
    {'compute.attention': 'xla', 'compute.splash_block': 128},
    'compute.splash_block',
    'compute.attention',
  ),
  (
    'rft',
    {'phases': 'sample', 'train.seed': 3, 'train.mesh.tensor': 2},
    '',
    '',
  ),
  (
    'spct',
    {'stages': 'sft,meta_rm', 'rft.sampling.int8': True, 'examples.rft': 9},
    '',
    '',
  ),
  ('score', {'judge': 'scalar', 'vote': 'majority'}, '', ''),
  ('score', {'compute.attention': 'splash', 'compute.query_block': 9}, '', ''),
  ('serve', {'temperature': 0.7, 'k': 0}, '', ''),
  ('evaluate', {'reuse_samples': 'a', 'k': 4, 'seed': 1}, 'k', 'reuse_samples'),
  (
    'evaluate',
    {'from_outputs': 'a', 'max_rows': 4, 'k': 4},
    'k',
    'from_outputs',
  ),
  ('evaluate', {'ppe.references': True}, 'ppe.references', 'suites.ppe'),
  ('evaluate', {'ppe.references': True, 'suites.ppe': 'a'}, '', ''),
  ('evaluate', {'judge': 'pair', 'principles': 'a'}, 'principles', 'judge'),
  ('convert', {'checkpoint_step': 4}, 'checkpoint_step', 'source'),
  ('convert', {'checkpoint_step': 4, 'direction': 'huggingface'}, '', ''),
  ('sft', {'data.general': 'a'}, 'data.general', 'data.general_fraction'),
  ('sft', {'data.general': 'a', 'data.general_fraction': 0.1}, '', ''),
  ('sft', {'evaluation.every': 3}, 'evaluation.every', 'evaluation.data'),
  ('grpo', {'loss.clip_high': 0.28}, 'loss.clip_high', 'num_minibatches'),
  ('grpo', {'loss.clip_high': 0.28, 'num_iterations': 2}, '', ''),
  (
    'grpo',
    {'loss.kl_coef': 0.0, 'reference.dtype': 'float32'},
    'reference.dtype',
    'loss.kl_coef',
  ),
  ('reward_model', {'kind': 'pair', 'prompt.meta': 'a'}, 'prompt.meta', 'kind'),
  ('reward_model', {'evaluation.every': 3}, '', ''),
  (
    'rft',
    {'phases': 'train', 'filter.reject': False},
    'filter.reject',
    'phases',
  ),
  (
    'rft',
    {'num_hinted_samples': 0, 'hinted_temperature': 0.5},
    'hinted_temperature',
    'num_hinted_samples',
  ),
  (
    'rft',
    {'train.data.general': 'a', 'train.data.general_fraction': 0.0},
    'train.data.general',
    'train.data.general_fraction',
  ),
  ('spct', {'stages': 'base,sft', 'grpo.steps': 5}, 'grpo.steps', 'stages'),
  (
    'spct',
    {'grpo.loss.clip_low': 0.1},
    'grpo.loss.clip_low',
    'grpo.num_minibatches',
  ),
  ('spct', {'grpo.evaluation.every': 5}, '', ''),
  (
    'spct',
    {'examples.validation': 0, 'grpo.evaluation.every': 5},
    'grpo.evaluation.every',
    'examples.validation',
  ),
  (
    'aot',
    {'program': 'decode', 'optimizer.b2': 0.9},
    'optimizer.b2',
    'program',
  ),
]


def module_of(stage):
  return importlib.import_module(main.STAGES[stage])


@pytest.mark.parametrize('stage, given, unused, cause', CASES)
def test_unused_settings_are_reported(stage, given, unused, cause):
  (path,) = (x for x in test_configs.CONFIGS if x.stem == stage)
  config = test_configs.load(path)
  config.update_from_flattened_dict(given)
  table = module_of(stage).UNUSED
  lines = list(unused_settings.messages(config, given, table))
  assert len(lines) == bool(unused)
  for line in lines:
    assert line.startswith(f'config.{unused}:')
    assert names(line, f'config.{cause}')
  assert not list(unused_settings.messages(config, [], table))


@pytest.mark.parametrize('stage', main.STAGES)
def test_tables_name_settings_that_exist(stage):
  configs = [x[2] for x in test_settings.configs() if x[2].stage == stage]
  for rule in module_of(stage).UNUSED:
    for config in configs:
      part = functools.reduce(operator.getitem, rule.groups, config)
      assert rule.applies(part) in (True, False)
    # Stages share rules; some have a part of the keys.
    assert any(list(unused_keys(config, rule)) for config in configs), rule


def unused_keys(config, rule):
  """Yields the keys of a rule that a config has."""
  prefix = '.'.join((*rule.groups, ''))
  leaves = dict(test_settings.flat_config(config))
  for key in rule.keys:
    name = f'{prefix}{key}'
    if name in leaves or any(x.startswith(f'{name}.') for x in leaves):
      yield key


def test_main_warns(tmp_path):
  _, stderr = run(
    '--config=configs/convert.py:tiny',
    '--config.checkpoint_step=3',
    f'--workdir={tmp_path}',
  )
  assert names(stderr, 'config.checkpoint_step', 'config.source')
  assert (tmp_path / 'model').is_dir()
