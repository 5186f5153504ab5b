r"""Rejective fine-tuning: sample judgements, fine-tune on those that are right.

  python -m grm_jax.main --config=configs/rft.py --workdir=runs/rft \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH

Ablations of the paper: --config.num_hinted_samples=0 (no hinted sampling),
--config.filter.unhinted=false, --config.filter.reject=false (no rejection),
--config.train.data.general_fraction=0.0 (no general data), and
--config.train.prompt.template=no_principles. Killed and started again, it goes
on. `:tiny` continues the model of configs/sft.py:tiny on practice examples.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

_SFT = pathlib.Path(__file__).with_name('sft.py')

# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'sampling.prompts': 32,
  'sampling.generations_per_prompt': 1,
  'sampling.max_new_tokens': 256,
  'sampling.prompt_buckets': (320, 512),
  'train.batch.generations_per_prompt': 1,
  'train.steps': 30,
  'train.optimizer.learning_rate': 5e-5,
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny', 'smollm2'):
    raise ValueError(f'configs/rft.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  train = runpy.run_path(str(_SFT))['get_config'](arg)
  with train.unlocked():
    train.checkpoint = ''  # that of the samples, or a base model
    train.data.texts = ''  # what was kept
    # Not the texts of the cold start, whose mistakes were just sorted out.
    train.data.general = 'basics:8000' if tiny else ''
    train.data.general_fraction = 0.2 if tiny else 0.0
    # Kept generations of a prompt, in one pass; a tiny run keeps few.
    train.batch.generations_per_prompt = 1 if tiny else 2
    if tiny:
      train.steps = 200
      train.optimizer.learning_rate = 2e-3
  config = ConfigDict(
    dict(
      stage='rft',
      phases='sample,filter,train',  # any of them
      checkpoint='runs/sft/model' if tiny else '',  # of the sampling model
      checkpoint_step=-1,  # -1 is the newest
      data='practice:2000' if tiny else '',  # see data/example_sources.py
      # A file of rows {id, text[, hinted, order]} by another model instead of
      # the samples in WORKDIR; give --config.phases=filter,train.
      samples='',
      fail_on_bad_rows=False,  # stop at the first row that is bad
      num_samples=3,  # N_RFT, unhinted
      num_hinted_samples=1,  # for examples that no unhinted sample got right
      temperature=0.7,
      hinted_temperature=0.7,
      response_order='random',  # of the responses; 'balanced', 'fixed'
      filter=dict(
        # Drop what is incorrect. False drops only what does not parse, and
        # nothing as too easy.
        reject=True,
        too_easy=True,  # drop examples that all unhinted samples got right
        unhinted=True,  # keep such samples
        hinted=True,
        max_per_example=0,  # kept generations; 0 is no limit
      ),
      sampling=dict(  # see configs/score.py
        weights='resident',
        int8=False,
        prompts=64,
        generations_per_prompt=1 if tiny else 4,
        max_new_tokens=192 if tiny else 1024,
        decode_steps_per_call=16,
        # The longest is as in train.batch: what is read whole is trained on
        # whole, and what is shortened is so in both.
        prompt_buckets=(112, 160) if tiny else (1024, 2048),
      ),
      train=train,  # as configs/sft.py
    )
  )
  if arg == 'smollm2':
    config.update_from_flattened_dict(_SMOLLM2)
  return config
