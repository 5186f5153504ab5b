"""Who may import whom, read off the import statements (docs, "Layers")."""

import ast
import pathlib
import subprocess
import sys

import pytest

from grm_jax import main

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'grm_jax'

# Layers from top to bottom. A folder may import the folders of the layers below
# its own, and `errors`.
LAYERS = (
  {'main'},
  {'stages'},
  {'judges', 'aot'},
  {'evaluation', 'training'},
  {'data', 'sampling', 'checkpoint'},
  {'serving', 'tokenizer', 'model'},
  {'judgement', 'sharding', 'io'},
  {'errors'},
)
ALLOWED = {
  folder: set().union(*LAYERS[i + 1 :])
  for i, layer in enumerate(LAYERS)
  for folder in layer
}
# Library -> the only files (below grm_jax/) that may import it at all, and
# whether that must be on demand: inside a function.
LIBRARIES = {
  'tensorflow': ('data/', True),
  'tensorflow_datasets': ('data/', True),
  'seqio': ('data/', True),
  'torch': ('stages/convert.py', True),
  'transformers': ('stages/convert.py', True),
  'jinja2': ('judgement/template.py', False),
  'flax': ('model/', False),
  'orbax': ('checkpoint/orbax_checkpoint.py', False),
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
  'uvicorn': ('stages/serve.py', True),
}
FILES = sorted(PACKAGE.rglob('*.py'))


def imports(tree, name):
  """(module, whether inside a function) of every import statement."""
  inner = {
    id(node)
    for function in ast.walk(tree)
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.walk(function)
  }
  for node in ast.walk(tree):
    late = id(node) in inner
    if isinstance(node, ast.Import):
      yield from ((alias.name, late) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', late


def folder_of(path):
  return pathlib.Path(path).parts[0].removesuffix('.py')


def faults(name, text):
  """What the file `name` below grm_jax/ imports and should not."""
  found = []
  folder = folder_of(name)
  for module, late in imports(ast.parse(text), name):
    top, *rest = module.split('.')
    if top == 'grm_jax':
      other = rest[0] if rest else ''
      if other not in ALLOWED[folder] | {folder}:
        found.append(f'{name}: {folder} imports {other}')
    if folder == 'errors':
      found.append(f'{name}: errors imports {module}')
    if folder == 'judgement' and top in ('jax', 'jaxlib', 'flax', 'optax'):
      found.append(f'{name}: judgement imports {top}')
    if top in LIBRARIES:
      where, on_demand = LIBRARIES[top]
      if not name.startswith(where):
        found.append(f'{name}: only {where} imports {top}')
      elif on_demand and not late:
        found.append(f'{name}: {top} must be imported on demand')
  return found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  name = path.relative_to(PACKAGE).as_posix()
  if name != '__init__.py':
    assert not faults(name, path.read_text())


@pytest.mark.parametrize(
  'name, text',
  [
    ('model/x.py', 'from grm_jax.training import state'),
    ('judgement/x.py', 'import grm_jax.model.transformer'),
    ('judgement/x.py', 'import jax.numpy as jnp'),
    ('sampling/x.py', 'from grm_jax.training.train_state import TrainState'),
    ('data/x.py', 'import seqio'),
    ('stages/x.py', 'def f():\n  import tensorflow as tf'),
    ('training/x.py', 'from orbax import checkpoint'),
    ('sharding/x.py', 'from grm_jax import model'),
    ('errors.py', 'import json'),
  ],
)
def test_the_check_sees_faults(name, text):
  assert faults(name, text)


def test_no_folder_is_missing_from_the_rules():
  assert {folder_of(p.relative_to(PACKAGE)) for p in FILES} <= {
    *ALLOWED,
    '__init__',
  }


@pytest.mark.parametrize(
  'stage', [x for x in main.STAGES if x not in ('rft', 'spct')]
)
def test_stages_run_without_tensorflow(stage):
  code = (
    f'import sys, {main.STAGES[stage]}\n'
    'print([m for m in ("tensorflow", "seqio", "torch") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert out.stdout.strip() == '[]', out.stderr
