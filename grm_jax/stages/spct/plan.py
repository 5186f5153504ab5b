"""Plans the stages of a whole run: folder, config and fingerprint of each.

configs/spct.py has the settings that stages share once, at the top level; this
module copies them into the config of each stage. The fingerprint of a stage
covers all settings that its result depends on, and the fingerprints of the
stages whose files it reads.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import sft_sources
from grm_jax.errors import UserError
from grm_jax.judgement import trained_judge
from grm_jax.stages import input_identity, run_record
from grm_jax.stages.rft import sampling as rft_sampling
from grm_jax.stages.spct import data as spct_data
from grm_jax.training import run as training_run

STAGES = ('base', 'sft', 'rft', 'grpo', 'meta_rm', 'evaluate')
DATA, SAMPLES, EVALUATION = 'data', 'samples', 'evaluation'  # folders
BASE, BEFORE = 'base', 'before'
GRM = 'grm'  # config.meta_rm.checkpoint: the GRM that the meta RM guides
JUDGES = ('sft', 'rft', 'grpo')  # stages that train a GRM

# The variant without principles of each template that requests them.
_NO_PRINCIPLES = {
  'practice': 'practice_no_principles',
  'practice_single': 'practice_no_principles_single',
  'pointwise': 'no_principles',
}
# Settings of every stage that samples from a model or trains one.
_MODEL_KEYS = (
  'seed',
  'prompt.too_long',
  'prompt.truncated',
  'prompt.score_range',
  'principles',
  'prompt_buckets',
  'compute.dtype',
)
_COLD_START_KEYS = ('sft.data', 'examples.texts')


@dataclasses.dataclass(frozen=True)
class PipelineStage:
  """A stage to run.

  Attributes:
    name: name of its folder in WORKDIR.
    stage: one of STAGES, 'data' or 'samples'.
    config: config of the stage; 'data' and 'evaluate' have the whole config.
    settings: what its result depends on, as JSON values by config key.
    reads: fingerprints of the stages whose files it reads, by name.
  """

  name: str
  stage: str
  config: ConfigDict
  settings: Mapping[str, Any]
  reads: Mapping[str, str]

  @property
  def fingerprint(self) -> str:
    """Twelve hexadecimal digits of `settings` and `reads`."""
    return input_identity.digest([self.settings, self.reads])


@dataclasses.dataclass
class PipelinePlan:
  """The stages that are planned so far.

  Attributes:
    workdir: folder of the folders of all stages.
    stages: by name, in the order in which they run.
    judges: names of the stages that train a GRM.
  """

  workdir: str
  stages: dict[str, PipelineStage] = dataclasses.field(default_factory=dict)
  judges: list[str] = dataclasses.field(default_factory=list)

  def add(
    self,
    name: str,
    config: ConfigDict,
    settings: Mapping[str, Any],
    *reads: str,
    stage: str = '',
  ) -> None:
    """Adds a stage that reads files of the earlier stages `reads`."""
    fingerprints = {x: self.stages[x].fingerprint for x in reads}
    self.stages[name] = PipelineStage(
      name, stage or name, config, settings, fingerprints
    )
    if name in JUDGES:
      self.judges.append(name)

  def data_path(self, part: str) -> str:
    """Returns the file of a part of the examples."""
    return spct_data.path(os.path.join(self.workdir, DATA), part)

  def model_path(self, stage: str) -> str:
    """Returns the model directory of a stage."""
    return os.path.join(self.workdir, stage, training_run.MODEL)


def plan(config: ConfigDict, workdir: str) -> list[PipelineStage]:
  """Returns all stages in the order in which they run.

  Args:
    config: as configs/spct.py.
    workdir: folder of the folders of all stages.

  Raises:
    UserError: config.stages is wrong, or a template does not exist.
  """
  pipeline = PipelinePlan(workdir)
  _add_data(config, pipeline)
  for stage in selected_stages(config):
    _ADD_STAGE[stage](config, pipeline)
  return list(pipeline.stages.values())


def selected_stages(config: ConfigDict) -> tuple[str, ...]:
  """Returns the stages in `config.stages`, in the order of STAGES.

  Raises:
    UserError: a stage that the others need is missing.
  """
  names = [x.strip() for x in config.stages.split(',')]
  selected = tuple(x for x in STAGES if x in names)
  if not set(selected) & set(JUDGES):
    raise UserError(
      f'config.stages={config.stages!r} trains no judge; add one of '
      f'{",".join(JUDGES)}'
    )
  if 'sft' not in selected and config.checkpoint == model_directory.SCRATCH:
    raise UserError(
      f'config.stages={config.stages!r} lacks sft, but config.checkpoint is '
      'scratch; add sft, or set config.checkpoint to a model that can judge'
    )
  return selected


def judge_directories(config: ConfigDict, workdir: str) -> dict[str, str]:
  """Returns the model directories of the GRMs, by the stage that trains them.

  With config.evaluation.evaluate_initial, config.checkpoint comes first.
  """
  names = [x for x in selected_stages(config) if x in JUDGES]
  trained = {x: os.path.join(workdir, x, training_run.MODEL) for x in names}
  if config.evaluation.evaluate_initial:
    return {BEFORE: config.checkpoint, **trained}
  return trained


def prompt_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns the settings of the judges' prompts.

  Raises:
    UserError: config.principles is false, and the template has no variant
      without principles.
  """
  prompt = config.prompt
  names = {'template': prompt.template, 'single': prompt.single}
  if not config.principles:
    if prompt.template not in _NO_PRINCIPLES:
      raise UserError(
        'config.principles is false, but config.prompt.template='
        f'{prompt.template} has no variant without principles; set '
        'config.prompt.template to a template without them'
      )
    names = {key: _NO_PRINCIPLES.get(name, name) for key, name in names.items()}
  return names | {
    'reads': 'scores',
    'too_long': prompt.too_long,
    'truncated': prompt.truncated,
    'score_range': prompt.score_range,
  }


