"""Start, resume, save and metrics of a training run, for all stages.

A run is a folder WORKDIR with model/ (a model directory, whose checkpoints hold
everything that the run needs to resume bit for bit), metrics.jsonl and
tensorboard/. The loops are in training/supervised.py and stages/grpo/train.py.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import (
  adapter_base,
  model_directory,
  orbax_checkpoint,
)
from grm_jax.data.collate import BatchInfo
from grm_jax.errors import UserError
from grm_jax.judgement import trained_judge
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.model import compute_config, lora
from grm_jax.model import init as model_init
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.sharding.rules import ShardingLayout
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training import flops, metric_writer, optimizer, train_state
from grm_jax.training import profiler as profiling
from grm_jax.training.run_state import RunState
from grm_jax.training.step_timer import StepTimer
from grm_jax.training.train_state import TrainState
from grm_jax.unused_settings import Unused

MODEL = 'model'  # the model directory in a workdir
# Rules of the leaves of all training stages.
SETTINGS: dict[str, settings.Rule | settings.Rules] = {
  'checkpoint': settings.TEXT,
  'checkpoint_step': settings.STEP,
  'data': settings.TEXT,
  'fail_on_bad_rows': settings.BOOLEAN,
  'seed': settings.SEED,
  'steps': settings.integer(1),
  'optimizer': optimizer.SETTINGS,
  'lora': lora.SETTINGS,
  'save_every': settings.PERIOD,
  'max_to_keep': settings.integer(1),
  'profile_steps': profiling.SETTING,
  'mesh': mesh.SETTINGS,
  'compute': compute_config.TRAINING_SETTINGS,
}
# Leaves of training without effect, see unused_settings.py.
UNUSED = (
  Unused(
    (
      *('evaluation.every', 'evaluation.concurrent_prompts', 'evaluation.k'),
      *('evaluation.max_parse_failure_rate', 'evaluation.patience'),
    ),
    '{key}.evaluation.data is empty',
    # In a pipeline, the plan sets it.
    lambda config: not config.evaluation.get('data', 'planned'),
  ),
  lora.UNUSED,
)


class Resumable(Protocol):
  """A data stream with a position: BatchIterator, RolloutPromptIterator."""

  def state(self) -> dict[str, Any]:
    """Returns the position as JSON values."""

  def restore(self, state: Mapping[str, Any]) -> None:
    """Moves to a position; UserError if it belongs to another stream."""


def check(
  config: ConfigDict, workdir: str, rules: settings.Rules, key: str
) -> None:
  """Checks settings of a training stage before data or weights are read.

  Args:
    config: config of the stage.
    workdir: folder that the run writes.
    rules: rules of the stage; they contain SETTINGS.
    key: config key of `config`, for messages.

  Raises:
    UserError: a setting is wrong.
  """
  if not workdir:
    raise UserError('--workdir is missing; give the folder to write the model')
  settings.check(config, rules, key)
  optimizer.check(config.steps, config.optimizer, f'{key}.optimizer')
  check_lora(config, key)
  compute_config.check_devices(config, key)


def check_lora(config: ConfigDict, key: str = 'config') -> None:
  """Raises UserError for settings that an adapter excludes."""
  if not config.lora.rank:
    return
  if config.get('checkpoint') == model_directory.SCRATCH:
    raise UserError(
      f'{key}.checkpoint is scratch, and an adapter (lora.rank) needs a '
      'trained model; set lora.rank to 0'
    )
  if config.optimizer.offload_to_host:
    raise UserError(
      f'{key}.optimizer.offload_to_host is for training without an adapter '
      '(lora.rank), whose optimizer state is small; set it to false'
    )


def check_checkpoint(config: ConfigDict, workdir: str) -> None:
  """Raises UserError if a new run cannot open its initial checkpoint."""
  special = (model_directory.RANDOM, model_directory.SCRATCH)
  is_new = not has_checkpoint(os.path.join(workdir, MODEL))
  if is_new and config.checkpoint not in special:
    model_directory.check_readable(
      config.checkpoint, model_directory.step_or_latest(config.checkpoint_step)
    )


@contextlib.contextmanager
def no_leftovers(workdir: str) -> Iterator[None]:
  """Removes the tokenizer of a run that a mistake ends before it trains.

  A corrected run with another tokenizer must not find it.
  """
  target = os.path.join(workdir, MODEL)
  try:
    yield
  except UserError:
    if not has_checkpoint(target) and not jax.process_index():
      model_directory.remove_companions(target)
    raise


def trained_judge_directory(checkpoint: str, workdir: str) -> str:
  """Returns the model directory that stores how the model is asked.

  A run that resumes has stored it, and its initial model may be deleted.

  Args:
    checkpoint: model directory of the initial model.
    workdir: folder of the run.
  """
  target = os.path.join(workdir, MODEL)
  return target if has_checkpoint(target) else checkpoint


def has_checkpoint(target: str) -> bool:
  """Returns whether a run has a checkpoint in this folder to resume from."""
  return bool(orbax_checkpoint.steps(target))


def read_metadata(target: str) -> dict[str, Any]:
  """Returns the metadata of the newest checkpoint; {} for a new run."""
  if not has_checkpoint(target):
    return {}
  return orbax_checkpoint.read_json(target, 'meta')


def prompt_format(
  prompt: ConfigDict, checkpoint: str, key: str = 'config.prompt', **options
) -> PromptFormat:
  """Returns the prompts of a training stage.

  Args:
    prompt: config.prompt. What is empty is as in the training of the initial
      model.
    checkpoint: model directory of the initial model.
    key: config key of `prompt`.
    **options: see trained_judge.prompt_format.

  Raises:
    UserError: a template cannot be loaded, or a value is wrong.
  """
  return trained_judge.prompt_format(
    model_directory.read_trained_judge(checkpoint),
    checkpoint,
    template=prompt.template,
    single=prompt.single,
    score_range=prompt.score_range,
    reads=prompt.reads,
    default_single='single',
    too_long=prompt.too_long,
    truncated=prompt.truncated,
    key=key,
    **options,
  )


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model to train.

  Attributes:
    model: the network; has an adapter if config.lora.rank is not 0.
    tokenizer: its tokenizer.
    frozen: the base of an adapter; None without.
  """

  model: Transformer
  tokenizer: Tokenizer
  frozen: dict | None = None

  def whole(self, trained: dict) -> dict:
    """Returns all parameters of the model from the trained ones."""
    return lora.attach(self.model.adapter, self.frozen, trained)


