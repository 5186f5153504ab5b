"""Supervised fine-tuning: cross-entropy of the generation tokens.

  texts -> tokens -> batches -> updates -> checkpoints, metrics

Writes WORKDIR/model (a model directory), metrics.jsonl and tensorboard/. A run
that was killed or preempted (SIGTERM) resumes from its last checkpoint when the
same command runs again, with the same results bit for bit.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import model_directory
from grm_jax.data import global_arrays, packing, sft_sources
from grm_jax.data.sft_sources import SFTExample
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.io import run_lock
from grm_jax.judgement import trained_judge
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import evaluation_during_training
from grm_jax.judges import settings as judge_settings
from grm_jax.model import config as model_config
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import distributed, mesh
from grm_jax.stages import input_identity, run_record
from grm_jax.stages.sft import data as sft_data
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training import run as training_run
from grm_jax.training import supervised
from grm_jax.training.supervised import Evaluation
from grm_jax.training.train_step import supervised_loss
from grm_jax.unused_settings import Unused

# Rules of configs/sft.py.
SETTINGS = training_run.SETTINGS | {
  'stage': settings.one_of('sft'),
  'size': settings.optional(model_config.SIZE, 'tiny'),
  'data': {
    'texts': settings.TEXT,
    'teacher_error_rate': settings.FRACTION,
    'general': settings.TEXT,
    'general_fraction': settings.number(0, 1, below=True),
  },
  'prompt': judge_settings.PROMPT | {'reads': judge_settings.READS},
  'batch': supervised.BATCH | {'packed': settings.BOOLEAN},
  'evaluation': {
    'data': settings.TEXT,
    'every': settings.PERIOD,
    'concurrent_prompts': settings.parallel(1),
  },
  'mesh': mesh.DECODE_SETTINGS,
}
UNUSED = (
  *training_run.UNUSED,
  judge_settings.PROMPT_UNUSED,
  Unused(
    ('data.general',),
    '{key}.data.general_fraction is 0',
    lambda config: not config.data.general_fraction,
  ),
  Unused(
    ('batch.generations_per_prompt',),
    '{key}.batch.packed is true',
    lambda config: config.batch.packed,
  ),
)


def run(config: ConfigDict, workdir: str) -> None:
  """Fine-tunes a model on `config.data`.

  Args:
    config: from configs/sft.py.
    workdir: folder that this run writes.

  Raises:
    UserError: a path, a row or a setting is wrong, or no text fits.
    NonFiniteError: the loss or a norm is not finite.
  """
  check(config, workdir)
  training_run.check_checkpoint(config, workdir)
  with (
    distributed.enter_on_all(run_lock.hold_workdir(workdir)),
    training_run.no_leftovers(workdir),
  ):
    examples, seqio_specs = distributed.run_on_all(
      lambda: sft_data.read(config)
    )
    run_record.begin_training(
      config,
      workdir,
      {
        'data.texts': config.data.texts,
        'data.general': config.data.general,
        'evaluation.data': config.evaluation.data,
      },
      lambda: _identify_data(config, examples),
    )
    train(config, workdir, examples, seqio_specs)


def _identify_data(
  config: ConfigDict, examples: Sequence[SFTExample]
) -> dict[str, str]:
  by_source: dict[str, list[SFTExample]] = {}
  for example in examples:
    by_source.setdefault(example.source, []).append(example)
  evaluation = input_identity.of_source(config.evaluation.data)
  return {
    **{f'data.{k}': input_identity.of_items(v) for k, v in by_source.items()},
    'evaluation.data': evaluation,
  }


def train(
  config: ConfigDict,
  workdir: str,
  examples: Sequence[SFTExample],
  seqio_specs: Mapping[str, str],
  prompt_format: PromptFormat | None = None,
) -> None:
  """Fine-tunes a model; see `run`.

  Args:
    config: from configs/sft.py.
    workdir: folder that this run writes.
    examples: from sft_data.read.
    seqio_specs: from sft_data.read.
    prompt_format: prompts of judgements; None for those of config.prompt.
  """
  if prompt_format is None:
    # This stage decides how a judge is asked: no warning about a change.
    prompt_format = training_run.prompt_format(
      config.prompt,
      training_run.trained_judge_directory(config.checkpoint, workdir),
      warns=False,
    )
  layout = mesh.from_config(config)
  batch_shape = BatchShape(
    config.batch.prompt_buckets,
    config.batch.generation_buckets,
    config.batch.generations_per_prompt,
  )
  local_indices = global_arrays.local_prompt_indices(
    layout, config.batch.micro_batch_prompts
  )
  target = os.path.join(workdir, training_run.MODEL)
  loaded, params = training_run.load_model(
    config,
    target,
    layout,
    scratch_corpus=lambda: sft_sources.text_lines(examples, prompt_format),
  )
  model, tokenizer = loaded.model, loaded.tokenizer
  if params is not None:  # a new run
    description = trained_judge.of_training(
      prompt_format,
      tokenizer.chat_format.name,
      batch_shape.generation_buckets[-1],
    )
    model_directory.write_trained_judge(target, description)
  tokenized = sft_data.tokenize(
    examples,
    seqio_specs,
    prompt_format,
    tokenizer,
    batch_shape,
    config.batch.packed,
  )
  if config.batch.packed:
    # A packed row is one long prompt; the loss mask tells its parts apart.
    row_length = packing.packed_row_length(batch_shape)
    batch_shape = dataclasses.replace(
      batch_shape, generations_per_prompt=0, prompt_buckets=(row_length,)
    )
  batches = supervised.make_batches(
    config, tokenized, _source_rates(config), batch_shape, local_indices
  )
  supervised.train_supervised(
    config,
    workdir,
    loaded,
    params,
    batches,
    grad_accum_steps=config.batch.grad_accum_steps,
    loss=functools.partial(supervised_loss, model),
    evaluate=_make_evaluation(config, prompt_format, model, tokenizer),
    derived_metrics=_perplexity,
  )


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks settings before data or weights are read; see training.run.check."""
  training_run.check(config, workdir, SETTINGS, key)
  if config.size and config.checkpoint != model_directory.SCRATCH:
    raise UserError(
      f'{key}.size is {config.size}, but the model has the size of its '
      f"checkpoint; set {key}.size to '', or {key}.checkpoint to scratch"
    )
  if config.data.general_fraction and not config.data.general:
    raise UserError(
      f"{key}.data.general is '', but {key}.data.general_fraction is "
      f'{config.data.general_fraction}; set {key}.data.general to general '
      'instruction data such as tulu3:PATH, or to train without it, set '
      f'{key}.data.general_fraction=0.0'
    )
  training_run.prompt_format(
    config.prompt, config.checkpoint, f'{key}.prompt', warns=False
  )


