r"""The whole method: cold start, RFT, GRPO, meta RM, evaluation and report.

  python -m grm_jax.main --config=configs/spct.py --workdir=runs/spct \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH \
    --config.sft.data.texts=judged:PATH.jsonl

Each stage works in a folder of its own in WORKDIR and is skipped when it is
finished. Killed or stopped by SIGTERM and started again, the run goes on.
What stages share stands here once; config.base, config.sft, config.rft,
config.grpo and config.meta_rm are their own configs without it. Ablations are
one override each, see launch/ablations.sh. `:tiny` trains a small model from
scratch on practice problems, or on real data with --config.data=gsm8k:PATH.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

_HERE = pathlib.Path(__file__).parent
# What all stages are given from the top.
_GIVEN = (
  'stage',
  'checkpoint_step',
  'fail_on_bad_rows',
  'seed',
  'prompt',
  'mesh',
  'compute.dtype',
  'compute.attention',
  'evaluation.data',
)


def _stage(name: str, arg: str, also: tuple[str, ...]) -> ConfigDict:
  """The config of a stage, without what it is given."""
  config = runpy.run_path(str(_HERE / f'{name}.py'))['get_config'](arg)
  _remove(config, also)
  return config


def _remove(config: ConfigDict, keys: tuple[str, ...]) -> None:
  with config.unlocked():
    for key in keys:
      *above, last = key.split('.')
      branch = config
      for part in above:
        branch = branch[part]
      del branch[last]


def _stages(arg: str) -> dict[str, ConfigDict]:
  base = _stage('sft', 'base', (*_GIVEN, 'checkpoint'))
  sft = _stage('sft', arg, (*_GIVEN, 'checkpoint'))
  # '': judgements by the practice teacher, or of other data known verdicts.
  sft.data.texts = ''
  given = (
    'stage',
    'checkpoint_step',
    'fail_on_bad_rows',
    'checkpoint',
    'data',
    'phases',
    'samples',
  )
  rft = _stage('rft', arg, given)
  _remove(rft.train, (*_GIVEN, 'checkpoint', 'data.texts'))
  # In rft.train.data.general, '' are the texts of the cold start.
  grpo = _stage('grpo', arg, (*_GIVEN, 'checkpoint', 'data'))
  given = (*_GIVEN, 'kind', 'data', 'samples', 'evaluation.samples')
  meta_rm = _stage('reward_model', arg, given)
  meta_rm.checkpoint = ''  # where it begins; '': the GRM that it will guide
  if arg == 'tiny':  # less of everything than alone: minutes, not an hour
    base.steps = 560
    sft.steps = 300
    rft.train.steps = 70
    rft.train.optimizer.warmup_steps = 10
    grpo.steps = 30
    meta_rm.steps = 100
    meta_rm.batch.micro_batch_prompts = 20
    for stage in (sft, rft.train, grpo):
      stage.evaluation.every = 0  # at the end only
    grpo.evaluation.k = 0
  return dict(base=base, sft=sft, rft=rft, grpo=grpo, meta_rm=meta_rm)


# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'examples.texts': 300,
  'examples.rft': 128,
  'examples.grpo': 128,
  'examples.meta_rm_samples': 80,
  'examples.validation': 0,
  'examples.held_out': 100,
  'prompt.template': 'brief',
  'prompt.single': 'brief_single',
  'prompt_buckets': (
    320,
    512,
  ),  # prompts of real pairs; texts have those of sft
  'meta_rm_samples.num_samples': 6,
  'evaluation.evaluate_initial': True,
  'evaluation.k': 16,
  'evaluation.k_intermediate': 4,
  'evaluation.sampling.prompts': 32,
  'evaluation.sampling.generations_per_prompt': 2,  # each order of a pair has k / 2 samples
  'evaluation.sampling.max_new_tokens': 256,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny', 'smollm2'):
    raise ValueError(f'configs/spct.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='spct',
      stages='base,sft,rft,grpo,meta_rm,evaluate',  # those of them to run
      # Where the first of them begins: a model directory; 'scratch': a new
      # model, trained by the stage base.
      checkpoint='scratch' if tiny else '',
      checkpoint_step=-1,  # which step of the checkpoint; -1 is the newest
      data='practice' if tiny else '',  # see data/example_sources.py
      examples=dict(  # at most so many
        texts=8000 if tiny else 100_000,  # of the cold start
        rft=400 if tiny else 200_000,
        grpo=480 if tiny else 237_000,
        meta_rm_samples=320 if tiny else 20_000,  # judged anew for the meta RM
        validation=0 if tiny else 500,  # judged while training; 0: none
        held_out=72 if tiny else 2000,  # judged at the end
      ),
      fail_on_bad_rows=False,  # stop at the first row that is bad
      seed=0,
      principles=True,  # False: judgements without them
      prompt=dict(
        template='practice' if tiny else 'pointwise',
        single='practice_single' if tiny else 'single',  # of one response
        too_long='shorten',
        meta='practice_meta' if tiny else 'meta',  # of the meta RM
      ),
      # Lengths that prompts of data other than practice are padded to; ():
      # those of each stage.
      prompt_buckets=(256, 512, 1024) if tiny else (),
      meta_rm_samples=dict(  # judgements by the last GRM for the meta RM to learn from
        num_samples=8 if tiny else 4,
        temperature=0.7,
      ),
      evaluation=dict(
        k=32,  # samples of each query, by the last GRM
        k_intermediate=8,  # by those before it; k of the table
        evaluate_initial=False,  # judge also as config.checkpoint does, untrained
        temperature=0.5,
        response_order='balanced',  # 'random' is the paper's; 'fixed'
        sampling=dict(  # see configs/score.py
          weights='resident',
          int8=False,
          prompts=32 if tiny else 16,
          generations_per_prompt=4,
          max_new_tokens=192 if tiny else 1024,
          decode_steps_per_call=16,
          prompt_buckets=(128,) if tiny else (1024, 2048),
        ),
      ),
      # decode_tensor is `tensor` while tokens are drawn; 0: the same.
      mesh=dict(
        data=1,
        fsdp=-1,
        tensor=1,
        decode_tensor=0,
        num_slices=1,
        logical_axis_rules=RULES,
      ),
      compute=dict(
        dtype='float32' if tiny else 'bfloat16',
        attention='xla' if tiny else 'splash',
      ),
      **_stages(arg),
    )
  )
  if arg == 'smollm2':
    config.update_from_flattened_dict(_SMOLLM2)
  return config
