r"""Scores the responses of a file with a generative reward model.

  python -m grm_jax.main --config=configs/score.py \
    --config.checkpoint=DIR --config.input=rows.jsonl --config.output=out.jsonl

The file is JSON, JSONL or Parquet, by its suffix. Rows are
{query | messages, responses[, id, best, reference]}. Each is judged k times;
out.jsonl gets votes, scores and generations, rows that cannot be judged are
reported in out.errors.jsonl. Killed and started again, it goes on.
`--config.judge=scalar` scores with a scalar reward model instead.
`:tiny` scores with a small random model: it shows that everything runs.
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
    raise ValueError(f'configs/score.py:{arg}: only :tiny and :smollm2 exist')
  tiny = arg == 'tiny'
  config = ConfigDict(
    dict(
      stage='score',
      # 'grm'; 'llm': asked for the best response only (LLM-as-a-Judge);
      # 'token_probability': its scores are how likely each is named;
      # 'scalar': a value per response, nothing written; 'pair': one per pair
      # of them (PairRM); 'semi_scalar': a critique per response, then a value
      # for it (CLoud).
      judge='grm',
      # Directory written by configs/convert.py; 'random' for tiny weights.
      checkpoint='random' if tiny else '',
      checkpoint_step=-1,  # which step of the checkpoint; -1 is the newest
      meta_checkpoint='',  # of a meta RM, for votes guided by it
      input='launch/demo/rows.jsonl' if tiny else '',
      output='',  # default: WORKDIR/scores.jsonl
      fail_on_bad_rows=False,  # stop at the first row that cannot be judged
      k=4 if tiny else 8,  # samples of each row; 0: one greedy judgement
      temperature=0.5,
      response_order='balanced',  # of responses in the prompt; 'random', 'fixed'
      # 'mean', 'majority' (of pairwise winners); with a meta RM 'guided' (the
      # sum of the k_meta samples that it likes most) or 'best' (of them).
      vote='sum',
      k_meta=0,  # 0: half of k
      seed=0,
      prompt=dict(
        template='',  # a name in judging/templates/, or a path; '': the judge's
        # 'critique' judges by principles: those of the row, or written once
        # for the row by this template.
        principles='principles',
        too_long='shorten',  # or 'refuse'
        meta='',  # of the meta RM; '': the one that it was trained with
      ),
      sampling=dict(
        weights='resident',  # or 'fsdp': split as in training, gathered
        int8=False,  # weights per output channel
        prompts=2 if tiny else 16,  # P, prompts at work at once
        generations_per_prompt=2
        if tiny
        else 4,  # R, samples of a prompt drawn at once
        max_new_tokens=96 if tiny else 1024,  # T, most tokens of a generation
        decode_steps_per_call=16,  # steps between two refills
        # Lengths that prompts are padded to; the last is the longest.
        prompt_buckets=(1024, 2048) if tiny else (1024, 2048, 4096),
      ),
      # Several processes: whether each has a model of its own and judges its
      # own share of the rows, or all of them hold one model together.
      apart=False,
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