def _source_rates(config: ConfigDict) -> dict[str, float]:
  """Returns the fraction of the prompts from each source that is used."""
  general = config.data.general_fraction
  # Rounded because 1 - 0.9 is not exactly 0.1.
  rates = {'texts': round(1 - general, 9), 'general': general}
  return {source: rate for source, rate in rates.items() if rate}


def _make_evaluation(
  config: ConfigDict,
  prompt_format: PromptFormat,
  model: Transformer,
  tokenizer: Tokenizer,
) -> Callable[[dict], Evaluation] | None:
  """Returns the evaluation on config.evaluation.data; None without data."""
  evaluator = evaluation_during_training.from_config(
    config,
    prompt_format,
    model.clone(layout=mesh.from_config(config, weights='resident')),
    tokenizer,
    prompts=config.evaluation.concurrent_prompts,
    generations_per_prompt=1,  # one greedy judgement of each example
    max_new_tokens=max(config.batch.generation_buckets),
    prompt_buckets=config.batch.prompt_buckets,
  )
  if evaluator is None:
    return None

  def evaluate(params: dict) -> Evaluation:
    metrics = evaluator.measure(params)
    summary = evaluation_during_training.format_metrics(metrics)
    return dataclasses.asdict(metrics), f'greedy: {summary}'

  return evaluate


def _perplexity(row: Mapping[str, Any]) -> dict[str, float]:
  return {'perplexity': math.exp(min(50.0, float(row['loss'])))}
