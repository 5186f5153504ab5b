"""The commands of launch/xpk.md fit their configs and two slices of v5p."""

import re
import shlex

import pytest

from benchmarks import aot_table
from grm_jax.model import compute_config
from grm_jax.sharding import mesh
from grm_jax.stages.grpo import settings
from tests import test_main
from tests.stages import spct_run

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

NUM_CHIPS = 2 * 4 * 4 * 4


def config_of(stage):
  """Returns the config of the page's only command of a stage."""
  page = (test_main.ROOT / 'launch' / 'xpk.md').read_text()
  joined = page.replace('\\\n', ' ')
  (flags,) = re.findall(rf'--config=configs/{stage}\.py[^"\n]*', joined)
  return spct_run.parse(
    *(x for x in shlex.split(flags) if not x.startswith('--workdir='))
  )


def test_the_run_fits_its_config_and_chips(monkeypatch):
  config = config_of('grpo')
  assert config.checkpoint and config.data
  config.checkpoint = 'random'  # the check reads what the model stores
  # The devices of the slice are checked below; there are others here.
  monkeypatch.setattr(compute_config, 'check_devices', lambda *args: None)
  settings.check(config, 'workdir')
  axes = config.mesh
  data, fsdp, _ = mesh.axis_sizes(
    axes.data, axes.fsdp, axes.tensor, NUM_CHIPS, axes.num_slices
  )
  # The devices of both axes split the prompts of an update and of a rollout.
  assert config.batch.micro_batch_prompts % (data * fsdp) == 0
  assert config.rollout.concurrent_prompts % (data * fsdp) == 0
  assert config.prompts_per_rollout % config.batch.micro_batch_prompts == 0


def test_the_run_is_the_recommended_one_with_twice_the_data_axis():
  (row,) = [
    spct_run.parse('--config=configs/grpo.py', *row.overrides)
    for row in aot_table.read_rows()
    if row[:3] == ('v5p:4x4x4', '27b', 'grpo')
  ]
  config = config_of('grpo')
  assert config.mesh.num_slices == 2
  assert config.mesh.data == 2 * row.mesh.data
  assert config.mesh.fsdp == row.mesh.fsdp
  assert config.compute == row.compute


def test_the_compiled_program_is_that_of_the_run():
  run, compiled = config_of('grpo'), config_of('aot')
  assert compiled.mesh == run.mesh
  assert compiled.micro_batch_prompts == run.batch.micro_batch_prompts
  assert compiled.num_generations == run.group_size
  assert compiled.prompt_size == run.batch.prompt_buckets[-1]
  assert compiled.compute.remat == run.compute.remat
