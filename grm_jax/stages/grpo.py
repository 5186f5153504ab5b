"""Rule-based reinforcement learning (GRPO; arXiv 2504.02495, section 3.2).

  visits -> prompts -> rollout, group_size generations of each -> scores
         -> rewards -> advantages -> reference log-probs -> update -> log

Rollout, reference and update are programs of their own; in each of them every
prompt is computed once for its whole group. A rollout is always by the newest
parameters. Written into WORKDIR: model/, metrics.jsonl, tensorboard/.

A run that was killed, or stopped by SIGTERM, goes on when it is started again
as if nothing had happened. SIGTERM ends a rollout, too, which is then drawn
again: there is seldom time to wait for it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import placing as data_placing
from grm_jax.data import records
from grm_jax.data.visits import Visits
from grm_jax.errors import UserError
from grm_jax.judges import loading
from grm_jax.judging.forms import Forms
from grm_jax.model.compute import Compute
from grm_jax.parallel import mesh
from grm_jax.sampling import placing
from grm_jax.stages import grpo_figures, grpo_update, held_out, runs, told
from grm_jax.stages.grpo_figures import StopRule
from grm_jax.stages.grpo_rollout import Rolled, Roller
from grm_jax.stages.grpo_update import Updater
from grm_jax.training import (
  checkpoints,
  metrics,
  optimizer,
  pretrained,
  profile,
  reference,
)
from grm_jax.training.clock import Clock, progress
from grm_jax.training.preemption import Preemption
from grm_jax.training.reference import Reference

# Rows of a rollout begin together and get longer together: the lengths in
# which their caches are read, see sampling.engine.Engine.
_REACHES = 3


def run(config: ConfigDict, workdir: str) -> None:
  """Trains by rewards on `config.data`.

  Raises:
    UserError: a path, a row or a setting is wrong; or the run stops, because
      what it writes does not parse any more.
  """
  check(config, workdir)
  forms = Forms(
    config.prompt.template, config.prompt.single, config.prompt.too_long
  )
  forms.check()
  layout = mesh.from_config(config)
  data_placing.process_rows(layout, config.batch.prompts)
  examples = told.load(config.data, config.strict, forms)
  visits = Visits(examples, config.order, config.seed)
  target = os.path.join(workdir, runs.MODEL)
  saved = checkpoints.read_json(target, 'meta') if _goes_on(target) else {}
  model, tokenizer, params = _open(config, target, layout)
  decoder = model.clone(layout=mesh.from_config(config, weights='resident'))
  engine = loading.make_engine(
    decoder,
    None,
    tokenizer,
    prompts=config.rollout.prompts,
    rows=config.rollout.rows,
    size=max(config.batch.size),
    chunk=config.rollout.chunk,
    reaches=_REACHES,
    buckets=config.batch.buckets,
  )
  roller = Roller(
    engine,
    tokenizer,
    forms,
    group_size=config.group_size,
    temperature=config.temperature,
    seed=config.seed,
  )
  judge = held_out.from_config(
    config, decoder, tokenizer, engine, config.rollout.int8
  )
  optim, _ = optimizer.make(config.steps, **config.optimizer)
  updater = Updater(config, model, optim, _reference(config, model, saved))
  state = runs.start(target, model, optim, params, visits)
  del params
  with Preemption() as preemption:
    roll = functools.partial(_roll, config, roller, visits)
    asked = runs.Asked(preemption)
    _train(
      config, workdir, model, state, visits, roll, updater, judge, asked, saved
    )


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks what would only be seen after rows or weights; see runs.check."""
  if not workdir:
    raise UserError('give --workdir=DIR, where the model is written')
  e, each = config.evaluation, config.minibatches * config.passes
  runs.check_least(
    ('group_size', config.group_size, 2),
    ('prompts', config.prompts, 1),
    ('minibatches', config.minibatches, 1),
    ('passes', config.passes, 1),
    ('resample', config.resample, 0),
    ('batch.prompts', config.batch.prompts, 1),
    ('rollout.prompts', config.rollout.prompts, 1),
    ('rollout.rows', config.rollout.rows, 1),
    ('rollout.chunk', config.rollout.chunk, 1),
    ('keep', config.keep, 1),
    ('evaluation.k', e.k, 0),
    key=key,
  )
  if config.prompts < config.minibatches:
    raise UserError(
      f'{key}.prompts={config.prompts} groups make no '
      f'{key}.minibatches={config.minibatches}'
    )
  if config.steps % each:
    raise UserError(
      f'{key}.steps={config.steps} is no multiple of {key}.minibatches * '
      f'{key}.passes = {each}, the updates on a rollout'
    )
  if not 0 < config.temperature < float('inf'):
    raise UserError(
      f'{key}.temperature is {config.temperature}; it must be above 0: all '
      'generations of a group would be the same'
    )
  records.limits(
    config.batch.buckets, config.batch.size, config.group_size, f'{key}.batch'
  )
  grpo_update.objective_of(config, key)
  reference.check_dtype(config.reference.dtype, f'{key}.reference.dtype')
  StopRule(e.most_failures, e.patience, key=f'{key}.evaluation')
  optimizer.make(config.steps, key=f'{key}.optimizer', **config.optimizer)
  profile.parse(config.profile_steps, f'{key}.profile_steps')


