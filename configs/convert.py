r"""Weights in and out: Hugging Face directory <-> our Orbax checkpoint.

  python -m grm_jax.main --config=configs/convert.py \
    --config.source=gemma-2-2b-it --config.target=checkpoints/gemma-2-2b-it

and back with --config.direction=huggingface. The directory is Gemma-2's or that of a
Llama-style model such as SmolLM2, whose GGUF file will do as well. Every
process reads only the slices that its devices own. `:tiny` writes a random tiny
checkpoint to WORKDIR.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'source': 'runs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
  'target': 'runs/smollm2/model',
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny', 'smollm2'):
    raise ValueError(f'configs/convert.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='convert',
      direction='checkpoint',  # 'checkpoint' or 'huggingface'
      # A directory of the other kind, a file that ends in .gguf, or 'random'
      # for fresh weights.
      source='random' if tiny else '',
      target='',  # a directory that is not there yet; default: WORKDIR/model
      checkpoint_step=-1,  # which step of a source checkpoint; -1 is the newest
      size='tiny',  # of random weights; a directory says its own
      scalar=False,  # whether random weights have a scalar head
      seed=0,  # of random weights
      dtype='source',  # or 'float32', 'bfloat16': cast parameters
      verify=False,  # compare logits of source and target
      mesh=dict(
        data=1, fsdp=-1, tensor=1, num_slices=1, logical_axis_rules=RULES
      ),
    )
  )
  if arg == 'smollm2':
    config.update_from_flattened_dict(_SMOLLM2)
  return config
