"""Import directions between the folders of the package."""

import ast
import pathlib
import subprocess
import sys

import pytest

from grm_jax import main

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'grm_jax'

# Layers from top to bottom. A folder can import the folders of lower layers.
LAYERS = (
  {'main'},
  {'stages'},
  {'judges', 'aot'},
  {'evaluation', 'training'},
  {'data', 'sampling', 'checkpoint'},
  {'serving', 'tokenizer', 'model'},
  {'judgement', 'sharding', 'io'},
  {'settings', 'unused_settings'},
  {'errors'},
)
ALLOWED = {
  folder: set().union(*LAYERS[i + 1 :])
  for i, layer in enumerate(LAYERS)
  for folder in layer
}
# Files and folders that must be usable without JAX.
WITHOUT_JAX = (
  'judgement/',
  'evaluation/plots.py',
  'serving/reward_client.py',
)
# Library -> the only files or folder in grm_jax/ that can import it, and
# whether it must be imported on demand, inside a function.
LIBRARIES = {
  'tensorflow': ('data/', True),
  'tensorflow_datasets': ('data/', True),
  'seqio': ('data/', True),
  'huggingface_hub': ('data/hub_source.py', True),
  'math_verify': ('data/', True),
  'torch': ('stages/convert.py', True),
  'transformers': ('stages/convert.py', True),
  'jinja2': (('judgement/template.py', 'tokenizer/chat_template.py'), False),
  'flax': ('model/', False),
  'orbax': ('checkpoint/', False),
  'sentencepiece': ('tokenizer/', False),
  'matplotlib': ('evaluation/plots.py', False),
  'pyarrow': ('io/row_reader.py', True),
  'tensorboardX': ('training/metric_writer.py', True),
  'reasoning_gym': ('data/synthetic/', False),
  'safetensors': ('checkpoint/huggingface/', False),
  'fastapi': ('serving/', False),
  'starlette': ('serving/', False),
  'pydantic': ('serving/', False),
  'prometheus_client': ('serving/', False),
  'uvicorn': ('serving/', False),
  'h11': ('serving/', False),
}
FILES = sorted(PACKAGE.rglob('*.py'))


def imports(tree, name):
  """Yields (module, is inside a function) of every import statement."""
  inside_functions = {
    id(node)
    for function in ast.walk(tree)
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.walk(function)
  }
  for node in ast.walk(tree):
    on_demand = id(node) in inside_functions
    if isinstance(node, ast.Import):
      yield from ((alias.name, on_demand) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', on_demand


def folder_of(path):
  return pathlib.Path(path).parts[0].removesuffix('.py')


def violations(name, text):
  """Returns the forbidden imports of a file.

  Args:
    name: path below grm_jax/.
    text: source of the file.
  """
  result = []
  folder = folder_of(name)
  for module, on_demand in imports(ast.parse(text), name):
    top, *rest = module.split('.')
    if top == 'grm_jax':
      imported = rest[0] if rest else ''
      if imported not in ALLOWED[folder] | {folder}:
        result.append(f'{name}: {folder} imports {imported}')
    if folder == 'errors':
      result.append(f'{name}: errors imports {module}')
    if name.startswith(WITHOUT_JAX) and top in (
      'jax',
      'jaxlib',
      'flax',
      'optax',
    ):
      result.append(f'{name} imports {top}')
    if top in LIBRARIES:
      place, must_be_on_demand = LIBRARIES[top]
      if not name.startswith(place):
        result.append(f'{name}: only {place} can import {top}')
      elif must_be_on_demand and not on_demand:
        result.append(f'{name}: {top} must be imported inside a function')
  return result


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  name = path.relative_to(PACKAGE).as_posix()
  if name != '__init__.py':
    assert not violations(name, path.read_text())


@pytest.mark.parametrize(
  'name, text',
  [
    ('model/x.py', 'from grm_jax.training import train_state'),
    ('judgement/x.py', 'import grm_jax.model.transformer'),
    ('judgement/x.py', 'import jax.numpy as jnp'),
    ('evaluation/plots.py', 'def f():\n  import jax'),
    ('serving/reward_client.py', 'import jax'),
    ('sampling/x.py', 'from grm_jax.training.train_state import TrainState'),
    ('data/x.py', 'import seqio'),
    ('stages/x.py', 'def f():\n  import tensorflow as tf'),
    ('training/x.py', 'from orbax import checkpoint'),
    ('sharding/x.py', 'from grm_jax import model'),
    ('errors.py', 'import json'),
  ],
)
def test_violations_are_found(name, text):
  assert violations(name, text)


def test_every_folder_has_a_layer():
  folders = {folder_of(path.relative_to(PACKAGE)) for path in FILES}
  assert folders == {*ALLOWED, '__init__'}


@pytest.mark.parametrize(
  'module',
  ['judgement.verdict', 'evaluation.plots', 'serving.reward_client'],
)
def test_modules_that_work_without_jax(module):
  assert not modules_imported_by(f'grm_jax.{module}', ['jax', 'flax'])


def test_stages_do_not_import_tensorflow():
  optional = ['tensorflow', 'seqio', 'torch']
  assert not modules_imported_by(', '.join(main.STAGES.values()), optional)


def modules_imported_by(modules, candidates):
  """Returns which of the candidates a new process imports with modules."""
  code = (
    f'import sys, {modules}\n'
    f'print(*[x for x in {candidates} if x in sys.modules])'
  )
  process = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  return process.stdout.split()
