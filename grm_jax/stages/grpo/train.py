"""Rule-based reinforcement learning with GRPO (arXiv 2504.02495, section 3.2).

  prompts -> generations, a group per prompt -> rewards -> advantages
    -> reference log-probabilities -> update

Sampling is on-policy: every rollout uses the newest parameters. In sampling,
reference and update each prompt is computed once for its whole group. A step is
one update; a rollout has num_minibatches * num_iterations of them.

Writes WORKDIR/model (a model directory), metrics.jsonl and tensorboard/. A run
that was killed or preempted (SIGTERM) resumes when the same command runs again,
with the same results bit for bit. A preempted rollout is discarded and sampled
again, because preemption leaves too little time to finish it.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.data import global_arrays, labelled_examples
from grm_jax.data.rollout_prompts import RolloutPromptIterator
from grm_jax.errors import UserError
from grm_jax.io import run_lock
from grm_jax.judgement import correctness, trained_judge
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import evaluation_during_training
from grm_jax.judges import factory as judge_factory
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sharding import distributed, mesh
from grm_jax.stages import input_identity, run_record
from grm_jax.stages.grpo import collate, settings, update
from grm_jax.stages.grpo import evaluate as grpo_evaluate
from grm_jax.stages.grpo import metrics as grpo_metrics
from grm_jax.stages.grpo import rollout as grpo_rollout
from grm_jax.stages.grpo.rollout import RolloutSampler
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training import grpo_loss, metric_writer, optimizer
from grm_jax.training import profiler as profiling
from grm_jax.training import run as training_run
from grm_jax.training.preemption import Preemption
from grm_jax.training.progress import ProgressPrinter
from grm_jax.training.reference_policy import ReferencePolicy
from grm_jax.training.run import LoadedModel
from grm_jax.training.run_state import RunState
from grm_jax.training.step_timer import StepTimer
from grm_jax.training.train_state import TrainState

# The generations of a rollout start together and grow together, so decoding can
# read shorter caches at first; see sampling.engine.Engine.
_NUM_CACHE_LENGTHS = 3
_NUM_SAMPLE_TEXTS = 4  # generations shown in TensorBoard

UNUSED = settings.UNUSED


def run(config: ConfigDict, workdir: str) -> None:
  """Trains a judge by rewards on `config.data`.

  Args:
    config: from configs/grpo.py.
    workdir: folder that this run writes.

  Raises:
    UserError: a path, a row or a setting is wrong; or too many generations do
      not parse (config.evaluation.patience).
    NonFiniteError: the loss or a norm is not finite.
  """
  settings.check(config, workdir)
  training_run.check_checkpoint(config, workdir)
  with (
    distributed.enter_on_all(run_lock.hold_workdir(workdir)),
    training_run.no_leftovers(workdir),
  ):
    prompt_format = training_run.prompt_format(
      config.prompt,
      training_run.trained_judge_directory(config.checkpoint, workdir),
    )
    examples = distributed.run_on_all(
      lambda: labelled_examples.load(
        config.data, config.fail_on_bad_rows, prompt_format
      )
    )
    run_record.begin_training(
      config,
      workdir,
      {
        'data': config.data,
        'evaluation.data': config.evaluation.data,
        'reference.checkpoint': config.reference.checkpoint,
        'reward': config.reward.rpartition(':')[0],
      },
      lambda: _identify_data(config, workdir, examples),
    )
    _train(config, workdir, prompt_format, examples)


def _identify_data(
  config: ConfigDict, workdir: str, examples: Sequence[JudgingExample]
) -> dict[str, str]:
  path, _, function = config.reward.rpartition(':')
  reward = f'{function}, {input_identity.of_file(path)}' if path else function
  begun = run_record.begun_identity(config, workdir, 'reference.checkpoint')
  return {
    'data': input_identity.of_items(examples),
    'evaluation.data': input_identity.of_source(config.evaluation.data),
    'reward': reward,
    'reference.checkpoint': input_identity.of_checkpoint(
      config.reference.checkpoint, -1, begun
    ),
  }


def _train(
  config: ConfigDict,
  workdir: str,
  prompt_format: PromptFormat,
  examples: Sequence[JudgingExample],
) -> None:
  """Trains a judge on examples; see `run`."""
  target, total = os.path.join(workdir, training_run.MODEL), config.steps
  metadata = training_run.read_metadata(target)
  updates_per_rollout = settings.updates_per_rollout(config)
  layout = mesh.from_config(config)
  make_minibatches = functools.partial(
    collate.make_minibatches,
    num_minibatches=config.num_minibatches,
    micro_batch_prompts=config.batch.micro_batch_prompts,
    batch_shape=settings.batch_shape(config),
    layout=layout,
  )
  # Raises UserError now, not after the first rollout.
  global_arrays.local_prompt_indices(layout, config.batch.micro_batch_prompts)

  reward_fn = correctness.load_reward(config.reward)
  prompts = RolloutPromptIterator(examples, config.response_order, config.seed)

  # Policy, sampler, evaluator, reference, optimizer.
  loaded, params = training_run.load_model(config, target, layout)
  model, tokenizer = loaded.model, loaded.tokenizer
  max_new_tokens = trained_judge.generation_length(
    model_directory.read_trained_judge(config.checkpoint),
    config.checkpoint,
    max(config.batch.generation_buckets),
    'config.batch.generation_buckets',
  )
  if params is not None:  # a new run
    model_directory.write_trained_judge(
      target,
      trained_judge.of_training(
        prompt_format, tokenizer.chat_format.name, max_new_tokens
      ),
    )
  decode_model = model.clone(
    layout=mesh.from_config(config, weights='resident')
  )
  engine = _make_engine(config, decode_model, tokenizer)
  sampler = RolloutSampler(
    engine,
    tokenizer,
    prompt_format,
    reward_fn,
    group_size=config.group_size,
    temperature=config.temperature,
    seed=config.seed,
  )
  evaluator = evaluation_during_training.from_config(
    config, prompt_format, decode_model, tokenizer, engine, config.rollout.int8
  )
  reference = _load_reference(config, loaded, metadata)
  optim, learning_rate = optimizer.make(total, **config.optimizer)
  train_step = update.make_train_step(config, model, optim)
  policy_logps = grpo_loss.jit_logps(model)
  state = training_run.restore_or_init(target, model, optim, params, prompts)
  del params
  run_state = RunState.from_metadata(metadata, evaluate_initial=True)
  settings.check_remaining_steps(config, run_state.step)
  if run_state.step >= total and not run_state.eval_pending:
    training_run.check_finished(workdir, total)
    return

  with (
    Preemption() as preemption,
    orbax_checkpoint.CheckpointManager(
      target, max_to_keep=config.max_to_keep
    ) as checkpoints,
    metric_writer.MetricWriter(
      workdir, run_state.step, jax.process_index() == 0
    ) as writer,
    profiling.Profiler(
      profiling.parse(config.profile_steps), workdir
    ) as profiler,
  ):
    timer, progress = StepTimer(), ProgressPrinter(run_state.step, total)
    evaluate = functools.partial(
      _evaluate, config, evaluator, preemption, timer, writer
    )
    run_state, stop_reason = evaluate(loaded.whole(state.params), run_state)
    if stop_reason:
      logging.warning('%s', stop_reason)

    def save(state: TrainState, run_state: RunState) -> None:
      metadata = training_run.make_metadata(
        config,
        run_state,
        prompts.state(),
        reference=reference.provenance if reference else None,
      )
      training_run.save(checkpoints, writer, state, model, metadata)

    first_step = run_state.step + updates_per_rollout
    for step in range(first_step, total + 1, updates_per_rollout):
      profiler.begin(step, updates_per_rollout)
      with jax.profiler.StepTraceAnnotation('grpo', step_num=step):
        # Sample: prompts -> generations -> scores -> rewards.
        with timer.part('rollout'):
          weights, _ = decode_weights.place(
            decode_model, loaded.whole(state.params), config.rollout.int8
          )
          rollout = sampler.sample(
            weights,
            prompts,
            config.prompts_per_rollout,
            config.max_resample_attempts,
            should_stop=preemption.should_stop,
          )
          del weights  # frees their memory for the update
        if rollout is None:
          break  # preempted

        # Learn: advantages -> log-probabilities -> updates.
        advantages = grpo_rollout.group_advantages(
          rollout.groups, config.loss.normalize_by_std
        )
        minibatches = make_minibatches(rollout.groups, advantages)
        if reference is not None:
          with timer.part('reference'):
            minibatches = update.add_reference_logps(reference, minibatches)
        if updates_per_rollout > 1:
          with timer.part('old_logps'):
            minibatches = update.add_old_logps(
              policy_logps, loaded.whole(state.params), minibatches
            )
        with timer.part('update'):
          state, metrics = update.update_policy(
            train_step,
            state,
            minibatches,
            config.num_iterations,
            loaded.frozen,
          )
      profiler.end(step, metrics)

      # Log, evaluate, save, stop.
      infos = [grpo_metrics.batch_info(rollout.groups)] * config.num_iterations
      row = training_run.collect_metrics(
        workdir, timer, model, step, metrics, infos
      )
      row |= grpo_metrics.rollout_metrics(rollout)
      row |= grpo_metrics.throughput(rollout, row, config.num_iterations)
      row['learning_rate'] = float(learning_rate(step - 1))
      row['epochs'] = prompts.epochs
      _log(config, writer, progress, step, row, rollout)

      is_due = functools.partial(
        training_run.should_run, step, total=total, stride=updates_per_rollout
      )
      run_state = dataclasses.replace(
        run_state, step=step, eval_pending=is_due(config.evaluation.every)
      )
      run_state, stop_reason = evaluate(loaded.whole(state.params), run_state)
      if preemption.should_stop():
        break
      if stop_reason or is_due(config.save_every):
        with timer.part('save'):
          save(state, run_state)
      if stop_reason and step < total:
        checkpoints.wait()
        raise UserError(f'stopped after step {step} of {total}: {stop_reason}')
      if stop_reason:
        logging.warning('%s', stop_reason)

    if run_state.step:
      save(state, run_state)  # if it was preempted since the last checkpoint

  if run_state.step < total or run_state.eval_pending:
    training_run.print_stopped(run_state.step, total)
    return
  training_run.print_on_host0(
    f'{total} steps; {prompts.epochs:.2f} epochs; model -> {target}'
  )


def _make_engine(
  config: ConfigDict, decode_model: Transformer, tokenizer: Tokenizer
) -> Engine:
  return judge_factory.make_engine(
    decode_model,
    tokenizer,
    prompts=config.rollout.concurrent_prompts,
    generations_per_prompt=config.rollout.generations_per_prompt,
    max_new_tokens=max(config.batch.generation_buckets),
    decode_steps_per_call=config.rollout.decode_steps_per_call,
    num_cache_lengths=_NUM_CACHE_LENGTHS,
    prompt_buckets=config.batch.prompt_buckets,
  )


def _load_reference(
  config: ConfigDict, loaded: LoadedModel, metadata: Mapping[str, Any]
) -> ReferencePolicy | None:
  """Returns the reference policy; None if the loss has no KL term.

  The initial policy of a run with an adapter is the adapter's base, so that
  there is no second copy of it.

  Args:
    config: config of the stage.
    loaded: the policy.
    metadata: of the checkpoint to resume from. It names the reference of the
      run so far, which must not change.
  """
  if not config.loss.kl_coef:
    return None
  checkpoint, step = config.reference.checkpoint, None
  adapter = loaded.model.adapter
  if adapter is not None and not checkpoint:
    base = {
      'checkpoint': adapter.base,
      'step': adapter.base_step,
      'digest': adapter.base_digest,
    }
    assert loaded.frozen is not None
    reference = ReferencePolicy(loaded.frozen, base, loaded.model)
    reference.check_provenance(metadata.get('reference'))
    return reference
  if not checkpoint:
    checkpoint = config.checkpoint
    step = model_directory.step_or_latest(config.checkpoint_step)
  earlier = metadata.get('reference')
  if step is None and earlier:
    step = earlier['step']  # the newest step may be another one by now
  reference = ReferencePolicy.load(
    checkpoint,
    step,
    loaded.model,
    dtype=config.reference.dtype,
    offload_to_host=config.reference.offload_to_host,
    seed=config.seed,
  )
  reference.check_provenance(earlier)
  return reference


def _evaluate(
  config: ConfigDict,
  evaluator: evaluation_during_training.JudgeEvaluator | None,
  preemption: Preemption,
  timer: StepTimer,
  writer: metric_writer.MetricWriter,
  params: dict,
  run_state: RunState,
) -> tuple[RunState, str]:
  """Evaluates the policy if it is pending; writes and prints the result.

  Returns:
    The new run state, and a reason to end the run or ''. If the evaluation is
    preempted, the run state stays as it was: the evaluation is pending.
  """
  k, step = config.evaluation.k, run_state.step
  if evaluator is None or not run_state.eval_pending:
    return dataclasses.replace(run_state, eval_pending=False), ''
  if preemption.should_stop():
    return run_state, ''
  with timer.part('evaluation'):
    metrics = grpo_evaluate.evaluate(
      evaluator, params, k, preemption.should_stop
    )
  if metrics is None:
    return run_state, ''
  grpo_evaluate.write_metrics(writer, step, metrics, k)
  run_state = dataclasses.replace(run_state, eval_pending=False)
  if step == 0:  # the initial model does not count: training may repair it
    return run_state, ''
  return settings.stop_rule(config).update(run_state, metrics['parse_failures'])


def _log(config, writer, progress, step, row, rollout) -> None:
  """Writes the metrics of a step and its rollout; prints progress."""
  writer.write(step, row)
  texts_due = config.log_samples_every and training_run.should_run(
    step,
    config.log_samples_every,
    config.steps,
    settings.updates_per_rollout(config),
  )
  grpo_metrics.log_samples(
    writer, step, rollout, _NUM_SAMPLE_TEXTS if texts_due else 0
  )
  progress.update(
    step,
    f'reward {row["rollout/reward"]:.3f}',
    row['learning_rate'],
    row['tokens_per_second'],
  )
