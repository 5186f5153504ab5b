r"""Trains a meta RM: how likely is it that a judgement is right?

  python -m grm_jax.main --config=configs/reward_model.py --workdir=runs/meta_rm \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH \
    --config.samples=runs/rft/samples.jsonl,runs/fresh/samples.jsonl

Samples are those of the stage rft, and of the GRM that is to be guided (the
stage rft with --config.phases=sample --config.num_hinted_samples=0). WORKDIR/model is
what --config.meta_checkpoint takes. Baselines, from examples alone:
--config.kind=bradley_terry and --config.kind=pair, with --config.samples=.
Killed and started again, it goes on. `:tiny` continues the model of
configs/sft.py:tiny on the samples of configs/rft.py:tiny.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'prompt.single': 'brief_single',
  'batch.micro_batch_prompts': 4,
  'batch.grad_accum_steps': 2,
  'batch.prompt_buckets': (320, 512),
  'batch.generation_buckets': (128, 256),
  'steps': 24,
  'optimizer.learning_rate': 5e-5,
  'optimizer.warmup_steps': 10,
  'save_every': 10,
  'evaluation.every': 0,
  'evaluation.prompts': 8,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny', 'smollm2'):
    raise ValueError(
      f'configs/reward_model.py:{arg}: only :tiny and :smollm2 exist'
    )
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='reward_model',
      kind='meta',  # or 'bradley_terry', 'pair'
      # A model directory, which gets a scalar head if it has none; 'random'.
      checkpoint='runs/sft/model' if tiny else '',
      checkpoint_step=-1,  # which step of the checkpoint; -1 is the newest
      data='practice:2000' if tiny else '',  # see data/example_sources.py
      # Judgements of them: files of the stage rft, with commas between.
      samples='runs/rft/samples.jsonl' if tiny else '',
      fail_on_bad_rows=False,  # stop at the first row that is bad
      seed=0,
      prompt=dict(
        # What the meta RM reads before a judgement; its checkpoint says so to
        # those who use it.
        meta='practice_meta' if tiny else 'meta',
        # By which single responses were judged; '' if from 1 to 10.
        single='practice_single' if tiny else 'single',
      ),
      batch=dict(
        micro_batch_prompts=16 if tiny else 32,  # P, at once on the devices
        grad_accum_steps=1 if tiny else 4,  # batches a step
        generations_per_prompt=2
        if tiny
        else 4,  # R, judgements of a prompt, in one pass
        # Lengths that prompts and judgements are padded to.
        prompt_buckets=(128,) if tiny else (1024, 2048),
        generation_buckets=(120, 192) if tiny else (512, 1024),
      ),
      steps=300 if tiny else 900,
      optimizer=dict(
        kind='muon' if tiny else 'adamw',  # or the other one
        learning_rate=2e-3 if tiny else 1e-5,
        warmup_steps=40,
        schedule='cosine',  # or 'constant'
        weight_decay=0.0,
        max_grad_norm=1.0,
        b2=0.95,
        moment_dtype='float32',  # of the first moment
        offload_to_host=False,  # moments and float32 kernels in the host's memory
      ),
      save_every=100,
      max_to_keep=2,  # checkpoints
      profile_steps='',  # 'FIRST,LAST': a trace of these in WORKDIR/profile
      evaluation=dict(
        data='',  # held-out examples, see data/example_sources.py
        samples='',  # judgements of them, for kind=meta
        holdout_fraction=0.1,  # of the queries, held out where `data` is ''; 0: none
        every=100,  # steps; 0: at the end only
        prompts=16 if tiny else 64,  # at once
      ),
      mesh=dict(
        data=1, fsdp=-1, tensor=1, num_slices=1, logical_axis_rules=RULES
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
