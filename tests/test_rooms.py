"""Who may import whom, read off the import statements (README, "Rooms")."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'grm_jax'

_LOW = {'model', 'judging', 'parallel'}
_MIDDLE = {'sampling', 'training', 'evaluation', 'serving', 'data'}
# Room -> the other rooms it may import. All but `errors` may import `errors`,
# which imports nothing.
ALLOWED = {
  'main': {'stages', 'parallel'},
  'stages': {'judges'} | _MIDDLE | _LOW,
  'judges': _MIDDLE | _LOW,
  **dict.fromkeys(_MIDDLE, _LOW),
  'model': {'parallel'},
  'judging': set(),
  'parallel': set(),
  'errors': set(),
}
# Library -> the only files (below grm_jax/) that may import it at all, and
# whether that must be on demand: inside a function.
LIBRARIES = {
  'tensorflow': ('data/', True),
  'tensorflow_datasets': ('data/', True),
  'seqio': ('data/', True),
  'torch': ('stages/convert.py', True),
  'transformers': ('stages/convert.py', True),
  'jinja2': ('judging/template.py', False),
  'flax': ('model/', False),
  'orbax': ('training/checkpoints.py', False),
  'sentencepiece': ('model/', False),
  'matplotlib': ('evaluation/plots.py', False),
  'pyarrow': ('parallel/row_reader.py', True),
  'tensorboardX': ('training/metrics.py', True),
  'reasoning_gym': ('data/practice/', False),
  'safetensors': ('model/huggingface/', False),
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


def room_of(path):
  return pathlib.Path(path).parts[0].removesuffix('.py')


def faults(name, text):
  """What the file `name` below grm_jax/ imports and should not."""
  found = []
  room = room_of(name)
  for module, late in imports(ast.parse(text), name):
    top, *rest = module.split('.')
    if top == 'grm_jax':
      other = rest[0] if rest else ''
      if other not in ALLOWED[room] | {room, 'errors'}:
        found.append(f'{name}: room {room} imports room {other}')
    if room == 'errors':
      found.append(f'{name}: errors imports {module}')
    if room == 'judging' and top in ('jax', 'jaxlib', 'flax', 'optax'):
      found.append(f'{name}: judging imports {top}')
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
    ('model/x.py', 'import grm_jax.judging.scores'),
    ('judging/x.py', 'import jax.numpy as jnp'),
    ('sampling/x.py', 'from grm_jax.training.state import TrainState'),
    ('data/x.py', 'import seqio'),
    ('stages/x.py', 'def f():\n  import tensorflow as tf'),
    ('training/x.py', 'from orbax import checkpoint'),
    ('parallel/x.py', 'from grm_jax import model'),
    ('errors.py', 'import json'),
  ],
)
def test_the_check_sees_faults(name, text):
  assert faults(name, text)


def test_no_room_is_missing_from_the_rules():
  assert {room_of(p.relative_to(PACKAGE)) for p in FILES} <= {
    *ALLOWED,
    '__init__',
  }


@pytest.mark.parametrize(
  'stage',
  ['score', 'evaluate', 'convert', 'aot', 'sft', 'meta_rm', 'grpo', 'serve'],
)
def test_stages_run_without_tensorflow(stage):
  code = (
    f'import sys, grm_jax.stages.{stage}\n'
    'print([m for m in ("tensorflow", "seqio", "torch") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert out.stdout.strip() == '[]', out.stderr
