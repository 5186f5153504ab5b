"""Rules of config leaves, and that every leaf of every config has one."""

import importlib

import pytest
from ml_collections import ConfigDict

from grm_jax import main, settings
from grm_jax.errors import UserError
from grm_jax.stages.grpo import settings as grpo_settings
from grm_jax.stages.spct import settings as spct_settings
from tests import test_configs
from tests.messages import naming

VARIANTS = ('', 'tiny', 'smollm2', 'base', 'paper')
INF, NAN = float('inf'), float('nan')


def rules_of(stage):
  """Returns the rules of a stage, with those of the stages inside it."""
  if stage == 'spct':
    return {**spct_settings.SETTINGS, **spct_settings.STAGE_SETTINGS}
  if stage == 'grpo':
    return grpo_settings.SETTINGS
  return importlib.import_module(main.STAGES[stage]).SETTINGS


def flat(rules, prefix=''):
  """Yields (dotted key, rule) of nested rules."""
  for name, rule in rules.items():
    if isinstance(rule, settings.Rule):
      yield f'{prefix}{name}', rule
    else:
      yield from flat(rule, f'{prefix}{name}.')


def flat_config(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from flat_config(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def configs():
  """Yields every config in all its variants."""
  for path in test_configs.CONFIGS:
    for variant in VARIANTS:
      try:
        yield path.stem, variant, test_configs.load(path, variant)
      except ValueError:  # this config does not have the variant
        continue


@pytest.mark.parametrize(
  'name, variant, config',
  [pytest.param(*x, id=f'{x[0]}:{x[1]}') for x in configs()],
)
def test_every_leaf_has_a_rule_and_keeps_it(name, variant, config):
  rules = dict(flat(rules_of(config.stage)))
  leaves = dict(flat_config(config))
  assert not leaves.keys() - rules.keys()
  unused = rules.keys() - leaves.keys()
  if name == 'spct':  # spct/plan.py adds the other leaves of the stages
    unused = {x for x in unused if x.split('.')[0] in spct_settings.SETTINGS}
  assert not unused
  for key, value in leaves.items():
    assert rules[key].is_valid(value), (key, value)


# Values that no leaf accepts, whatever its rule.
NEVER = (None, NAN, INF, -INF, b'x', {}, object(), ['a\nb'], 'a\0b', 10**400)


@pytest.mark.parametrize('stage', main.STAGES)
def test_no_rule_accepts_or_fails_at_a_wild_value(stage):
  for key, rule in flat(rules_of(stage)):
    for value in NEVER:
      assert not rule.is_valid(value), (key, value)


def values_of_kind(rule):
  return [x for x in (True, 1, 0.5, 'x', (1,), ('x',)) if rule.is_valid(x)]


@pytest.mark.parametrize('stage', main.STAGES)
def test_a_rule_accepts_one_type(stage):
  """Numbers with fractions can be written as integers."""
  for key, rule in flat(rules_of(stage)):
    kinds = {type(x) for x in values_of_kind(rule)}
    assert len(kinds) <= 1 or kinds == {int, float}, key


@pytest.mark.parametrize(
  'rule, valid, invalid',
  [
    (settings.integer(0), [0, 7, 2**31 - 1], [-1, 2**31, 0.0, '1', True]),
    (settings.integer(1, 4), [1, 4], [0, 5]),
    (settings.number(0), [0, 0.0, 1e300, 3], [-1e-9, INF, NAN, '0', False]),
    (settings.number(0, 1, above=True, below=True), [0.5], [0, 0.0, 1, 1.0]),
    (settings.FRACTION, [0, 0.5, 1], [-0.1, 1.1, 2]),
    (settings.SEED, [0, 2**32 - 1], [-1, 2**32, 2**64, 0.5]),
    (settings.BOOLEAN, [True, False], [0, 1, 'true']),
    (settings.one_of('a', 'b'), ['a', 'b'], ['', 'c', 'ab', ('a',), 1]),
    (settings.some_of('a', 'b'), ['a', 'b,a', 'a, b'], ['', 'a,', 'a,a', 'c']),
    (settings.TEXT, ['', 'gs://a/b.jsonl', 'é'], ['a\nb', 'a\0', 1, ('a',)]),
    (settings.NAMES, [(), ('a.b', '[::1]')], ['a.b', (1,), ('',), ('(a',)]),
    (
      settings.LENGTHS,
      [(8,), (8, 16), [8, 16]],
      [(), (16, 8), (8, 8), (8, 16.0), '8', ('8',), 8, (0, 8), (True, 8)],
    ),
    (
      settings.tuple_of(('a', 'b')),
      [(), ('b', 'a')],
      [('a', 'a'), ('c',), 'a'],
    ),
    (settings.samples(0), [0, 64], [-1, 1_000_000]),
    (settings.LENGTHS, [(2**20,)], [(2**20 + 1,), (2 * 10**9,)]),
    (settings.tokens(0), [0, 2**20], [-1, 2**20 + 1]),
    (settings.parallel(1), [1, 2**16], [0, 2**16 + 1]),
    (settings.optional(settings.LENGTHS, 'none'), [(), (4,)], [(4, 2), 0]),
  ],
)
def test_rules(rule, valid, invalid):
  assert [x for x in valid if not rule.is_valid(x)] == []
  assert [x for x in invalid if rule.is_valid(x)] == []


RULES = {'k': settings.integer(0), 'mesh': {'data': settings.integer(1)}}


@pytest.mark.parametrize(
  'config, words',
  [
    ({'k': -1, 'mesh': {'data': 1}}, ['config.x.k', -1, 0]),
    ({'k': 1, 'mesh': {'data': 0}}, ['config.x.mesh.data', 0, 1]),
    ({'k': 1, 'mesh': {}}, ['config.x.mesh.data']),
    ({'k': 1, 'mesh': {'data': 1, 'more': 1}}, ['config.x.mesh.more']),
    ({'k': 1, 'mesh': 3}, ['config.x.mesh', 3]),
    ({'k': {'a': 1}, 'mesh': {'data': 1}}, ['config.x.k']),
  ],
)
def test_messages_name_the_key(config, words):
  for value in (config, ConfigDict(config)):
    with pytest.raises(UserError, match=naming(*words)) as caught:
      settings.check(value, RULES, 'config.x')
    assert '\n' not in str(caught.value)


def test_a_long_value_is_shortened():
  with pytest.raises(UserError) as caught:
    settings.check_value('x' * 10_000, settings.one_of('a'), 'config.y')
  assert len(str(caught.value)) < 200


# Stage and changes of its tiny config -> the leaf that the message names.
WRONG = [
  ('sft', {'batch.prompt_buckets': (64, 32)}, 'batch.prompt_buckets'),
  ('sft', {'batch.prompt_buckets': (64, 64)}, 'batch.prompt_buckets'),
  ('sft', {'batch.generation_buckets': ('64',)}, 'batch.generation_buckets'),
  ('sft', {'batch.micro_batch_prompts': 0}, 'batch.micro_batch_prompts'),
  ('sft', {'save_every': -1}, 'save_every'),
  ('sft', {'evaluation.every': -3}, 'evaluation.every'),
  ('sft', {'seed': -1}, 'seed'),
  ('sft', {'seed': 2**64 + 1}, 'seed'),
  ('sft', {'data.teacher_error_rate': 2.0}, 'data.teacher_error_rate'),
  ('sft', {'size': 'gemma2_2b'}, 'size'),
  ('sft', {'optimizer.weight_decay': NAN}, 'optimizer.weight_decay'),
  ('sft', {'compute.remat': 'some'}, 'compute.remat'),
  ('sft', {'mesh.fsdp': 0}, 'mesh.fsdp'),
  (
    'sft',
    {'mesh.logical_axis_rules.tokens': ('tensors',)},
    'mesh.logical_axis_rules.tokens',
  ),
  ('sft', {'stage': 'rft'}, 'stage'),
  ('grpo', {'log_samples_every': -1}, 'log_samples_every'),
  ('grpo', {'temperature': 1e-9}, 'temperature'),
  ('grpo', {'rollout.concurrent_prompts': 0}, 'rollout.concurrent_prompts'),
  (
    'rft',
    {'train.batch.micro_batch_prompts': 0},
    'train.batch.micro_batch_prompts',
  ),
  ('rft', {'num_samples': 1_000_000}, 'num_samples'),
  ('rft', {'filter.max_per_example': -1}, 'filter.max_per_example'),
  ('rft', {'phases': 'sample,filtr'}, 'phases'),
  (
    'reward_model',
    {'batch.micro_batch_prompts': 0},
    'batch.micro_batch_prompts',
  ),
  (
    'reward_model',
    {'evaluation.concurrent_prompts': 0},
    'evaluation.concurrent_prompts',
  ),
  ('score', {'k': 1_000_000}, 'k'),
  ('score', {'k': -1}, 'k'),
  ('score', {'sampling.prompt_buckets': (64, 32)}, 'sampling.prompt_buckets'),
  ('score', {'judge': 'gmr'}, 'judge'),
  ('score', {'temperature': 101.0}, 'temperature'),
  ('solve', {'num_samples': 0}, 'num_samples'),
  ('solve', {'mesh.fsdp': 3}, 'mesh.fsdp'),
  ('evaluate', {'max_rows': -1}, 'max_rows'),
  ('evaluate', {'k': -1}, 'k'),
  ('evaluate', {'sampling.weights': 'here'}, 'sampling.weights'),
  ('serve', {'limits.timeout_s': INF}, 'limits.timeout_s'),
  ('serve', {'limits.batch': 0}, 'limits.batch'),
  ('serve', {'allowed_hosts': (1,)}, 'allowed_hosts'),
  ('serve', {'port': 70_000}, 'port'),
  ('serve', {'judge': 'scalar'}, 'judge'),
  ('convert', {'dtype': 'int8'}, 'dtype'),
  ('convert', {'checkpoint_step': -2}, 'checkpoint_step'),
  ('aot', {'num_layers': -2}, 'num_layers'),
  ('aot', {'num_layers': 3}, 'num_layers'),
  ('aot', {'json': '/'}, 'json'),
  ('score', {'input': ''}, 'input'),
  ('score', {'checkpoint_step': 5}, 'checkpoint_step'),
  ('score', {'k_meta': 5, 'meta_checkpoint': 'a'}, 'k_meta'),
  ('score', {'vote': 'best'}, 'vote'),
  ('rft', {'train.data.general': ''}, 'train.data.general'),
  ('score', {'vote': 'sum', 'k_meta': 1, 'meta_checkpoint': 'a'}, 'k_meta'),
  ('score', {'prompt.meta': 'meta'}, 'prompt.meta'),
  ('score', {'output': '/dev/null'}, 'output'),
  ('score', {'output': 'nowhere/'}, 'output'),
  ('score', {'output': str(test_configs.ROOT)}, 'output'),
  ('serve', {'limits.k': 2}, 'limits.k'),
  ('evaluate', {'checkpoint': '', 'suites.rmb': 'a'}, 'checkpoint'),
  # The devices do not fit.
  *(
    (stage, {leaf: value, 'suites.rmb': 'a'}, leaf)
    for stage in ('score', 'evaluate', 'serve', 'sft', 'grpo', 'spct')
    for leaf, value in (
      ('mesh.fsdp', 3),
      ('mesh.decode_tensor', 5),
      ('compute.attention', 'splash'),
    )
  ),
  ('rft', {'train.mesh.fsdp': 3}, 'train.mesh.fsdp'),
  ('rft', {'train.compute.attention': 'splash'}, 'train.compute.attention'),
  ('reward_model', {'mesh.fsdp': 3}, 'mesh.fsdp'),
  ('aot', {'program': 'train'}, 'program'),
  ('aot', {'sweep': 'fsdp,rows'}, 'sweep'),
  ('spct', {'examples.held_out': 0}, 'examples.held_out'),
  ('spct', {'prompt_buckets': (64, 32)}, 'prompt_buckets'),
  # Those of stages that run hours later.
  (
    'spct',
    {'grpo.batch.prompt_buckets': (64, 32)},
    'grpo.batch.prompt_buckets',
  ),
  ('spct', {'rft.train.save_every': -1}, 'rft.train.save_every'),
  ('spct', {'meta_rm.optimizer.b2': 1.0}, 'meta_rm.optimizer.b2'),
  ('spct', {'evaluation.sampling.weights': 'x'}, 'evaluation.sampling.weights'),
]


@pytest.mark.parametrize('stage, changes, key', WRONG)
def test_a_stage_refuses_a_wrong_leaf(tmp_path, stage, changes, key):
  config = test_configs.load(test_configs.ROOT / f'configs/{stage}.py', 'tiny')
  if stage != 'evaluate':
    changes = {k: v for k, v in changes.items() if k != 'suites.rmb'}
  config.update_from_flattened_dict(changes)
  workdir = tmp_path / 'work'
  with pytest.raises(UserError, match=naming(f'config.{key}')) as caught:
    importlib.import_module(main.STAGES[stage]).run(config, str(workdir))
  assert '\n' not in str(caught.value)
  assert not workdir.exists()


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'checkpoint': 'nowhere'}, ['config.checkpoint', 'nowhere']),
    ({'meta_rm.checkpoint': 'nowhere'}, ['config.meta_rm.checkpoint']),
    (
      {'grpo.reference.checkpoint': 'nowhere'},
      ['config.grpo.reference.checkpoint'],
    ),
    (
      {'rft.train.data.general': 'texts:nowhere.jsonl'},
      ['config.rft.train.data.general', 'nowhere.jsonl'],
    ),
    ({'sft.data.texts': 'practice:-1'}, ['config.sft.data.texts']),
    ({'grpo.reward': 'nowhere.py:f'}, ['nowhere.py']),
    ({'prompt.meta': 'nowhere'}, ['config.prompt.meta', 'nowhere']),
    ({'grpo.num_minibatches': 7}, ['config.grpo.steps']),
    ({'sft.size': 'gemma2_2b'}, ['config.sft.size']),
  ],
)
def test_spct_opens_the_inputs_of_all_stages_first(tmp_path, changes, words):
  config = test_configs.load(test_configs.ROOT / 'configs/spct.py', 'tiny')
  config.update_from_flattened_dict(changes)
  workdir = tmp_path / 'work'
  with pytest.raises(UserError, match=naming(*words)):
    importlib.import_module(main.STAGES['spct']).run(config, str(workdir))
  assert not workdir.exists()


@pytest.mark.parametrize('stage', ['sft', 'grpo', 'reward_model'])
@pytest.mark.parametrize('checkpoint', ['', 'nowhere', __file__])
def test_the_checkpoint_is_opened_first(tmp_path, stage, checkpoint):
  config = test_configs.load(test_configs.ROOT / f'configs/{stage}.py', 'tiny')
  config.checkpoint = checkpoint
  workdir = tmp_path / 'work'
  with pytest.raises(UserError, match=naming(checkpoint or 'checkpoint')):
    importlib.import_module(main.STAGES[stage]).run(config, str(workdir))
  assert not workdir.exists()


def test_a_mistake_before_training_leaves_no_tokenizer(tmp_path):
  config = test_configs.load(test_configs.ROOT / 'configs/sft.py', 'tiny')
  config.update_from_flattened_dict(
    {
      'checkpoint': 'scratch',
      'data.texts': 'practice:20',
      'data.general_fraction': 0.0,
      'batch.prompt_buckets': (8,),  # no text fits
    }
  )
  with pytest.raises(UserError, match=naming(8)):
    importlib.import_module(main.STAGES['sft']).run(config, str(tmp_path))
  assert not (tmp_path / 'model').exists()