def cold_start_texts(config: ConfigDict, workdir: str) -> str:
  """Returns the source of the stage sft, see data/sft_sources.py."""
  spec = config.sft.data.texts
  if not spec and spct_data.is_practice(config.data):
    spec = f'{sft_sources.PRACTICE}:{config.examples.texts}'
  elif not spec:
    folder = os.path.join(workdir, DATA)
    path = spct_data.path(folder, spct_data.COLD_START)
    spec = f'{sft_sources.VERDICTS}:{path}'
  return spec if config.principles else f'{sft_sources.NO_PRINCIPLES}:{spec}'


def prompt_buckets(
  config: ConfigDict, stage_buckets: tuple[int, ...]
) -> tuple[int, ...]:
  """Returns config.prompt_buckets if they apply, else those of the stage.

  Practice problems are short; they always have the buckets of the stage.
  """
  if config.prompt_buckets and not spct_data.is_practice(config.data):
    return config.prompt_buckets
  return stage_buckets


def _batch_shape(config: ConfigDict, batch: ConfigDict) -> dict[str, Any]:
  """Returns prompt buckets, and the number of packed rows that fits them.

  A packed row is as long as the longest prompt and generation. A model from
  scratch is small, and has as many tokens in a step whatever the row length:
  longer rows mean fewer rows.
  """
  buckets = prompt_buckets(config, batch.prompt_buckets)
  shape: dict[str, Any] = {'prompt_buckets': buckets}
  if not batch.packed or config.checkpoint != model_directory.SCRATCH:
    return shape
  generation_length = max(batch.generation_buckets)
  old_length, new_length = (
    max(x) + generation_length for x in (batch.prompt_buckets, buckets)
  )
  pairs = round(batch.micro_batch_prompts * old_length / new_length / 2)
  # An even number can be split over two devices.
  return shape | {'micro_batch_prompts': 2 * max(1, pairs)}


def _add_data(config: ConfigDict, pipeline: PipelinePlan) -> None:
  settings = run_record.leaves(config, 'data', 'examples', 'sft.data.texts')
  settings['data'] = input_identity.of_source(config.data)
  # The cold start takes examples away from the other stages.
  settings['stages has sft'] = 'sft' in selected_stages(config)
  pipeline.add(DATA, config, settings)