def _goes_on(target: str) -> bool:
  return bool(checkpoints.steps(target))


def _open(config, target, layout):
  """(model, tokenizer, params): of the run so far, or where it begins.

  Parameters are None where the run goes on: they are in its checkpoint.
  """
  compute = Compute(**config.compute)
  if _goes_on(target):
    model = pretrained.build(target, None, compute, layout)
    _check_writes(model, target, 'choose another --workdir')
    return model, pretrained.load_tokenizer(target, model.size), None
  if config.checkpoint == pretrained.SCRATCH:
    raise UserError(
      'config.checkpoint=scratch: only a model that writes judgements can be '
      'rewarded for them; give the model/ of the stage rft or sft'
    )
  model, tokenizer, params = pretrained.open_model(
    config.checkpoint,
    pretrained.step_of(config.step),
    compute,
    layout,
    seed=config.seed,
  )
  _check_writes(
    model, f'config.checkpoint={config.checkpoint}', 'give a model that writes'
  )
  return model, tokenizer, runs.take_over(config, target, model, params)


def _check_writes(model, what, cure):
  if model.scalar:
    raise UserError(f'{what} has a scalar head; {cure}')


def _reference(config, model, saved) -> Reference | None:
  """Frozen parameters, if the objective needs any; the same as before."""
  if not config.objective.kl_coef:
    return None
  r, before = config.reference, saved.get('reference')
  step = None if r.checkpoint else pretrained.step_of(config.step)
  if step is None and before:
    step = before['step']  # there may be newer ones by now
  made = Reference(
    r.checkpoint or config.checkpoint,
    step,
    model,
    dtype=r.dtype,
    on_host=r.on_host,
    seed=config.seed,
  )
  made.check(before)
  return made


def _roll(config, roller, visits, params, stops) -> Rolled | None:
  """A rollout by these parameters; None if it was stopped."""
  decoder = roller.engine.programs.model
  weights, _ = placing.place(decoder, params, config.rollout.int8)
  return roller.roll(weights, visits, config.prompts, config.resample, stops)


