"""Model directories: identity, tokenizer and companion files."""

import shutil

import pytest

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh, rules
from tests.messages import naming


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A model directory with steps 3 and 5 of different weights."""
  directory = tmp_path_factory.mktemp('saved')
  layout = rules.make_layout(mesh.make_mesh(), rules.RULES)
  model = Transformer(model_config.from_name('tiny'), ComputeConfig(), layout)
  model_directory.write_tiny_tokenizer(str(directory))
  for step in (3, 5):
    params = model_directory.random_params(model, step)
    model_directory.save(str(directory), step, model, params, {'step': step})
  return directory


def test_identity_depends_on_what_is_computed(saved, tmp_path, monkeypatch):
  identity = model_directory.identity(str(saved), None)
  copied = tmp_path / 'copied'
  shutil.copytree(saved, copied)
  monkeypatch.setattr(  # arrays are never read
    orbax_checkpoint, 'read_leaves', lambda *args: pytest.fail('read arrays')
  )
  assert identity['step'] == 5
  assert model_directory.identity(str(copied), 5) == identity
  older = model_directory.identity(str(copied), 3)
  assert older['step'] == 3 and older['params'] != identity['params']
  (copied / 'tokenizer.model').write_bytes(b'another one')
  assert model_directory.identity(str(copied), 5) != identity
  shutil.rmtree(copied / '5')
  assert model_directory.identity(str(copied), None)['step'] == 3


def test_identity_without_a_checkpoint(saved):
  assert model_directory.identity('random', None) == {'checkpoint': 'random'}
  assert model_directory.identity('', None) == {'checkpoint': ''}
  with pytest.raises(UserError, match=naming(saved, 4)):
    model_directory.identity(str(saved), 4)
