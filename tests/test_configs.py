"""Every config loads in all its variants, and code reads every leaf."""

import ast
import functools
import importlib.util
import pathlib

import pytest
from ml_collections import ConfigDict

from grm_jax import main
from grm_jax.data import source_list
from tests.messages import naming

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
MAX_LEAVES = 44
# grpo samples, trains, has a reference policy and published variants. serve has
# the leaves of score, an address and limits. sft also trains from scratch and
# on packed rows. evaluate has a path for each suite. reward_model has four
# kinds. The three training stages have compute.scoped_vmem_kib, and with aot
# and spct the four leaves of lora.
EXCEPTIONS = {
  'aot': 48,
  'spct': 48,
  'grpo': 69,
  'serve': 50,
  'sft': 52,
  'evaluate': 55,
  'reward_model': 50,
}
# Configs of other stages inside the config of a stage.
NESTED = ('train', 'base', 'sft', 'rft', 'grpo', 'meta_rm')

every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)


def load(path, arg=''):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def leaves(config, prefix=()):
  """Yields dotted keys of the leaves; the rules table counts as one."""
  for key, value in config.items():
    if isinstance(value, ConfigDict) and key != 'logical_axis_rules':
      yield from leaves(value, (*prefix, key))
    else:
      yield '.'.join((*prefix, key))


def module_path(name):
  """Returns the file of a module of this repository, or None."""
  path = ROOT / (name.replace('.', '/') + '.py')
  return path if path.exists() else None


@functools.cache
def reads(path):
  """Returns dotted keys that a file reads from `config`, and its imports."""
  chains, imported = set(), set()
  tree = ast.parse(path.read_text())
  # config.mesh inside config.mesh.data does not read all of config.mesh.
  inner = {
    id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
  }
  for node in ast.walk(tree):
    if id(node) in inner:
      continue
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
      imported |= {p for n in (*names, node.module) if (p := module_path(n))}
    names = []
    while isinstance(node, ast.Attribute):
      names.append(node.attr)
      node = node.value
    if names and isinstance(node, ast.Name):
      chain = '.'.join([node.id, *reversed(names)])
      for start in ('config.', '_CONFIG.value.'):
        if chain.startswith(start):
          chains.add(chain.removeprefix(start))
  return chains, imported


def reads_of_stage(stage):
  """Returns dotted keys that a stage, main and all their imports read."""
  todo = [module_path(main.STAGES[stage]), ROOT / 'grm_jax/main.py']
  seen, chains = set(), {'stage'}  # main looks the stage up in STAGES
  while todo:
    path = todo.pop()
    if path not in seen:
      seen.add(path)
      file_chains, imported = reads(path)
      chains |= file_chains
      todo += imported
  return chains


def unread(config):
  chains = reads_of_stage(config.stage)
  return [
    leaf
    for leaf in leaves(config)
    # Code can read a branch at once, as in ComputeConfig(**config.compute), or
    # a method of a leaf, as in config.mesh.logical_axis_rules.to_dict().
    if not any(
      f'{leaf}.'.startswith(f'{c}.') or c.startswith(f'{leaf}.') for c in chains
    )
  ]


def test_configs_exist():
  assert {path.stem for path in CONFIGS} >= {'score', 'convert', 'aot', 'sft'}


@every_config
def test_default_and_tiny_have_the_same_leaves(path):
  full, tiny = load(path), load(path, 'tiny')
  assert list(leaves(full)) == list(leaves(tiny))
  for leaf in leaves(full):
    kinds = [get_leaf(c, leaf) for c in (full, tiny)]
    assert type(kinds[0]) is type(kinds[1]), leaf
  assert module_path(main.STAGES[full.stage])


def get_leaf(config, leaf):
  for key in leaf.split('.'):
    config = config[key]
  return config


@every_config
def test_default_and_smollm2_have_the_same_leaves(path):
  """There is no smollm2 variant of aot, which needs no weights."""
  if path.stem == 'aot':
    return
  full, small = load(path), load(path, 'smollm2')
  assert list(leaves(full)) == list(leaves(small))
  for leaf in leaves(full):
    kinds = [get_leaf(c, leaf) for c in (full, small)]
    assert type(kinds[0]) is type(kinds[1]), leaf


@every_config
def test_an_unknown_variant_is_an_error(path):
  with pytest.raises(ValueError, match=naming(f'{path.name}:big', ':tiny')):
    load(path, 'big')


@every_config
def test_every_leaf_is_read(path):
  config = load(path)
  assert not unread(config)
  count = sum(leaf.split('.')[0] not in NESTED for leaf in leaves(config))
  assert count <= EXCEPTIONS.get(path.stem, MAX_LEAVES)


def test_an_unread_leaf_is_found():
  config = load(ROOT / 'configs/score.py')
  config.unused = 1
  config.mesh.spare = 2
  assert unread(config) == ['mesh.spare', 'unused']


@every_config
def test_docstring_has_the_command(path):
  doc = ast.get_docstring(ast.parse(path.read_text()))
  assert f'--config=configs/{path.name}' in doc


def test_the_mixture_of_the_paper():
  """The five sets of the paper; tests of sources read each format."""
  paper = load(ROOT / 'configs/spct.py', 'paper')
  names = [x.spec.split(':')[0] for x in source_list.parse(paper.data)]
  assert names == [
    'math',
    'ultrafeedback',
    'offsetbias',
    'skywork',
    'helpsteer2',
  ]
  assert list(leaves(paper)) == list(leaves(load(ROOT / 'configs/spct.py')))
