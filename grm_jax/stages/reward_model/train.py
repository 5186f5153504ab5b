"""Trains scalar heads: the meta RM, and scalar reward models as baselines.

  examples, samples -> records with labels -> batches -> steps -> checkpoints

config.kind says what gets a value, and by which loss it is learnt:

  meta           a judgement that was written about an example: whether it is
                 right (arXiv 2504.02495, section 4), binary cross-entropy
  bradley_terry  a response to a query: better than the others (Ouyang et al.,
                 arXiv 2203.02155)
  pair           two responses in this order: whether the first is better, in
                 the way of PairRM (arXiv 2306.02561), binary cross-entropy

Written into WORKDIR: model/ (a model directory with a scalar head, as
--config.meta_checkpoint, --config.judge=scalar or pair and the stage convert
take it), metrics.jsonl, tensorboard/, calibration.png of held-out data. A run
that was killed, or stopped by SIGTERM, goes on when it is started again.
"""

import functools
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.data import global_arrays, tokenized_example
from grm_jax.data.prefetch import Prefetch
from grm_jax.errors import UserError
from grm_jax.judgement import template
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.model import init as model_init
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.stages.reward_model import data as rm_data
from grm_jax.stages.reward_model.data import KINDS, LabelledRecord
from grm_jax.stages.reward_model.evaluate import RewardModelEvaluator
from grm_jax.training import metric_writer, optimizer, reward_model_loss
from grm_jax.training import profiler as profiling
from grm_jax.training import run as training_run
from grm_jax.training.preemption import Preemption
from grm_jax.training.step_timer import StepTimer, progress
from grm_jax.training.train_step import TrainStep

_LOSSES = {
  'meta': reward_model_loss.bce_loss,
  'bradley_terry': reward_model_loss.bradley_terry_loss,
  'pair': reward_model_loss.bce_loss,
}


