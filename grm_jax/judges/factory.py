"""Judges from checkpoints, for the stages and for scripts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.judgement import template
from grm_jax.judges.baselines.pairwise_rm import PairJudge
from grm_jax.judges.baselines.scalar_rm import META, MetaJudge, ScalarJudge
from grm_jax.judges.baselines.semi_scalar import SemiScalarJudge
from grm_jax.judges.baselines.token_probability import (
  TokenProbabilityJudge,
  VerdictScorer,
)
from grm_jax.judges.generative import Judge, JudgeConfig, check_meta
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.sharding import mesh, rules
from grm_jax.sharding.rules import ShardingLayout
from grm_jax.tokenizer.tokenizer import Tokenizer

# A GRM; a model asked for the best response, by what it says or by how likely
# that is; a value per response, or per pair of them; a critique per response,
# then a value for it.
JUDGES = ('grm', 'llm', 'token_probability', 'scalar', 'pair', 'semi_scalar')
AnyJudge = (
  Judge | TokenProbabilityJudge | ScalarJudge | PairJudge | SemiScalarJudge
)
_TEMPLATES = {
  'grm': 'pointwise',
  'llm': 'best',
  'token_probability': 'best',
  'scalar': 'pointwise',
  'pair': 'pointwise',
  'semi_scalar': 'critic',
}
# Verdicts that follow a prompt at once: two samples of eight responses.
_VERDICTS = 16


def from_config(
  config: ConfigDict,
  settings: JudgeConfig,
  devices: Sequence[jax.Device] | None = None,
) -> AnyJudge:
  """The judge that `config` describes; on `devices`, by default on all."""
  layouts = (
    mesh.from_config(config, devices, config.sampling.weights),
    mesh.from_config(config, devices),
  )
  if config.judge in ('scalar', 'pair', 'semi_scalar'):
    return _with_values(config, settings, layouts)
  s = config.sampling
  judge = load(
    config.checkpoint,
    model_directory.step_of(config.checkpoint_step),
    config.meta_checkpoint,
    settings,
    ComputeConfig(**config.compute),
    layouts,
    int8=s.int8,
    generations_per_prompt=s.generations_per_prompt,
    decode_steps_per_call=s.decode_steps_per_call,
    prompts=s.prompts,
    max_new_tokens=s.max_new_tokens,
    prompt_buckets=s.prompt_buckets,
  )
  if config.judge != 'token_probability':
    return judge
  used = judge.engine.programs
  verdicts = VerdictScorer(
    used.model,
    used.weights,
    judge.tokenizer,
    settings,
    prompts=used.model.layout.split('prompts'),
    texts=_VERDICTS,
    size=s.max_new_tokens,
    buckets=s.prompt_buckets,
  )
  return TokenProbabilityJudge(judge, verdicts)


def _with_values(
  config, settings, layouts
) -> ScalarJudge | PairJudge | SemiScalarJudge:
  """A judge whose scores are the values of a scalar head."""
  s, compute = config.sampling, ComputeConfig(**config.compute)
  sizes = dict(
    prompts=s.prompts, size=s.max_new_tokens, buckets=s.prompt_buckets
  )
  decoding, layout = layouts
  where = (
    config.checkpoint,
    model_directory.step_of(config.checkpoint_step),
    compute,
    layout,
  )
  if config.judge != 'scalar' and _is_scalar(*where) is False:
    raise UserError(
      f'config.judge={config.judge} needs a model with a scalar head, which '
      f'{config.checkpoint} has not'
    )
  model, tokenizer, params = model_directory.open_model(
    *where, scalar=True, seed=config.seed
  )
  values = ScalarScorer(model, params, **sizes)
  if config.judge == 'scalar':
    return ScalarJudge(values, tokenizer)
  if config.judge == 'pair':
    return PairJudge(values, tokenizer)
  writer = model.clone(layout=decoding)
  weights, _ = decode_weights.place(writer, params, s.int8)
  engine = make_engine(
    writer,
    weights,
    tokenizer,
    rows=s.generations_per_prompt,
    chunk=s.decode_steps_per_call,
    **sizes,
  )
  return SemiScalarJudge(Judge(engine, tokenizer, settings), values)


def settings_of(config: ConfigDict) -> JudgeConfig:
  """How `config` says to judge."""
  if config.judge not in JUDGES:
    raise UserError(
      f'config.judge is {config.judge!r}; it can be {", ".join(JUDGES)}'
    )
  name = config.prompt.template
  by_name = config.judge in ('llm', 'token_probability')
  return JudgeConfig(
    template=name or _TEMPLATES[config.judge],
    principles=config.prompt.principles,
    reads='best' if by_name else 'scores',
    too_long=config.prompt.too_long,
    meta=config.prompt.meta,
    order=config.response_order,
    temperature=config.temperature,
    seed=config.seed,
  )


def voting_settings_of(config: ConfigDict) -> JudgeConfig:
  """How `config`, which has votes, says to judge."""
  return dataclasses.replace(
    settings_of(config), vote=config.vote, k_meta=config.k_meta
  )


def with_order(judge: AnyJudge, order: str) -> AnyJudge:
  """The judge with another order of responses."""
  if isinstance(judge, TokenProbabilityJudge):
    return TokenProbabilityJudge(with_order(judge.inner, order), judge.verdicts)
  if isinstance(judge, Judge):
    settings = dataclasses.replace(judge.settings, order=order)
    return Judge(judge.engine, judge.tokenizer, settings, judge.meta)
  return judge  # it sees one response at a time


def load(
  checkpoint: str,
  step: int | None,
  meta_checkpoint: str,
  settings: JudgeConfig,
  compute: ComputeConfig,
  layouts: tuple[ShardingLayout, ShardingLayout],
  *,
  int8: bool,
  generations_per_prompt: int,
  decode_steps_per_call: int,
  prompts: int,
  max_new_tokens: int,
  prompt_buckets: Sequence[int],
) -> Judge:
  """A judge with the weights of checkpoints.

  Args:
    checkpoint: a model directory, or 'random'; see pretrained.open_model.
    step: of the checkpoint; None for the newest.
    meta_checkpoint: of the meta RM, '' for none.
    settings: how to judge; its seed is that of random weights.
    compute: of both models.
    layouts: of decoding and of scoring.
    int8: whether decoding has int8 kernels.
    generations_per_prompt, decode_steps_per_call, prompts, max_new_tokens,
      prompt_buckets: see sampling.engine.Engine.
  """
  check_meta(settings, bool(meta_checkpoint))
  settings.forms().check()  # a wrong one should not wait for weights
  if settings.meta:
    template.load(settings.meta, key='config.prompt.meta')
  _check_heads(checkpoint, step, meta_checkpoint, compute, layouts[0])
  sizes = dict(prompts=prompts, size=max_new_tokens, buckets=prompt_buckets)
  model, tokenizer, params = model_directory.open_model(
    checkpoint, step, compute, layouts[0], seed=settings.seed
  )
  weights, seconds = decode_weights.place(model, params, int8)
  del params
  logging.info('weights placed for decoding in %.1f s', seconds)
  engine = make_engine(
    model,
    weights,
    tokenizer,
    rows=generations_per_prompt,
    chunk=decode_steps_per_call,
    **sizes,
  )
  meta = None
  if meta_checkpoint:
    network, words, params = model_directory.open_model(
      meta_checkpoint, None, compute, layouts[1], scalar=True
    )
    asked = settings.meta or meta_template_of(meta_checkpoint)
    meta = MetaJudge(ScalarScorer(network, params, **sizes), words, asked)
  return Judge(engine, tokenizer, settings, meta)


def _check_heads(checkpoint, step, meta_checkpoint, compute, layout) -> None:
  """UserError for a wrong kind of model, before any weights are read."""
  if _is_scalar(checkpoint, step, compute, layout):
    raise UserError(
      f'config.checkpoint={checkpoint} has a scalar head: it is no model that '
      'writes judgements; config.judge=scalar or semi_scalar uses its values'
    )
  if _is_scalar(meta_checkpoint, None, compute, layout) is False:
    raise UserError(
      f'config.meta_checkpoint={meta_checkpoint} has no scalar head; a meta '
      'RM is trained by configs/reward_model.py'
    )


def _is_scalar(directory, step, compute, layout) -> bool | None:
  """Whether a checkpoint has a scalar head, by its description alone.

  None: it is no directory, but made up, or '', which open_model refuses.
  """
  if directory in ('', model_directory.RANDOM):
    return None
  return model_directory.build(directory, step, compute, layout).scalar


def meta_template_of(directory: str) -> str:
  """The template of the prompts that a meta RM was trained with.

  Converted checkpoints do not say; they are taken to read `scalar.META`.
  """
  if directory == model_directory.RANDOM:
    return META
  config = orbax_checkpoint.read_json(directory, 'meta').get('config', {})
  return config.get('prompt', {}).get('meta', META)


def make_engine(
  model: Transformer, weights, tokenizer: Tokenizer, **sizes
) -> Engine:
  """An engine that writes what the tokenizer can read, until a turn ends."""
  stop = tokenizer.stop_ids
  forbidden = set(tokenizer.control_ids) - set(stop)
  forbidden |= set(range(tokenizer.vocab_size, model.size.vocab_size))
  return Engine(
    model,
    weights,
    stop_ids=stop,
    forbidden=sorted(forbidden),
    detokenize=tokenizer.decode,
    **sizes,
  )


def load_judge(
  checkpoint: str,
  meta_checkpoint: str | None = None,
  *,
  step: int | None = None,
  tensor: int = 1,
  weights: str = 'resident',
  int8: bool = False,
  prompts: int | None = None,
  generations_per_prompt: int = 4,
  max_new_tokens: int = 1024,
  decode_steps_per_call: int = 16,
  prompt_buckets: Sequence[int] = (1024, 2048, 4096),
  **settings: Any,
) -> Judge:
  """A judge with the weights of a checkpoint, on all devices there are.

  Args:
    checkpoint: a model directory, or 'random' for small random weights.
    meta_checkpoint: of a meta RM.
    step: of the checkpoint; None for the newest.
    tensor: devices that split the weights; the others split the prompts.
    weights: 'resident' or 'fsdp', see parallel.rules.for_decoding.
    int8: whether kernels are int8.
    prompts: prompts at work at once; default 4 for every device.
    generations_per_prompt, max_new_tokens, decode_steps_per_call,
      prompt_buckets: see sampling.engine.Engine.
    **settings: see Settings.
  """
  on_tpu = jax.default_backend() == 'tpu'
  compute = ComputeConfig(
    dtype='float32' if jax.default_backend() == 'cpu' else 'bfloat16',
    attention='splash' if on_tpu else 'xla',
  )
  devices = mesh.make_mesh(tensor=tensor)
  layouts = [
    rules.layout(devices, table)
    for table in (rules.for_decoding(rules.RULES, weights), rules.RULES)
  ]
  return load(
    checkpoint,
    step,
    meta_checkpoint or '',
    JudgeConfig(**settings),
    compute,
    tuple(layouts),
    int8=int8,
    generations_per_prompt=generations_per_prompt,
    decode_steps_per_call=decode_steps_per_call,
    prompts=4 * layouts[0].split('prompts') if prompts is None else prompts,
    max_new_tokens=max_new_tokens,
    prompt_buckets=prompt_buckets,
  )
