"""The whole method in one command (SPCT, arXiv 2504.02495).

  examples -> base model -> cold start (sft) -> rft -> grpo
           -> samples for the meta RM -> meta RM -> evaluation and report

Every stage runs its own code in its own folder of WORKDIR; this module joins
them. Finished stages are skipped. A run that was killed or stopped by SIGTERM
resumes when the same command runs again.
"""

import functools
import gc
import os
import time
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.io import run_lock
from grm_jax.sharding import distributed
from grm_jax.stages import input_identity, path_check, run_record
from grm_jax.stages.grpo import settings as grpo_settings
from grm_jax.stages.grpo import train as grpo_train
from grm_jax.stages.reward_model import train as rm_train
from grm_jax.stages.rft import run as rft_run
from grm_jax.stages.sft import train as sft_train
from grm_jax.stages.spct import data as spct_data
from grm_jax.stages.spct import evaluate as spct_evaluate
from grm_jax.stages.spct import plan as spct_plan
from grm_jax.stages.spct import progress as spct_progress
from grm_jax.stages.spct import settings as spct_settings
from grm_jax.stages.spct.plan import PipelineStage
from grm_jax.training import run as training_run

_TITLES = {
  'data': 'examples for all stages',
  'base': 'base model from scratch',
  'sft': 'cold start: fine-tuning on judgements (SFT)',
  'rft': 'rejective fine-tuning (RFT)',
  'grpo': 'reinforcement learning with rule-based rewards (GRPO)',
  'samples': 'samples for the meta RM',
  'meta_rm': 'meta RM training',
  'evaluate': 'evaluation of all judges on held-out examples',
}

UNUSED = spct_settings.UNUSED


def run(config: ConfigDict, workdir: str) -> None:
  """Runs the stages in `config.stages` that have not finished.

  Args:
    config: as configs/spct.py.
    workdir: folder of the folders of all stages.

  Raises:
    UserError: a path or a setting is wrong, or `workdir` has results of other
      settings.
  """
  if not workdir:
    raise UserError('--workdir is empty; set it to the folder of all stages')
  workdir = workdir if '://' in workdir else os.path.normpath(workdir)
  with distributed.enter_on_all(run_lock.hold_workdir(workdir)):
    stages = distributed.run_on_all(lambda: _plan_and_check(config, workdir))
    # The records of the stages have their own settings and inputs.
    run_record.begin(config, workdir, dict, resumes=False)
    finished = _run_stages(config, workdir, stages)
    if finished and spct_plan.EVALUATION in {stage.name for stage in stages}:
      spct_evaluate.print_summary(workdir)


def _run_stages(
  config: ConfigDict, workdir: str, stages: Sequence[PipelineStage]
) -> bool:
  """Runs the stages that have not finished; returns False after SIGTERM."""
  for number, stage in enumerate(stages, 1):
    title = f'[{number}/{len(stages)}] {_TITLES[stage.stage]}'
    if spct_progress.is_finished(workdir, stage):
      training_run.print_on_host0(f'{title}: already finished, skipped')
      continue
    folder = os.path.join(workdir, stage.name)
    training_run.print_on_host0(f'{title} -> {folder}')
    start_s = time.monotonic()
    if not _run_stage(config, workdir, stage):
      training_run.print_on_host0(
        f'stage {stage.name} was interrupted; run the same command to resume'
      )
      return False
    training_run.print_on_host0(
      f'{stage.name} took {time.monotonic() - start_s:.0f} s'
    )
  return True


def _plan_and_check(config: ConfigDict, workdir: str) -> list[PipelineStage]:
  """Returns the stages; finds mistakes before hours of work.

  Raises:
    UserError: see `run`.
  """
  spct_settings.check(config)
  spct_data.check(config)
  spct_evaluate.check(config)
  spct_settings.check_inputs(config)
  path_check.check_distinct(
    {
      'data': config.data,
      'sft.data.texts': config.sft.data.texts,
      'base.data.texts': config.base.data.texts,
      'checkpoint': config.checkpoint,
      **input_identity.template_names(config),
    },
    [
      spct_data.path(os.path.join(workdir, spct_plan.DATA), x)
      for x in spct_data.PARTS
    ],
  )
  stages = spct_plan.plan(config, workdir)
  _check_configs(stages, workdir)
  spct_progress.check(workdir, stages)
  return stages


def _check_configs(stages: Sequence[PipelineStage], workdir: str) -> None:
  """Runs the checks of the stages themselves."""
  checks = {
    'base': sft_train.check,
    'sft': sft_train.check,
    'rft': rft_run.check,
    'grpo': grpo_settings.check,
    'meta_rm': rm_train.check,
  }
  for stage in stages:
    folder = os.path.join(workdir, stage.name)
    if stage.stage in checks:
      checks[stage.stage](stage.config, folder, f'config.{stage.stage}')
    if stage.stage == spct_plan.SAMPLES:
      rft_run.check(stage.config, folder, 'config.rft')


def _run_stage(config: ConfigDict, workdir: str, stage: PipelineStage) -> bool:
  """Runs a stage and records it; returns False if SIGTERM stopped it."""
  folder = os.path.join(workdir, stage.name)
  spct_progress.mark_started(workdir, stage)
  distributed.barrier(f'begin {stage.name}')
  if not _runner(config, workdir, stage)(folder):
    return False
  distributed.barrier(f'finish {stage.name}')
  spct_progress.mark_finished(workdir, stage)
  # Frees compiled programs and arrays that the next stage cannot use.
  jax.clear_caches()
  gc.collect()
  return True


def _runner(
  config: ConfigDict, workdir: str, stage: PipelineStage
) -> Callable[[str], bool]:
  """Returns the function that runs a stage in its folder; see `_run_stage`."""
  if stage.stage == 'data':
    return functools.partial(spct_data.write, config)
  if stage.stage == 'evaluate':
    return functools.partial(spct_evaluate.run, config, workdir)
  if stage.stage == 'samples':
    return functools.partial(_sample, stage.config)
  run_functions = {
    'base': sft_train.run,
    'sft': sft_train.run,
    'rft': rft_run.run,
    'grpo': grpo_train.run,
    'meta_rm': rm_train.run,
  }
  return functools.partial(_train, run_functions[stage.stage], stage.config)


def _sample(config: ConfigDict, folder: str) -> bool:
  rft_run.run(config, folder)
  return True


def _train(
  run_function: Callable[[ConfigDict, str], None],
  config: ConfigDict,
  folder: str,
) -> bool:
  """Runs a training stage; returns whether it reached its last step.

  On SIGTERM a training stage saves and returns early, without an error.
  """
  run_function(config, folder)
  steps = orbax_checkpoint.steps(os.path.join(folder, training_run.MODEL))
  # The stage rft has the config of its training in `train`.
  train_config = config.train if 'train' in config else config
  return max(steps, default=0) >= train_config.steps
