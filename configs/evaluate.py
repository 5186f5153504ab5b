r"""Evaluates a judge on benchmarks and writes a report one can look at.

  python -m grm_jax.main --config=configs/evaluate.py --workdir=runs/eval \
    --config.checkpoint=DIR --config.suites.rewardbench=PATH

PATH is a benchmark's published file or folder, local or gs://, or a name as
tfds:NAME:SPLIT or seqio:MODULE/NAME:SPLIT. Every query is
judged k times and once greedily; the report has accuracy at k = 1, 2, 4, ...
Killed and started again, it goes on. The report alone, without a model:

  python -m grm_jax.main --config=configs/evaluate.py --workdir=runs/again \
    --config.reuse_samples=runs/eval

`:tiny` judges with a small random model: it shows that everything runs.
"""

from ml_collections import ConfigDict

from grm_jax.sharding.rules import RULES

# A small pretrained model, by what fits two CPU cores.
_SMOLLM2 = {
  'checkpoint': 'runs/smollm2/model',
  'k': 8,
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
    raise ValueError(
      f'configs/evaluate.py:{arg}: only :tiny and :smollm2 exist'
    )
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='evaluate',
      # 'grm'; 'llm': asked for the best response only (LLM-as-a-Judge);
      # 'token_probability': its scores are how likely each is named;
      # 'scalar': a value per response, nothing written; 'pair': one per pair
      # of them (PairRM); 'semi_scalar': a critique per response, then a value
      # for it (CLoud).
      judge='grm',
      checkpoint='random' if tiny else '',  # see configs/score.py
      checkpoint_step=-1,
      meta_checkpoint='',
      suites=dict(
        rewardbench='',
        rewardbench2='',
        ppe='',
        rmb='',
        judgebench='',
        realmistake='',
        llmbar='',
        pandalm='',
      ),
      max_rows=0,  # of each suite; 0: all
      reuse_samples='',  # a workdir of before: only write its report again
      k=4 if tiny else 32,  # samples of each query, for the whole curve
      greedy=True,  # besides, one greedy judgement of each
      temperature=0.5,
      response_order='balanced',  # 'random' is the paper's; 'fixed'
      seed=0,
      prompt=dict(  # see configs/score.py
        template='', principles='principles', too_long='shorten', meta=''
      ),
      sampling=dict(  # see configs/score.py
        weights='resident',
        int8=False,
        prompts=2 if tiny else 16,
        generations_per_prompt=2 if tiny else 4,
        max_new_tokens=24 if tiny else 1024,
        decode_steps_per_call=8 if tiny else 16,
        prompt_buckets=(1024, 2048) if tiny else (1024, 2048, 4096),
      ),
      # decode_tensor is `tensor` while tokens are drawn; 0: the same.
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