def run(config: ConfigDict, workdir: str) -> None:
  """Trains on `config.data` and `config.samples`.

  Raises:
    UserError: a path, a row or a setting is wrong.
  """
  check(config, workdir)
  layout = mesh.from_config(config)
  limits = tokenized_example.limits(
    config.batch.prompt_buckets,
    config.batch.generation_buckets,
    config.batch.generations_per_prompt,
  )
  own_rows = global_arrays.process_rows(
    layout, config.batch.micro_batch_prompts
  )
  data, held = rm_data.read(config)
  forms = _forms(config)
  target = os.path.join(workdir, training_run.MODEL)
  model, tokenizer, params = _open(config, target, layout)

  def rows_of(data, where):
    return rm_data.rows_of(config.kind, data, forms, tokenizer, limits, where)

  rows = rows_of(data, 'data to train on')
  judge = held and RewardModelEvaluator(
    config.kind,
    held,
    rows_of(held, 'held-out data'),
    model,
    forms,
    prompts=config.evaluation.prompts,
    limits=limits,
    seed=config.seed,
  )
  _check_labels(target, rows)
  _say_data(rows)
  made = training_run.batches(
    config,
    [x.record for x in rows],
    {rm_data.SOURCE: 1.0},
    limits,
    own_rows,
  )
  with Preemption() as preemption:
    _train(config, workdir, model, params, made, rows, judge, preemption)


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks what would only be seen after rows or weights; see runs.check."""
  training_run.check(config, workdir, key)
  kind, e = config.kind, config.evaluation
  if kind not in KINDS:
    raise UserError(f'{key}.kind is {kind!r}; it can be {", ".join(KINDS)}')
  if kind == 'meta':
    if not config.samples:
      raise UserError(
        f'{key}.samples is empty; give the samples.jsonl of the stage rft, or '
        'several with commas between them'
      )
    if bool(e.data) != bool(e.samples):
      raise UserError(
        f'{key}.evaluation.data={e.data!r} and {key}.evaluation.samples='
        f'{e.samples!r}: give both, or none to hold out '
        f'{key}.evaluation.holdout_fraction of the queries'
      )
  elif config.samples or e.samples:
    raise UserError(
      f'{key}.kind={kind} learns from examples alone; {key}.samples and '
      f"{key}.evaluation.samples must be '' (--{key}.samples=)"
    )
  if kind == 'bradley_terry' and config.batch.generations_per_prompt < 2:
    raise UserError(
      f'{key}.batch.generations_per_prompt is {config.batch.generations_per_prompt}; {key}.kind=bradley_terry '
      'compares responses beside each other and needs 2 or more'
    )
  if config.checkpoint == model_directory.SCRATCH:
    raise UserError(
      f'{key}.checkpoint=scratch: a scalar head needs a model that reads; give '
      'a directory, such as the model/ of the stage sft'
    )
  if not 0 <= e.holdout_fraction < 1:
    raise UserError(
      f'{key}.evaluation.holdout_fraction is {e.holdout_fraction}; it is a share below 1'
    )
  template.load(config.prompt.meta, key='config.prompt.meta')
  _forms(config).check()


def _forms(config) -> PromptFormat:
  return PromptFormat(config.prompt.meta, config.prompt.single)


def _open(config, target, layout):
  """(model, tokenizer, params): of the run so far, or where it begins.

  Parameters are None where the run goes on: they are in its checkpoint.
  """
  compute = ComputeConfig(**config.compute)
  if orbax_checkpoint.steps(target):
    model = model_directory.build(target, None, compute, layout)
    if not model.scalar:
      raise UserError(
        f'{target} is a model without a scalar head; choose another --workdir'
      )
    return model, model_directory.load_tokenizer(target, model.size), None
  model, tokenizer, params = model_directory.open_model(
    config.checkpoint,
    model_directory.step_of(config.checkpoint_step),
    compute,
    layout,
    scalar=True,
    seed=config.seed,
  )
  if not model.scalar:
    model = model.clone(scalar=True)
    params = {**params, 'value_head': new_head(model)}
  params = training_run.init_from_checkpoint(config, target, model, params)
  return model, tokenizer, params


def new_head(model: Transformer) -> dict:
  """A scalar head of zeros.

  All values begin at 0 and the loss at ln 2, however large the hidden states
  of the base are. A random head would add noise that small learning rates
  take long to unlearn.
  """
  shape = model_init.abstract_params(model)['value_head']['kernel']
  make = functools.partial(jnp.zeros, shape.shape, shape.dtype)
  return {'kernel': jax.jit(make, out_shardings=shape.sharding)()}


def _check_labels(target, rows) -> None:
  """The batches know their tokens, not what these are worth."""
  if not orbax_checkpoint.steps(target):
    return
  saved = orbax_checkpoint.read_json(target, 'meta').get('labels')
  ours = rm_data.digest(rows)
  if saved != ours:
    raise UserError(
      f'{target} was trained by labels with digest {saved}, these have {ours}; '
      'go on with the same data, or choose another --workdir'
    )


def _say_data(rows: Sequence[LabelledRecord]) -> None:
  labels = [label for x in rows for label in x.labels]
  training_run.print_on_host0(
    f'{len(rows)} prompts with {len(labels)} texts, {sum(labels)} of them right'
  )


def _train(config, workdir, model, params, made, rows, judge, preemption):
  """The loop: one update of `accumulate` batches a step."""
  s, layout, total = config.batch, model.layout, config.steps
  optim, rate = optimizer.make(total, **config.optimizer)
  update = TrainStep(
    model, optim, functools.partial(_LOSSES[config.kind], model)
  )
  target = os.path.join(workdir, training_run.MODEL)
  state = training_run.restore_or_init(target, model, optim, params, made)
  del params
  done = begin = int(state.step)
  if begin >= total:
    training_run.print_on_host0(f'{target} has all of its {total} steps')
    return
  table = {x.record.id: x for x in rows}
  labels = rm_data.digest(rows)
  own_rows = global_arrays.process_rows(layout, s.micro_batch_prompts)
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
    progress(begin, total, f'training, {config.kind}', first) as bar,
  ):
    finish = functools.partial(_finish, workdir, clock, model, writer)
    for step in range(begin + 1, total + 1):
      profiler.begin(step)
      with clock.part('data'):
        some = [next(data) for _ in range(s.grad_accum_steps)]
        placed = [
          global_arrays.place(
            rm_data.batch(*x, table, own_rows), layout, s.micro_batch_prompts
          )
          for x in some
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
      measured = training_run.should_run(step, config.evaluation.every, total)
      measures = judge and measured and not stop
      saves = stop or training_run.should_run(step, config.save_every, total)
      if measures or saves:
        # Rows come before the checkpoint, or a run that goes on lacks them.
        finish(pending)
        pending = None
      if measures:
        with clock.part('evaluation'):
          _measure(judge, state, workdir, writer, step)
      if saves:
        with clock.part('save'):
          writer.send()
          training_run.save(saved, state, model, data, config, labels=labels)
      if stop:
        training_run.print_stopped(step, total)
        return
  training_run.say_end(target, total, data, done)


def _finish(workdir, clock, model, writer, pending) -> None:
  """Checks and writes the numbers of a step, if there is one."""
  if pending is not None:
    writer.write(
      pending[0], training_run.collect_metrics(workdir, clock, model, pending)
    )


def _measure(judge, state, workdir, writer, step) -> None:
  figures = judge.measure(state.params, workdir)
  writer.write(step, {f'held_out/{k}': value for k, value in figures.items()})
  training_run.print_on_host0(f'step {step}: held out: {_words(figures)}')


def _words(figures: Mapping[str, float]) -> str:
  """The figures for a person; of votes those by all judgements."""
  names = {
    'auc': 'AUC',
    'accuracy': 'accuracy',
    'log_loss': 'log loss',
    'calibration_error': 'calibration error',
    'best_of_n': 'best of n',
  }
  parts = [f'{names[k]} {figures[k]:.3f}' for k in names if k in figures]
  ks = [int(k.split('_')[1]) for k in figures if k.startswith('voting_')]
  if ks:
    k = max(ks)
    parts += [
      f'{name}@{k} {figures[f"{key}_{k}"]:.3f}'
      for name, key in (
        ('Voting', 'voting'),
        ('MetaRM', 'guided'),
        ('best of', 'best_of'),
      )
    ]
  return ', '.join(parts)
