r"""Supervised fine-tuning: the cold start of a judge.

  python -m grm_jax.main --config=configs/sft.py --workdir=runs/sft \
    --config.checkpoint=DIR --config.data.texts=judged:PATH.jsonl

Needs a model directory (configs/convert.py) and judgements to learn from. The
result, WORKDIR/model, is a model directory for --config.checkpoint of every
stage. After an interruption, run the same command again to resume.

Without any data or checkpoint, on a CPU:

  --config=configs/sft.py:base --workdir=runs/base   a tiny model from scratch
  --config=configs/sft.py:tiny --workdir=runs/sft    its cold start as a judge

`make demo` trains both with fewer steps, in 162 s and 150 s on two CPU cores.
Expect the loss in metrics.jsonl to fall, and the held-out judgements of `:tiny`
to parse (eval/parse_failures near 0.02; docs/results.md).
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='sft',  # see grm_jax/main.py
  # A model directory. 'scratch': a new model of `size`, with a tokenizer
  # trained on the texts. 'random': small random weights, for tests.
  checkpoint='',
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  # With checkpoint=scratch: a name in grm_jax/model/config.py; '': tiny.
  size='',
  data=dict(
    # practice:COUNT, texts:PATH or judged:PATH; grm_jax/data/sft_sources.py
    texts='',
    general='',  # a second source
    # Fraction of prompts (packed: rows) from `general`. RFT has the paper's.
    general_fraction=0.0,
    # Fraction of texts with an error, from the teacher of practice:COUNT.
    teacher_error_rate=0.65,
  ),
  fail_on_bad_rows=False,  # stop at the first bad row instead of skipping it
  seed=0,  # of data order and samples
  prompt=dict(
    # What a judgement states: 'scores' of the responses, the number of the
    # 'best' one (LLM-as-a-Judge), or no scores: a 'critique' of one response
    # (CLoud). '': as the initial model, or else scores.
    reads='',
    # Name in grm_jax/judgement/templates/, or a path. '': that of the initial
    # model, or else pointwise, best or critic, by `reads`.
    template='',
    single='single',  # template for one response; 'none': `template`
    score_range=(1, 10),  # lowest and highest score
    too_long='shorten',  # or 'refuse': skip prompts that do not fit
    truncated='fail',  # truncated generations do not parse; 'read': they may
  ),
  batch=dict(
    micro_batch_prompts=128,  # P, prompts on the devices at once
    grad_accum_steps=8,  # micro-batches per update
    generations_per_prompt=1,  # R
    prompt_buckets=(1024, 2048),  # padded prompt lengths
    generation_buckets=(512, 1024),  # padded generation lengths
    # Pack several texts into each row. A row has the length of the longest
    # prompt bucket and the longest generation bucket together.
    packed=False,
  ),
  steps=900,  # updates
  lora=dict(  # low-rank adapters (LoRA), see docs/lora.md
    rank=0,  # 0: all parameters are trained
    alpha=32.0,  # the change of a kernel is multiplied by alpha / rank
    # Kernels with an adapter.
    targets=('query', 'key', 'value', 'out', 'gate', 'up', 'down'),
    base_dtype='bfloat16',  # of the frozen parameters; 'float32', 'int8'
  ),
  optimizer=dict(
    kind='adamw',  # or 'muon'
    learning_rate=5e-6,  # the highest
    warmup_steps=40,  # updates of linear warm-up
    schedule='cosine',  # or 'constant'
    weight_decay=0.0,  # decoupled, times the learning rate
    max_grad_norm=1.0,  # 0: no clipping
    b2=0.95,  # decay of the second moment
    moment_dtype='float32',  # of the first moment; or 'bfloat16'
    offload_to_host=False,  # keep moments and float32 kernels in host memory
  ),
  save_every=100,  # steps; 0: at the end only
  max_to_keep=2,  # number of checkpoints on disk
  profile_steps='',  # 'FIRST,LAST': trace these steps into WORKDIR/profile
  evaluation=dict(
    data='',  # held-out examples, see grm_jax/data/example_sources.py; '': none
    every=400,  # steps; 0: at the end only
    concurrent_prompts=64,  # prompts on the devices at once
  ),
  mesh=dict(
    data=1,  # devices that replicate weights
    fsdp=-1,  # -1: the remaining devices
    tensor=1,  # devices that split heads, MLP and vocabulary
    decode_tensor=0,  # tensor axis while decoding; 0: as `tensor`
    num_slices=1,  # TPU slices, part of the data axis
    logical_axis_rules=RULES,  # see grm_jax/sharding/rules.py
  ),
  compute=dict(
    dtype='bfloat16',  # of layers; or 'float32'
    attention='splash',  # TPU kernel; 'xla' runs everywhere
    # Values that the backward pass keeps, most memory first: 'none' (all; no
    # rematerialization), 'dots', 'dots_no_batch', 'sublayers' (outputs of the
    # attention kernel, of attention and of the MLP), 'attention' (outputs of
    # the kernel), 'nothing_saveable'.
    remat='nothing_saveable',
    scoped_vmem_kib=0,  # on-chip memory of a fusion (TPU); 0: the default
  ),
)

# The cold start of the tiny model, on a CPU.
_TINY = {
  'checkpoint': 'runs/base/model',
  'data.texts': 'practice:8000',
  'data.general': 'basics:12000',
  'data.general_fraction': 0.25,
  'prompt.template': 'practice',
  'prompt.single': 'practice_single',
  'batch.micro_batch_prompts': 12,
  'batch.grad_accum_steps': 1,
  'batch.prompt_buckets': (48, 96, 128, 160),
  'batch.generation_buckets': (64, 120, 192),
  'batch.packed': True,
  'steps': 580,
  'optimizer.kind': 'muon',
  'optimizer.learning_rate': 6e-3,
  'optimizer.weight_decay': 0.1,
  'evaluation.data': 'practice:240',
  'evaluation.concurrent_prompts': 32,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}

# On top of _TINY: a tiny base model from scratch. A few judgements are mixed
# in, so that the tokenizer sees the words of the later stages.
_BASE = {
  'checkpoint': 'scratch',
  'data.texts': 'basics:12000',
  'data.general': 'practice:2000',
  'data.general_fraction': 0.01,
  'batch.micro_batch_prompts': 8,
  'steps': 720,
  'optimizer.learning_rate': 8e-3,
  'optimizer.schedule': 'constant',
  'evaluation.data': '',
}

# A small pretrained model, sized for two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'prompt.template': 'brief',
  'prompt.single': 'brief_single',
  'batch.micro_batch_prompts': 2,
  'batch.grad_accum_steps': 2,
  'batch.prompt_buckets': (768,),
  'batch.generation_buckets': (256,),
  'batch.packed': True,
  'steps': 60,
  'optimizer.learning_rate': 2e-4,
  'optimizer.warmup_steps': 10,
  'save_every': 10,
  'evaluation.every': 0,
  'evaluation.concurrent_prompts': 8,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}

_OVERRIDES = {
  '': {},
  'tiny': _TINY,
  'base': _TINY | _BASE,
  'smollm2': _SMOLLM2,
}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` is what follows configs/sft.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/sft.py:{arg} does not exist; use :base, :tiny, :smollm2 or '
      'nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
