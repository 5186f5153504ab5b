"""Checks the settings of a whole run before its first stage starts."""

import functools
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from grm_jax import settings, unused_settings
from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.data import seqio_source, sft_sources
from grm_jax.errors import UserError
from grm_jax.judgement import temperature_range
from grm_jax.judges import settings as judge_settings
from grm_jax.model import compute_config, lora
from grm_jax.sharding import mesh
from grm_jax.stages.grpo import settings as grpo_settings
from grm_jax.stages.reward_model import train as rm_train
from grm_jax.stages.rft import run as rft_run
from grm_jax.stages.rft import sampling as rft_sampling
from grm_jax.stages.sft import train as sft_train
from grm_jax.stages.spct import plan as spct_plan
from grm_jax.unused_settings import Unused

# Rules of the configs of the stages in configs/spct.py. It lacks the leaves
# that spct/plan.py adds.
STAGE_SETTINGS = {
  'base': sft_train.SETTINGS,
  'sft': sft_train.SETTINGS,
  'rft': rft_run.SETTINGS,
  'grpo': grpo_settings.SETTINGS,
  'meta_rm': rm_train.SETTINGS,
}
# Rules of the other leaves of configs/spct.py.
SETTINGS: settings.Rules = {
  'stage': settings.one_of('spct'),
  'stages': settings.some_of(*spct_plan.STAGES),
  'checkpoint': settings.TEXT,
  'checkpoint_step': settings.STEP,
  'data': settings.TEXT,
  'examples': {
    'texts': settings.examples(0),
    'rft': settings.examples(1),
    'grpo': settings.examples(1),
    'meta_rm_samples': settings.examples(1),
    'validation': settings.examples(0, note='0: none'),
    'held_out': settings.examples(1),
  },
  'fail_on_bad_rows': settings.BOOLEAN,
  'seed': settings.SEED,
  'principles': settings.BOOLEAN,
  'prompt': judge_settings.PROMPT | {'meta': settings.TEXT},
  'prompt_buckets': settings.optional(
    settings.LENGTHS, 'the lengths in the configs of the stages'
  ),
  'meta_rm_samples': {
    'num_samples': settings.samples(1),
    'temperature': temperature_range.SETTING,
  },
  'evaluation': {
    'k': settings.samples(1),
    'k_intermediate': settings.samples(1),
    'evaluate_initial': settings.BOOLEAN,
    'temperature': temperature_range.SETTING,
    'response_order': judge_settings.RESPONSE_ORDER,
    'sampling': judge_settings.SAMPLING,
  },
  'lora': lora.SETTINGS,
  'mesh': mesh.DECODE_SETTINGS,
  'compute': {
    'dtype': compute_config.SETTINGS['dtype'],
    'attention': compute_config.SETTINGS['attention'],
  },
}
# The leaves and groups that only one stage reads. The stage meta_rm samples
# with settings of rft, and the numbers of examples decide the splits.
_OF_STAGES = {
  'base': ('base',),
  'sft': ('sft.steps', 'sft.optimizer', 'sft.batch', 'sft.evaluation'),
  'rft': (
    *('rft.filter', 'rft.num_samples', 'rft.num_hinted_samples'),
    *('rft.temperature', 'rft.hinted_temperature', 'rft.response_order'),
    *('rft.hint', *(f'rft.{x}' for x in rft_sampling.HINT_TEMPLATES)),
    *('rft.train.steps', 'rft.train.optimizer', 'rft.train.evaluation'),
  ),
  'grpo': ('grpo',),
  'meta_rm': ('meta_rm', 'meta_rm_samples', 'prompt.meta'),
  'evaluate': (
    *('evaluation.k', 'evaluation.k_intermediate', 'evaluation.temperature'),
    *('evaluation.evaluate_initial', 'evaluation.sampling'),
  ),
}


def _lacks(stage: str, config: ConfigDict) -> bool:
  return stage not in spct_plan.selected_stages(config)


