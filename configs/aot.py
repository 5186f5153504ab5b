r"""Compiles what a step runs for a TPU slice, on a machine without one.

  pip install libtpu
  python -m grm_jax.main --config=configs/aot.py \
    --config.program=grpo_update --config.topology=v5p:4x4x4 \
    --config.json=report.json

  python -m grm_jax.main --config=configs/aot.py --config.program=decode \
    --config.topology=v5p:2x2x2 --config.mesh.tensor=8 --config.mesh.fsdp=1 \
    --config.micro_batch_prompts=8 --config.num_generations=8

Prints, per device: memory and whether it fits; FLOPs that are needed and that
are computed; bytes to and from HBM and over the network; the least time that
these take, what bounds it, and the MFU then. --config.sweep=fsdp,tensor
compiles every such mesh and ranks them. LIBTPU_INIT_ARGS is as on a TPU, and
configs/tpu.txt has good ones. `:tiny` compiles for the devices here.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny'):
    raise ValueError(f'configs/aot.py:{arg}: only :tiny exists')
  tiny = arg == 'tiny'
  return ConfigDict(
    dict(
      stage='aot',
      # What a step of a stage runs: 'sft_step', 'grpo_update', 'reward_model_step'
      # (gradients and update), 'reference' (log-probabilities by frozen
      # parameters); 'prefill' and 'decode' of the sampler, in its own layout;
      # 'prompts' and 'generations', log-probabilities of these alone.
      program='grpo_update',
      topology='local' if tiny else 'v5p:4x4x4',  # 'local': devices here
      size='tiny' if tiny else 'gemma2_27b',
      num_layers=0,  # 0: as the size says; fewer only help decode and prefill
      micro_batch_prompts=8 if tiny else 128,  # P at once, over all devices
      grad_accum_steps=1,  # times that a step does so
      prompt_size=128 if tiny else 2048,  # S
      num_generations=4,  # R
      generation_size=64 if tiny else 1024,  # T
      json='',  # also write the report there
      sweep='',  # mesh axes whose sizes are tried, such as fsdp,tensor
      optimizer=dict(  # of sft_step, grpo_update and reward_model_step
        kind='adamw',  # or 'muon'
        learning_rate=4e-7,
        warmup_steps=5,
        schedule='constant',
        weight_decay=0.0,
        max_grad_norm=1.0,
        b2=0.95,
        moment_dtype='float32',
        offload_to_host=False,  # moments and float32 kernels in the host's memory
      ),
      loss=dict(  # of grpo_update, see training/grpo_loss.py
        kl_coef=0.08,
        kl_estimator='k3',
        clip_low=0.2,
        clip_high=0.2,
        loss_agg_mode='sequence',
      ),
      reference=dict(dtype='bfloat16', offload_to_host=False),
      # decode_tensor is `tensor` while tokens are drawn; 0: the same.
      mesh=dict(
        data=1,
        fsdp=-1,
        tensor=1,
        decode_tensor=0,
        num_slices=1,
        logical_axis_rules=RULES,
      ),
      sampling=dict(weights='resident', int8=False),  # prefill and decode
      compute=dict(
        dtype='bfloat16',
        param_dtype='float32',
        remat='nothing_saveable',
        attention='xla' if tiny else 'splash',
        query_block=512,
        splash_block=512,
        head_chunk=4096,  # as stages have it
      ),
    )
  )
