"""The whole method in one command (SPCT, arXiv 2504.02495).

  examples -> base -> cold start (sft) -> rft -> grpo -> fresh samples
           -> meta RM -> evaluation and report

Every stage works in a folder of its own in WORKDIR, by its own code; here is
only what joins them. A stage that is finished is skipped. A run that was
killed, or stopped by SIGTERM, goes on when it is started again.
"""

import functools
import gc
import os
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.sharding import distributed
from grm_jax.stages.grpo import train as grpo_train
from grm_jax.stages.reward_model import train as rm_train
from grm_jax.stages.rft import run as rft_run
from grm_jax.stages.sft import train as sft_train
from grm_jax.stages.spct import data as spct_data
from grm_jax.stages.spct import evaluate as spct_evaluate
from grm_jax.stages.spct import plan as spct_plan
from grm_jax.stages.spct import progress as spct_progress
from grm_jax.stages.spct.plan import PipelineStage
from grm_jax.training import run as training_run

# What is said when a stage begins.
_TITLES = {
  'data': 'examples for all stages',
  'base': 'a base model from scratch',
  'sft': 'cold start: fine-tuning on judgements',
  'rft': 'rejective fine-tuning',
  'grpo': 'reinforcement learning by rules',
  'samples': 'fresh samples for the meta RM',
  'meta_rm': 'training of the meta RM',
  'evaluate': 'evaluation of all judges on held-out examples',
}


def run(config: ConfigDict, workdir: str) -> None:
  """Runs the stages of `config.stages` that are not finished.

  Raises:
    UserError: a path or a setting is wrong, or WORKDIR is of another run.
  """
  if not workdir:
    raise UserError('give --workdir=DIR, where all stages write')
  workdir = workdir if '://' in workdir else os.path.normpath(workdir)
  spct_data.check(config)
  spct_evaluate.check(config)
  steps = spct_plan.plan(config, workdir)
  _check_stages(steps, workdir)
  spct_progress.check(workdir, steps)
  distributed.barrier('checked')  # before anybody marks anything
  for number, step in enumerate(steps, 1):
    head = f'[{number}/{len(steps)}] {_TITLES[step.stage]}'
    if spct_progress.is_finished(workdir, step):
      training_run.print_on_host0(f'{head}: finished before')
      continue
    training_run.print_on_host0(f'{head} -> {os.path.join(workdir, step.name)}')
    begin = time.monotonic()
    if not _run_step(config, workdir, step):
      training_run.print_on_host0(
        f'{step.name} was asked to stop; start again to go on'
      )
      return
    training_run.print_on_host0(
      f'{step.name} took {time.monotonic() - begin:.0f} s'
    )
  if spct_plan.EVALUATION in {step.name for step in steps}:
    spct_evaluate.say(workdir)


def _run_step(config, workdir, step: PipelineStage) -> bool:
  """Runs a step to its end; False if it was asked to stop before that."""
  folder = os.path.join(workdir, step.name)
  spct_progress.begin(workdir, step)
  distributed.barrier(f'begin {step.name}')
  if not _runner(config, workdir, step)(folder):
    return False
  distributed.barrier(f'finish {step.name}')
  spct_progress.finish(workdir, step)
  # Programs and arrays of a stage are of no use to the next one.
  jax.clear_caches()
  gc.collect()
  return True


def _runner(config, workdir, step: PipelineStage) -> Callable[[str], bool]:
  """What runs the step, given its folder; see `_run_step`."""
  if step.stage == 'data':
    return functools.partial(spct_data.write, config)
  if step.stage == 'evaluate':
    return lambda folder: spct_evaluate.run(config, workdir, folder)
  if step.stage == 'samples':
    return functools.partial(_sample, step.config)
  runners = {
    'base': (sft_train.run, step.config),
    'sft': (sft_train.run, step.config),
    'rft': (rft_run.run, step.config),
    'grpo': (grpo_train.run, step.config),
    'meta_rm': (rm_train.run, step.config),
  }
  return functools.partial(_train, *runners[step.stage])


def _sample(config, folder) -> bool:
  rft_run.run(config, folder)
  return True


def _train(run_stage, config, folder) -> bool:
  """A training stage; it ends early, without an error, on SIGTERM."""
  run_stage(config, folder)
  return _done(os.path.join(folder, training_run.MODEL)) >= _total(config)


def _done(model: str) -> int:
  return max(orbax_checkpoint.steps(model), default=0)


def _total(config) -> int:
  return config.train.steps if 'train' in config else config.steps


def _check_stages(steps, workdir) -> None:
  """What each stage would say of its settings, before hours are spent."""
  checks = {
    'base': sft_train.check,
    'sft': sft_train.check,
    'rft': rft_run.check,
    'grpo': grpo_train.check,
    'meta_rm': rm_train.check,
  }
  for step in steps:
    if step.stage in checks:
      folder = os.path.join(workdir, step.name)
      checks[step.stage](step.config, folder, f'config.{step.stage}')
