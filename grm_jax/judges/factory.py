"""Makes judges from checkpoints, for the stages and for scripts."""

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.judgement import template, trained_judge, verdict
from grm_jax.judges import settings as judge_settings
from grm_jax.judges.baselines import pairwise_rm
from grm_jax.judges.baselines.pairwise_rm import PairJudge
from grm_jax.judges.baselines.scalar_rm import ScalarJudge
from grm_jax.judges.baselines.semi_scalar import SemiScalarJudge
from grm_jax.judges.baselines.token_probability import TokenProbabilityJudge
from grm_jax.judges.baselines.verdict_scorer import VerdictScorer
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.judges.meta_rm import META, MetaJudge
from grm_jax.model import compute_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.decode_state import DecodeWeights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.sharding import mesh, rules
from grm_jax.sharding.rules import ShardingLayout
from grm_jax.tokenizer.tokenizer import Tokenizer

AnyJudge = (
  Judge | TokenProbabilityJudge | ScalarJudge | PairJudge | SemiScalarJudge
)
# The kinds of judges, each with what is read in its generations:
#   grm: writes a score per response;
#   llm: names the best response;
#   token_probability: scores a response by the probability of being named;
#   scalar, pair: a scalar head gives a value per response, or per pair of them;
#   semi_scalar: writes a critique per response, then gives it a value, with a
#     scalar head or with a value model.
_READS = {
  'grm': 'scores',
  'llm': 'best',
  'token_probability': 'best',
  'scalar': 'scores',
  'pair': 'scores',
  'semi_scalar': 'critique',
}
JUDGES = tuple(_READS)
# Judges whose scores are values of a scalar head.
_VALUE_JUDGES = ('scalar', 'pair', 'semi_scalar')
# The options of an engine that ScalarScorer has too.
_SCORER_SHAPES = ('prompts', 'max_new_tokens', 'prompt_buckets')
# Tokens of a generation by random weights, which has no meaning.
_RANDOM_LENGTH = 96
# Verdicts scored with one prompt: those of two samples of eight responses.
_VERDICTS_PER_PROMPT = 16


def check(config: ConfigDict, is_local: bool = False) -> None:
  """Checks settings of a judge before a run writes anything.

  Args:
    config: config of a stage that judges.
    is_local: whether the devices of one process hold the model.

  Raises:
    UserError: the devices or the other settings do not fit.
  """
  compute_config.check_devices(config, is_local=is_local)
  if 'vote' in config:
    verdict.resolve_vote(
      config.vote, config.k_meta, bool(config.meta_checkpoint)
    )
    if config.k_meta > max(1, config.k):
      raise UserError(
        f'config.k_meta is {config.k_meta}, but there are config.k={config.k} '
        'judgements; set config.k_meta to at most config.k'
      )
  if config.meta_checkpoint and config.judge in _VALUE_JUDGES:
    raise UserError(
      f'config.judge={config.judge} writes no scores for a meta RM to select; '
      "set config.meta_checkpoint=''"
    )
  if config.prompt.meta and not config.meta_checkpoint:
    raise UserError(
      f'config.prompt.meta={config.prompt.meta} is the template of a meta RM; '
      'set config.meta_checkpoint, or leave config.prompt.meta empty'
    )
  has_steps = config.checkpoint not in ('', model_directory.RANDOM)
  if config.checkpoint_step >= 0 and not has_steps:
    raise UserError(
      f'config.checkpoint_step is {config.checkpoint_step}, but '
      f'config.checkpoint={config.checkpoint} has no steps; set '
      'config.checkpoint_step=-1'
    )
  step = model_directory.step_or_latest(config.checkpoint_step)
  if config.judge in ('grm', 'llm', 'token_probability'):
    _check_heads(config.checkpoint, step, config.meta_checkpoint)
  elif config.judge == 'semi_scalar' and config.value_checkpoint:
    _check_heads(config.checkpoint, step, '')
    if _has_scalar_head(config.value_checkpoint, None) is False:
      raise UserError(
        f'config.value_checkpoint={config.value_checkpoint} has no scalar '
        'head; train a value model with configs/reward_model.py and '
        '--config.kind=critique'
      )
  # A scalar reward model may lack the head; it scores by log-probabilities.
  elif (
    config.judge != 'scalar'
    and _has_scalar_head(config.checkpoint, step) is False
  ):
    raise UserError(
      f'config.judge={config.judge} needs a model with a scalar head, but '
      f'{config.checkpoint} has none; train one with configs/reward_model.py'
    )


