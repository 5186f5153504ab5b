r"""Serves a judge over HTTP: a reward for RL trainers, a page for people.

  python -m grm_jax.main --config=configs/serve.py --config.checkpoint=DIR

  curl http://127.0.0.1:8080/v1/score -H 'content-type: application/json' \
    -d '{"query": "2 + 3?", "responses": ["5", "6"], "k": 4}'

Needs a model directory and requirements-serve.txt. http://127.0.0.1:8080/docs
describes the API, see also docs/serving.md. On SIGTERM the server finishes
accepted requests and exits. `:tiny` serves a small random model.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# Gemma-2 on TPUs.
_DEFAULTS = dict(
  stage='serve',  # see grm_jax/main.py
  judge='grm',  # or 'llm', see configs/score.py
  checkpoint='',  # model directory; 'random': small random weights
  checkpoint_step=-1,  # step of the checkpoint; -1: the newest
  meta_checkpoint='',  # model directory of a meta RM; '': none
  host='127.0.0.1',  # address to listen on; '0.0.0.0': all of this machine
  port=8080,  # 0: any free port
  # Host names that requests may use, such as a proxy's. (): on a loopback
  # address only its own names, on other addresses any name.
  allowed_hosts=(),
  token_file='',  # file with the bearer token that clients must send
  limits=dict(  # above them a request gets status 413, 422, 429 or 504
    body_bytes=4_000_000,  # of a request; 16 times that of all unanswered
    characters=400_000,  # of all texts of an example
    responses=16,  # of an example
    k=64,  # samples of an example
    batch=256,  # examples of a request, at most max_queue
    max_queue=1024,  # examples that wait, of all clients
    timeout_s=600.0,  # seconds until an example is cancelled
    receive_timeout_s=60.0,  # seconds to send a header, and then a body
    connections=512,  # open connections, of all clients
  ),
  k=8,  # default of requests: samples; 0: one greedy judgement
  temperature=0.5,  # default of requests, up to 100; below 1e-5: greedy
  response_order='balanced',  # or 'random', 'fixed'
  vote='',  # default of requests, see configs/score.py
  k_meta=0,  # default of requests; 0: half of k
  seed=0,  # default of requests
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
    # One length: with several, the last bits of a sum can depend on the other
    # prompts on the devices, and rarely a sample with them.
    prompt_buckets=(4096,),
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
  'sampling.concurrent_prompts': 4,
  'sampling.generations_per_prompt': 2,
  'sampling.prompt_buckets': (2048,),
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
  """Returns the config; `arg` is what follows configs/serve.py: on the flag."""
  if arg not in _OVERRIDES:
    raise ValueError(
      f'configs/serve.py:{arg} does not exist; use :tiny, :smollm2 or nothing'
    )
  config = ConfigDict(_DEFAULTS)
  config.update_from_flattened_dict(_OVERRIDES[arg])
  return config
