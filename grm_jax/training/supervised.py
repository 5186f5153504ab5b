"""The training loop of supervised fine-tuning and of reward models."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.data import global_arrays
from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.collate import BatchInfo
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.training import metric_writer, optimizer
from grm_jax.training import profiler as profiling
from grm_jax.training import run as training_run
from grm_jax.training.preemption import Preemption
from grm_jax.training.progress import ProgressPrinter
from grm_jax.training.run import LoadedModel
from grm_jax.training.run_state import RunState
from grm_jax.training.step_timer import StepTimer
from grm_jax.training.train_step import Loss, TrainStep

_WINDOW = 16  # number of batches whose examples are sorted by length together

# Metrics of an evaluation by name, and a summary for the terminal.
Evaluation = tuple[Mapping[str, float], str]
# Rules of config.batch.
BATCH: dict[str, settings.Rule | settings.Rules] = {
  'micro_batch_prompts': settings.parallel(1),
  'grad_accum_steps': settings.parallel(1),
  'generations_per_prompt': settings.samples(1),
  'prompt_buckets': settings.LENGTHS,
  'generation_buckets': settings.LENGTHS,
}


def make_batches(
  config: ConfigDict,
  examples: Sequence[TokenizedExample],
  rates: Mapping[str, float],
  batch_shape: BatchShape,
  local_indices: np.ndarray,
) -> BatchIterator:
  """Returns the shuffled, endless batches of `config.batch`.

  Args:
    config: config of the stage.
    examples: examples of all sources.
    rates: fraction of the prompts from each source.
    batch_shape: padded lengths and generations per prompt.
    local_indices: this process's prompts of a global batch.
  """
  num_prompts = config.batch.micro_batch_prompts
  return BatchIterator(
    examples,
    rates,
    num_prompts=num_prompts,
    batch_shape=batch_shape,
    seed=config.seed,
    # At most one epoch: a window must not hold an example twice.
    window=max(1, min(_WINDOW, len(examples) // num_prompts)),
    local_indices=local_indices,
  )


def train_supervised(
  config: ConfigDict,
  workdir: str,
  loaded: LoadedModel,
  params: dict | None,
  batches: BatchIterator,
  *,
  grad_accum_steps: int,
  loss: Loss,
  add_labels: Callable[[Batch, BatchInfo], Any] = lambda batch, info: batch,
  evaluate: Callable[[dict], Evaluation] | None = None,
  derived_metrics: Callable[[Mapping[str, Any]], dict] = lambda row: {},
  **metadata: Any,
) -> None:
  """Trains until config.steps, or until the run is preempted.

  Args:
    config: config of the stage.
    workdir: folder of the run.
    loaded: from training.run.load_model.
    params: from training.run.load_model; used up.
    batches: from `make_batches`, at its start.
    grad_accum_steps: micro-batches per update.
    loss: loss of (params, batch).
    add_labels: makes the loss's batch from this process's tokens.
    evaluate: evaluates all parameters; None for no evaluation.
    derived_metrics: metrics computed from the others.
    **metadata: JSON values to store in checkpoints.

  Raises:
    UserError: the checkpoint in workdir does not fit the settings.
    NonFiniteError: the loss or a norm is not finite.
  """
  target, total = os.path.join(workdir, training_run.MODEL), config.steps
  optim, learning_rate = optimizer.make(total, **config.optimizer)
  model = loaded.model
  train_step = TrainStep(model, optim, loss)
  run_state = RunState.from_metadata(training_run.read_metadata(target))
  state = training_run.restore_or_init(target, model, optim, params, batches)
  del params
  eval_pending = evaluate is not None and run_state.eval_pending
  if run_state.step >= total and not eval_pending:
    training_run.check_finished(workdir, total)
    return
  timer = StepTimer()
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
    Prefetch(batches) as data,
  ):
    progress = ProgressPrinter(run_state.step, total)
    log = _DelayedLog(workdir, model, timer, writer, progress, derived_metrics)
    if eval_pending:
      _evaluate(
        evaluate, loaded.whole(state.params), run_state.step, timer, writer
      )

    for step in range(run_state.step + 1, total + 1):
      profiler.begin(step)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        with timer.part('data'):
          inputs, infos = _next_batches(
            itertools.islice(data, grad_accum_steps), config, model, add_labels
          )
        with timer.part('step'):
          state, metrics = train_step(state, inputs, loaded.frozen)
      profiler.end(step, metrics)
      metrics['learning_rate'] = learning_rate(step - 1)
      # Writes the metrics of step n - 1 while the devices compute step n.
      log.add(step, metrics, infos, data.padding_fraction())

      preempted = preemption.should_stop()
      eval_due = evaluate is not None and training_run.should_run(
        step, config.evaluation.every, total
      )
      save_due = preempted or training_run.should_run(
        step, config.save_every, total
      )
      if eval_due or save_due:
        # Rows must precede the checkpoint: a resumed run does not write them.
        log.flush()
      if eval_due and not preempted:
        _evaluate(evaluate, loaded.whole(state.params), step, timer, writer)
      if save_due:
        run_state = RunState(step, eval_pending=eval_due and preempted)
        with timer.part('save'):
          training_run.save(
            checkpoints,
            writer,
            state,
            model,
            training_run.make_metadata(
              config, run_state, data.state(), **metadata
            ),
          )
      if preempted:
        training_run.print_stopped(step, total)
        return
    log.flush()
  _print_summary(target, total, data)


def _next_batches(
  local_batches: Iterable[tuple[Batch, BatchInfo]],
  config: ConfigDict,
  model: Transformer,
  add_labels: Callable[[Batch, BatchInfo], Any],
) -> tuple[list[Any], list[BatchInfo]]:
  """Returns the micro-batches of a step, on the devices, and their infos."""
  inputs, infos = [], []
  for batch, info in local_batches:
    inputs.append(
      global_arrays.make_global_arrays(
        add_labels(batch, info), model.layout, config.batch.micro_batch_prompts
      )
    )
    infos.append(info)
  return inputs, infos


class _DelayedLog:
  """Writes the metrics of each step when the next step is running.

  Reading metrics waits for the devices. Reading them one step late keeps the
  devices busy.
  """

  def __init__(self, workdir, model, timer, writer, progress, derived_metrics):
    self._workdir, self._model, self._timer = workdir, model, timer
    self._writer, self._progress = writer, progress
    self._derived_metrics = derived_metrics
    self._pending = None

  def add(self, step, metrics, infos, padding) -> None:
    """Writes the previous step and keeps this one."""
    self.flush()
    self._pending = step, metrics, infos, padding

  def flush(self) -> None:
    """Waits for the step that was added last, and writes it."""
    if self._pending is None:
      return
    (step, metrics, infos, padding), self._pending = self._pending, None
    row = training_run.collect_metrics(
      self._workdir, self._timer, self._model, step, metrics, infos
    )
    row |= {f'padding/{name}': value for name, value in padding.items()}
    row |= self._derived_metrics(row)
    self._writer.write(step, row)
    self._progress.update(
      step,
      f'loss {float(row["loss"]):.4f}',
      float(row['learning_rate']),
      row['tokens_per_second'],
    )


def _evaluate(evaluate, params, step, timer, writer) -> None:
  """Evaluates the parameters; writes and prints the result."""
  with timer.part('evaluation'):
    metrics, summary = evaluate(params)
    writer.write(step, {f'eval/{name}': x for name, x in metrics.items()})
  training_run.print_on_host0(f'step {step}: evaluation: {summary}')


def _print_summary(target: str, total: int, data: Prefetch) -> None:
  epochs = ', '.join(f'{name} {x:.2f}' for name, x in data.epochs().items())
  padding = ', '.join(
    f'{name} {fraction:.0%}'
    for name, fraction in data.padding_fraction().items()
  )
  training_run.print_on_host0(
    f'{total} of {total} steps; epochs: {epochs}; padding: {padding}'
  )
  training_run.print_on_host0(f'model -> {target}')
