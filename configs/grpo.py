r"""Rule-based reinforcement learning of a judge (GRPO).

  python -m grm_jax.main --config=configs/grpo.py --workdir=runs/grpo \
    --config.checkpoint=runs/rft/model --config.data=ultrafeedback:PATH

A step is an update: one for each rollout of `prompts` groups, unless there are
more `minibatches` or `passes`. Published variants: DAPO is
--config.loss.loss_agg_mode=token --config.loss.clip_high=0.28
--config.loss.kl_coef=0.0 --config.max_resample_attempts=3; Dr. GRPO is
--config.loss.loss_agg_mode=constant --config.loss.normalize_by_std=false
--config.loss.kl_coef=0.0. Killed or stopped by SIGTERM and started again,
it goes on. `:tiny` continues the model of configs/rft.py:tiny.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# A small pretrained model, by what fits two CPU cores.
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
  'rollout.prompts': 8,
  'rollout.generations_per_prompt': 8,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny', 'smollm2'):
    raise ValueError(f'configs/grpo.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='grpo',
      checkpoint='runs/rft/model' if tiny else '',  # where the policy begins
      checkpoint_step=-1,  # which step of the checkpoint; -1 is the newest
      data='practice:4000' if tiny else '',  # see data/example_sources.py
      fail_on_bad_rows=False,  # stop at the first row that is bad
      seed=0,
      prompt=dict(
        template='practice' if tiny else 'pointwise',
        single='practice_single' if tiny else 'single',  # of one response
        too_long='shorten',
      ),
      # Of the responses: in each place the best one as often as in another;
      # 'random' is the paper's; 'balanced', 'fixed'.
      response_order='stratified',
      prompts_per_rollout=16 if tiny else 128,  # groups of a rollout
      group_size=8 if tiny else 4,  # generations of each
      temperature=1.0,
      max_resample_attempts=0,  # times that groups without spread are drawn anew
      num_minibatches=1,  # updates that a rollout is divided into
      num_iterations=1,  # times that a rollout is learnt from
      loss=dict(  # see training/grpo_loss.py
        kl_coef=0.02 if tiny else 0.08,
        kl_estimator='k3',  # 'k1', 'k2'
        clip_low=0.2,
        clip_high=0.2,
        loss_agg_mode='sequence',  # 'token', 'constant'
        normalize_by_std=True,  # divide advantages by the group's deviation
      ),
      reference=dict(
        checkpoint='',  # '' is where the policy begins
        dtype='float32' if tiny else 'bfloat16',
        offload_to_host=False,  # in the host's memory while it is not used
      ),
      batch=dict(
        micro_batch_prompts=8 if tiny else 16,  # groups at once on the devices
        prompt_buckets=(128,) if tiny else (1024, 2048),
        generation_buckets=(120, 192) if tiny else (512, 1024),
      ),
      steps=100 if tiny else 900,
      optimizer=dict(
        kind='muon' if tiny else 'adamw',  # or the other one
        learning_rate=5e-4 if tiny else 4e-7,
        warmup_steps=5,
        schedule='cosine' if tiny else 'constant',  # or the other one
        weight_decay=0.0,
        max_grad_norm=1.0,
        b2=0.95,
        moment_dtype='float32',  # of the first moment
        offload_to_host=False,  # moments and float32 kernels in the host's memory
      ),
      save_every=25,
      max_to_keep=2,  # checkpoints
      profile_steps='',  # 'FIRST,LAST': a trace of these in WORKDIR/profile
      log_samples_every=25,  # steps between generations shown in TensorBoard
      evaluation=dict(
        data='practice:400' if tiny else '',  # see data/example_sources.py
        every=50,  # steps; 0: at the begin and the end only
        k=8,  # samples of Voting@k; 0 is greedy only
        max_parse_failure_rate=0.2,  # share of parse failures that is fine
        patience=2,  # evaluations above it that stop the run; 0 is off
      ),
      rollout=dict(
        prompts=16 if tiny else 64,  # at once on the devices
        generations_per_prompt=8 if tiny else 4,  # generations of each at once
        decode_steps_per_call=16,
        int8=False,  # in evaluations, too
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
        remat='dots' if tiny else 'nothing_saveable',
      ),
    )
  )
  if arg == 'smollm2':
    config.update_from_flattened_dict(_SMOLLM2)
  return config
