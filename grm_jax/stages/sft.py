"""Supervised fine-tuning: cross-entropy of generations, prompts read only.

  texts -> records -> batches -> steps -> checkpoints, metrics

Written into WORKDIR: model/ (a model directory, its checkpoints with all that
is needed to go on), metrics.jsonl, tensorboard/. A run that was killed, or
asked to stop by SIGTERM, goes on from its last checkpoint as if nothing had
happened, when it is started again.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax.data import batches as batches_lib
from grm_jax.data import (
  placing,
  records,
  sources,
  texts,
)
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.texts import Text
from grm_jax.judging.forms import Forms
from grm_jax.model.compute import Compute
from grm_jax.parallel import mesh
from grm_jax.stages import sft_records
from grm_jax.stages.held_out import HeldOut
from grm_jax.stages.judge import Settings
from grm_jax.training import (
  checkpoints,
  flops,
  metrics,
  optimizer,
  pretrained,
  profile,
)
from grm_jax.training import state as states
from grm_jax.training.clock import Clock, progress
from grm_jax.training.preemption import Preemption
from grm_jax.training.state import TrainState
from grm_jax.training.step import Steps, supervised_loss

MODEL = 'model'  # the model directory in a workdir
_WINDOW = 16  # batches that are sorted by length together


def run(config: ConfigDict, workdir: str) -> None:
  """Fine-tunes on `config.data`.

  Raises:
    ValueError: a path, a row or a setting is wrong.
  """
  check(config, workdir)
  data = config.data
  found, named = sft_records.read(config)
  # Rounded, or 1 - 0.9 would be no tenth.
  rates = {
    'texts': round(1 - data.general_rate, 9),
    'general': data.general_rate,
  }
  fine_tune(config, workdir, found, rates, named)


def check(config: ConfigDict, workdir: str) -> None:
  """ValueError for what would only be seen after rows or weights were read."""
  if not workdir:
    raise ValueError('give --workdir=DIR, where the model is written')
  rate = config.data.general_rate
  if not 0 <= rate < 1:
    raise ValueError(
      f'config.data.general_rate is {rate}; it is a share below 1'
    )
  for key, value in (
    ('batch.accumulate', config.batch.accumulate),
    ('batch.rows', config.batch.rows),
    ('keep', config.keep),
  ):
    if value < 1:
      raise ValueError(f'config.{key} is {value}; it must be 1 or more')
  optimizer.make(config.steps, **config.optimizer)
  profile.parse(config.profile_steps)


def fine_tune(
  config: ConfigDict,
  workdir: str,
  found: Sequence[Text],
  rates: dict[str, float],
  named: dict[str, str],
) -> None:
  """Fine-tunes on these texts.

  Args:
    config: as configs/sft.py.
    workdir: a folder of this run's own, not ''.
    found: texts of all sources but those in `named`.
    rates: of the sources, see data/mixture.py.
    named: sources that seqio reads, whose records need the tokenizer.

  Raises:
    ValueError: a setting is wrong, or no text is left.
  """
  forms = Forms(
    config.prompt.template, config.prompt.single, config.prompt.too_long
  )
  forms.check()
  layout = mesh.from_config(config)
  rates = {source: rate for source, rate in rates.items() if rate}
  limits = records.limits(
    config.batch.buckets, config.batch.size, config.batch.rows
  )
  own_rows = placing.process_rows(layout, config.batch.prompts)
  target = os.path.join(workdir, MODEL)
  model, tokenizer, params = _open(config, target, layout, found, forms)
  used = sft_records.records_of(found, named, forms, tokenizer, limits, config)
  if config.batch.packed:
    limits = dataclasses.replace(limits, rows=0)
  made = batches_lib.Batches(
    used,
    rates,
    prompts=config.batch.prompts,
    limits=limits,
    seed=config.seed,
    # Not above an epoch, or texts would meet themselves in a window.
    window=max(1, min(_WINDOW, len(used) // config.batch.prompts)),
    rows_of_process=own_rows,
  )
  judge = _held_out(config, model, tokenizer)
  with Preemption() as preemption:
    _train(config, workdir, model, params, made, judge, preemption)


def _open(config, target, layout, found, forms):
  """(model, tokenizer, params): of the run so far, or where it begins.

  Parameters are None where the run goes on: they are in its checkpoint.
  """
  compute = Compute(**config.compute)
  if checkpoints.steps(target):
    model = pretrained.build(target, None, compute, layout)
    return model, pretrained.load_tokenizer(target, model.size), None
  if config.checkpoint == pretrained.SCRATCH:
    model, tokenizer, params = pretrained.scratch(
      config.size,
      texts.lines(found, forms),
      target,
      compute,
      layout,
      config.seed,
    )
    return model, tokenizer, params
  step = None if config.step < 0 else config.step
  model, tokenizer, params = pretrained.open_model(
    config.checkpoint, step, compute, layout, seed=config.seed
  )
  if model.scalar:
    raise ValueError(
      f'config.checkpoint={config.checkpoint} has a scalar head; fine-tuning '
      'needs a model that writes'
    )
  if config.checkpoint == pretrained.RANDOM:
    pretrained.write_tiny_tokenizer(target)
  else:
    pretrained.copy_companions(config.checkpoint, target)
  params = jax.tree.map(lambda x: x.astype(compute.param_dtype), params)
  return model, tokenizer, params


def _held_out(config, model, tokenizer) -> HeldOut | None:
  """What judges held-out examples while training, if asked for."""
  e = config.evaluation
  if not e.data:
    return None
  examples, _ = sources.load(e.data, 'held_out', config.strict)
  layout = mesh.from_config(config, weights='resident')
  return HeldOut(
    examples,
    model.clone(layout=layout),
    tokenizer,
    Settings(
      template=config.prompt.template,
      single=config.prompt.single,
      too_long=config.prompt.too_long,
      seed=config.seed,
    ),
    prompts=e.prompts,
    rows=1,  # one greedy judgement of each
    size=max(config.batch.size),
    buckets=config.batch.buckets,
  )


def _train(config, workdir, model, params, made, judge, preemption):
  """The loop: one update of `accumulate` batches a step."""
  s, layout = config.batch, model.layout
  total = config.steps
  optim, rate = optimizer.make(total, **config.optimizer)
  update = Steps(model, optim, functools.partial(supervised_loss, model))
  target = os.path.join(workdir, MODEL)
  state = _start(target, model, optim, params, made)
  del params
  done = begin = int(state.step)
  if begin >= total:
    _say(f'{target} has all of its {total} steps')
    return
  first = jax.process_index() == 0
  clock, pending = Clock(), None
  with (
    checkpoints.Checkpoints(target, keep=config.keep) as saved,
    metrics.Writer(workdir, begin, first) as writer,
    profile.Profiler(profile.parse(config.profile_steps), workdir) as profiler,
    Prefetch(made) as data,
    progress(begin, total, 'fine-tuning', first) as bar,
  ):
    finish = functools.partial(_finish, workdir, clock, writer, model)
    for step in range(begin + 1, total + 1):
      profiler.begin(step)
      with clock.part('data'):
        some = [next(data) for _ in range(s.accumulate)]
        placed = [placing.place(b, layout, s.prompts) for b, _ in some]
      metas = [meta for _, meta in some]
      with clock.part('step'):
        state, numbers = update(state, placed)
      profiler.end(step, numbers)
      numbers['learning_rate'] = rate(step - 1)
      # What step n - 1 came to is read while the devices work on step n.
      finish(pending)
      pending, done = (step, numbers, metas, data.waste()), step
      bar.update()
      stop = preemption.at(step)
      judges = judge and not stop and _due(step, config.evaluation.every, total)
      saves = stop or _due(step, config.save_every, total)
      if judges or saves:
        # Rows come before the checkpoint, or a run that goes on lacks them.
        finish(pending)
        pending = None
      if judges:
        with clock.part('evaluation'):
          _measure(judge, state, writer, step)
      if saves:
        with clock.part('save'):
          _save(saved, state, model, data, config)
      if stop:
        _say(f'stopped after step {step} of {total}; start again to go on')
        return
  _say_end(target, total, data, done)


def _due(step, every, total):
  return step == total or (every > 0 and step % every == 0)


def _measure(judge, state, writer, step):
  figures = judge.measure(state.params)
  found = dataclasses.asdict(figures).items()
  writer.write(step, {f'held_out/{name}': value for name, value in found})
  _say(f'step {step}: held out, greedy: {_words(figures)}')


def _start(target, model, optim, params, made) -> TrainState:
  """The state to go on from, and the batches at their place."""
  if params is not None:
    return states.init_state(model, optim, params)
  abstract = states.abstract_state(model, optim)
  meta = checkpoints.read_json(target, 'meta')
  made.restore(meta['data'])
  params, opt_state = checkpoints.restore(
    target, abstract.params, abstract.opt_state
  )
  step = jax.device_put(np.int32(meta['step']), abstract.step.sharding)
  logging.info('%s: going on after step %d', target, meta['step'])
  return TrainState(step, params, opt_state)


def _save(saved, state, model, data, config):
  """Everything that the run needs to go on."""
  step = int(state.step)
  saved.save(
    step,
    state.params,
    state.opt_state,
    model=pretrained.describe(model),
    meta={
      'step': step,
      'data': data.state(),
      'config': json.loads(config.to_json_best_effort()),
    },
  )


def _finish(workdir, clock, writer, model, pending) -> None:
  """Checks and writes the numbers of a step, if there is one."""
  if pending is None:
    return
  step, numbers, metas, waste = pending
  ids = [name for meta in metas for name in meta.ids if name]
  with clock.part('wait'):
    numbers = jax.device_get(numbers)
  metrics.check_finite(numbers, ids, workdir, step)
  lengths = [x for meta in metas for x in meta.lengths]
  clock.add('tokens', sum(n + sum(own) for n, own in lengths))
  clock.add('generation_tokens', sum(sum(own) for _, own in lengths))
  clock.add('flops', _flops(model, lengths))
  lap = clock.lap()
  used = lap.pop('flops_per_second')
  peak = flops.peak_flops(list(model.layout.mesh.devices.flat))
  row = {
    'loss': numbers['loss'],
    'perplexity': math.exp(min(50.0, float(numbers['loss']))),
    'grad_norm': numbers['grad_norm'],
    'param_norm': numbers['param_norm'],
    'learning_rate': numbers['learning_rate'],
    'mfu': used / peak if peak else None,
    **{f'padding/{name}': share for name, share in waste.items()},
    **lap,
  }
  writer.write(step, row)


def _flops(model, lengths) -> int:
  """Useful FLOPs of an update on these texts."""
  most = max(len(own) for _, own in lengths)
  own = [[*x, *[0] * (most - len(x))] for _, x in lengths]
  prompts = [n for n, _ in lengths]
  return flops.train_step(model.size, prompts, own).total


def _words(figures) -> str:
  return (
    f'accuracy {figures.accuracy:.3f}, of pairs {figures.pair_accuracy:.3f}, '
    f'parse failures {figures.parse_failures:.3f}, ties {figures.ties:.3f}, '
    f'{figures.tokens:.0f} tokens'
  )


def _say_end(target, total, data, done) -> None:
  waste = ', '.join(f'{n} {share:.0%}' for n, share in data.waste().items())
  passes = ', '.join(f'{n} {x:.2f}' for n, x in data.passes().items())
  _say(f'{done} of {total} steps; epochs: {passes}; padding: {waste}')
  _say(f'model -> {epath.Path(target)}')


def _say(line: str) -> None:
  """One process speaks for all."""
  if not jax.process_index():
    print(line)
