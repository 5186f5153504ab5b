"""Supervised fine-tuning: cross-entropy of generations, prompts read only.

  texts -> records -> batches -> steps -> checkpoints, metrics

Written into WORKDIR: model/ (a model directory, its checkpoints with all that
is needed to go on), metrics.jsonl, tensorboard/. A run that was killed, or
asked to stop by SIGTERM, goes on from its last checkpoint as if nothing had
happened, when it is started again.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from grm_jax.data import packing, placing, records, texts
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.texts import Text
from grm_jax.errors import UserError
from grm_jax.judging.forms import Forms
from grm_jax.model.compute import Compute
from grm_jax.parallel import mesh
from grm_jax.stages import held_out, runs, sft_records
from grm_jax.training import (
  checkpoints,
  metrics,
  optimizer,
  pretrained,
  profile,
)
from grm_jax.training.clock import Clock, progress
from grm_jax.training.preemption import Preemption
from grm_jax.training.step import Steps, supervised_loss


def run(config: ConfigDict, workdir: str) -> None:
  """Fine-tunes on `config.data`.

  Raises:
    UserError: a path, a row or a setting is wrong.
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


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks what would only be seen after rows or weights; see runs.check."""
  runs.check(config, workdir, key)
  rate = config.data.general_rate
  if not 0 <= rate < 1:
    raise UserError(f'{key}.data.general_rate is {rate}; it is a share below 1')


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
    UserError: a setting is wrong, or no text is left.
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
  target = os.path.join(workdir, runs.MODEL)
  model, tokenizer, params = _open(config, target, layout, found, forms)
  used = sft_records.records_of(found, named, forms, tokenizer, limits, config)
  if config.batch.packed:
    limits = dataclasses.replace(
      limits, rows=0, buckets=(packing.room(limits),)
    )
  made = runs.batches(config, used, rates, limits, own_rows)
  judge = held_out.from_config(
    config,
    model.clone(layout=mesh.from_config(config, weights='resident')),
    tokenizer,
    prompts=config.evaluation.prompts,
    rows=1,  # one greedy judgement of each
    size=max(config.batch.size),
    buckets=config.batch.buckets,
  )
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
  model, tokenizer, params = pretrained.open_model(
    config.checkpoint,
    pretrained.step_of(config.step),
    compute,
    layout,
    seed=config.seed,
  )
  if model.scalar:
    raise UserError(
      f'config.checkpoint={config.checkpoint} has a scalar head; fine-tuning '
      'needs a model that writes'
    )
  params = runs.take_over(config, target, model, params)
  return model, tokenizer, params


def _train(config, workdir, model, params, made, judge, preemption):
  """The loop: one update of `accumulate` batches a step."""
  s, layout = config.batch, model.layout
  total = config.steps
  optim, rate = optimizer.make(total, **config.optimizer)
  update = Steps(model, optim, functools.partial(supervised_loss, model))
  target = os.path.join(workdir, runs.MODEL)
  state = runs.start(target, model, optim, params, made)
  del params
  done = begin = int(state.step)
  if begin >= total:
    runs.say(f'{target} has all of its {total} steps')
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
    finish = functools.partial(_finish, workdir, clock, model, writer)
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
      judged = runs.due(step, config.evaluation.every, total)
      judges = judge and judged and not stop
      saves = stop or runs.due(step, config.save_every, total)
      if judges or saves:
        # Rows come before the checkpoint, or a run that goes on lacks them.
        finish(pending)
        pending = None
      if judges:
        with clock.part('evaluation'):
          _measure(judge, state, writer, step)
      if saves:
        with clock.part('save'):
          writer.send()
          runs.save(saved, state, model, data, config)
      if stop:
        runs.say_stopped(step, total)
        return
  runs.say_end(target, total, data, done)


def _measure(judge, state, writer, step):
  figures = judge.measure(state.params)
  found = dataclasses.asdict(figures).items()
  writer.write(step, {f'held_out/{name}': value for name, value in found})
  runs.say(f'step {step}: held out, greedy: {held_out.words(figures)}')


def _finish(workdir, clock, model, writer, pending) -> None:
  """Checks and writes the numbers of a step, if there is one."""
  if pending is None:
    return
  row = runs.finished(workdir, clock, model, pending)
  row['perplexity'] = math.exp(min(50.0, float(row['loss'])))
  writer.write(pending[0], row)