def load_model(
  config: ConfigDict,
  target: str,
  layout: ShardingLayout,
  *,
  scalar: bool = False,
  scratch_corpus: Callable[[], Iterable[str]] | None = None,
) -> tuple[LoadedModel, dict | None]:
  """Returns the model to train, and initial values of trained parameters.

  A new run starts from config.checkpoint and copies the tokenizer to `target`.
  A run that resumes has None for the parameters; `restore_or_init` reads them.

  Args:
    config: config of the stage.
    target: model directory of the run.
    layout: layout of training.
    scalar: whether the stage trains a scalar head. A checkpoint without one
      gets a head of zeros.
    scratch_corpus: returns lines to train a tokenizer on for
      config.checkpoint=scratch; None if the stage cannot train from scratch.

  Raises:
    UserError: the checkpoint does not exist, or its head does not fit.
  """
  compute = ComputeConfig(**config.compute)
  if has_checkpoint(target):
    return _load_to_resume(config, target, compute, layout, scalar), None
  if config.checkpoint == model_directory.SCRATCH:
    if scratch_corpus is None:
      raise UserError(
        'config.checkpoint=scratch: this stage needs a trained model; give '
        'the model/ folder of the stage sft or rft'
      )
    model, tokenizer, params = model_directory.create_model(
      config.size, scratch_corpus(), target, compute, layout, config.seed
    )
    return LoadedModel(model, tokenizer), params
  step = model_directory.step_or_latest(config.checkpoint_step)
  if config.lora.rank:
    return _load_with_adapter(config, target, step, compute, layout, scalar)
  model, tokenizer, params = model_directory.open_model(
    config.checkpoint,
    step,
    compute,
    layout,
    scalar=scalar,
    seed=config.seed,
  )
  _check_can_generate(config, model.scalar, scalar)
  if scalar and not model.scalar:
    model = model.clone(scalar=True)
    params = {**params, 'value_head': zero_scalar_head(model)}
  params = init_from_checkpoint(config, target, model, params)
  return LoadedModel(model, tokenizer), params


def _load_to_resume(config, target, compute, layout, scalar) -> LoadedModel:
  """Returns the model of a run that has a checkpoint."""
  model = model_directory.build_model(target, None, compute, layout)
  if model.scalar != scalar:
    raise UserError(
      f'{target} has {_head_name(model.scalar)} head, this stage trains '
      f'{_head_name(scalar)} head; choose another --workdir'
    )
  _check_same_adapter(config, target, model.adapter)
  frozen = None
  if model.adapter is not None:
    # The user may give the new path of a base that has moved.
    bases = [config.checkpoint]
    frozen = model_directory.load_base(target, model, bases)
    frozen.pop('value_head', None)  # the adapter has its own
  tokenizer = model_directory.load_tokenizer(target, model.config)
  return LoadedModel(model, tokenizer, frozen)


