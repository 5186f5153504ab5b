"""Fixtures that run the stage rft in this process, without a model.

Settings are parsed as on a command line.
"""

import pytest

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.judges.generative import Judge
from grm_jax.stages.rft import run as rft_run
from grm_jax.stages.rft import sampling as rft_sampling
from tests import test_main
from tests.judges.fake import load_tokenizer
from tests.stages.rft import fixtures


@pytest.fixture
def workdir(tmp_path):
  """A folder that does not exist yet, next to rows.jsonl with ROWS."""
  fixtures.write_rows(tmp_path / 'rows.jsonl', fixtures.ROWS)
  return tmp_path / 'work'


@pytest.fixture
def run(tmp_path, monkeypatch):
  """run(*arguments, engine=None, workdir=...) runs the stage on rows.jsonl.

  It returns the arguments of each loaded model. Loading a model without an
  engine is an error.
  """
  monkeypatch.chdir(test_main.ROOT)

  def run(*arguments, engine=None, workdir=tmp_path / 'work'):
    loaded = []

    def load(checkpoint, step, meta, settings, *unused, **options):
      assert engine is not None, 'a model was loaded'
      loaded.append((checkpoint, step, meta, options))
      return Judge(engine, 'weights', load_tokenizer(), settings)

    monkeypatch.setattr(rft_sampling.judge_factory, 'load', load)
    monkeypatch.setattr(
      model_directory,
      'identity',
      lambda path, n: {'step': n or 0, 'path': path},
    )
    config = fixtures.parse(f'--config.data={tmp_path}/rows.jsonl', *arguments)
    rft_run.run(config, str(workdir))
    return loaded

  return run


@pytest.fixture
def error_of(run):
  """error_of(...) returns the one-line message with which run(...) fails."""

  def error_of(*arguments, **kwargs):
    with pytest.raises(UserError) as info:
      run(*arguments, **kwargs)
    assert '\n' not in str(info.value)
    return str(info.value)

  return error_of
