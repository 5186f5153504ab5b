"""The stages of a whole run, each with its folder, config and fingerprint.

What the stages share stands once at the top of configs/spct.py and is written
into their own configs here. A stage's fingerprint is made of all settings that
its result depends on, and of the fingerprints of the stages that it reads.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import sft_sources, tokenized_example
from grm_jax.errors import UserError
from grm_jax.stages.rft import sampling as rft_sampling
from grm_jax.stages.spct import data as spct_data
from grm_jax.stages.spct import fingerprint as spct_fingerprint
from grm_jax.training import run as training_run

STAGES = ('base', 'sft', 'rft', 'grpo', 'meta_rm', 'evaluate')
DATA, SAMPLES, EVALUATION = 'data', 'samples', 'evaluation'  # folders
BASE, BEFORE = 'base', 'before'
JUDGES = ('sft', 'rft', 'grpo')  # stages after which there is a GRM

# Templates that ask for judgements without principles.
_PLAIN = {
  'practice': 'practice_no_principles',
  'practice_single': 'practice_no_principles_single',
  'pointwise': 'no_principles',
}
# What all steps that ask or train models depend on.
_MODEL_KEYS = (
  'seed',
  'prompt.too_long',
  'principles',
  'prompt_buckets',
  'compute.dtype',
)
_COLD_START_KEYS = ('sft.data', 'examples.texts')


@dataclasses.dataclass(frozen=True)
class PipelineStage:
  """A stage to run.

  Attributes:
    name: of its folder in WORKDIR.
    stage: of STAGES, or 'data' or 'samples'.
    config: of that stage; of 'data' and 'evaluate' that of the whole run.
    settings: what its result depends on, as JSON values by the user's keys.
    reads: fingerprints of the steps that it reads, by name.
  """

  name: str
  stage: str
  config: ConfigDict
  settings: Mapping[str, Any]
  reads: Mapping[str, str]

  @property
  def fingerprint(self) -> str:
    """Twelve hexadecimal digits."""
    return spct_fingerprint.digest([self.settings, self.reads])


@dataclasses.dataclass
class PipelinePlan:
  """The steps so far, by name, and those of them in JUDGES."""

  workdir: str
  steps: dict[str, PipelineStage] = dataclasses.field(default_factory=dict)
  judges: list[str] = dataclasses.field(default_factory=list)

  def add(self, name, config, settings, *reads, stage='') -> None:
    found = {x: self.steps[x].fingerprint for x in reads}
    self.steps[name] = PipelineStage(
      name, stage or name, config, settings, found
    )
    if name in JUDGES:
      self.judges.append(name)

  def file(self, part: str) -> str:
    return spct_data.path(os.path.join(self.workdir, DATA), part)

  def model(self, stage: str) -> str:
    return os.path.join(self.workdir, stage, training_run.MODEL)


def plan(config: ConfigDict, workdir: str) -> list[PipelineStage]:
  """All steps in order; each has what it reads before it.

  Args:
    config: as configs/spct.py.
    workdir: whose folders the steps work in.

  Raises:
    UserError: config.stages is wrong, or a template is not there.
  """
  made = PipelinePlan(workdir)
  _data(config, made)
  for stage in chosen(config):
    _BUILDERS[stage](config, made)
  return list(made.steps.values())


def chosen(config: ConfigDict) -> tuple[str, ...]:
  """The stages of `config.stages`, in the order of the method.

  Raises:
    UserError: an unknown one, or a set of them that makes no sense.
  """
  names = [x.strip() for x in config.stages.split(',') if x.strip()]
  unknown = [x for x in names if x not in STAGES]
  if unknown or not names:
    raise UserError(
      f'config.stages={config.stages!r}: it is some of {",".join(STAGES)}'
    )
  found = tuple(x for x in STAGES if x in names)
  if not set(found) & set(JUDGES):
    raise UserError(
      f'config.stages={config.stages!r} trains no judge; name one of '
      f'{",".join(JUDGES)} too'
    )
  if 'sft' not in found and config.checkpoint == model_directory.SCRATCH:
    raise UserError(
      f'config.stages={config.stages!r} has no sft and config.checkpoint is '
      'scratch: give a model that can judge in config.checkpoint'
    )
  return found


def judges(config: ConfigDict, workdir: str) -> dict[str, str]:
  """The model directories of the GRMs, by the stage that trained them.

  With config.evaluation.evaluate_initial that of the user comes first.
  """
  names = [x for x in chosen(config) if x in JUDGES]
  found = {x: os.path.join(workdir, x, training_run.MODEL) for x in names}
  if config.evaluation.evaluate_initial:
    found = {BEFORE: config.checkpoint, **found}
  return found


def prompts(config: ConfigDict) -> dict[str, str]:
  """The settings of prompts that all stages ask with.

  Raises:
    UserError: no template without principles is known for these.
  """
  p = config.prompt
  names = {'template': p.template, 'single': p.single}
  if not config.principles:
    if p.template not in _PLAIN:
      raise UserError(
        f'config.principles is false; for config.prompt.template={p.template} '
        'there is no template without them; give one of your own as '
        'config.prompt.template'
      )
    names = {key: _PLAIN.get(name, name) for key, name in names.items()}
  return names | {'too_long': p.too_long}


def cold_start_texts(config: ConfigDict, workdir: str) -> str:
  """What the stage sft trains on, see data/sft_sources.py."""
  spec = config.sft.data.texts
  if not spec and spct_data.is_practice(config.data):
    spec = f'{sft_sources.PRACTICE}:{config.examples.texts}'
  elif not spec:
    made = os.path.join(workdir, DATA)
    spec = (
      f'{sft_sources.VERDICTS}:{spct_data.path(made, spct_data.COLD_START)}'
    )
  return spec if config.principles else f'{sft_sources.NO_PRINCIPLES}:{spec}'


def buckets(config: ConfigDict, own: tuple[int, ...]) -> tuple[int, ...]:
  """Lengths that a stage pads prompts to; `own` are those of its config."""
  practice = spct_data.is_practice(config.data)
  return (
    config.prompt_buckets if config.prompt_buckets and not practice else own
  )


def _rows_of(config, batch, key: str) -> dict[str, Any]:
  """A batch's buckets, and how many packed rows, which are as long as those.

  The rows of a model from scratch, which is small, become fewer as they become
  longer: a step has as many tokens, and takes as long.
  """
  longest = buckets(config, batch.prompt_buckets)
  found = {'prompt_buckets': longest}
  if batch.packed and config.checkpoint == model_directory.SCRATCH:
    size = max(
      tokenized_example.lengths(
        f'{key}.generation_buckets', batch.generation_buckets
      )
    )
    before, after = (
      max(tokenized_example.lengths(f'{key}.prompt_buckets', x)) + size
      for x in (batch.prompt_buckets, longest)
    )
    # An even number, which two devices can share.
    found['micro_batch_prompts'] = 2 * max(
      1, round(batch.micro_batch_prompts * before / after / 2)
    )
  return found


def _data(config, made) -> None:
  found = spct_fingerprint.of(config, 'data', 'examples', 'sft.data.texts')
  found['data'] = spct_fingerprint.of_source(config.data)
  # Which examples are left for the other stages depends on it.
  found['stages has sft'] = 'sft' in chosen(config)
  made.add(DATA, config, found)


def _from_scratch(config, made) -> None:
  """A base model of our own; nothing where there is one to begin with."""
  texts_of_base = config.base.data.texts
  if config.checkpoint != model_directory.SCRATCH or not texts_of_base:
    return
  if _is_of_other_problems(config, texts_of_base):
    return
  found = _settings(config, 'base')
  found['base.data.texts'] = spct_fingerprint.of_source(texts_of_base)
  own = _copy(config.base)
  with own.unlocked():
    own.update(stage='sft', checkpoint=config.checkpoint, checkpoint_step=-1)
    own.update(**_given(config))
    own.compute.update(config.compute)
    own.evaluation.data = ''
  made.add(BASE, own, found)


def _sft(config, made) -> None:
  found = _settings(config, 'sft', 'examples.texts')
  found['sft.data.texts'] = spct_fingerprint.of_source(config.sft.data.texts)
  own = _copy(config.sft)
  begin = _begin(config, made, found)
  with own.unlocked():
    own.update(stage='sft', **_given(config), **begin)
    own.compute.update(config.compute)
    own.data.texts = cold_start_texts(config, made.workdir)
    own.evaluation.data = _validation(config, made)
    own.batch.update(_rows_of(config, own.batch, 'config.sft.batch'))
    if _is_of_other_problems(config, own.data.general):
      own.data.update(general='', general_fraction=0.0)
  base = [BASE] if BASE in made.steps else []
  made.add('sft', own, found, DATA, *base)


def _is_of_other_problems(config, spec) -> bool:
  """Basics of practice problems are no general data for other ones."""
  practice = spct_data.is_practice(config.data)
  return spec.partition(':')[0] == sft_sources.BASICS and not practice


def _rft(config, made) -> None:
  found = _settings(config, 'rft', *_COLD_START_KEYS)
  own = _rft_config(config, made, found)
  with own.unlocked():
    own.update(phases='sample,filter,train', data=made.file(spct_data.RFT))
  made.add('rft', own, found, DATA, *made.judges[-1:])


def _rft_config(config, made, found) -> ConfigDict:
  """That of the stage rft, but for its parts and examples."""
  own = _copy(config.rft)
  begin = _begin(config, made, found)
  with own.unlocked():
    own.update(
      stage='rft', samples='', fail_on_bad_rows=config.fail_on_bad_rows, **begin
    )
    own.sampling.prompt_buckets = buckets(config, own.sampling.prompt_buckets)
    # From the model that was sampled.
    own.train.update(
      stage='sft', checkpoint='', checkpoint_step=-1, **_given(config)
    )
    own.train.compute.update(config.compute)
    data = own.train.data
    data.texts = ''
    if _is_of_other_problems(config, data.general):
      data.general = ''
    if data.general_fraction and not data.general:
      data.general = cold_start_texts(config, made.workdir)
    own.train.evaluation.data = _validation(config, made)
    own.train.batch.update(
      _rows_of(config, own.train.batch, 'config.rft.train.batch')
    )
  return own


def _grpo(config, made) -> None:
  found = _settings(config, 'grpo')
  own = _copy(config.grpo)
  begin = _begin(config, made, found)
  with own.unlocked():
    own.update(stage='grpo', **_given(config), **begin)
    own.compute.update(config.compute)
    own.data = made.file(spct_data.GRPO)
    own.evaluation.data = _validation(config, made)
    own.batch.prompt_buckets = buckets(config, own.batch.prompt_buckets)
  made.add('grpo', own, found, DATA, *made.judges[-1:])


def _meta_rm(config, made) -> None:
  _fresh(config, made)
  found = _settings(config, 'meta_rm')
  found['prompt.meta'] = spct_fingerprint.of_template(
    config.prompt.meta, 'config.prompt.meta'
  )
  own = _copy(config.meta_rm)
  drawn = [x for x in ('rft', SAMPLES) if x in made.steps]
  begin = _meta_begin(config, made, found)
  with own.unlocked():
    own.update(stage='reward_model', kind='meta', **_given(config), **begin)
    own.prompt.meta = config.prompt.meta
    own.compute.update(config.compute)
    own.data = made.file(spct_data.TRAIN)
    own.samples = ','.join(
      os.path.join(made.workdir, x, rft_sampling.SAMPLES) for x in drawn
    )
    own.evaluation.update(data='', samples='')
    own.batch.prompt_buckets = buckets(config, own.batch.prompt_buckets)
  made.add('meta_rm', own, found, DATA, *made.judges[-1:], *drawn)


def _meta_begin(config, made, found) -> dict[str, Any]:
  """Where the meta RM begins: by default where the GRM that it guides is.

  That one knows best what such judgements are made of: among judgements of one
  query a small meta RM orders more of them than from the cold start.
  """
  if config.meta_rm.checkpoint:
    return {'checkpoint': config.meta_rm.checkpoint, 'checkpoint_step': -1}
  return _begin(config, made, found)


def _fresh(config, made) -> None:
  """Unhinted samples of the GRM that the meta RM is to guide."""
  found = _settings(
    config, 'meta_rm_samples', 'evaluation.response_order', 'rft.sampling'
  )
  own = _rft_config(config, made, found)
  with own.unlocked():
    own.update(
      phases='sample', data=made.file(spct_data.FRESH), num_hinted_samples=0
    )
    own.update(config.meta_rm_samples)
    # As the GRM will be asked when the meta RM guides it.
    own.response_order = config.evaluation.response_order
  made.add(SAMPLES, own, found, DATA, *made.judges[-1:])


def _evaluate(config, made) -> None:
  reads = [x for x in (*made.judges, 'meta_rm') if x in made.steps]
  found = _settings(config, 'evaluation')
  if config.evaluation.evaluate_initial:
    found |= spct_fingerprint.of(config, 'checkpoint', 'checkpoint_step')
  made.add(EVALUATION, config, found, DATA, *reads, stage='evaluate')


_BUILDERS = {
  'base': _from_scratch,
  'sft': _sft,
  'rft': _rft,
  'grpo': _grpo,
  'meta_rm': _meta_rm,
  'evaluate': _evaluate,
}


def _settings(config, *keys) -> dict[str, Any]:
  """Those of a step that asks or trains models."""
  found = spct_fingerprint.of(config, *_MODEL_KEYS, *keys)
  for key in ('template', 'single'):
    name = prompts(config)[key]
    found[f'prompt.{key}'] = spct_fingerprint.of_template(
      name, f'config.prompt.{key}'
    )
  return found


def _begin(config, made, found) -> dict[str, Any]:
  """The newest model; without any the user's, which joins the settings."""
  if made.judges:
    return {'checkpoint': made.model(made.judges[-1]), 'checkpoint_step': -1}
  if BASE in made.steps:
    return {'checkpoint': made.model(BASE), 'checkpoint_step': -1}
  found |= spct_fingerprint.of(config, 'checkpoint', 'checkpoint_step')
  return {
    'checkpoint': config.checkpoint,
    'checkpoint_step': config.checkpoint_step,
  }


def _copy(config: ConfigDict) -> ConfigDict:
  return config.copy_and_resolve_references()


def _given(config) -> dict[str, Any]:
  """What all stages share."""
  return {
    'fail_on_bad_rows': config.fail_on_bad_rows,
    'seed': config.seed,
    'prompt': ConfigDict(prompts(config)),
    'mesh': _copy(config.mesh),
  }


def _validation(config, made) -> str:
  """What is judged while training, '' for nothing."""
  return made.file(spct_data.VALIDATION) if config.examples.validation else ''