def _add_base(config: ConfigDict, pipeline: PipelinePlan) -> None:
  """Adds the training of a base model, unless config.checkpoint is one."""
  texts = config.base.data.texts
  if config.checkpoint != model_directory.SCRATCH or not texts:
    return
  if _is_for_practice_only(config, texts):
    return
  settings = _model_settings(config, 'base')
  settings['base.data.texts'] = input_identity.of_source(texts)
  stage_config = _copy(config.base)
  with stage_config.unlocked():
    stage_config.update(
      stage='sft', checkpoint=config.checkpoint, checkpoint_step=-1
    )
    stage_config.update(**_shared(config))
    stage_config.lora.rank = 0  # a new model has no base
    stage_config.compute.update(config.compute)
    stage_config.evaluation.data = ''
  pipeline.add(BASE, stage_config, settings)


def _add_sft(config: ConfigDict, pipeline: PipelinePlan) -> None:
  settings = _model_settings(config, 'sft', *_lora(config), 'examples.texts')
  settings['sft.data.texts'] = input_identity.of_source(config.sft.data.texts)
  settings |= _checkpoint_settings(config, pipeline)
  stage_config = _copy(config.sft)
  with stage_config.unlocked():
    stage_config.update(
      stage='sft', **_shared(config), **_initial_checkpoint(config, pipeline)
    )
    stage_config.compute.update(config.compute)
    stage_config.data.texts = cold_start_texts(config, pipeline.workdir)
    stage_config.evaluation.data = _validation(config, pipeline)
    stage_config.batch.update(_batch_shape(config, stage_config.batch))
    if _is_for_practice_only(config, stage_config.data.general):
      stage_config.data.update(general='', general_fraction=0.0)
  base = [BASE] if BASE in pipeline.stages else []
  pipeline.add('sft', stage_config, settings, DATA, *base)


def _is_for_practice_only(config: ConfigDict, spec: str) -> bool:
  """Returns whether only the texts, not the data, drill practice problems."""
  is_basics = spec.partition(':')[0] == sft_sources.BASICS
  return is_basics and not spct_data.is_practice(config.data)


def _add_rft(config: ConfigDict, pipeline: PipelinePlan) -> None:
  settings = _model_settings(config, 'rft', *_lora(config), *_COLD_START_KEYS)
  hints = rft_sampling.identify_hints(config.rft, 'config.rft')
  settings |= {f'rft.{key}': name for key, name in hints.items()}
  settings |= _checkpoint_settings(config, pipeline)
  stage_config = _rft_config(config, pipeline)
  with stage_config.unlocked():
    stage_config.update(
      phases='sample,filter,train', data=pipeline.data_path(spct_data.RFT)
    )
  pipeline.add('rft', stage_config, settings, DATA, *pipeline.judges[-1:])


def _rft_config(config: ConfigDict, pipeline: PipelinePlan) -> ConfigDict:
  """Returns the config of the stage rft, without its phases and examples."""
  stage_config = _copy(config.rft)
  with stage_config.unlocked():
    stage_config.update(
      stage='rft',
      samples='',
      fail_on_bad_rows=config.fail_on_bad_rows,
      **_initial_checkpoint(config, pipeline),
    )
    sampling, train = stage_config.sampling, stage_config.train
    sampling.prompt_buckets = prompt_buckets(config, sampling.prompt_buckets)
    # '': training starts from the sampling model.
    train.update(
      stage='sft', checkpoint='', checkpoint_step=-1, **_shared(config)
    )
    train.compute.update(config.compute)
    train.data.texts = ''
    # Practice problems and small models do without general instruction data.
    if _is_for_practice_only(config, train.data.general) or (
      not train.data.general and spct_data.is_practice(config.data)
    ):
      train.data.general = (
        cold_start_texts(config, pipeline.workdir)
        if train.data.general_fraction
        else ''
      )
    train.evaluation.data = _validation(config, pipeline)
    train.batch.update(_batch_shape(config, train.batch))
  return stage_config


