"""Trains models with a scalar head: the meta RM, and baselines.

  examples, samples -> labelled records -> batches -> updates -> checkpoints

config.kind selects what gets a value, and the loss:

  meta           a judgement of an example: is it right? Binary cross-entropy
                 (arXiv 2504.02495, section 4)
  bradley_terry  a response to a query: is it better than the others? (Ouyang
                 et al., arXiv 2203.02155)
  pair           an ordered pair of responses: is the first better? Binary
                 cross-entropy (PairRM, arXiv 2306.02561)
  critique       a response with a critique: is it better than the others? The
                 loss of bradley_terry (CLoud, arXiv 2408.11791)

Writes WORKDIR/model (a model directory with a scalar head for
--config.meta_checkpoint, --config.value_checkpoint, --config.judge=scalar or
pair, and the stage convert),
metrics.jsonl, tensorboard/, and calibration.png of the held-out data. A run
that was killed or preempted (SIGTERM) resumes when the same command runs again.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import model_directory
from grm_jax.data import global_arrays
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.io import run_lock
from grm_jax.judgement import template, trained_judge
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.trained_judge import TrainedJudge
from grm_jax.judges import settings as judge_settings
from grm_jax.judges.baselines import pairwise_rm
from grm_jax.sharding import distributed, mesh
from grm_jax.stages import input_identity, run_record
from grm_jax.stages.reward_model import data as rm_data
from grm_jax.stages.reward_model.data import (
  KINDS,
  LabelledRecord,
  RewardDataset,
)
from grm_jax.stages.reward_model.evaluate import RewardModelEvaluator
from grm_jax.training import reward_model_loss, supervised
from grm_jax.training import run as training_run
from grm_jax.training.supervised import Evaluation
from grm_jax.unused_settings import Unused

_LOSSES = {
  'meta': reward_model_loss.bce_loss,
  'bradley_terry': reward_model_loss.bradley_terry_loss,
  'pair': reward_model_loss.bce_loss,
  'critique': reward_model_loss.bradley_terry_loss,
}
# config.kind -> kind of the judge that reads the model.
_JUDGE_KINDS = {
  'meta': 'meta',
  'bradley_terry': 'scalar',
  'pair': 'pair',
  'critique': 'critique',
}

# Rules of configs/reward_model.py.
SETTINGS = training_run.SETTINGS | {
  'stage': settings.one_of('reward_model'),
  'kind': settings.one_of(*KINDS),
  'samples': settings.TEXT,
  'balance_labels': settings.BOOLEAN,
  'response_order': judge_settings.RESPONSE_ORDER,
  'prompt': {
    'meta': settings.TEXT,
    'single': settings.TEXT,
    'score_range': judge_settings.SCORE_RANGE,
    'truncated': judge_settings.TRUNCATED,
  },
  'batch': {
    **{k: x for k, x in supervised.BATCH.items() if k != 'grad_accum_steps'},
    'texts_per_step': settings.parallel(1),
  },
  'evaluation': {
    'data': settings.TEXT,
    'samples': settings.TEXT,
    'holdout_fraction': settings.number(0, 1, below=True),
    'every': settings.PERIOD,
    'concurrent_prompts': settings.parallel(1),
  },
}
UNUSED = (
  Unused(
    ('evaluation.every', 'evaluation.concurrent_prompts'),
    '{key}.evaluation.data is empty and {key}.evaluation.holdout_fraction is 0',
    lambda config: (
      not config.evaluation.data and not config.evaluation.holdout_fraction
    ),
  ),
  Unused(
    ('prompt', 'balance_labels'),
    '{key}.kind is not meta, and only a meta RM reads judgements',
    lambda config: config.kind != 'meta',
  ),
  Unused(
    ('response_order',),
    '{key}.kind is not pair',
    lambda config: config.kind != 'pair',
  ),
  Unused(
    ('evaluation.holdout_fraction',),
    '{key}.evaluation.data is given',
    lambda config: bool(config.evaluation.data),
  ),
)


def run(config: ConfigDict, workdir: str) -> None:
  """Trains on `config.data` and `config.samples`.

  Args:
    config: from configs/reward_model.py.
    workdir: folder that this run writes.

  Raises:
    UserError: a path, a row or a setting is wrong.
    NonFiniteError: the loss or a norm is not finite.
  """
  check(config, workdir)
  training_run.check_checkpoint(config, workdir)
  with (
    distributed.enter_on_all(run_lock.hold_workdir(workdir)),
    training_run.no_leftovers(workdir),
  ):
    dataset, held_out = distributed.run_on_all(lambda: rm_data.read(config))
    evaluation = config.evaluation
    run_record.begin_training(
      config,
      workdir,
      {
        'data': config.data,
        'samples': config.samples,
        'evaluation.data': evaluation.data,
        'evaluation.samples': evaluation.samples,
      },
      lambda: {
        **_identify(dataset),
        **(_identify(held_out, 'evaluation.') if evaluation.data else {}),
      },
    )
    _train(config, workdir, dataset, held_out)


def _identify(
  dataset: RewardDataset | None, branch: str = ''
) -> dict[str, str]:
  """Returns the identities of examples and samples, by config key."""
  assert dataset is not None
  return {
    f'{branch}data': input_identity.of_items([*dataset.examples.values()]),
    f'{branch}samples': input_identity.of_items([*dataset.samples.items()]),
  }


def _train(
  config: ConfigDict,
  workdir: str,
  dataset: RewardDataset,
  held_out: RewardDataset | None,
) -> None:
  """Trains on labelled records; see `run`."""
  layout = mesh.from_config(config)
  batch_shape = BatchShape(
    config.batch.prompt_buckets,
    config.batch.generation_buckets,
    config.batch.generations_per_prompt,
  )
  local_indices = global_arrays.local_prompt_indices(
    layout, config.batch.micro_batch_prompts
  )
  prompt_format = _prompt_format(config)
  target = os.path.join(workdir, training_run.MODEL)
  loaded, params = training_run.load_model(config, target, layout, scalar=True)
  model, tokenizer = loaded.model, loaded.tokenizer
  if params is not None:  # a new run
    settings = _trained_judge(
      config.kind,
      prompt_format,
      tokenizer.chat_format.name,
      batch_shape.generation_buckets[-1],
    )
    model_directory.write_trained_judge(target, settings)
  make_records = functools.partial(
    rm_data.make_records,
    config.kind,
    prompt_format=prompt_format,
    tokenizer=tokenizer,
    batch_shape=batch_shape,
    balance=config.balance_labels,
    order=config.response_order,
    seed=config.seed,
  )
  records = make_records(dataset, name='training data')
  evaluator = None
  if held_out is not None:
    evaluator = RewardModelEvaluator(
      config.kind,
      held_out,
      make_records(held_out, name='held-out data'),
      model,
      prompt_format,
      prompts=config.evaluation.concurrent_prompts,
      batch_shape=batch_shape,
      seed=config.seed,
    )
  label_digest = rm_data.label_digest(records)
  _check_labels(target, label_digest)
  grad_accum_steps = _num_micro_batches(records, config.batch)
  _print_sizes(records, grad_accum_steps, config.batch)
  supervised.train_supervised(
    config,
    workdir,
    loaded,
    params,
    supervised.make_batches(
      config,
      [x.tokenized for x in records],
      {rm_data.SOURCE: 1.0},
      batch_shape,
      local_indices,
    ),
    grad_accum_steps=grad_accum_steps,
    loss=functools.partial(_LOSSES[config.kind], model),
    add_labels=functools.partial(
      rm_data.make_reward_batch,
      records={x.tokenized.id: x for x in records},
      local_indices=local_indices,
    ),
    evaluate=_make_evaluation(evaluator, workdir),
    labels=label_digest,
  )


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks settings before data or weights are read; see training.run.check."""
  training_run.check(config, workdir, SETTINGS, key)
  kind, evaluation = config.kind, config.evaluation
  if kind in rm_data.READ_SAMPLES:
    if not config.samples:
      raise UserError(
        f'{key}.samples is empty; give samples.jsonl of the stage rft, or '
        'several files separated by commas'
      )
    if bool(evaluation.data) != bool(evaluation.samples):
      raise UserError(
        f'{key}.evaluation.data is {evaluation.data!r} and '
        f'{key}.evaluation.samples is {evaluation.samples!r}; give both, or '
        f'neither to hold out {key}.evaluation.holdout_fraction of the queries'
      )
  elif config.samples or evaluation.samples:
    raise UserError(
      f'{key}.kind={kind} learns from examples alone; set {key}.samples and '
      f"{key}.evaluation.samples to '' (--{key}.samples=)"
    )
  if (
    kind in ('bradley_terry', 'critique')
    and config.batch.generations_per_prompt < 2
  ):
    raise UserError(
      f'{key}.batch.generations_per_prompt is '
      f'{config.batch.generations_per_prompt}; set it to 2 or more, because '
      f'{key}.kind={kind} compares responses'
    )
  if config.checkpoint == model_directory.SCRATCH:
    raise UserError(
      f'{key}.checkpoint=scratch: this stage needs a trained model; give the '
      'model/ folder of the stage sft'
    )
  template.load(config.prompt.meta, key=f'{key}.prompt.meta')
  _prompt_format(config, key)