def from_config(
  config: ConfigDict,
  judge_config: JudgeConfig,
  devices: Sequence[jax.Device] | None = None,
) -> AnyJudge:
  """Returns the judge that `config` describes, on `devices` (default: all)."""
  layouts = (
    mesh.from_config(config, devices, config.sampling.weights),
    mesh.from_config(config, devices),
  )
  options = sampling_options(config.sampling, config.checkpoint)
  if config.judge in _VALUE_JUDGES:
    return _value_judge(config, judge_config, layouts, options)
  judge = load(
    config.checkpoint,
    model_directory.step_or_latest(config.checkpoint_step),
    config.meta_checkpoint,
    judge_config,
    ComputeConfig(**config.compute),
    layouts,
    **options,
  )
  if config.judge != 'token_probability':
    return judge
  model = judge.engine.model
  assert judge.weights is not None  # `load` has set them
  verdicts = VerdictScorer(
    model,
    judge.weights,
    judge.tokenizer,
    judge_config,
    prompts=model.layout.num_shards('prompts'),
    texts_per_prompt=_VERDICTS_PER_PROMPT,
    max_new_tokens=options['max_new_tokens'],
    prompt_buckets=options['prompt_buckets'],
  )
  return TokenProbabilityJudge(judge, verdicts)


def sampling_options(
  sampling: ConfigDict, checkpoint: str, key: str = 'config.sampling'
) -> dict[str, Any]:
  """Returns the options of `load` that a group such as config.sampling has.

  Its leaf `weights` is not an option: it decides the sharding layouts.

  Args:
    sampling: the group.
    checkpoint: model directory, which has the length of generations if the
      group does not.
    key: config key of the group.
  """
  options = sampling.to_dict()
  del options['weights']
  options['prompts'] = options.pop('concurrent_prompts')
  options['max_new_tokens'] = _generation_length(
    checkpoint, options['max_new_tokens'], f'{key}.max_new_tokens'
  )
  return options


def _generation_length(checkpoint: str, value: int, key: str) -> int:
  """Returns `value`, or for 0 the length of generations in training."""
  is_random = checkpoint == model_directory.RANDOM
  return trained_judge.generation_length(
    model_directory.read_trained_judge(checkpoint),
    checkpoint,
    value,
    key,
    _RANDOM_LENGTH if is_random else trained_judge.DEFAULT_LENGTH,
  )


def _value_judge(
  config: ConfigDict,
  judge_config: JudgeConfig,
  layouts: tuple[ShardingLayout, ShardingLayout],
  options: dict[str, Any],
) -> ScalarJudge | PairJudge | SemiScalarJudge:
  """Returns a judge whose scores are the values of a scalar head."""
  sampling, compute = config.sampling, ComputeConfig(**config.compute)
  shapes = {x: options[x] for x in _SCORER_SHAPES}
  decode_layout, layout = layouts
  if config.judge == 'semi_scalar' and config.value_checkpoint:
    return _two_model_judge(config, judge_config, layouts, options)
  step = model_directory.step_or_latest(config.checkpoint_step)
  source = (config.checkpoint, step, compute, layout)
  stored = model_directory.read_trained_judge(config.checkpoint)
  # A generative judge can score by log-probabilities.
  if stored and stored.kind != 'grm' and config.judge != 'semi_scalar':
    trained_judge.check_kind(
      stored, config.checkpoint, config.judge, 'config.checkpoint'
    )
  model, tokenizer, params = model_directory.open_model(
    *source, scalar=True, seed=config.seed
  )
  scorer = ScalarScorer(model, params, **shapes)
  if config.judge == 'scalar':
    return ScalarJudge(
      scorer,
      tokenizer,
      judge_config.too_long,
      full_template=bool(stored and stored.full_template),
    )
  if config.judge == 'pair':
    trained = stored.template if stored and stored.kind == 'pair' else None
    return PairJudge(
      scorer,
      tokenizer,
      trained or pairwise_rm.TEMPLATE,
      judge_config.too_long,
      judge_config.order,
      judge_config.seed,
    )
  decoder = model.clone(layout=decode_layout)
  weights, _ = decode_weights.place(decoder, params, sampling.int8)
  engine = make_engine(
    decoder,
    tokenizer,
    generations_per_prompt=sampling.generations_per_prompt,
    decode_steps_per_call=sampling.decode_steps_per_call,
    **shapes,
  )
  critic = Judge(engine, weights, tokenizer, judge_config)
  return SemiScalarJudge(critic, scorer)


