r"""Fine-tunes a model on texts: the cold start of a judge.

  python -m grm_jax.main --config=configs/sft.py --workdir=runs/sft \
    --config.checkpoint=DIR --config.data.texts=judged:PATH.jsonl

Killed or stopped by SIGTERM and started again, it goes on. WORKDIR/model is a
model directory as --config.checkpoint takes it. `:tiny` trains a small model
from scratch on practice judgements: about six minutes on two cores.
"""

from ml_collections import ConfigDict

from grm_jax.parallel.rules import RULES


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny'):
    raise ValueError(f'configs/sft.py:{arg}: only :tiny exists')
  tiny = arg == 'tiny'
  return ConfigDict(
    dict(
      stage='sft',
      # A model directory; 'scratch': a new model of `size`, its tokenizer
      # trained on the texts; 'random': small random weights.
      checkpoint='scratch' if tiny else '',
      step=-1,  # which step of the checkpoint; -1 is the newest
      size='tiny',  # of a model from scratch
      data=dict(
        # practice:COUNT, texts:PATH or judged:PATH, see data/texts.py.
        texts='practice:8000' if tiny else '',
        general='',  # mixed in at this rate, a share of all prompts
        general_rate=0.0,
        mistakes=0.3,  # share of slips of the practice teacher
      ),
      strict=False,  # stop at the first row that is bad
      seed=0,
      prompt=dict(
        template='practice' if tiny else 'pointwise',
        single='practice_single' if tiny else 'single',  # of one response
        too_long='shorten',
      ),
      batch=dict(
        prompts=32 if tiny else 128,  # P, at once on the devices
        accumulate=1 if tiny else 8,  # batches a step
        rows=1,  # R, generations of each prompt
        # Lengths that prompts and generations are padded to.
        buckets=(128, 192, 256) if tiny else (1024, 2048),
        size=(64, 128, 192) if tiny else (512, 1024),
        packed=False,  # several texts in a row of the longest bucket
      ),
      steps=600 if tiny else 900,
      optimizer=dict(
        learning_rate=2e-3 if tiny else 5e-6,
        warmup_steps=40,
        schedule='cosine',  # or 'constant'
        weight_decay=0.1 if tiny else 0.0,
        clip=1.0,
        b2=0.95,
        moment_dtype='float32',  # of the first moment
      ),
      save_every=100,
      keep=2,  # checkpoints
      profile_steps='',  # 'FIRST,LAST': a trace of these in WORKDIR/profile
      evaluation=dict(
        data='practice:400' if tiny else '',  # see data/sources.py
        every=200,  # steps; 0: at the end only
        prompts=16 if tiny else 64,  # judged at once
      ),
      mesh=dict(data=1, fsdp=-1, tensor=1, slices=1, rules=RULES),
      compute=dict(
        dtype='float32' if tiny else 'bfloat16',
        attention='xla' if tiny else 'splash',
        remat='none' if tiny else 'nothing_saveable',
      ),
    )
  )