def _prompt_format(config: ConfigDict, key: str = 'config') -> PromptFormat:
  """Returns the meta RM's template, and how its samples were judged."""
  judged = trained_judge.prompt_format(
    model_directory.read_trained_judge(config.checkpoint),
    config.checkpoint,
    single=config.prompt.single,
    score_range=config.prompt.score_range,
    default_single='single',
    truncated=config.prompt.truncated,
    key=f'{key}.prompt',
  )
  return dataclasses.replace(judged, template=config.prompt.meta)


def _trained_judge(
  kind: str, prompt_format: PromptFormat, chat_format: str, max_new_tokens: int
) -> TrainedJudge:
  """Returns how the model is asked, for the judges that will read it."""
  judge_kind = _JUDGE_KINDS[kind]
  if judge_kind == 'meta':
    return trained_judge.of_training(
      prompt_format, chat_format, max_new_tokens, judge_kind
    )
  is_pair = judge_kind == 'pair'
  return TrainedJudge(
    judge_kind,
    chat_format,
    template.stored(pairwise_rm.TEMPLATE) if is_pair else None,
    max_new_tokens=max_new_tokens,
  )


def _check_labels(target: str, label_digest: str) -> None:
  """Raises UserError if the run to resume has other labels."""
  metadata = training_run.read_metadata(target)
  if metadata and metadata.get('labels') != label_digest:
    raise UserError(
      f'{target} was trained on labels with digest {metadata.get("labels")}, '
      f'config.data has labels with digest {label_digest}; resume with the '
      'same data, or choose another --workdir'
    )