def _check_same_adapter(config, target, adapter) -> None:
  """Raises UserError if the checkpoint to resume has another adapter."""
  given: dict[str, Any] = {'rank': 0}
  if config.lora.rank:
    given = dict(config.lora)
  stored = dataclasses.asdict(adapter) if adapter else {'rank': 0}
  for name, value in given.items():
    value = tuple(value) if name == 'targets' else value
    if stored.get(name) != value:
      raise UserError(
        f'lora.{name} is {value}, but {target} was trained with '
        f'{stored.get(name, "no adapter")}; resume with the settings that the '
        'run started with, or choose another --workdir'
      )


def _load_with_adapter(
  config, target, step, compute, layout, scalar
) -> tuple[LoadedModel, dict]:
  """Returns a model with a new adapter on config.checkpoint."""
  base, tokenizer = model_directory.open_without_params(
    config.checkpoint, step, compute, layout, scalar=scalar
  )
  _check_can_generate(config, base.scalar, scalar)
  adapter = adapter_base.new_adapter(
    target, config.checkpoint, step, seed=config.seed, **config.lora
  )
  model = base.clone(scalar=scalar, adapter=adapter)
  frozen = model_directory.load_base(target, model)
  params = model_init.init_adapter(model, jax.random.key(config.seed))
  if scalar:
    head = frozen.pop('value_head', None)
    params['value_head'] = zero_scalar_head(model) if head is None else head
  params = init_from_checkpoint(config, target, model, params)
  return LoadedModel(model, tokenizer, frozen), params


def _check_can_generate(config, has_head, wants_head) -> None:
  if has_head and not wants_head:
    raise UserError(
      f'config.checkpoint={config.checkpoint} has a scalar head and cannot '
      'generate; give a model with a language-model head'
    )


def _head_name(scalar: bool) -> str:
  return 'a scalar' if scalar else 'a language-model'


def zero_scalar_head(model: Transformer) -> dict:
  """Returns a scalar head of zeros, sharded like the model.

  All values start at 0 and a binary cross-entropy at ln 2, however large the
  hidden states of the base model are. Small learning rates need long to
  unlearn the noise of a random head.
  """
  kernel = model_init.abstract_trained(model)['value_head']['kernel']
  zeros = functools.partial(jnp.zeros, kernel.shape, kernel.dtype)
  return {'kernel': jax.jit(zeros, out_shardings=kernel.sharding)()}


def init_from_checkpoint(
  config: ConfigDict, target: str, model: Transformer, params: dict
) -> dict:
  """Copies the tokenizer to `target`; returns the parameters to train.

  Args:
    config: names the checkpoint that the parameters come from.
    target: model directory of the run.
    model: decides the dtype at rest; published checkpoints are bfloat16.
    params: parameters of the checkpoint.
  """
  if config.checkpoint == model_directory.RANDOM:
    model_directory.write_tiny_tokenizer(target)
  else:
    model_directory.copy_companions(config.checkpoint, target)
  return jax.tree.map(lambda x: x.astype(model.compute.param_dtype), params)


def restore_or_init(
  target: str,
  model: Transformer,
  optim: optimizer.Optimizer,
  params: dict | None,
  data: Resumable,
) -> TrainState:
  """Returns the train state to start or to resume from.

  Args:
    target: model directory of the run.
    model: the model to train.
    optim: its optimizer.
    params: initial values of the trained parameters, used up; None resumes from
      the newest checkpoint in `target`.
    data: moved to the position in that checkpoint.

  Raises:
    UserError: the checkpoint belongs to other data or to another stage, or
      cannot be read.
  """
  logging.info(
    'trained parameters:\n%s',
    model_init.parameter_overview(model_init.abstract_trained(model)),
  )
  if params is not None:
    return train_state.init_state(model, optim, params)
  abstract = train_state.abstract_state(model, optim)
  metadata = orbax_checkpoint.read_json(target, 'meta')
  if 'data' not in metadata:
    raise UserError(
      f'{target} was not written by this stage; choose another --workdir'
    )
  data.restore(metadata['data'])
  params, opt_state = orbax_checkpoint.restore(
    target, abstract.master_params(), abstract.opt_state
  )
  logging.info('%s: resuming after step %d', target, metadata['step'])
  return train_state.from_master_params(
    abstract, metadata['step'], params, opt_state
  )


