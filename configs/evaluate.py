r"""Evaluates a judge on benchmark suites and writes a report.

  python -m grm_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
    --config.checkpoint=DIR --config.suites.rewardbench=PATH

Needs a model directory and published benchmark files: PATH is a file or folder,
local or gs://, or tfds:NAME:SPLIT or seqio:MODULE/NAME:SPLIT. Judges each query
k times and once greedily; WORKDIR/report.html has accuracy at k = 1, 2, 4, ...
Resumes after an interruption. To write the report again without a model:

  python -m grm_jax.main --config=configs/evaluate.py --workdir=runs/again \
    --config.reuse_samples=runs/evaluate

To make the report from the published outputs of another judge:

  python -m grm_jax.main --config=configs/evaluate.py --workdir=runs/other \
    --config.from_outputs=outputs.jsonl --config.suites.rewardbench=PATH

`:tiny` judges with a small random model.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='evaluate',  # see grm_jax/main.py
  # 'grm': a generative reward model. Baselines: 'llm' names the best response
  # (LLM-as-a-Judge), 'token_probability' uses the probability of that name,
  # 'scalar' has a value per response (Bradley-Terry), 'pair' one per pair
  # (PairRM), 'semi_scalar' a critique and a value per response (CLoud).
  judge='grm',
  checkpoint='',  # model directory; 'random': small random weights
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  meta_checkpoint='',  # model directory of a meta RM; '': none
  # With judge=semi_scalar: model directory of the value model, while
  # `checkpoint` writes critiques. '': `checkpoint` has a scalar head.
  value_checkpoint='',
  suites=dict(  # file, folder or data set of each; '': not evaluated
    rewardbench='',
    rewardbench2='',
    ppe='',
    rmb='',
    judgebench='',
    realmistake='',
    llmbar='',
    pandalm='',
    rmbench='',
    evalbiasbench='',
    hhh='',
  ),
  rmb=dict(
    # 'random': m equal votes at the top count 1/m; 'strict': 0, as in the
    # published script.
    ties='random',
    # 'whole': all responses of a best-of-n list at once; 'pairs': the best with
    # each other one, for judges of pairs.
    lists='whole',
  ),
  ppe=dict(
    # Prompts of correctness pairs show the correct answer: the row "w/
    # Reference" of the paper's Tables 9 and 12.
    references=False,
  ),
  # Principles to judge by, for a template that shows them ('critique'): a file
  # of rows {id, principles}, or SUITE.samples.jsonl of an earlier evaluation,
  # whose first correct sample of each example has them. The judge writes those
  # of other examples. '': none given.
  principles='',
  max_rows=0,  # of each suite; 0: all
  # File of another judge's outputs, see docs/evaluation.md: they become the
  # samples, and no model judges; '': none.
  from_outputs='',
  reuse_samples='',  # WORKDIR of an earlier run: only write its report again
  k=32,  # samples of each query, used for all points of a curve
  greedy=True,  # also one greedy judgement of each query
  temperature=0.5,  # of the samples, up to 100; below 1e-5: greedy
  response_order='balanced',  # 'random' is the paper's; or 'fixed'
  seed=0,  # of samples, orders, subsets of votes and intervals
  prompt=dict(
    # What is empty is as in the training of the model (judge.json in its
    # directory). A name in grm_jax/judgement/templates/, or a path.
    template='',
    # The same for examples of one response; 'none': `template`. A model that
    # stores nothing uses `template`.
    single='',
    score_range=(),  # lowest and highest score, as (1, 10)
    # Template that writes principles for an example that has none; used by
    # the template 'critique'.
    principles='',
    too_long='shorten',  # or 'refuse': report examples that do not fit
    # 'model_card': scores as in the example code of the released DeepSeek-GRM
    # (last box or bracket, floats, clipped). Reports count the differences.
    extraction='strict',
    truncated='fail',  # truncated generations do not parse; 'read': they may
    meta='',  # template of the meta RM
  ),
  sampling=dict(
    weights='resident',  # or 'fsdp': split as in training, gathered per layer
    int8=False,  # int8 kernels, one scale per output channel
    concurrent_prompts=16,  # P, prompts decoded at the same time
    generations_per_prompt=4,  # R, samples of a prompt at once
    max_new_tokens=0,  # T, the longest generation; 0: as in training, or 1024
    decode_steps_per_call=16,  # decode steps between two refills
    prompt_buckets=(1024, 2048, 4096),  # padded prompt lengths
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
  'k': 4,
  'sampling.concurrent_prompts': 2,
  'sampling.generations_per_prompt': 2,
  'sampling.decode_steps_per_call': 8,
  'sampling.prompt_buckets': (1024, 2048),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}

# SmolLM2-135M on two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'k': 8,
  'prompt.template': 'brief',
  'sampling.concurrent_prompts': 16,
  'sampling.generations_per_prompt': 4,
  'sampling.max_new_tokens': 256,
  'sampling.prompt_buckets': (768, 1024),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}

_OVERRIDES = {'': {}, 'tiny': _TINY, 'smollm2': _SMOLLM2}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config; `arg` follows configs/evaluate.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/evaluate.py:{arg} does not exist; use :tiny, :smollm2 or '
      'nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
