r"""Samples a policy's solutions of MATH problems and checks their answers.

  python -m grm_jax.main --config=configs/solve.py --workdir=runs/solve \
    --config.checkpoint=DIR --config.input=data/math

Needs a model directory, rows {problem, solution, level, type} as in the
published data set, and math-verify. Writes WORKDIR/solutions.jsonl: the rows
with `answers`, for the source math:runs/solve/solutions.jsonl. Resumes after an
interruption.

`:tiny` samples with a small random model, in a minute on a CPU. Its answers
are all wrong.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='solve',  # see grm_jax/main.py
  checkpoint='',  # model directory; 'random': small random weights
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  input='',  # file or folder with rows; its name may contain a *
  fail_on_bad_rows=False,  # stop at the first bad row instead of skipping it
  num_samples=8,  # solutions of a problem
  temperature=0.7,  # of the samples, up to 100; below 1e-5: greedy
  seed=0,  # of the samples
  # Follows the problem in the prompt. The check reads the last box.
  instruction=r'Reason step by step. Put the final answer into \boxed{}.',
  sampling=dict(
    weights='resident',  # or 'fsdp': split as in training, gathered per layer
    int8=False,  # int8 kernels, one scale per output channel
    concurrent_prompts=64,  # P, prompts decoded at the same time
    generations_per_prompt=8,  # R, samples of a prompt at once
    max_new_tokens=1024,  # T, the longest solution; a longer one is wrong
    decode_steps_per_call=16,  # decode steps between two refills
    prompt_buckets=(512, 1024),  # padded prompt lengths
  ),
  mesh=dict(  # see docs/pods.md
    data=1,  # devices that replicate weights
    fsdp=-1,  # devices that split weights; -1: the remaining ones
    tensor=1,  # devices that split heads, MLP and vocabulary
    decode_tensor=0,  # tensor axis while decoding; 0: as `tensor`
    num_slices=1,  # TPU slices, part of the data axis
    logical_axis_rules=RULES,  # see grm_jax/sharding/rules.py
  ),
  compute=dict(
    dtype='bfloat16',  # of layers; or 'float32'
    attention='splash',  # TPU kernel; 'xla' runs everywhere
    query_block=512,  # queries at once in xla attention
    splash_block=512,  # largest tile of the splash kernel
    head_chunk=4096,  # tokens at once in the output head
  ),
)

# A small random model, on a CPU.
_TINY = {
  'checkpoint': 'random',
  'input': 'launch/demo/math.jsonl',
  'num_samples': 2,
  'sampling.concurrent_prompts': 2,
  'sampling.generations_per_prompt': 2,
  'sampling.max_new_tokens': 32,
  'sampling.prompt_buckets': (256,),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}

# SmolLM2-135M on two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'num_samples': 4,
  'sampling.concurrent_prompts': 8,
  'sampling.generations_per_prompt': 4,
  'sampling.max_new_tokens': 512,
  'sampling.prompt_buckets': (256, 512),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}

_OVERRIDES = {'': {}, 'tiny': _TINY, 'smollm2': _SMOLLM2}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` is what follows configs/solve.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/solve.py:{arg} does not exist; use :tiny, :smollm2 or nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
