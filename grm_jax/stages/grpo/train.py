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

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.data import global_arrays, labelled_examples, tokenized_example
from grm_jax.data.rollout_prompts import RolloutPromptIterator
from grm_jax.errors import UserError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import evaluation_during_training
from grm_jax.judges import factory as judge_factory
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling import decode_weights
from grm_jax.sharding import mesh
from grm_jax.stages.grpo import metrics as grpo_metrics
from grm_jax.stages.grpo import update as grpo_update
from grm_jax.stages.grpo.metrics import ParseFailureStop
from grm_jax.stages.grpo.rollout import Rollout, RolloutSampler
from grm_jax.stages.grpo.update import PolicyUpdater
from grm_jax.training import metric_writer, optimizer, reference_policy
from grm_jax.training import profiler as profiling
from grm_jax.training import run as training_run
from grm_jax.training.preemption import Preemption
from grm_jax.training.reference_policy import ReferencePolicy
from grm_jax.training.step_timer import StepTimer, progress

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
  forms = PromptFormat(
    config.prompt.template, config.prompt.single, config.prompt.too_long
  )
  forms.check()
  layout = mesh.from_config(config)
  global_arrays.process_rows(layout, config.batch.micro_batch_prompts)
  examples = labelled_examples.load(config.data, config.fail_on_bad_rows, forms)
  visits = RolloutPromptIterator(examples, config.response_order, config.seed)
  target = os.path.join(workdir, training_run.MODEL)
  saved = orbax_checkpoint.read_json(target, 'meta') if _goes_on(target) else {}
  model, tokenizer, params = _open(config, target, layout)
  decoder = model.clone(layout=mesh.from_config(config, weights='resident'))
  engine = judge_factory.make_engine(
    decoder,
    None,
    tokenizer,
    prompts=config.rollout.prompts,
    rows=config.rollout.generations_per_prompt,
    size=max(config.batch.generation_buckets),
    chunk=config.rollout.decode_steps_per_call,
    reaches=_REACHES,
    buckets=config.batch.prompt_buckets,
  )
  roller = RolloutSampler(
    engine,
    tokenizer,
    forms,
    group_size=config.group_size,
    temperature=config.temperature,
    seed=config.seed,
  )
  judge = evaluation_during_training.from_config(
    config, decoder, tokenizer, engine, config.rollout.int8
  )
  optim, _ = optimizer.make(config.steps, **config.optimizer)
  updater = PolicyUpdater(
    config, model, optim, _reference(config, model, saved)
  )
  state = training_run.restore_or_init(target, model, optim, params, visits)
  del params
  with Preemption() as preemption:
    roll = functools.partial(_roll, config, roller, visits)
    asked = training_run.PreemptionPoller(preemption)
    _train(
      config, workdir, model, state, visits, roll, updater, judge, asked, saved
    )


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks what would only be seen after rows or weights; see runs.check."""
  if not workdir:
    raise UserError('give --workdir=DIR, where the model is written')
  e, each = config.evaluation, config.num_minibatches * config.num_iterations
  training_run.check_least(
    ('group_size', config.group_size, 2),
    ('prompts_per_rollout', config.prompts_per_rollout, 1),
    ('num_minibatches', config.num_minibatches, 1),
    ('num_iterations', config.num_iterations, 1),
    ('max_resample_attempts', config.max_resample_attempts, 0),
    ('batch.micro_batch_prompts', config.batch.micro_batch_prompts, 1),
    ('rollout.prompts', config.rollout.prompts, 1),
    (
      'rollout.generations_per_prompt',
      config.rollout.generations_per_prompt,
      1,
    ),
    ('rollout.decode_steps_per_call', config.rollout.decode_steps_per_call, 1),
    ('max_to_keep', config.max_to_keep, 1),
    ('evaluation.k', e.k, 0),
    key=key,
  )
  if config.prompts_per_rollout < config.num_minibatches:
    raise UserError(
      f'{key}.prompts_per_rollout={config.prompts_per_rollout} groups make no '
      f'{key}.num_minibatches={config.num_minibatches}'
    )
  if config.steps % each:
    raise UserError(
      f'{key}.steps={config.steps} is no multiple of {key}.num_minibatches * '
      f'{key}.num_iterations = {each}, the updates on a rollout'
    )
  if not 0 < config.temperature < float('inf'):
    raise UserError(
      f'{key}.temperature is {config.temperature}; it must be above 0: all '
      'generations of a group would be the same'
    )
  tokenized_example.limits(
    config.batch.prompt_buckets,
    config.batch.generation_buckets,
    config.group_size,
    f'{key}.batch',
  )
  grpo_update.objective_of(config, key)
  reference_policy.check_dtype(config.reference.dtype, f'{key}.reference.dtype')
  ParseFailureStop(
    e.max_parse_failure_rate, e.patience, key=f'{key}.evaluation'
  )
  optimizer.make(config.steps, key=f'{key}.optimizer', **config.optimizer)
  profiling.parse(config.profile_steps, f'{key}.profile_steps')


def _goes_on(target: str) -> bool:
  return bool(orbax_checkpoint.steps(target))


def _open(config, target, layout):
  """(model, tokenizer, params): of the run so far, or where it begins.

  Parameters are None where the run goes on: they are in its checkpoint.
  """
  compute = ComputeConfig(**config.compute)
  if _goes_on(target):
    model = model_directory.build(target, None, compute, layout)
    _check_writes(model, target, 'choose another --workdir')
    return model, model_directory.load_tokenizer(target, model.size), None
  if config.checkpoint == model_directory.SCRATCH:
    raise UserError(
      'config.checkpoint=scratch: only a model that writes judgements can be '
      'rewarded for them; give the model/ of the stage rft or sft'
    )
  model, tokenizer, params = model_directory.open_model(
    config.checkpoint,
    model_directory.step_of(config.checkpoint_step),
    compute,
    layout,
    seed=config.seed,
  )
  _check_writes(
    model, f'config.checkpoint={config.checkpoint}', 'give a model that writes'
  )
  return (
    model,
    tokenizer,
    training_run.init_from_checkpoint(config, target, model, params),
  )


def _check_writes(model, what, cure):
  if model.scalar:
    raise UserError(f'{what} has a scalar head; {cure}')


def _reference(config, model, saved) -> ReferencePolicy | None:
  """Frozen parameters, if the objective needs any; the same as before."""
  if not config.loss.kl_coef:
    return None
  r, before = config.reference, saved.get('reference')
  step = (
    None if r.checkpoint else model_directory.step_of(config.checkpoint_step)
  )
  if step is None and before:
    step = before['step']  # there may be newer ones by now
  made = ReferencePolicy(
    r.checkpoint or config.checkpoint,
    step,
    model,
    dtype=r.dtype,
    on_host=r.offload_to_host,
    seed=config.seed,
  )
  made.check(before)
  return made


def _roll(config, roller, visits, params, stops) -> Rollout | None:
  """A rollout by these parameters; None if it was stopped."""
  decoder = roller.engine.programs.model
  weights, _ = decode_weights.place(decoder, params, config.rollout.int8)
  return roller.roll(
    weights,
    visits,
    config.prompts_per_rollout,
    config.max_resample_attempts,
    stops,
  )


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
  target, begin = os.path.join(workdir, training_run.MODEL), int(state.step)
  _check_left(begin, total, each)
  rule = ParseFailureStop(
    e.max_parse_failure_rate, e.patience, saved.get('above', 0)
  )
  owed = judge is not None and saved.get('owed', True)
  if begin >= total and not owed:
    training_run.print_on_host0(f'{target} has all of its {total} steps')
    return
  first = jax.process_index() == 0
  clock, rate = StepTimer(), optimizer.make(total, **config.optimizer)[1]
  with (
    orbax_checkpoint.CheckpointManager(
      target, keep=config.max_to_keep
    ) as checkpoint,
    metric_writer.MetricWriter(workdir, begin, first) as writer,
    profiling.Profiler(
      profiling.parse(config.profile_steps), workdir
    ) as profiler,
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
        training_run.print_stopped(step - each, total)
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
        judge is not None
        and training_run.should_run(step, e.every, total, each),
        '',
      )
      if owed and not asked.at(step):
        failures = measure(state, step)
        owed = failures is None
        advice = '' if owed else rule.see(failures)
      stop = asked.at(step)
      if (
        stop
        or advice
        or training_run.should_run(step, config.save_every, total, each)
      ):
        with clock.part('save'):
          save(state, above=rule.above, owed=owed)
      if stop:
        training_run.print_stopped(step, total)
        return
      if advice and step < total:
        checkpoint.wait()
        raise UserError(f'stopped after step {step} of {total}: {advice}')
      _warn(advice)
  training_run.print_on_host0(
    f'{total} steps; {visits.epochs:.2f} epochs; model -> {target}'
  )


def _check_left(begin, total, each) -> None:
  if begin < total and (total - begin) % each:
    raise UserError(
      f'{total - begin} of config.steps={total} are left, which is no multiple '
      f'of config.num_minibatches * config.num_iterations = {each}, the updates on a '
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
      training_run.save(
        checkpoint, state, model, visits, config, reference=provenance, **more
      )

  return save


def _log(config, workdir, clock, model, writer, step, numbers, row, rolled):
  """Checks and writes the numbers of a rollout and of the updates on it."""
  metas = [grpo_update.meta(rolled.groups)] * config.num_iterations
  found = training_run.collect_metrics(
    workdir, clock, model, (step, numbers, metas, {})
  )
  found |= row | grpo_metrics.rollout_metrics(rolled)
  found |= grpo_metrics.throughput(rolled, found, config.num_iterations)
  writer.write(step, found)
  each = config.num_minibatches * config.num_iterations
  texts = config.log_samples_every
  shown = texts and training_run.should_run(step, texts, config.steps, each)
  grpo_metrics.log_samples(writer, step, rolled, 4 if shown else 0)


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
  found = evaluation_during_training.eval_metrics(kinds[0])
  row, words = (
    dataclasses.asdict(found),
    f'greedy: {evaluation_during_training.format_metrics(found)}',
  )
  if k:
    row[f'voting_{k}'] = voted = evaluation_during_training.voting_accuracy(
      kinds[1]
    )
    words += f'; Voting@{k} {voted:.3f}'
  writer.write(step, {f'held_out/{name}': value for name, value in row.items()})
  training_run.print_on_host0(f'step {step}: held out, {words}')
  return found.parse_failures


def _warn(advice: str) -> None:
  if advice:
    logging.warning('%s', advice)
