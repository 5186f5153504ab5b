r"""Trains a meta RM: how likely is it that a judgement is right?

  python -m grm_jax.main --config=configs/meta_rm.py --workdir=runs/meta_rm \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH \
    --config.samples=runs/rft/samples.jsonl,runs/fresh/samples.jsonl

Samples are those of the stage rft, and of the GRM that is to be guided (the
stage rft with --config.parts=sample --config.num_hinted=0). WORKDIR/model is
what --config.meta_checkpoint takes. Baselines, from examples alone:
--config.kind=bradley_terry and --config.kind=pair, with --config.samples=.
Killed and started again, it goes on. `:tiny` continues the model of
configs/sft.py:tiny on the samples of configs/rft.py:tiny.
"""

from ml_collections import ConfigDict

from grm_jax.parallel.rules import RULES

# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'prompt.single': 'brief_single',
  'batch.prompts': 4,
  'batch.accumulate': 2,
  'batch.buckets': (320, 512),
  'batch.size': (128, 256),
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
    raise ValueError(f'configs/meta_rm.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='meta_rm',
      kind='meta',  # or 'bradley_terry', 'pair'
      # A model directory, which gets a scalar head if it has none; 'random'.
      checkpoint='runs/sft/model' if tiny else '',
      step=-1,  # which step of the checkpoint; -1 is the newest
      data='practice:2000' if tiny else '',  # see data/sources.py
      # Judgements of them: files of the stage rft, with commas between.
      samples='runs/rft/samples.jsonl' if tiny else '',
      strict=False,  # stop at the first row that is bad
      seed=0,
      prompt=dict(
        # What the meta RM reads before a judgement; its checkpoint says so to
        # those who use it.
        meta='practice_meta' if tiny else 'meta',
        # By which single responses were judged; '' if from 1 to 10.
        single='practice_single' if tiny else 'single',
      ),
      batch=dict(
        prompts=16 if tiny else 32,  # P, at once on the devices
        accumulate=1 if tiny else 4,  # batches a step
        rows=2 if tiny else 4,  # R, judgements of a prompt, in one pass
        # Lengths that prompts and judgements are padded to.
        buckets=(128,) if tiny else (1024, 2048),
        size=(120, 192) if tiny else (512, 1024),
      ),
      steps=300 if tiny else 900,
      optimizer=dict(
        kind='muon' if tiny else 'adamw',  # or the other one
        learning_rate=2e-3 if tiny else 1e-5,
        warmup_steps=40,
        schedule='cosine',  # or 'constant'
        weight_decay=0.0,
        clip=1.0,
        b2=0.95,
        moment_dtype='float32',  # of the first moment
        on_host=False,  # moments and float32 kernels in the host's memory
      ),
      save_every=100,
      keep=2,  # checkpoints
      profile_steps='',  # 'FIRST,LAST': a trace of these in WORKDIR/profile
      evaluation=dict(
        data='',  # held-out examples, see data/sources.py
        samples='',  # judgements of them, for kind=meta
        share=0.1,  # of the queries, held out where `data` is ''; 0: none
        every=100,  # steps; 0: at the end only
        prompts=16 if tiny else 64,  # at once
      ),
      mesh=dict(data=1, fsdp=-1, tensor=1, slices=1, rules=RULES),
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
