"""What training runs have in common but for their loops: begin, save, go on.

A run is a WORKDIR with model/ (a model directory, its checkpoints with all
that is needed to go on) and metrics.jsonl.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.collate import BatchInfo
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.errors import UserError
from grm_jax.model.transformer import Transformer
from grm_jax.training import flops, metric_writer, optimizer, train_state
from grm_jax.training import profiler as profiling
from grm_jax.training.preemption import Preemption
from grm_jax.training.step_timer import StepTimer
from grm_jax.training.train_state import TrainState

MODEL = 'model'  # the model directory in a workdir
_WINDOW = 16  # batches that are sorted by length together


class Resumable(Protocol):
  """A stream that knows where it is: Batches, Prefetch, Visits."""

  def state(self) -> dict[str, Any]:
    """Its place as JSON values."""

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes to that place; UserError where it was of another stream."""


# A step whose numbers are still being computed: its number, these, the metas
# of its batches, the padding so far.
Pending = tuple[int, dict[str, Any], Sequence[BatchInfo], Mapping[str, float]]


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks what would only be seen after rows or weights were read.

  Args:
    config: of training.
    workdir: where the run writes.
    key: config key of `config`, for messages; 'config' is the whole.

  Raises:
    UserError: a setting is wrong.
  """
  if not workdir:
    raise UserError('give --workdir=DIR, where the model is written')
  check_least(
    ('batch.grad_accum_steps', config.batch.grad_accum_steps, 1),
    ('batch.generations_per_prompt', config.batch.generations_per_prompt, 1),
    ('max_to_keep', config.max_to_keep, 1),
    key=key,
  )
  optimizer.make(config.steps, key=f'{key}.optimizer', **config.optimizer)
  profiling.parse(config.profile_steps, f'{key}.profile_steps')


def check_least(*settings: tuple[str, int, int], key: str = 'config') -> None:
  """UserError for a (name, value, least) below `key` whose value is less."""
  for name, value, least in settings:
    if value < least:
      raise UserError(f'{key}.{name} is {value}; it must be {least} or more')


def init_from_checkpoint(
  config: ConfigDict, target: str, model: Transformer, params: dict
) -> dict:
  """The parameters as they are trained; `target` gets the tokenizer.

  Args:
    config: names the checkpoint that they are from.
    target: the model directory of the run.
    model: says in which dtype they rest; published ones are bfloat16.
    params: of the checkpoint.
  """
  if config.checkpoint == model_directory.RANDOM:
    model_directory.write_tiny_tokenizer(target)
  else:
    model_directory.copy_companions(config.checkpoint, target)
  return jax.tree.map(lambda x: x.astype(model.compute.param_dtype), params)


def batches(
  config: ConfigDict,
  records: Sequence[TokenizedExample],
  rates: Mapping[str, float],
  limits: BatchShape,
  rows_of_process: np.ndarray,
) -> BatchIterator:
  """Batches of `config.batch` for training; see data/batch_iterator.py."""
  return BatchIterator(
    records,
    rates,
    prompts=config.batch.micro_batch_prompts,
    limits=limits,
    seed=config.seed,
    # Not above an epoch, or records would meet themselves in a window.
    window=max(
      1, min(_WINDOW, len(records) // config.batch.micro_batch_prompts)
    ),
    rows_of_process=rows_of_process,
  )


def should_run(step: int, every: int, total: int, each: int = 1) -> bool:
  """Whether what is done every so many steps, and at the end, is done now.

  A run that is here after each `each` steps looks at all of them.
  """
  return step == total or (every > 0 and step % every < each)


class PreemptionPoller:
  """Whether the run was asked to stop, as often as one likes.

  JAX's service counts calls: all processes stop at the call after the last
  that any of them had made, which must be counted without gaps.
  """

  def __init__(self, preemption: Preemption):
    self._preemption, self._calls, self._asked = preemption, 0, False

  def at(self, step: int) -> bool:
    """Whether to save after this step, and end. All processes call it."""
    self._calls += 1
    alone = jax.process_count() == 1
    if not self._asked:
      self._asked = self._preemption.at(step if alone else self._calls)
    return self._asked


def restore_or_init(
  target: str,
  model: Transformer,
  optim: optimizer.Optimizer,
  params: dict | None,
  made: Resumable,
) -> TrainState:
  """The state to begin with, or to go on from with the batches at their place.

  Args:
    target: the model directory.
    model, optim: what is trained, and how.
    params: to begin with, used up; None goes on from the newest checkpoint of
      target.
    made: set to where that checkpoint was.

  Raises:
    UserError: the checkpoint is of other batches or another stage, or cannot
      be read.
  """
  if params is not None:
    return train_state.init_state(model, optim, params)
  abstract = train_state.abstract_state(model, optim)
  meta = orbax_checkpoint.read_json(target, 'meta')
  if 'data' not in meta:
    raise UserError(
      f'{target} was written by another stage; choose another --workdir'
    )
  made.restore(meta['data'])
  params, opt_state = orbax_checkpoint.restore(
    target, abstract.exact(), abstract.opt_state
  )
  logging.info('%s: going on after step %d', target, meta['step'])
  return train_state.from_master_params(
    abstract, meta['step'], params, opt_state
  )


def save(
  saved: orbax_checkpoint.CheckpointManager,
  state: TrainState,
  model: Transformer,
  data: Resumable,
  config: ConfigDict,
  **more: Any,
) -> None:
  """Everything that the run needs to go on; `more` is kept in item meta."""
  step = int(state.step)
  saved.save(
    step,
    state.exact(),
    state.opt_state,
    model=model_directory.describe(model),
    meta={
      'step': step,
      'data': data.state(),
      'config': json.loads(config.to_json_best_effort()),
      **more,
    },
  )


def collect_metrics(
  workdir: str, clock: StepTimer, model: Transformer, pending: Pending
) -> dict[str, Any]:
  """Waits for the numbers of a step and checks them.

  Returns:
    The step's row of metrics: its numbers but for `count`, shares of padding,
    speed and times since the row before.

  Raises:
    NonFiniteError: the loss or a norm is not finite.
  """
  step, numbers, metas, waste = pending
  ids = [name for meta in metas for name in meta.ids if name]
  with clock.part('wait'):
    numbers = jax.device_get(numbers)
  metric_writer.check_finite(numbers, ids, workdir, step)
  row = {name: x for name, x in numbers.items() if name != 'count'}
  padding = {f'padding/{name}': share for name, share in waste.items()}
  return row | padding | _speed(clock, model, metas)


def _speed(clock, model, metas):
  """Ends a lap of the clock, in which these batches were trained on."""
  lengths = [x for meta in metas for x in meta.lengths]
  clock.add('tokens', sum(n + sum(own) for n, own in lengths))
  clock.add('generation_tokens', sum(sum(own) for _, own in lengths))
  clock.add('flops', _flops(model, lengths))
  lap = clock.lap()
  used = lap.pop('flops_per_second')
  peak = flops.peak_flops(list(model.layout.mesh.devices.flat))
  return {'mfu': used / peak if peak else None, **lap}


def _flops(model, lengths) -> int:
  """Useful FLOPs of an update on these texts."""
  most = max(len(own) for _, own in lengths)
  own = [[*x, *[0] * (most - len(x))] for _, x in lengths]
  prompts = [n for n, _ in lengths]
  counted = flops.train_step(model.size, prompts, own, scalar=model.scalar)
  return counted.total


def say_end(target: str, total: int, data: Prefetch, done: int) -> None:
  """One line on the data, one on the model."""
  waste = ', '.join(f'{n} {share:.0%}' for n, share in data.waste().items())
  passes = ', '.join(f'{n} {x:.2f}' for n, x in data.passes().items())
  print_on_host0(f'{done} of {total} steps; epochs: {passes}; padding: {waste}')
  print_on_host0(f'model -> {target}')


def print_stopped(step: int, total: int) -> None:
  """One line for a run that was asked to stop."""
  print_on_host0(f'stopped after step {step} of {total}; start again to go on')


def print_on_host0(line: str) -> None:
  """One process speaks for all."""
  if not jax.process_index():
    print(line, flush=True)
