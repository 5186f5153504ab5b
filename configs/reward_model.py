r"""Trains a meta RM: the probability that a judgement is right.

  python -m grm_jax.main --config=configs/reward_model.py \
    --workdir=runs/meta_rm --config.checkpoint=DIR \
    --config.data=ultrafeedback:PATH \
    --config.samples=runs/rft/samples.jsonl,runs/fresh/samples.jsonl

Needs a model directory, examples with labels, and judgements of them: those of
the stage rft, and those of the GRM to guide (the stage rft with
--config.phases=sample --config.num_hinted_samples=0). The defaults are those of
the paper; it starts from the pretrained model, not from the GRM. The result is
WORKDIR/model, for --config.meta_checkpoint. After an interruption, run the same
command again to resume.

Baselines that learn from examples alone: --config.kind=bradley_terry or
--config.kind=pair, with --config.samples=. The value model of CLoud:
--config.kind=critique, with critiques as samples (docs/evaluation.md).

`:tiny` trains the model of configs/sft.py:tiny on the samples of
configs/rft.py:tiny. `make demo` trains a meta RM with fewer steps, in 100 s on
two CPU cores. Expect eval/auc above 0.5; WORKDIR/calibration.png shows the
calibration.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='reward_model',  # see grm_jax/main.py
  kind='meta',  # or 'bradley_terry', 'pair', 'critique' (of CLoud)
  # A model directory; without a scalar head it gets one. 'random': for tests.
  checkpoint='',
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  # Labelled examples, see grm_jax/data/example_sources.py. Several sources:
  # SOURCE,SOURCE*FRACTION.
  data='',
  # Judgements, or critiques for kind=critique: files of the stage rft,
  # separated by commas.
  samples='',
  fail_on_bad_rows=False,  # stop at the first bad row instead of skipping it
  seed=0,  # of data order and samples
  # Weight judgements so that right and wrong ones count the same. The paper
  # does not; see :balanced.
  balance_labels=False,
  # With kind=pair: 'balanced' reads each pair in both orders, 'random' in one
  # random order, 'fixed' in the stored order.
  response_order='balanced',
  prompt=dict(
    # Template of the meta RM's prompts. The checkpoint stores it for judges.
    meta='meta',
    # Template by which single responses were judged; '': as in the training of
    # config.checkpoint; 'none': that of several responses.
    single='',
    score_range=(),  # lowest and highest score of the samples
    truncated='fail',  # truncated samples are wrong; 'read': parse them
  ),
  batch=dict(
    micro_batch_prompts=32,  # P, prompts on the devices at once
    # Texts per update on average, in micro-batches of the same number of
    # prompts. The paper: 512 judgements.
    texts_per_step=512,
    generations_per_prompt=4,  # R, texts per prompt
    prompt_buckets=(1024, 2048),  # padded prompt lengths
    generation_buckets=(512, 1024),  # padded lengths of judgements or responses
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
    learning_rate=1e-5,  # the highest
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
    data='',  # held-out examples, see grm_jax/data/example_sources.py
    samples='',  # judgements or critiques of them
    # Without `data`: fraction of the queries to hold out; 0: no evaluation.
    holdout_fraction=0.1,
    every=100,  # steps; 0: at the end only
    concurrent_prompts=64,  # prompts on the devices at once
  ),
  mesh=dict(
    data=1,  # devices that replicate weights
    fsdp=-1,  # -1: the remaining devices
    tensor=1,  # devices that split heads, MLP and vocabulary
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

# If most judgements are right, a short training without weights mainly learns
# their fraction; the values then rank the judgements of a query badly.
_BALANCED = {'balance_labels': True}

# The tiny model, on a CPU.
_TINY = _BALANCED | {
  'checkpoint': 'runs/sft/model',
  'data': 'practice:2000',
  'samples': 'runs/rft/samples.jsonl',
  'prompt.meta': 'practice_meta',
  'prompt.single': 'practice_single',
  'batch.micro_batch_prompts': 16,
  'batch.texts_per_step': 16,  # one micro-batch
  'batch.generations_per_prompt': 2,
  'batch.prompt_buckets': (128,),
  'batch.generation_buckets': (120, 192),
  'steps': 300,
  'optimizer.kind': 'muon',
  'optimizer.learning_rate': 2e-3,
  'evaluation.concurrent_prompts': 16,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}

# A small pretrained model, sized for two CPU cores.
_SMOLLM2 = _BALANCED | {
  'checkpoint': 'runs/smollm2/model',
  'prompt.single': 'brief_single',
  'batch.micro_batch_prompts': 4,
  'batch.texts_per_step': 24,
  'batch.prompt_buckets': (320, 512),
  'batch.generation_buckets': (128, 256),
  'steps': 24,
  'optimizer.learning_rate': 5e-5,
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
  'balanced': _BALANCED,
  'tiny': _TINY,
  'smollm2': _SMOLLM2,
}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` follows configs/reward_model.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/reward_model.py:{arg} does not exist; use :balanced, :tiny, '
      ':smollm2 or nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