def _of_stage(table: Sequence[Unused]) -> list[Unused]:
  """Returns the rules but those of prompt and lora, which the stages share."""
  shared = (
    judge_settings.PROMPT_UNUSED,
    lora.UNUSED,
    grpo_settings.REFERENCE_IS_BASE,
  )
  return [x for x in table if x not in shared]


UNUSED = (
  *(
    Unused(
      keys,
      f'{{key}}.stages has no {stage}',
      functools.partial(_lacks, stage),
    )
    for stage, keys in _OF_STAGES.items()
  ),
  Unused(
    ('sft.evaluation', 'rft.train.evaluation', 'grpo.evaluation'),
    '{key}.examples.validation is 0',
    lambda config: not config.examples.validation,
  ),
  lora.UNUSED,
  Unused(
    ('grpo.reference.dtype', 'grpo.reference.offload_to_host'),
    '{key}.lora.rank is not 0 and {key}.grpo.reference.checkpoint is empty',
    lambda config: config.lora.rank and not config.grpo.reference.checkpoint,
  ),
  *unused_settings.in_group('sft', _of_stage(sft_train.UNUSED)),
  *unused_settings.in_group('rft', [rft_run.NO_HINTS]),
  *unused_settings.in_group('grpo', _of_stage(grpo_settings.UNUSED)),
)


def check(config: ConfigDict) -> None:
  """Checks every leaf, also those of the stages that run hours later.

  Args:
    config: as configs/spct.py.

  Raises:
    UserError: a setting is wrong; the message has its key in configs/spct.py.
  """
  shared = {x: config[x] for x in config if x not in STAGE_SETTINGS}
  settings.check(shared, SETTINGS)
  settings.check_values(config, STAGE_SETTINGS)
  # Before the checks of stages, whose keys of these settings are others.
  compute_config.check_devices(config)


def check_inputs(config: ConfigDict) -> None:
  """Opens the checkpoints and texts that stages will read.

  Raises:
    UserError: one of them cannot be read; the message has its config key.
  """
  for key, directory, step in _checkpoints(config):
    try:
      orbax_checkpoint.read_json(
        directory, 'model', model_directory.step_or_latest(step)
      )
    except UserError as error:
      raise UserError(f'config.{key}={directory}: {error}') from None
  for key, spec in _texts(config):
    if not spec or spec.startswith(seqio_source.PREFIX):
      continue
    try:
      next(sft_sources.read(spec, 'train', 'texts'), None)
    except UserError as error:
      raise UserError(f'config.{key}={spec}: {error}') from None


def _checkpoints(config: ConfigDict) -> Iterator[tuple[str, str, int]]:
  """Yields (key, directory, step) of the given model directories."""
  stages = spct_plan.selected_stages(config)
  given = [('checkpoint', config.checkpoint, config.checkpoint_step)]
  if 'grpo' in stages and config.grpo.reference.checkpoint:
    given.append(
      ('grpo.reference.checkpoint', config.grpo.reference.checkpoint, -1)
    )
  if 'meta_rm' in stages and config.meta_rm.checkpoint:
    given.append(('meta_rm.checkpoint', config.meta_rm.checkpoint, -1))
  special = (model_directory.RANDOM, model_directory.SCRATCH, spct_plan.GRM)
  return (x for x in given if x[1] not in special)


def _texts(config: ConfigDict) -> Iterator[tuple[str, str]]:
  """Yields (key, source) of the texts of the selected stages."""
  for stage, train in (
    ('base', config.base),
    ('sft', config.sft),
    ('rft', config.rft.train),
  ):
    if stage not in spct_plan.selected_stages(config):
      continue
    key = 'rft.train' if stage == 'rft' else stage
    if stage != 'rft':
      yield f'{key}.data.texts', train.data.texts
    if train.data.general_fraction:
      yield f'{key}.data.general', train.data.general