def _add_grpo(config: ConfigDict, pipeline: PipelinePlan) -> None:
  settings = _model_settings(config, 'grpo', *_lora(config))
  settings |= _checkpoint_settings(config, pipeline)
  stage_config = _copy(config.grpo)
  with stage_config.unlocked():
    stage_config.update(
      stage='grpo', **_shared(config), **_initial_checkpoint(config, pipeline)
    )
    stage_config.compute.update(config.compute)
    stage_config.data = pipeline.data_path(spct_data.GRPO)
    stage_config.evaluation.data = _validation(config, pipeline)
    batch = stage_config.batch
    batch.prompt_buckets = prompt_buckets(config, batch.prompt_buckets)
  pipeline.add('grpo', stage_config, settings, DATA, *pipeline.judges[-1:])


def _add_meta_rm(config: ConfigDict, pipeline: PipelinePlan) -> None:
  """Adds the sampling for the meta RM, and its training."""
  _add_meta_rm_samples(config, pipeline)
  settings = _model_settings(config, 'meta_rm', *_lora(config))
  settings['prompt.meta'] = input_identity.of_template(
    config.prompt.meta, 'config.prompt.meta'
  )
  initial, identity = _meta_rm_checkpoint(config, pipeline)
  settings |= identity
  sample_stages = [x for x in ('rft', SAMPLES) if x in pipeline.stages]
  stage_config = _copy(config.meta_rm)
  with stage_config.unlocked():
    stage_config.update(
      stage='reward_model', kind='meta', **_shared(config), **initial
    )
    stage_config.response_order = 'balanced'  # of pairs; has no effect
    judged_by = stage_config.prompt
    stage_config.prompt = ConfigDict(
      {
        'meta': config.prompt.meta,
        'single': judged_by.single,
        'score_range': judged_by.score_range,
        'truncated': judged_by.truncated,
      }
    )
    with stage_config.mesh.unlocked():
      del stage_config.mesh.decode_tensor  # a meta RM does not generate
    stage_config.compute.update(config.compute)
    stage_config.data = pipeline.data_path(spct_data.TRAIN)
    stage_config.samples = ','.join(
      os.path.join(pipeline.workdir, x, rft_sampling.SAMPLES)
      for x in sample_stages
    )
    stage_config.evaluation.update(data='', samples='')
    batch = stage_config.batch
    batch.prompt_buckets = prompt_buckets(config, batch.prompt_buckets)
  pipeline.add(
    'meta_rm',
    stage_config,
    settings,
    DATA,
    *pipeline.judges[-1:],
    *sample_stages,
  )


