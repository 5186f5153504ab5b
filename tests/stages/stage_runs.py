"""Runs training stages in processes of their own; reads what they write."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from grm_jax.checkpoint import (
  adapter_base,
  model_directory,
  orbax_checkpoint,
)
from grm_jax.model import config as model_config
from grm_jax.model import init as model_init
from grm_jax.model import lora
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import test_configs, test_main
from tests.model import tiny


@dataclasses.dataclass(frozen=True)
class StageRunner:
  """Runs the `:tiny` config of a stage with the settings of a test module.

  Attributes:
    config_file: config file of the stage.
    folder: folder with the input files.
    settings: overrides for all runs, by key.
    environment: environment of the processes.
  """

  config_file: str
  folder: pathlib.Path
  settings: dict
  environment: dict

  def arguments(self, **changes):
    settings = self.settings | changes
    return [f'--config={self.config_file}:tiny'] + [
      f'--config.{key}={value}' for key, value in settings.items()
    ]

  def run(self, workdir, expect=0, **changes):
    """Returns (stdout, stderr) of a run that ends with exit code `expect`."""
    command = [*self.arguments(**changes), f'--workdir={workdir}']
    return test_main.run(*command, expect=expect, env=self.environment)

  def start(self, workdir):
    """Starts a run in the background."""
    return subprocess.Popen(
      [sys.executable, '-m', 'grm_jax.main', *self.arguments()]
      + [f'--workdir={workdir}'],
      cwd=test_main.ROOT,
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )

  def config(self, **changes):
    """Returns the config for a run in this process, which has 8 devices."""
    config = test_configs.load(test_main.ROOT / self.config_file, 'tiny')
    config.update_from_flattened_dict(self.settings | changes)
    return config


def write_model(path, scalar=False, step=0):
  """Writes a model directory with random weights; compiles nothing.

  Weights of another step differ.
  """
  model = Transformer(
    model_config.from_name('tiny'), ComputeConfig(), mesh.one_device(), scalar
  )
  # Small weights, so that runs on other devices stay close to each other.
  factor = 0.1 + 0.01 * step
  params = jax.tree.map(lambda x: factor * x, tiny.params(model))
  model_directory.save(str(path), step, model, params, {})
  tiny_tokenizer.train(path / 'tokenizer.model')


def write_adapter(path, base, scalar=False, base_dtype='float32', size=0.15):
  """Writes a model directory with a random adapter on another one.

  Args:
    path: its folder.
    base: model directory of the base.
    scalar: also a scalar head.
    base_dtype: of the base.
    size: standard deviation of the trained parameters.

  Returns:
    The model and its trained parameters.
  """
  layout = mesh.one_device()
  model = model_directory.build_model(str(base), None, ComputeConfig(), layout)
  adapter = adapter_base.new_adapter(
    str(path),
    str(base),
    None,
    rank=3,
    alpha=6.0,
    targets=lora.TARGETS,
    base_dtype=base_dtype,
  )
  model = model.clone(adapter=adapter, scalar=scalar)
  rng = np.random.default_rng(1)
  trained = jax.tree.map(
    lambda x: jax.numpy.asarray(size * rng.standard_normal(x.shape), x.dtype),
    model_init.abstract_trained(model),
  )
  model_directory.copy_companions(str(base), str(path))
  model_directory.save(str(path), 0, model, trained, {})
  return model, trained


def rows_of(workdir):
  """Returns the rows of metrics.jsonl."""
  return [json.loads(x) for x in (workdir / 'metrics.jsonl').open()]


def results(workdir):
  """Returns the rows of metrics.jsonl without times and speeds."""
  return [
    {k: v for k, v in row.items() if not _is_time(k)}
    for row in rows_of(workdir)
  ]


def _is_time(name):
  return name.startswith('time/') or name.endswith('_per_second')


def losses(workdir):
  return [row['loss'] for row in rows_of(workdir)]


def steps_in(workdir):
  """Returns the steps of the run's checkpoints."""
  return orbax_checkpoint.steps(workdir / 'model')


def meta_of(workdir, step=None):
  """Returns the metadata of a checkpoint."""
  return orbax_checkpoint.read_json(workdir / 'model', 'meta', step)


def params_of(workdir):
  """Returns the parameters of the newest checkpoint."""
  directory = str(workdir / 'model')
  model = model_directory.build_model(
    directory, None, ComputeConfig(), mesh.one_device()
  )
  return model_directory.load_params(directory, None, model)


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same_run(workdir, other):
  """Asserts equal metrics, parameters and last checkpoints, bit for bit."""
  assert results(workdir) == results(other)
  for a, b in zip(
    *(leaves(params_of(x)) for x in (workdir, other)), strict=True
  ):
    assert a.tobytes() == b.tobytes()
  # The index has checksums of optimizer moments, too.
  for item in ('index', 'meta'):
    one, two = (
      orbax_checkpoint.read_json(x / 'model', item) for x in (workdir, other)
    )
    assert one == two


def wait_for(process, is_reached):
  while not is_reached():
    assert process.poll() is None, 'the run ended too early'
    time.sleep(0.01)


def lines_of(path):
  """Returns the number of whole lines in a file that may not exist yet."""
  return path.read_bytes().count(b'\n') if path.exists() else 0