def _two_model_judge(
  config: ConfigDict,
  judge_config: JudgeConfig,
  layouts: tuple[ShardingLayout, ShardingLayout],
  options: dict[str, Any],
) -> SemiScalarJudge:
  """Returns a critique model with a value model, as trained for CLoud."""
  path, compute = config.value_checkpoint, ComputeConfig(**config.compute)
  stored = model_directory.read_trained_judge(path)
  trained_judge.check_kind(stored, path, 'critique', 'config.value_checkpoint')
  critic = load(
    config.checkpoint,
    model_directory.step_or_latest(config.checkpoint_step),
    '',
    judge_config,
    compute,
    layouts,
    **options,
  )
  model, tokenizer, params = model_directory.open_model(
    path, None, compute, layouts[1], scalar=True, seed=config.seed
  )
  scorer = ScalarScorer(
    model,
    params,
    prompts=options['prompts'],
    # A response and its critique.
    max_new_tokens=(
      stored.max_new_tokens if stored else 2 * options['max_new_tokens']
    ),
    prompt_buckets=options['prompt_buckets'],
  )
  return SemiScalarJudge(critic, scorer, tokenizer)


def make_judge_config(config: ConfigDict) -> JudgeConfig:
  """Returns the settings of the judge that `config` describes.

  What the config leaves empty is as in the training of the model.
  """
  if config.judge not in JUDGES:
    raise UserError(
      f'config.judge is {config.judge!r}; it must be one of {", ".join(JUDGES)}'
    )
  stored = None
  if config.judge not in judge_settings.WITHOUT_TEMPLATE:
    stored = model_directory.read_trained_judge(config.checkpoint)
  if stored and stored.kind in ('llm', 'critic') and config.judge == 'grm':
    trained_judge.check_kind(
      stored, config.checkpoint, 'grm', 'config.checkpoint'
    )
  prompt = config.prompt
  prompt_format = trained_judge.prompt_format(
    stored,
    config.checkpoint,
    template=prompt.template,
    single=prompt.single,
    score_range=prompt.score_range,
    reads=_READS[config.judge],
    too_long=prompt.too_long,
    extraction=prompt.extraction,
    truncated=prompt.truncated,
  )
  return JudgeConfig.from_prompt_format(
    prompt_format,
    principles=trained_judge.principles_template(
      stored, config.checkpoint, prompt.principles
    ),
    meta=prompt.meta,
    order=config.response_order,
    temperature=config.temperature,
    seed=config.seed,
  )


def make_voting_judge_config(config: ConfigDict) -> JudgeConfig:
  """Returns the settings of a judge whose config has votes."""
  return dataclasses.replace(
    make_judge_config(config), vote=config.vote, k_meta=config.k_meta
  )


def with_order(judge: AnyJudge, order: str) -> AnyJudge:
  """Returns the judge with another order of responses."""
  if isinstance(judge, TokenProbabilityJudge):
    inner = with_order(judge.inner, order)
    assert isinstance(inner, Judge)
    return TokenProbabilityJudge(inner, judge.verdicts)
  if isinstance(judge, Judge):
    new_config = dataclasses.replace(judge.config, order=order)
    return Judge(
      judge.engine, judge.weights, judge.tokenizer, new_config, judge.meta
    )
  if isinstance(judge, PairJudge) and judge.order != 'balanced':
    judge = copy.copy(judge)
    judge.order = order
  return judge  # others see one response at a time, or pairs in both orders


