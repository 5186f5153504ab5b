r"""Rejective fine-tuning: sample judgements, fine-tune on correct ones.

  python -m grm_jax.main --config=configs/rft.py --workdir=runs/rft \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH \
    --config.train.data.general=tulu3:PATH

Needs a model that writes judgements, labelled examples, and general instruction
data. Writes samples.jsonl and kept.jsonl with the reason for each sample, and
the model in WORKDIR/model. Resumes after an interruption.

Ablations of the paper: --config.num_hinted_samples=0 (no hinted sampling),
--config.hint=all --config.filter.unhinted=False (only hinted),
--config.filter.reject=False (no rejection),
--config.train.data.general_fraction=0.0 (no general data), and
--config.train.prompt.template=no_principles.

The filter before RL, which drops the examples that a (small) judge gets right
each time, as a file for --config.data of configs/grpo.py:

  python -m grm_jax.main --config=configs/rft.py --workdir=runs/select \
    --config.phases=sample,select --config.num_hinted_samples=0 \
    --config.checkpoint=DIR --config.data=ultrafeedback:PATH

writes runs/select/selected.jsonl and a table of the counts.

`:tiny` continues the model of configs/sft.py:tiny on synthetic examples. In
`make demo`, with other settings, it takes 64 s on two CPU cores and raises
greedy accuracy from 62 to 70 % (docs/results.md).
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Gemma-2 on TPUs; `train` is the config of the stage sft, see get_config.
_DEFAULTS = dict(
  stage='rft',  # see grm_jax/main.py
  phases='sample,filter,train',  # phases to run; or 'sample,select'
  checkpoint='',  # model directory of the sampling model
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  # Labelled examples, see grm_jax/data/example_sources.py. Several sources:
  # SOURCE,SOURCE*FRACTION.
  data='',
  # File of rows {id, text[, hinted, order]} by another model instead of the
  # samples in WORKDIR; use with --config.phases=filter,train.
  samples='',
  fail_on_bad_rows=False,  # stop at the first bad row instead of skipping it
  num_samples=3,  # N_RFT, unhinted samples of an example
  num_hinted_samples=1,  # with the label in the prompt
  hint='unsolved',  # sample examples without a correct unhinted one; or 'all'
  hint_template='hint',  # states the label; built-in name or path
  hint_single_template='hint_single',  # of a single response
  temperature=0.7,  # of unhinted samples, up to 100; below 1e-5: greedy
  hinted_temperature=0.7,  # of hinted samples
  response_order='random',  # of responses in the prompt; 'balanced', 'fixed'
  filter=dict(
    # Drop incorrect samples. False drops only samples that do not parse, and no
    # example as too easy.
    reject=True,
    too_easy=True,  # drop examples whose unhinted samples are all correct
    unhinted=True,  # keep unhinted samples
    hinted=True,  # keep hinted samples
    max_per_example=0,  # kept samples of an example; 0: all
  ),
  sampling=dict(  # see configs/score.py
    weights='resident',  # or 'fsdp'
    int8=False,  # int8 kernels
    concurrent_prompts=64,  # P, prompts decoded at the same time
    generations_per_prompt=4,  # R, samples of a prompt at once
    max_new_tokens=0,  # T, the longest generation; 0: as in training, or 1024
    decode_steps_per_call=16,  # decode steps between two refills
    # The last length must be that of train.batch.prompt_buckets, so that
    # sampling and training shorten the same prompts.
    prompt_buckets=(1024, 2048),
  ),
)
# Changes of the stage sft's config.
_TRAIN = {
  'checkpoint': '',  # '': the sampling model, or a base model
  'data.texts': '',  # the kept samples
  # General instruction data: required, such as tulu3:PATH. Not the texts of the
  # cold start, whose mistakes RFT filters out.
  'data.general': '',
  # The paper's share, 1070K of 1256K; 0: no general data.
  'data.general_fraction': 0.85,
  # As in the training of the sampling model, see configs/score.py.
  'prompt.single': '',
  'prompt.score_range': (),
  'batch.generations_per_prompt': 2,  # kept samples of a prompt in one pass
}

# The tiny model, on a CPU.
_TINY = {
  'checkpoint': 'runs/sft/model',
  'data': 'practice:2000',
  'sampling.generations_per_prompt': 1,
  'sampling.max_new_tokens': 192,
  'sampling.prompt_buckets': (112, 160),
  'train.prompt.template': 'practice',
  'train.prompt.single': 'practice_single',
  'train.data.general': 'basics:8000',
  'train.data.general_fraction': 0.2,
  'train.batch.generations_per_prompt': 1,  # few samples of a prompt are kept
  'train.steps': 200,
  'train.optimizer.learning_rate': 2e-3,
}

# SmolLM2-135M on two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'train.prompt.template': 'brief',
  'train.prompt.single': 'brief_single',
  'train.data.general_fraction': 0.0,
  'sampling.concurrent_prompts': 32,
  'sampling.generations_per_prompt': 1,
  'sampling.max_new_tokens': 256,
  'sampling.prompt_buckets': (320, 512),
  'train.batch.generations_per_prompt': 1,
  'train.steps': 30,
  'train.optimizer.learning_rate': 5e-5,
}

_OVERRIDES = {'': {}, 'tiny': _TINY, 'smollm2': _SMOLLM2}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` is what follows configs/rft.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/rft.py:{arg} does not exist; use :tiny, :smollm2 or nothing'
    )
  sft = pathlib.Path(__file__).with_name('sft.py')
  train = runpy.run_path(str(sft))['get_config'](arg)
  train.update_from_flattened_dict(_TRAIN)
  config = ConfigDict(_DEFAULTS | {'train': train})
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
