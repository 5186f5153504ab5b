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

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.data import global_arrays, packing, sft_sources, tokenized_example
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.sft_sources import SFTExample
from grm_jax.errors import UserError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import evaluation_during_training
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import mesh
from grm_jax.stages.sft import data as sft_data
from grm_jax.training import metric_writer, optimizer
from grm_jax.training import profiler as profiling
from grm_jax.training import run as training_run
from grm_jax.training.preemption import Preemption
from grm_jax.training.step_timer import StepTimer, progress
from grm_jax.training.train_step import TrainStep, supervised_loss


def run(config: ConfigDict, workdir: str) -> None:
  """Fine-tunes on `config.data`.

  Raises:
    UserError: a path, a row or a setting is wrong.
  """
  check(config, workdir)
  data = config.data
  found, named = sft_data.read(config)
  # Rounded, or 1 - 0.9 would be no tenth.
  rates = {
    'texts': round(1 - data.general_fraction, 9),
    'general': data.general_fraction,
  }
  fine_tune(config, workdir, found, rates, named)


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks what would only be seen after rows or weights; see runs.check."""
  training_run.check(config, workdir, key)
  rate = config.data.general_fraction
  if not 0 <= rate < 1:
    raise UserError(
      f'{key}.data.general_fraction is {rate}; it is a share below 1'
    )


def fine_tune(
  config: ConfigDict,
  workdir: str,
  found: Sequence[SFTExample],
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
  forms = PromptFormat(
    config.prompt.template, config.prompt.single, config.prompt.too_long
  )
  forms.check()
  layout = mesh.from_config(config)
  rates = {source: rate for source, rate in rates.items() if rate}
  limits = tokenized_example.limits(
    config.batch.prompt_buckets,
    config.batch.generation_buckets,
    config.batch.generations_per_prompt,
  )
  own_rows = global_arrays.process_rows(
    layout, config.batch.micro_batch_prompts
  )
  target = os.path.join(workdir, training_run.MODEL)
  model, tokenizer, params = _open(config, target, layout, found, forms)
  used = sft_data.records_of(found, named, forms, tokenizer, limits, config)
  if config.batch.packed:
    limits = dataclasses.replace(
      limits, rows=0, buckets=(packing.room(limits),)
    )
  made = training_run.batches(config, used, rates, limits, own_rows)
  judge = evaluation_during_training.from_config(
    config,
    model.clone(layout=mesh.from_config(config, weights='resident')),
    tokenizer,
    prompts=config.evaluation.prompts,
    rows=1,  # one greedy judgement of each
    size=max(config.batch.generation_buckets),
    buckets=config.batch.prompt_buckets,
  )
  with Preemption() as preemption:
    _train(config, workdir, model, params, made, judge, preemption)


def _open(config, target, layout, found, forms):
  """(model, tokenizer, params): of the run so far, or where it begins.

  Parameters are None where the run goes on: they are in its checkpoint.
  """
  compute = ComputeConfig(**config.compute)
  if orbax_checkpoint.steps(target):
    model = model_directory.build(target, None, compute, layout)
    return model, model_directory.load_tokenizer(target, model.size), None
  if config.checkpoint == model_directory.SCRATCH:
    model, tokenizer, params = model_directory.scratch(
      config.size,
      sft_sources.lines(found, forms),
      target,
      compute,
      layout,
      config.seed,
    )
    return model, tokenizer, params
  model, tokenizer, params = model_directory.open_model(
    config.checkpoint,
    model_directory.step_of(config.checkpoint_step),
    compute,
    layout,
    seed=config.seed,
  )
  if model.scalar:
    raise UserError(
      f'config.checkpoint={config.checkpoint} has a scalar head; fine-tuning '
      'needs a model that writes'
    )
  params = training_run.init_from_checkpoint(config, target, model, params)
  return model, tokenizer, params


def _train(config, workdir, model, params, made, judge, preemption):
  """The loop: one update of `accumulate` batches a step."""
  s, layout = config.batch, model.layout
  total = config.steps
  optim, rate = optimizer.make(total, **config.optimizer)
  update = TrainStep(model, optim, functools.partial(supervised_loss, model))
  target = os.path.join(workdir, training_run.MODEL)
  state = training_run.restore_or_init(target, model, optim, params, made)
  del params
  done = begin = int(state.step)
  if begin >= total:
    training_run.print_on_host0(f'{target} has all of its {total} steps')
    return
  first = jax.process_index() == 0
  clock, pending = StepTimer(), None
  with (
    orbax_checkpoint.CheckpointManager(
      target, keep=config.max_to_keep
    ) as saved,
    metric_writer.MetricWriter(workdir, begin, first) as writer,
    profiling.Profiler(
      profiling.parse(config.profile_steps), workdir
    ) as profiler,
    Prefetch(made) as data,
    progress(begin, total, 'fine-tuning', first) as bar,
  ):
    finish = functools.partial(_finish, workdir, clock, model, writer)
    for step in range(begin + 1, total + 1):
      profiler.begin(step)
      with clock.part('data'):
        some = [next(data) for _ in range(s.grad_accum_steps)]
        placed = [
          global_arrays.place(b, layout, s.micro_batch_prompts) for b, _ in some
        ]
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
      judged = training_run.should_run(step, config.evaluation.every, total)
      judges = judge and judged and not stop
      saves = stop or training_run.should_run(step, config.save_every, total)
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
          training_run.save(saved, state, model, data, config)
      if stop:
        training_run.print_stopped(step, total)
        return
  training_run.say_end(target, total, data, done)


def _measure(judge, state, writer, step):
  figures = judge.measure(state.params)
  found = dataclasses.asdict(figures).items()
  writer.write(step, {f'held_out/{name}': value for name, value in found})
  training_run.print_on_host0(
    f'step {step}: held out, greedy: {evaluation_during_training.format_metrics(figures)}'
  )


def _finish(workdir, clock, model, writer, pending) -> None:
  """Checks and writes the numbers of a step, if there is one."""
  if pending is None:
    return
  row = training_run.collect_metrics(workdir, clock, model, pending)
  row['perplexity'] = math.exp(min(50.0, float(row['loss'])))
  writer.write(pending[0], row)
