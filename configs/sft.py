r"""Fine-tunes a model on texts: the cold start of a judge.

  python -m grm_jax.main --config=configs/sft.py --workdir=runs/sft \
    --config.checkpoint=DIR --config.data.texts=judged:PATH.jsonl

Killed or stopped by SIGTERM and started again, it goes on. WORKDIR/model is a
model directory as --config.checkpoint takes it. `:base` trains a tiny model
from scratch on the basics of practice problems (--workdir=runs/base), and
`:tiny` continues it on practice judgements (--workdir=runs/sft).
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# A small pretrained model, by what fits two CPU cores.
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
  'evaluation.prompts': 8,
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
  'compute.remat': 'dots',
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'base', 'tiny', 'smollm2'):
    raise ValueError(
      f'configs/sft.py:{arg}: only :base, :tiny and :smollm2 exist'
    )
  base, tiny = arg == 'base', arg in ('base', 'tiny')
  config = ConfigDict(
    dict(
      stage='sft',
      # A model directory; 'scratch': a new model of `size`, its tokenizer
      # trained on the texts; 'random': small random weights.
      checkpoint='scratch' if base else 'runs/base/model' if tiny else '',
      checkpoint_step=-1,  # which step of the checkpoint; -1 is the newest
      size='tiny',  # of a model from scratch
      data=dict(
        # practice:COUNT, texts:PATH or judged:PATH, see data/sft_sources.py. A new
        # tokenizer should see what comes later: hence judgements in :base.
        texts='basics:12000' if base else 'practice:8000' if tiny else '',
        # Mixed in at this rate, a share of all prompts or packed rows.
        general='practice:2000' if base else 'basics:12000' if tiny else '',
        general_fraction=0.01 if base else 0.25 if tiny else 0.0,
        teacher_error_rate=0.65,  # share of the practice teacher's mistakes
      ),
      fail_on_bad_rows=False,  # stop at the first row that is bad
      seed=0,
      prompt=dict(
        template='practice' if tiny else 'pointwise',
        single='practice_single' if tiny else 'single',  # of one response
        too_long='shorten',
      ),
      batch=dict(
        # P, at once on the devices
        micro_batch_prompts=8 if base else 12 if tiny else 128,
        grad_accum_steps=1 if tiny else 8,  # batches a step
        generations_per_prompt=1,  # R, generations of each prompt
        # Lengths that prompts and generations are padded to.
        prompt_buckets=(48, 96, 128, 160) if tiny else (1024, 2048),
        generation_buckets=(64, 120, 192) if tiny else (512, 1024),
        # Several texts in each row, whatever `rows` is; a row is as long as the
        # longest bucket and the longest size together.
        packed=tiny,
      ),
      steps=720 if base else 580 if tiny else 900,
      optimizer=dict(
        kind='muon' if tiny else 'adamw',  # or the other one
        learning_rate=8e-3 if base else 6e-3 if tiny else 5e-6,
        warmup_steps=40,
        schedule='constant' if base else 'cosine',
        weight_decay=0.1 if tiny else 0.0,
        max_grad_norm=1.0,
        b2=0.95,
        moment_dtype='float32',  # of the first moment
        offload_to_host=False,  # moments and float32 kernels in the host's memory
      ),
      save_every=100,
      max_to_keep=2,  # checkpoints
      profile_steps='',  # 'FIRST,LAST': a trace of these in WORKDIR/profile
      evaluation=dict(
        # See data/example_sources.py.
        data='' if base else 'practice:240' if tiny else '',
        every=400,  # steps; 0: at the end only
        prompts=32 if tiny else 64,  # judged at once
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