def make_metadata(
  config: ConfigDict,
  run_state: RunState,
  data_state: Mapping[str, Any],
  **extra: Any,
) -> dict[str, Any]:
  """Returns the metadata of a checkpoint: everything but the arrays.

  Args:
    config: config of the stage.
    run_state: progress of the run.
    data_state: position of the data stream, from its `state`.
    **extra: further JSON values of the stage.
  """
  return {
    **dataclasses.asdict(run_state),
    'data': data_state,
    'config': json.loads(config.to_json_best_effort()),
    **extra,
  }


def save(
  checkpoints: orbax_checkpoint.CheckpointManager,
  writer: metric_writer.MetricWriter,
  state: TrainState,
  model: Transformer,
  metadata: dict[str, Any],
) -> None:
  """Saves a checkpoint, unless there is one of this step.

  Args:
    checkpoints: where to save it.
    writer: its rows are uploaded first. A resumed run does not write the rows
      of the steps before its checkpoint again.
    state: the train state.
    model: the model.
    metadata: from `make_metadata`.
  """
  step = int(state.step)
  if step in checkpoints.steps():
    return
  writer.commit(step)
  checkpoints.save(
    step,
    state.master_params(),
    state.opt_state,
    model=model_directory.model_metadata(model),
    meta=metadata,
  )


def should_run(step: int, every: int, total: int, stride: int = 1) -> bool:
  """Returns whether a periodic action is due after this step.

  Actions are due at multiples of `every` (0: never) and at the last step.

  Args:
    step: the step just done.
    every: period of the action, in steps.
    total: last step of the run.
    stride: the loop stops at every `stride`-th step only. An action is due if
      one of the last `stride` steps was a multiple of `every`.
  """
  return step == total or (every > 0 and step % every < stride)


def collect_metrics(
  workdir: str,
  timer: StepTimer,
  model: Transformer,
  step: int,
  metrics: Mapping[str, Any],
  infos: Sequence[BatchInfo],
) -> dict[str, Any]:
  """Waits for the metrics of a step and checks them; ends a lap of the timer.

  Args:
    workdir: folder of the run.
    timer: measures the run.
    model: the model that is trained.
    step: the step.
    metrics: of TrainStep; arrays that may still be computed.
    infos: the batches of the step.

  Returns:
    The metrics without `count`, with MFU, speed, and the times since the
    previous row.

  Raises:
    NonFiniteError: the loss or a norm is not finite.
  """
  example_ids = [id for info in infos for id in info.example_ids if id]
  with timer.part('wait'):
    metrics = jax.device_get(metrics)
  metric_writer.check_finite(metrics, example_ids, workdir, step)
  row = {name: value for name, value in metrics.items() if name != 'count'}
  return row | _speed(timer, model, infos)


def _speed(timer, model, infos) -> dict[str, float | None]:
  """Ends a lap of the timer in which these batches were trained on."""
  lengths = [length for info in infos for length in info.token_lengths]
  timer.add(
    'tokens', sum(prompt + sum(generations) for prompt, generations in lengths)
  )
  timer.add(
    'generation_tokens', sum(sum(generations) for _, generations in lengths)
  )
  timer.add('flops', _flops(model, lengths))
  lap = timer.lap()
  flops_per_second = lap.pop('flops_per_second')
  peak = flops.peak_flops(list(model.layout.mesh.devices.flat))
  return {'mfu': flops_per_second / peak if peak else None, **lap}


def _flops(model, lengths) -> int:
  """Returns the FLOPs of an update on these sequences, without padding."""
  rows = max(len(generations) for _, generations in lengths)
  padded = [
    [*generations, *[0] * (rows - len(generations))]
    for _, generations in lengths
  ]
  prompts = [prompt for prompt, _ in lengths]
  return flops.train_step(
    model.config,
    prompts,
    padded,
    scalar=model.scalar,
    frozen=model.adapter is not None,
  ).total


def check_finished(workdir: str, total: int) -> None:
  """Checks the metrics of a run that has all steps, and prints that it has.

  Raises:
    UserError: metrics.jsonl was changed.
  """
  if not jax.process_index():
    metric_writer.read_rows(workdir, total)
    target = os.path.join(workdir, MODEL)
    print_on_host0(f'{target} already has all {total} steps')


def print_stopped(step: int, total: int) -> None:
  """Prints that a preempted run was saved."""
  print_on_host0(
    f'stopped after step {step} of {total}; run the same command to resume'
  )


def print_on_host0(line: str) -> None:
  """Prints a line on process 0 only."""
  if not jax.process_index():
    print(line, flush=True)
