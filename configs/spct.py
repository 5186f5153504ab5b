r"""The whole method: cold start, RFT, GRPO, meta RM, evaluation and report.

  python -m grm_jax.main --config=configs/spct.py --workdir=runs/spct \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH \
    --config.sft.data.texts=judged:PATH.jsonl \
    --config.rft.train.data.general=tulu3:PATH

Each stage works in its own folder of WORKDIR. Finished stages are skipped.
Resumes after an interruption.

Settings that stages share are at the top level. config.base, config.sft,
config.rft, config.grpo and config.meta_rm are the configs of the stages without
them. An ablation is one override each, see launch/ablations.sh.

`:tiny` trains a small model from scratch on practice problems, or on real data
with --config.data=gsm8k:PATH. `:paper` trains on the paper's five data sets in
the folder data/ (docs/data.md); it needs only --config.checkpoint=DIR.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs; see get_config for the configs of the stages.
_DEFAULTS = dict(
  stage='spct',
  stages='base,sft,rft,grpo,meta_rm,evaluate',  # stages to run
  # Model directory of the initial model. 'scratch': a new model; the stage base
  # trains it.
  checkpoint='',
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  # Labelled examples, see grm_jax/data/example_sources.py. Several sources:
  # SOURCE,SOURCE*FRACTION.
  data='',
  examples=dict(  # maximum number of examples
    texts=100_000,  # of the cold start
    rft=200_000,
    grpo=237_000,
    meta_rm_samples=20_000,  # sampled for the meta RM
    validation=500,  # judged during training; 0: none
    held_out=2000,  # judged at the end
  ),
  fail_on_bad_rows=False,  # stop at the first bad row instead of skipping it
  seed=0,
  principles=True,  # False: judgements without principles
  prompt=dict(
    template='pointwise',
    single='single',  # of examples with one response; '': `template`
    score_range=(1, 10),  # lowest and highest score
    too_long='shorten',  # or 'refuse'
    truncated='fail',  # truncated generations do not parse; or 'read'
    meta='meta',  # of the meta RM
  ),
  # Lengths that prompts are padded to, except those of practice problems; ():
  # the lengths in the configs of the stages.
  prompt_buckets=(),
  meta_rm_samples=dict(  # judgements by the last GRM to train the meta RM on
    num_samples=3,
    temperature=0.7,
  ),
  evaluation=dict(
    k=32,  # samples of a query by the last GRM
    k_intermediate=8,  # by the other GRMs; k of the columns of the table
    evaluate_initial=False,  # also judge with config.checkpoint
    temperature=0.5,
    response_order='balanced',  # 'random' as in the paper; 'fixed'
    sampling=dict(  # see configs/score.py
      weights='resident',  # or 'fsdp'
      int8=False,  # int8 kernels
      concurrent_prompts=16,  # P, prompts decoded at the same time
      generations_per_prompt=4,  # R, samples of a prompt at once
      max_new_tokens=1024,  # T, the longest generation
      decode_steps_per_call=16,  # decode steps between two refills
      prompt_buckets=(1024, 2048),
    ),
  ),
  lora=dict(  # low-rank adapters (LoRA) in all stages but base
    rank=0,  # 0: all parameters are trained
    alpha=32.0,  # the change of a kernel is multiplied by alpha / rank
    # Kernels with an adapter.
    targets=('query', 'key', 'value', 'out', 'gate', 'up', 'down'),
    base_dtype='bfloat16',  # of the frozen parameters; 'float32', 'int8'
  ),
  mesh=dict(
    data=1,
    fsdp=-1,
    tensor=1,
    decode_tensor=0,  # tensor axis during sampling; 0: the same as tensor
    num_slices=1,
    logical_axis_rules=RULES,
  ),
  compute=dict(
    dtype='bfloat16',
    attention='splash',  # or 'xla'
  ),
)

# Leaves of the stages' configs that the top level replaces.
_SHARED = (
  'stage',
  'checkpoint_step',
  'fail_on_bad_rows',
  'seed',
  'prompt',
  'lora',
  'mesh',
  'compute.dtype',
  'compute.attention',
  'evaluation.data',
)
# Leaves of each stage's config that the stages before it determine.
_REMOVED = {
  'base': (*_SHARED, 'checkpoint'),
  'sft': (*_SHARED, 'checkpoint'),
  'rft': (
    'stage',
    'checkpoint',
    'checkpoint_step',
    'fail_on_bad_rows',
    'data',
    'phases',
    'samples',
    'train.checkpoint',
    'train.data.texts',
    *(f'train.{key}' for key in _SHARED),
  ),
  'grpo': (*_SHARED, 'checkpoint', 'data'),
  'meta_rm': (
    *(*_SHARED, 'kind', 'data', 'samples', 'evaluation.samples'),
    'response_order',
  ),
}
# Changes of the stages' configs. In rft.train.data.general, '' means the texts
# of the cold start for practice problems; other data need a source.
_STAGES = {
  # '': judgements by the teacher of practice problems, or for other data
  # judgements without reasoning made from labels.
  'sft.data.texts': '',
  # Initial model: '', config.checkpoint or the result of the stage base (as in
  # the paper); 'grm', the GRM that it guides; or a model directory.
  'meta_rm.checkpoint': '',
}

# The paper's training data, see docs/data.md. Its general instruction data is
# not published; tulu3 replaces it.
_PAPER = {
  'data': (
    'math:data/math/solutions.jsonl,'
    'ultrafeedback:data/ultrafeedback/*.jsonl,'
    'offsetbias:data/offsetbias,'
    'skywork:data/skywork,'
    'helpsteer2:data/helpsteer2'
  ),
  'rft.train.data.general': 'tulu3:data/tulu3/*.parquet',
  'evaluation.response_order': 'random',
}

# The tiny model, on a CPU. Stages are shorter than alone: minutes, not an hour.
_TINY = {
  'checkpoint': 'scratch',
  'data': 'practice',
  'examples.texts': 8000,
  'examples.rft': 400,
  'examples.grpo': 480,
  'examples.meta_rm_samples': 320,
  'examples.validation': 0,
  'examples.held_out': 72,
  'prompt.template': 'practice',
  'prompt.single': 'practice_single',
  'prompt.meta': 'practice_meta',
  'prompt_buckets': (256, 512, 1024),
  'meta_rm_samples.num_samples': 8,
  # A small meta RM then ranks more judgements of a query correctly.
  'meta_rm.checkpoint': 'grm',
  'evaluation.sampling.concurrent_prompts': 32,
  'evaluation.sampling.max_new_tokens': 192,
  'evaluation.sampling.prompt_buckets': (128,),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'base.steps': 560,
  'sft.steps': 300,
  'sft.evaluation.every': 0,  # at the end only
  'rft.train.steps': 70,
  'rft.train.optimizer.warmup_steps': 10,
  'rft.train.evaluation.every': 0,
  'grpo.steps': 30,
  'grpo.evaluation.every': 0,
  'grpo.evaluation.k': 0,
  'meta_rm.steps': 100,
  'meta_rm.batch.micro_batch_prompts': 20,
}

# SmolLM2-135M on two CPU cores.
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
  'prompt_buckets': (320, 512),
  'meta_rm_samples.num_samples': 6,
  'meta_rm.checkpoint': 'grm',
  'evaluation.evaluate_initial': True,
  'evaluation.k': 16,
  'evaluation.k_intermediate': 4,
  'evaluation.sampling.concurrent_prompts': 32,
  # Each of the two orders of a pair has k / 2 samples.
  'evaluation.sampling.generations_per_prompt': 2,
  'evaluation.sampling.max_new_tokens': 256,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}

_OVERRIDES = {'': {}, 'paper': _PAPER, 'tiny': _TINY, 'smollm2': _SMOLLM2}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` is what follows configs/spct.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/spct.py:{arg} does not exist; use :paper, :tiny, :smollm2 or '
      'nothing'
    )
  size = '' if arg == 'paper' else arg
  stages = {
    'base': _load('sft', 'base'),
    'sft': _load('sft', size),
    'rft': _load('rft', size),
    'grpo': _load('grpo', size),
    'meta_rm': _load('reward_model', size),
  }
  for name, keys in _REMOVED.items():
    for key in keys:
      _remove(stages[name], key)
  config = ConfigDict(_DEFAULTS | stages)
  config.update_from_flattened_dict(_STAGES | _OVERRIDES[arg])
  return config


def _load(name: str, arg: str) -> ConfigDict:
  """Returns the config of a stage."""
  path = pathlib.Path(__file__).with_name(f'{name}.py')
  return runpy.run_path(str(path))['get_config'](arg)


def _remove(config: ConfigDict, key: str) -> None:
  *branches, leaf = key.split('.')
  for branch in branches:
    config = config[branch]
  with config.unlocked():
    del config[leaf]
