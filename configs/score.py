r"""Scores the responses of a file with a generative reward model.

  python -m grm_jax.main --config=configs/score.py --workdir=runs/score \
    --config.checkpoint=DIR --config.input=rows.jsonl

Needs a model directory (configs/convert.py or a training stage writes one) and
a JSON, JSONL or Parquet file with rows {query or messages, responses[, id,
best, reference]}. Judges each row k times and writes votes, scores and
generations to WORKDIR/scores.jsonl, and rows that cannot be judged to
WORKDIR/scores.errors.jsonl. Resumes after an interruption.

`:tiny` judges three rows with a small random model, in a minute on a CPU.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='score',  # see grm_jax/main.py
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
  input='',  # file with rows
  output='',  # '': WORKDIR/scores.jsonl
  fail_on_bad_rows=False,  # stop at the first row that cannot be judged
  k=8,  # samples of each row; 0: one greedy judgement
  temperature=0.5,  # of the samples, up to 100; below 1e-5: greedy
  # Order of the responses in the prompt: 'balanced', 'random' or 'fixed'. With
  # judge=pair: each pair in both orders, in a random one, or as stored.
  response_order='balanced',
  # 'sum' of scores, 'mean', 'majority' of pairwise winners. With a meta RM:
  # 'guided', the sum of the k_meta samples that it values most, or 'best', the
  # scores of the one sample. '': 'guided' with a meta RM, else 'sum'.
  vote='',
  k_meta=0,  # samples that a guided vote uses; 0: half of k
  seed=0,  # of samples and orders
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
  # Several processes: True gives each a model and a share of the rows; False
  # splits one model over all of them.
  apart=False,
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
  'input': 'launch/demo/rows.jsonl',
  'k': 4,
  'sampling.concurrent_prompts': 2,
  'sampling.generations_per_prompt': 2,
  'sampling.prompt_buckets': (1024, 2048),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}

# SmolLM2-135M on two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
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
  """Returns the config; `arg` is what follows configs/score.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/score.py:{arg} does not exist; use :tiny, :smollm2 or nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