def _meta_rm_checkpoint(
  config: ConfigDict, pipeline: PipelinePlan
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the meta RM's initial model, and what identifies it.

  Raises:
    UserError: it is to start from config.checkpoint, which is 'scratch'.
  """
  path = config.meta_rm.checkpoint
  if path == GRM:
    # An earlier stage's fingerprint covers its model.
    identity = _checkpoint_settings(config, pipeline)
    return _initial_checkpoint(config, pipeline), identity | {
      'meta_rm.checkpoint': GRM
    }
  if path:
    identity = {'meta_rm.checkpoint': input_identity.of_checkpoint(path, -1)}
    return {'checkpoint': path, 'checkpoint_step': -1}, identity
  initial = _pretrained_checkpoint(config, pipeline)
  if initial['checkpoint'] == model_directory.SCRATCH:
    raise UserError(
      'config.meta_rm.checkpoint is empty and config.checkpoint is scratch: '
      'there is no pretrained model that the meta RM can start from; set '
      f'config.meta_rm.checkpoint={GRM} to start from the GRM that it guides'
    )
  is_base = BASE in pipeline.stages
  return initial, {} if is_base else _checkpoint_identity(config)


def _add_meta_rm_samples(config: ConfigDict, pipeline: PipelinePlan) -> None:
  """Adds unhinted sampling from the GRM that the meta RM will guide."""
  settings = _model_settings(
    config, 'meta_rm_samples', 'evaluation.response_order', 'rft.sampling'
  )
  settings |= _checkpoint_settings(config, pipeline)
  stage_config = _rft_config(config, pipeline)
  with stage_config.unlocked():
    stage_config.update(
      phases='sample',
      data=pipeline.data_path(spct_data.FRESH),
      num_hinted_samples=0,
    )
    stage_config.update(config.meta_rm_samples)
    # The meta RM will read judgements in the order of the evaluation.
    stage_config.response_order = config.evaluation.response_order
  pipeline.add(SAMPLES, stage_config, settings, DATA, *pipeline.judges[-1:])


def _add_evaluation(config: ConfigDict, pipeline: PipelinePlan) -> None:
  settings = _model_settings(config, 'evaluation')
  if config.evaluation.evaluate_initial:
    settings |= _checkpoint_identity(config)
  reads = [x for x in (*pipeline.judges, 'meta_rm') if x in pipeline.stages]
  pipeline.add(EVALUATION, config, settings, DATA, *reads, stage='evaluate')


_ADD_STAGE = {
  'base': _add_base,
  'sft': _add_sft,
  'rft': _add_rft,
  'grpo': _add_grpo,
  'meta_rm': _add_meta_rm,
  'evaluate': _add_evaluation,
}


def _model_settings(config: ConfigDict, *keys: str) -> dict[str, Any]:
  """Returns the settings of a stage that samples from or trains a model."""
  settings = run_record.leaves(config, *_MODEL_KEYS, *keys)
  for key in ('template', 'single'):
    name = prompt_settings(config)[key]
    settings[f'prompt.{key}'] = input_identity.of_template(
      name, f'config.prompt.{key}'
    )
  return settings


def _lora(config: ConfigDict) -> tuple[str, ...]:
  """Returns the group of settings of adapters, if stages have adapters."""
  return ('lora',) if config.lora.rank else ()


def _initial_checkpoint(
  config: ConfigDict, pipeline: PipelinePlan
) -> dict[str, Any]:
  """Returns the newest model so far, or else config.checkpoint."""
  if pipeline.judges:
    path = pipeline.model_path(pipeline.judges[-1])
    return {'checkpoint': path, 'checkpoint_step': -1}
  return _pretrained_checkpoint(config, pipeline)


def _pretrained_checkpoint(
  config: ConfigDict, pipeline: PipelinePlan
) -> dict[str, Any]:
  """Returns the model of the stage base, or else config.checkpoint."""
  if BASE in pipeline.stages:
    return {'checkpoint': pipeline.model_path(BASE), 'checkpoint_step': -1}
  return {
    'checkpoint': config.checkpoint,
    'checkpoint_step': config.checkpoint_step,
  }


def _checkpoint_settings(
  config: ConfigDict, pipeline: PipelinePlan
) -> dict[str, Any]:
  """Returns config.checkpoint and its step if the next stage starts there."""
  if pipeline.judges or BASE in pipeline.stages:
    return {}  # the fingerprint of an earlier stage covers its model
  return _checkpoint_identity(config)


def _checkpoint_identity(config: ConfigDict) -> dict[str, str]:
  identity = input_identity.of_checkpoint(
    config.checkpoint, config.checkpoint_step
  )
  return {'checkpoint': identity}


def _copy(config: ConfigDict) -> ConfigDict:
  return config.copy_and_resolve_references()


def _shared(config: ConfigDict) -> dict[str, Any]:
  """Returns the settings that all stages share."""
  prompt = prompt_settings(config)
  # For a stage, '' is the template of its initial model.
  prompt['single'] = prompt['single'] or trained_judge.NONE
  return {
    'fail_on_bad_rows': config.fail_on_bad_rows,
    'seed': config.seed,
    'prompt': ConfigDict(prompt),
    'lora': _copy(config.lora),
    'mesh': _copy(config.mesh),
  }


def _validation(config: ConfigDict, pipeline: PipelinePlan) -> str:
  """Returns the examples to judge during training; '' for none."""
  if not config.examples.validation:
    return ''
  return pipeline.data_path(spct_data.VALIDATION)