def load(
  checkpoint: str,
  step: int | None,
  meta_checkpoint: str,
  judge_config: JudgeConfig,
  compute: ComputeConfig,
  layouts: tuple[ShardingLayout, ShardingLayout],
  *,
  int8: bool,
  **engine_options: Any,
) -> Judge:
  """Returns a GRM judge with the weights of a checkpoint.

  Args:
    checkpoint: a model directory, or 'random'; see model_directory.open_model.
    step: step of the checkpoint; None for the newest.
    meta_checkpoint: model directory of the meta RM, '' for none.
    judge_config: settings of the judge; its seed initializes random weights.
    compute: of both models.
    layouts: of decoding and of scoring.
    int8: whether decoding has int8 kernels.
    **engine_options: prompts, generations_per_prompt, max_new_tokens,
      decode_steps_per_call and prompt_buckets, see sampling.engine.Engine. The
      meta RM has the same prompts, max_new_tokens and prompt_buckets.

  Raises:
    UserError: a setting is wrong, or a checkpoint is the wrong kind of model.
      Everything that does not need the weights is checked before reading them.
  """
  vote_config = judge_config.vote_config(bool(meta_checkpoint))
  if meta_checkpoint and not vote_config.needs_meta:
    logging.warning(
      'config.vote=%s does not use the scores of config.meta_checkpoint=%s; '
      "leave config.vote empty to use them, or set config.meta_checkpoint=''",
      vote_config.kind,
      meta_checkpoint,
    )
  judge_config.prompt_format().check()
  if judge_config.meta:
    template.load(judge_config.meta, key='config.prompt.meta')
  stored_meta = model_directory.read_trained_judge(meta_checkpoint)
  meta_template = trained_judge.meta_template(
    stored_meta,
    meta_checkpoint,
    judge_config.meta,
    META,
  )
  _check_heads(checkpoint, step, meta_checkpoint)
  model, tokenizer = model_directory.open_without_params(
    checkpoint, step, compute, layouts[0]
  )
  weights = load_weights(checkpoint, step, model, int8, judge_config.seed)
  engine = make_engine(model, tokenizer, **engine_options)
  meta = None
  if meta_checkpoint:
    shapes = {x: engine_options[x] for x in _SCORER_SHAPES}
    meta_model, meta_tokenizer, meta_params = model_directory.open_model(
      meta_checkpoint, None, compute, layouts[1], scalar=True
    )
    meta = MetaJudge(
      ScalarScorer(meta_model, meta_params, **shapes),
      meta_tokenizer,
      meta_template,
      full_template=bool(stored_meta and stored_meta.full_template),
    )
  return Judge(engine, weights, tokenizer, judge_config, meta)


def load_weights(
  directory: str,
  step: int | None,
  model: Transformer,
  int8: bool = False,
  seed: int = 0,
) -> DecodeWeights:
  """Returns weights for decoding from a model directory.

  Each parameter is converted when it is read, so that the model is not in
  memory twice, and its bfloat16 form never whole if `int8`.

  Args:
    directory: a model directory or 'random', see model_directory.open_model.
    step: None for the latest.
    model: the network, with the compute and the layout of decoding.
    int8: sample with int8 kernels.
    seed: of random weights.

  Raises:
    UserError: not a model directory.
  """
  if directory == model_directory.RANDOM:
    params = model_directory.random_params(model, seed)
    return decode_weights.place(model, params, int8)[0]
  begin = time.monotonic()
  stored = model_directory.build_model(
    directory, step, model.compute, model.layout
  )
  convert = decode_weights.converter(stored, int8)
  params = model_directory.load_params(directory, step, stored, convert=convert)
  weights = jax.block_until_ready(decode_weights.join(params))
  logging.info('weights read in %.1f s', time.monotonic() - begin)
  return weights