def _mean_texts(records: Sequence[LabelledRecord]) -> float:
  return sum(len(x.labels) for x in records) / len(records)


def _num_micro_batches(
  records: Sequence[LabelledRecord], batch: ConfigDict
) -> int:
  """Returns the micro-batches that have batch.texts_per_step texts together.

  Prompts have different numbers of texts, so this holds on average.
  """
  texts = batch.micro_batch_prompts * _mean_texts(records)
  return max(1, round(batch.texts_per_step / texts))


def _print_sizes(
  records: Sequence[LabelledRecord], num_micro_batches: int, batch: ConfigDict
) -> None:
  labels = [label for x in records for label in x.labels]
  prompts = num_micro_batches * batch.micro_batch_prompts
  training_run.print_on_host0(
    f'{len(records)} prompts with {len(labels)} texts; '
    f'{sum(labels)} texts have label 1; a step has {prompts} prompts in '
    f'{num_micro_batches} micro-batches, and '
    f'{prompts * _mean_texts(records):.0f} texts on average (config.batch.'
    f'texts_per_step is {batch.texts_per_step})'
  )


def _make_evaluation(
  evaluator: RewardModelEvaluator | None, workdir: str
) -> Callable[[dict], Evaluation] | None:
  if evaluator is None:
    return None

  def evaluate(params: dict) -> Evaluation:
    metrics = evaluator.measure(params, workdir)
    return metrics, _format_metrics(metrics)

  return evaluate


def _format_metrics(metrics: Mapping[str, float]) -> str:
  """Returns the main metrics as text; of votes, those over all judgements."""
  titles = {
    'auc': 'AUC',
    'accuracy': 'accuracy',
    'log_loss': 'log loss',
    'calibration_error': 'calibration error',
    'best_of_n': 'best of n',
  }
  parts = [f'{titles[x]} {metrics[x]:.3f}' for x in titles if x in metrics]
  ks = [int(x.split('_')[1]) for x in metrics if x.startswith('voting_')]
  if ks:
    k = max(ks)
    parts += [
      f'{title}@{k} {metrics[f"{name}_{k}"]:.3f}'
      for title, name in (
        ('Voting', 'voting'),
        ('MetaRM', 'guided'),
        ('best of', 'best_of'),
      )
    ]
  return ', '.join(parts)
