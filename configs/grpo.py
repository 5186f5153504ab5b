r"""Rule-based reinforcement learning of a judge (GRPO).

  python -m grm_jax.main --config=configs/grpo.py --workdir=runs/grpo \
    --config.checkpoint=runs/rft/model --config.data=ultrafeedback:PATH

Needs the model of the stage rft or sft, and examples with labels. A step is one
update. Each rollout of prompts_per_rollout groups has one update, unless
num_minibatches or num_iterations is larger. After an interruption, run the same
command again to resume.

Published variants:
  DAPO: --config.loss.loss_agg_mode=token --config.loss.clip_high=0.28
    --config.loss.kl_coef=0.0 --config.max_resample_attempts=3
  Dr. GRPO: --config.loss.loss_agg_mode=constant
    --config.loss.normalize_by_std=false --config.loss.kl_coef=0.0

`:tiny` trains the model of configs/rft.py:tiny on a CPU. `make demo` does it
with other settings, in 222 s on two CPU cores. Expect rollout/reward in
metrics.jsonl to rise; on practice data GRPO raised greedy accuracy from 70.3 %
to 75.4 % (docs/results.md).
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='grpo',  # see grm_jax/main.py
  checkpoint='',  # model directory of the initial policy
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  # Labelled examples, see grm_jax/data/example_sources.py. Several sources:
  # SOURCE,SOURCE*FRACTION.
  data='',
  # 'outcome': +1 for a correct judgement, -1 for any other. Or your own
  # reward: 'path/to/file.py:function', see grm_jax/judgement/correctness.py.
  reward='outcome',
  fail_on_bad_rows=False,  # stop at the first bad row instead of skipping it
  seed=0,  # of data order and samples
  prompt=dict(
    # What is empty is as in the training of the model (judge.json in its
    # directory). 'scores', or 'best' for an LLM-as-a-Judge; see configs/sft.py.
    reads='',
    template='',  # a name in grm_jax/judgement/templates/, or a path
    single='',  # template for one response; 'none': `template`
    score_range=(),  # lowest and highest score, as (1, 10)
    too_long='shorten',  # or 'refuse': skip prompts that do not fit
    truncated='fail',  # truncated generations do not parse; 'read': they may
  ),
  # Order of the responses in a prompt. 'stratified' puts the best response in
  # every position equally often; 'random' is the paper's; 'balanced', 'fixed'.
  response_order='stratified',
  prompts_per_rollout=128,  # groups per rollout
  group_size=4,  # generations per group
  temperature=1.0,  # of rollouts, 1e-5 to 100
  # How often groups whose rewards are all equal are replaced by new ones.
  max_resample_attempts=0,
  num_minibatches=1,  # updates that a rollout is split into
  num_iterations=1,  # passes over a rollout
  loss=dict(  # see training/grpo_loss.py
    kl_coef=0.08,  # 0: no reference policy
    kl_estimator='k3',  # or 'k1', 'k2'
    clip_low=0.2,
    clip_high=0.2,
    loss_agg_mode='sequence',  # or 'token', 'constant'
    normalize_by_std=True,  # divide advantages by the group's deviation
  ),
  reference=dict(
    checkpoint='',  # model directory; '': the initial policy
    dtype='bfloat16',  # or 'float32'
    offload_to_host=False,  # keep it in host memory while it is not used
  ),
  batch=dict(
    micro_batch_prompts=16,  # P, groups on the devices at once in an update
    prompt_buckets=(1024, 2048),  # padded prompt lengths
    generation_buckets=(512, 1024),  # padded lengths; the last is the maximum
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
    learning_rate=4e-7,  # the highest
    warmup_steps=5,  # updates of linear warm-up
    schedule='constant',  # or 'cosine'
    weight_decay=0.0,  # decoupled, times the learning rate
    max_grad_norm=1.0,  # 0: no clipping
    b2=0.95,  # decay of the second moment
    moment_dtype='float32',  # of the first moment; or 'bfloat16'
    offload_to_host=False,  # keep moments and float32 kernels in host memory
  ),
  save_every=25,  # steps; 0: at the end only
  max_to_keep=2,  # number of checkpoints on disk
  profile_steps='',  # 'FIRST,LAST': trace these steps into WORKDIR/profile
  log_samples_every=25,  # steps between sample texts in TensorBoard; 0: none
  evaluation=dict(
    data='',  # held-out examples, see grm_jax/data/example_sources.py; '': none
    every=50,  # steps; 0: at the start and the end only
    k=8,  # samples per example for Voting@k; 0: greedy only
    max_parse_failure_rate=0.2,  # highest acceptable fraction
    # Evaluations in a row above that rate that end the run; 0: never.
    patience=2,
  ),
  rollout=dict(
    concurrent_prompts=64,  # prompts decoded at the same time
    generations_per_prompt=4,  # generations of each prompt at once
    decode_steps_per_call=16,  # decode steps between two refills
    int8=False,  # sample and evaluate with int8 kernels
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

# The tiny model, on a CPU.
_TINY = {
  'checkpoint': 'runs/rft/model',
  'data': 'practice:4000',
  'prompt.template': 'practice',
  'prompt.single': 'practice_single',
  'prompts_per_rollout': 16,
  'group_size': 8,
  'loss.kl_coef': 0.02,
  'reference.dtype': 'float32',
  'batch.micro_batch_prompts': 8,
  'batch.prompt_buckets': (128,),
  'batch.generation_buckets': (120, 192),
  'steps': 100,
  'optimizer.kind': 'muon',
  'optimizer.learning_rate': 5e-4,
  'optimizer.schedule': 'cosine',
  'evaluation.data': 'practice:400',
  'rollout.concurrent_prompts': 16,
  'rollout.generations_per_prompt': 8,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}

# A small pretrained model, sized for two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'prompt.template': 'brief',
  'prompt.single': 'brief_single',
  'prompts_per_rollout': 8,
  'group_size': 8,
  'loss.kl_coef': 0.02,
  'reference.dtype': 'float32',
  'batch.micro_batch_prompts': 2,
  'batch.prompt_buckets': (320, 512),
  'batch.generation_buckets': (128, 256),
  'steps': 16,
  'optimizer.learning_rate': 1e-5,
  'optimizer.schedule': 'cosine',
  'save_every': 5,
  'log_samples_every': 5,
  'evaluation.every': 0,
  'evaluation.k': 0,
  'rollout.concurrent_prompts': 8,
  'rollout.generations_per_prompt': 8,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}

_OVERRIDES = {'': {}, 'tiny': _TINY, 'smollm2': _SMOLLM2}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` is what follows configs/grpo.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/grpo.py:{arg} does not exist; use :tiny, :smollm2 or nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
