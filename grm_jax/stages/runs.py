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

from grm_jax.data.batches import Batches
from grm_jax.data.padding import Meta
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.records import Limits, Record
from grm_jax.errors import UserError
from grm_jax.model.gemma import Gemma
from grm_jax.training import (
  checkpoints,
  flops,
  metrics,
  optimizer,
  pretrained,
  profile,
)
from grm_jax.training import state as states
from grm_jax.training.clock import Clock
from grm_jax.training.preemption import Preemption
from grm_jax.training.state import TrainState

MODEL = 'model'  # the model directory in a workdir
_WINDOW = 16  # batches that are sorted by length together


class Place(Protocol):
  """A stream that knows where it is: Batches, Prefetch, Visits."""

  def state(self) -> dict[str, Any]:
    """Its place as JSON values."""

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes to that place; UserError where it was of another stream."""


# A step whose numbers are still being computed: its number, these, the metas
# of its batches, the padding so far.
Pending = tuple[int, dict[str, Any], Sequence[Meta], Mapping[str, float]]


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
    ('batch.accumulate', config.batch.accumulate, 1),
    ('batch.rows', config.batch.rows, 1),
    ('keep', config.keep, 1),
    key=key,
  )
  optimizer.make(config.steps, key=f'{key}.optimizer', **config.optimizer)
  profile.parse(config.profile_steps, f'{key}.profile_steps')


def check_least(*settings: tuple[str, int, int], key: str = 'config') -> None:
  """UserError for a (name, value, least) below `key` whose value is less."""
  for name, value, least in settings:
    if value < least:
      raise UserError(f'{key}.{name} is {value}; it must be {least} or more')


def take_over(
  config: ConfigDict, target: str, model: Gemma, params: dict
) -> dict:
  """The parameters as they are trained; `target` gets the tokenizer.

  Args:
    config: names the checkpoint that they are from.
    target: the model directory of the run.
    model: says in which dtype they rest; published ones are bfloat16.
    params: of the checkpoint.
  """
  if config.checkpoint == pretrained.RANDOM:
    pretrained.write_tiny_tokenizer(target)
  else:
    pretrained.copy_companions(config.checkpoint, target)
  return jax.tree.map(lambda x: x.astype(model.compute.param_dtype), params)


def batches(
  config: ConfigDict,
  records: Sequence[Record],
  rates: Mapping[str, float],
  limits: Limits,
  rows_of_process: np.ndarray,
) -> Batches:
  """Batches of `config.batch` for training; see data/batches.py."""
  return Batches(
    records,
    rates,
    prompts=config.batch.prompts,
    limits=limits,
    seed=config.seed,
    # Not above an epoch, or records would meet themselves in a window.
    window=max(1, min(_WINDOW, len(records) // config.batch.prompts)),
    rows_of_process=rows_of_process,
  )


def due(step: int, every: int, total: int, each: int = 1) -> bool:
  """Whether what is done every so many steps, and at the end, is done now.

  A run that is here after each `each` steps looks at all of them.
  """
  return step == total or (every > 0 and step % every < each)


class Asked:
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


def start(
  target: str,
  model: Gemma,
  optim: optimizer.Optimizer,
  params: dict | None,
  made: Place,
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
    return states.init_state(model, optim, params)
  abstract = states.abstract_state(model, optim)
  meta = checkpoints.read_json(target, 'meta')
  if 'data' not in meta:
    raise UserError(
      f'{target} was written by another stage; choose another --workdir'
    )
  made.restore(meta['data'])
  params, opt_state = checkpoints.restore(
    target, abstract.exact(), abstract.opt_state
  )
  logging.info('%s: going on after step %d', target, meta['step'])
  return states.of_exact(abstract, meta['step'], params, opt_state)


def save(
  saved: checkpoints.Checkpoints,
  state: TrainState,
  model: Gemma,
  data: Place,
  config: ConfigDict,
  **more: Any,
) -> None:
  """Everything that the run needs to go on; `more` is kept in item meta."""
  step = int(state.step)
  saved.save(
    step,
    state.exact(),
    state.opt_state,
    model=pretrained.describe(model),
    meta={
      'step': step,
      'data': data.state(),
      'config': json.loads(config.to_json_best_effort()),
      **more,
    },
  )


def finished(
  workdir: str, clock: Clock, model: Gemma, pending: Pending
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
  metrics.check_finite(numbers, ids, workdir, step)
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
  say(f'{done} of {total} steps; epochs: {passes}; padding: {waste}')
  say(f'model -> {target}')


def say_stopped(step: int, total: int) -> None:
  """One line for a run that was asked to stop."""
  say(f'stopped after step {step} of {total}; start again to go on')


def say(line: str) -> None:
  """One process speaks for all."""
  if not jax.process_index():
    print(line, flush=True)