def _check_heads(
  checkpoint: str,
  step: int | None,
  meta_checkpoint: str,
) -> None:
  """Raises UserError for the wrong kind of model, before reading weights."""
  if _has_scalar_head(checkpoint, step):
    raise UserError(
      f'config.checkpoint={checkpoint} has a scalar head and does not write '
      'judgements; set config.judge to scalar, pair or semi_scalar'
    )
  if _has_scalar_head(meta_checkpoint, None) is False:
    raise UserError(
      f'config.meta_checkpoint={meta_checkpoint} has no scalar head; train a '
      'meta RM with configs/reward_model.py'
    )


def _has_scalar_head(directory: str, step: int | None) -> bool | None:
  """Returns whether a checkpoint has a scalar head; reads its metadata only.

  The result is None for random weights and for '', which open_model rejects.
  """
  if directory in ('', model_directory.RANDOM):
    return None
  item = orbax_checkpoint.read_json(directory, 'model', step)
  return bool(item['scalar'])


def make_engine(
  model: Transformer, tokenizer: Tokenizer, **engine_options: Any
) -> Engine:
  """Returns an engine that generates one turn of the tokenizer's chat format.

  It never samples other control tokens, or ids that the tokenizer lacks.
  """
  stop_ids = tokenizer.stop_ids
  forbidden_ids = set(tokenizer.control_ids) - set(stop_ids)
  forbidden_ids |= set(range(tokenizer.vocab_size, model.config.vocab_size))
  return Engine(
    model,
    stop_ids=stop_ids,
    forbidden_ids=sorted(forbidden_ids),
    detokenize=tokenizer.decode,
    **engine_options,
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
  max_new_tokens: int = 0,
  decode_steps_per_call: int = 16,
  prompt_buckets: Sequence[int] = (1024, 2048, 4096),
  **settings: Any,
) -> Judge:
  """Returns a judge with the weights of a checkpoint, on all devices.

  Args:
    checkpoint: a model directory, or 'random' for small random weights.
    meta_checkpoint: model directory of a meta RM.
    step: step of the checkpoint; None for the newest.
    tensor: number of devices that split the weights; the rest split prompts.
    weights: 'resident' or 'fsdp', see sharding.rules.decode_rules.
    int8: whether kernels are quantized to int8.
    prompts: prompt slots; default 4 for every shard of the prompts.
    generations_per_prompt: rows of a slot, see sampling.engine.Engine.
    max_new_tokens: maximum length of a generation; 0 for the one in training.
    decode_steps_per_call: steps between two refills of rows.
    prompt_buckets: lengths that prompts are padded to, ascending.
    **settings: see JudgeConfig. Templates, score ranges and `reads` that are
      not given are those of the training of the model.

  Raises:
    UserError: see `load`.
  """
  backend = jax.default_backend()
  compute = ComputeConfig(
    dtype='float32' if backend == 'cpu' else 'bfloat16',
    attention='splash' if backend == 'tpu' else 'xla',
  )
  devices = mesh.make_mesh(tensor=tensor)
  decode_layout = rules.make_layout(
    devices, rules.decode_rules(rules.RULES, weights)
  )
  layout = rules.make_layout(devices, rules.RULES)
  if prompts is None:
    prompts = 4 * decode_layout.num_shards('prompts')
  return load(
    checkpoint,
    step,
    meta_checkpoint or '',
    JudgeConfig(**settings | _trained_settings(checkpoint, settings)),
    compute,
    (decode_layout, layout),
    int8=int8,
    prompts=prompts,
    generations_per_prompt=generations_per_prompt,
    max_new_tokens=_generation_length(
      checkpoint, max_new_tokens, 'load_judge.max_new_tokens'
    ),
    decode_steps_per_call=decode_steps_per_call,
    prompt_buckets=prompt_buckets,
  )


def _trained_settings(
  checkpoint: str, given: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the settings of JudgeConfig that the model directory stores."""
  stored = model_directory.read_trained_judge(checkpoint)
  names = ('template', 'single', 'score_range', 'single_score_range', 'reads')
  prompt_format = trained_judge.prompt_format(
    stored,
    checkpoint,
    **{name: given[name] for name in names if name in given},
    key='load_judge',
  )
  principles = trained_judge.principles_template(
    stored, checkpoint, given.get('principles', ''), 'load_judge.principles'
  )
  trained = {name: getattr(prompt_format, name) for name in names}
  return trained | {'principles': principles}
