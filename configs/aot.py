r"""Compiles what a step runs for a TPU slice, on a machine without a TPU.

  pip install libtpu
  python -m grm_jax.main --config=configs/aot.py \
    --config.program=grpo_update --config.topology=v5p:4x4x4 \
    --config.json=report.json

  python -m grm_jax.main --config=configs/aot.py --config.program=decode \
    --config.topology=v5p:2x2x2 --config.mesh.tensor=8 --config.mesh.fsdp=1 \
    --config.micro_batch_prompts=8 --config.num_generations=8

Prints per device: memory and whether the program fits, useful and computed
FLOPs, bytes to and from HBM and over the network, and a roofline, which is a
bound and not a prediction. --config.sweep=fsdp,tensor compiles and ranks every
such mesh. A 27B training step compiles in one to five minutes on one CPU core.
LIBTPU_INIT_ARGS is used as on a TPU; configs/tpu.txt has good values. `:tiny`
compiles a tiny model for the devices of this machine.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

_DEFAULTS = dict(
  stage='aot',  # see grm_jax/main.py
  # 'sft_step', 'grpo_update', 'reward_model_step': gradients and the update.
  # 'reference': log-probabilities by a frozen policy. 'prefill', 'decode': the
  # sampler, in its own layout. 'prompts', 'generations': log-probabilities.
  program='grpo_update',
  topology='v5p:4x4x4',  # GENERATION:SHAPE; 'local': the devices here
  size='gemma2_27b',  # model, see grm_jax/model/config.py
  num_layers=0,  # 0: as in `size`; fewer compile faster
  micro_batch_prompts=128,  # P of a micro-batch, over all devices
  grad_accum_steps=1,  # micro-batches of a step
  prompt_size=2048,  # S
  num_generations=4,  # R
  generation_size=1024,  # T
  json='',  # also write the report to this file
  sweep='',  # mesh axes whose sizes are tried, such as fsdp,tensor
  lora=dict(  # low-rank adapters (LoRA), see docs/lora.md
    rank=0,  # 0: all parameters are trained
    alpha=32.0,  # the change of a kernel is multiplied by alpha / rank
    # Kernels with an adapter.
    targets=('query', 'key', 'value', 'out', 'gate', 'up', 'down'),
    base_dtype='bfloat16',  # of the frozen parameters; 'float32', 'int8'
  ),
  optimizer=dict(  # as in the configs of training stages
    kind='adamw',  # or 'muon'
    learning_rate=4e-7,  # does not change the program
    warmup_steps=5,  # does not change the program
    schedule='constant',  # does not change the program
    weight_decay=0.0,  # decoupled, times the learning rate
    max_grad_norm=1.0,  # 0: no clipping
    b2=0.95,  # decay of the second moment
    moment_dtype='float32',  # of the first moment
    offload_to_host=False,  # moments and float32 kernels in host memory
  ),
  loss=dict(  # of grpo_update, see grm_jax/training/grpo_loss.py
    kl_coef=0.08,  # 0: no reference policy
    kl_estimator='k3',  # or 'k1', 'k2'
    clip_low=0.2,  # the ratio is clipped to 1 - clip_low
    clip_high=0.2,  # and 1 + clip_high
    loss_agg_mode='sequence',  # or 'token', 'constant'
  ),
  reference=dict(  # of grpo_update and reference
    dtype='bfloat16',
    offload_to_host=False,  # in host memory while it is not used
  ),
  mesh=dict(  # see docs/pods.md
    data=1,  # devices that replicate weights
    fsdp=-1,  # devices that split weights and prompts; -1: the rest
    tensor=1,  # devices that split heads, MLP and vocabulary
    decode_tensor=0,  # `tensor` of prefill and decode; 0: the same
    num_slices=1,  # slices, a factor of `data`
    logical_axis_rules=RULES,  # see grm_jax/sharding/rules.py
  ),
  sampling=dict(  # of prefill and decode
    weights='resident',  # or 'fsdp': gathered layer by layer
    int8=False,  # int8 kernels
  ),
  compute=dict(
    dtype='bfloat16',  # of activations and of kernels in products
    param_dtype='float32',  # of parameters at rest
    # Values that the backward pass keeps, most memory first: 'none' (all; no
    # rematerialization), 'dots', 'dots_no_batch', 'sublayers' (outputs of the
    # attention kernel, of attention and of the MLP), 'attention' (outputs of
    # the kernel), 'nothing_saveable'.
    remat='nothing_saveable',
    attention='splash',  # or 'xla'
    query_block=512,  # queries at once in xla attention
    splash_block=512,  # largest tile of the splash kernel
    head_chunk=4096,  # tokens at once in the output head
    scoped_vmem_kib=0,  # on-chip memory of a fusion (TPU); 0: the default
  ),
)

# A tiny model on the devices of this machine.
_TINY = {
  'topology': 'local',
  'size': 'tiny',
  'micro_batch_prompts': 8,
  'prompt_size': 128,
  'generation_size': 64,
  'compute.attention': 'xla',
}

_OVERRIDES = {'': {}, 'tiny': _TINY}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in _OVERRIDES:
    raise ValueError(f'configs/aot.py:{arg}: only :tiny exists')
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
