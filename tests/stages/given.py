"""Runs of a training stage in processes of their own, from the same inputs."""

import dataclasses
import pathlib
import subprocess
import sys

from tests import test_configs, test_main


@dataclasses.dataclass(frozen=True)
class Given:
  """What all runs of a test begin with.

  Attributes:
    config_file: of the stage; they are its `:tiny`.
    folder: with their inputs.
    settings: overrides of all of them, by key.
    environment: of their processes.
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
    command = [*self.arguments(**changes), f'--workdir={workdir}']
    return test_main.run(*command, expect=expect, env=self.environment)

  def begin(self, workdir):
    """A run that goes on beside the test."""
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
    """For runs inside of this process, which has 8 devices."""
    config = test_configs.load(test_main.ROOT / self.config_file, 'tiny')
    config.update_from_flattened_dict(self.settings | changes)
    return config
