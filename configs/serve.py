r"""Serves a judge over HTTP: a reward for RL trainers, a page for people.

  python -m grm_jax.main --config=configs/serve.py --config.checkpoint=DIR

  curl http://127.0.0.1:8080/v1/score -H 'content-type: application/json' \
    -d '{"query": "2 + 3?", "responses": ["5", "6"], "k": 4}'

http://127.0.0.1:8080/docs describes all of it. SIGTERM answers what was taken
and ends. `:tiny` serves a small random model: it shows that everything runs.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'prompt.template': 'brief',
  'sampling.prompts': 16,
  'sampling.generations_per_prompt': 4,
  'sampling.max_new_tokens': 256,
  'sampling.prompt_buckets': (768, 1024),
  'compute.dtype': 'float32',
  'compute.attention': 'xla',
}


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny', 'smollm2'):
    raise ValueError(f'configs/serve.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='serve',
      judge='grm',  # or 'llm', see configs/score.py
      # Directory written by configs/convert.py; 'random' for tiny weights.
      checkpoint='random' if tiny else '',
      checkpoint_step=-1,  # which step of the checkpoint; -1 is the newest
      meta_checkpoint='',  # of a meta RM, for votes guided by it
      host='127.0.0.1',  # '0.0.0.0': all who reach this machine
      port=8080,  # 0: any free one
      # Names that clients may call it by, such as a proxy's; (): on a loopback
      # address its names only, elsewhere any.
      allowed_hosts=(),
      token_file='',  # holds what clients must send as a bearer token
      limits=dict(  # above them: 413, 422, 429 or 504, with the limit's name
        body_bytes=4_000_000,
        characters=400_000,  # of all texts of an example
        responses=16,
        k=64,
        batch=256,  # examples of a request
        max_queue=1024,  # examples of all clients
        timeout_s=600.0,  # until an example is given up
      ),
      # What requests leave open; see configs/score.py.
      k=4 if tiny else 8,
      temperature=0.5,
      response_order='balanced',
      vote='sum',
      k_meta=0,
      seed=0,
      prompt=dict(
        template='',
        principles='principles',
        too_long='shorten',
        meta='',
      ),
      sampling=dict(
        weights='resident',
        int8=False,
        prompts=4 if tiny else 16,
        generations_per_prompt=2 if tiny else 4,
        max_new_tokens=96 if tiny else 1024,
        decode_steps_per_call=16,
        # One length: with several, the last bits of a sum may depend on which
        # other prompts are at work, and with them now and then a draw.
        prompt_buckets=(2048,) if tiny else (4096,),
      ),
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
        query_block=512,
        splash_block=512,
        head_chunk=4096,
      ),
    )
  )
  if arg == 'smollm2':
    config.update_from_flattened_dict(_SMOLLM2)
  return config
