r"""Converts weights between Hugging Face directories and our checkpoints.

  python -m grm_jax.main --config=configs/convert.py \
    --config.source=gemma-2-2b-it --config.target=checkpoints/gemma-2-2b-it

Reads Gemma-2 and Llama-style directories with tied embeddings, such as
SmolLM2, and GGUF files of the latter; --config.direction=huggingface converts
back. A checkpoint with an adapter (LoRA) is merged into its base, or becomes an
adapter of PEFT with --config.direction=peft; an adapter of PEFT becomes a
checkpoint with one. Each process reads only the slices of its devices: peak
memory is 1.14 times a 2B checkpoint (docs/results.md). `:tiny` writes a tiny
random checkpoint to WORKDIR/model; `:smollm2` converts what `make smollm2`
downloads.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

_DEFAULTS = dict(
  stage='convert',  # see grm_jax/main.py
  # What is written: 'checkpoint', 'huggingface', or 'peft' (an adapter).
  direction='checkpoint',
  # Directory of the other kind, file that ends in .gguf, 'random', or a
  # checkpoint or PEFT directory with an adapter.
  source='',
  target='',  # new directory; '': WORKDIR/model
  # The base of an adapter: the model directory for an adapter of PEFT; for
  # direction 'peft' its name or path in the format of Hugging Face; else the
  # present path of a base that has moved.
  base='',
  checkpoint_step=-1,  # step of a source checkpoint; -1: the newest
  size='',  # of random weights, see grm_jax/model/config.py; '': tiny
  scalar=False,  # random weights with a scalar head
  seed=0,  # of random weights
  # 'float32', 'bfloat16': cast parameters; of an imported adapter, the dtype in
  # which its base is used.
  dtype='source',
  # 'checkpoint': prompts are written by the chat template of the source, which
  # judging and training then use. 'builtin': by tokenizer/chat_format.py; a
  # template that differs is reported.
  chat_template='builtin',
  verify=False,  # compare logits of source and target
  mesh=dict(  # see docs/pods.md
    data=1,  # devices that replicate weights
    fsdp=-1,  # devices that split weights; -1: the remaining ones
    tensor=1,  # devices that split heads, MLP and vocabulary
    num_slices=1,  # TPU slices, part of the data axis
    logical_axis_rules=RULES,  # see grm_jax/sharding/rules.py
  ),
)

# Tiny random weights.
_TINY = {'source': 'random'}

# SmolLM2-135M, from the file that `make smollm2` downloads.
_SMOLLM2 = {
  'source': 'runs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
  'target': 'runs/smollm2/model',
}

_OVERRIDES = {'': {}, 'tiny': _TINY, 'smollm2': _SMOLLM2}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` follows configs/convert.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/convert.py:{arg} does not exist; use :tiny, :smollm2 or nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
