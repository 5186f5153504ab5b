r"""Scores the responses of a JSONL file with a scalar reward model.

  python -m grm_jax.main --config=configs/score.py \
    --config.checkpoint=DIR --config.input=rows.jsonl --config.output=out.jsonl

Until the generative pipeline exists this is the whole of scoring: each query
is one prompt, its responses are the generations, computed once together. A
checkpoint with a scalar head gives its value; one without gives the mean
log-probability of the response's tokens.
`:tiny` scores with a small random model: it shows that everything runs.
"""

from ml_collections import ConfigDict

from grm_jax.parallel.rules import RULES


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'tiny'):
    raise ValueError(f'configs/score.py:{arg}: only :tiny exists')
  tiny = arg == 'tiny'
  return ConfigDict(
    dict(
      stage='score',
      # Directory written by configs/convert.py; 'random' for tiny weights.
      checkpoint='random' if tiny else '',
      step=-1,  # which step of the checkpoint; -1 is the newest
      # JSONL rows with {query, responses[, id]}; out: {id, scores, best}.
      input='launch/demo/rows.jsonl' if tiny else '',
      output='',  # default: WORKDIR/scores.jsonl
      max_prompt=128 if tiny else 2048,  # tokens; longer rows are errors
      max_response=128 if tiny else 1024,
      batch=2 if tiny else 8,  # queries computed at once, a multiple of fsdp
      seed=0,  # of random weights
      mesh=dict(data=1, fsdp=-1, tensor=1, slices=1, rules=RULES),
      compute=dict(
        dtype='float32' if tiny else 'bfloat16',
        param_dtype='float32',
        remat='none',
        attention='xla' if tiny else 'splash',
        query_block=512,
        splash_block=512,
        head_chunk=4096,
      ),
    )
  )