def _train(
  config, workdir, model, state, visits, roll, updater, judge, asked, saved
):
  """The loop: a rollout, and all updates on it; a step is an update.

  Args:
    roll: (params, stops) -> Rolled, or None if it was stopped: the next
      visits, their prompts, generations, scores and rewards.
    updater: advantages, log-probabilities, updates.
    judge: of held-out examples, or None.
    asked: whether to stop.
    saved: item meta of the checkpoint to go on from, or {}.
  """
  total, each, e = config.steps, updater.each, config.evaluation
  target, begin = os.path.join(workdir, runs.MODEL), int(state.step)
  _check_left(begin, total, each)
  rule = StopRule(e.most_failures, e.patience, saved.get('above', 0))
  owed = judge is not None and saved.get('owed', True)
  if begin >= total and not owed:
    runs.say(f'{target} has all of its {total} steps')
    return
  first = jax.process_index() == 0
  clock, rate = Clock(), optimizer.make(total, **config.optimizer)[1]
  with (
    checkpoints.Checkpoints(target, keep=config.keep) as checkpoint,
    metrics.Writer(workdir, begin, first) as writer,
    profile.Profiler(profile.parse(config.profile_steps), workdir) as profiler,
    progress(begin, total, 'GRPO', first) as bar,
  ):
    save = _saver(checkpoint, writer, model, visits, config, updater.reference)
    measure = functools.partial(_measure, config, judge, clock, writer, asked)
    if owed:
      failures = measure(state, begin)
      owed = failures is None
      if begin and not owed:
        _warn(rule.see(failures))
    for step in range(begin + each, total + 1, each):
      for one in range(step - each + 1, step + 1):
        profiler.begin(one)
      with clock.part('rollout'):
        rolled = roll(state.params, lambda now=step - each: asked.at(now))
      if rolled is None:
        if step > each:
          save(state, above=rule.above, owed=owed)
        runs.say_stopped(step - each, total)
        return
      parts = updater.batches(rolled.groups)
      if updater.reference is not None:
        with clock.part('reference'):
          parts = updater.with_reference(parts)
      if each > 1:
        with clock.part('old'):
          parts = updater.with_old(state.params, parts)
      with clock.part('update'):
        state, numbers = updater.update(state, parts)
      profiler.end(step, numbers)
      row = {'epochs': visits.epochs, 'learning_rate': rate(step - 1)}
      _log(config, workdir, clock, model, writer, step, numbers, row, rolled)
      bar.update(each)
      owed, advice = (
        judge is not None and runs.due(step, e.every, total, each),
        '',
      )
      if owed and not asked.at(step):
        failures = measure(state, step)
        owed = failures is None
        advice = '' if owed else rule.see(failures)
      stop = asked.at(step)
      if stop or advice or runs.due(step, config.save_every, total, each):
        with clock.part('save'):
          save(state, above=rule.above, owed=owed)
      if stop:
        runs.say_stopped(step, total)
        return
      if advice and step < total:
        checkpoint.wait()
        raise UserError(f'stopped after step {step} of {total}: {advice}')
      _warn(advice)
  runs.say(f'{total} steps; {visits.epochs:.2f} epochs; model -> {target}')


def _check_left(begin, total, each) -> None:
  if begin < total and (total - begin) % each:
    raise UserError(
      f'{total - begin} of config.steps={total} are left, which is no multiple '
      f'of config.minibatches * config.passes = {each}, the updates on a '
      'rollout; go on with what the run began with'
    )


def _saver(
  checkpoint, writer, model, visits, config, used
) -> Callable[..., None]:
  """save(state, **more): all that the run needs to go on, each step once."""
  provenance = used and used.provenance

  def save(state, **more: Any):
    if int(state.step) not in checkpoint.steps():
      writer.send()
      runs.save(
        checkpoint, state, model, visits, config, reference=provenance, **more
      )

  return save


def _log(config, workdir, clock, model, writer, step, numbers, row, rolled):
  """Checks and writes the numbers of a rollout and of the updates on it."""
  metas = [grpo_update.meta(rolled.groups)] * config.passes
  found = runs.finished(workdir, clock, model, (step, numbers, metas, {}))
  found |= row | grpo_figures.figures(rolled)
  found |= grpo_figures.speeds(rolled, found, config.passes)
  writer.write(step, found)
  each = config.minibatches * config.passes
  texts = config.texts_every
  shown = texts and runs.due(step, texts, config.steps, each)
  grpo_figures.show(writer, step, rolled, 4 if shown else 0)


def _measure(config, judge, clock, writer, asked, state, step) -> float | None:
  """Writes greedy figures of held-out examples, and those of votes.

  Returns:
    The share of greedy generations that do not parse; None if it was stopped.
  """
  k = config.evaluation.k
  with clock.part('evaluation'):
    kinds = [
      judge.judged(state.params, count, lambda: asked.at(step))
      for count in ([0, k] if k else [0])
    ]
  if None in kinds:
    return None
  found = held_out.figures(kinds[0])
  row, words = dataclasses.asdict(found), f'greedy: {held_out.words(found)}'
  if k:
    row[f'voting_{k}'] = voted = held_out.voting_accuracy(kinds[1])
    words += f'; Voting@{k} {voted:.3f}'
  writer.write(step, {f'held_out/{name}': value for name, value in row.items()})
  runs.say(f'step {step}: held out, {words}')
  return found.parse_failures


def _warn(advice: str) -> None:
  if advice:
    logging.warning('%s', advice)
