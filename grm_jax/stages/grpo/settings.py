"""Checks the settings of GRPO, and values derived from them."""

from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.data.rollout_prompts import STRATIFIED
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.judgement import correctness, response_order, temperature_range
from grm_jax.judges import settings as judge_settings
from grm_jax.sharding import mesh
from grm_jax.training import grpo_loss, reference_policy
from grm_jax.training import run as training_run
from grm_jax.training.run_state import ParseFailureStop
from grm_jax.unused_settings import Unused

# Rules of configs/grpo.py.
SETTINGS = training_run.SETTINGS | {
  'stage': settings.one_of('grpo'),
  'reward': settings.TEXT,
  'prompt': judge_settings.PROMPT | {'reads': judge_settings.READS},
  'response_order': settings.one_of(STRATIFIED, *response_order.KINDS),
  'prompts_per_rollout': settings.parallel(1),
  'group_size': settings.samples(2),
  'temperature': temperature_range.ROLLOUTS,
  'max_resample_attempts': settings.parallel(0),
  'num_minibatches': settings.parallel(1),
  'num_iterations': settings.parallel(1),
  'loss': grpo_loss.SETTINGS | {'normalize_by_std': settings.BOOLEAN},
  'reference': reference_policy.SETTINGS | {'checkpoint': settings.TEXT},
  'batch': {
    'micro_batch_prompts': settings.parallel(1),
    'prompt_buckets': settings.LENGTHS,
    'generation_buckets': settings.LENGTHS,
  },
  'log_samples_every': settings.integer(0, note='0: none'),
  'rollout': judge_settings.GENERATION,
  'evaluation': {
    'data': settings.TEXT,
    'every': settings.integer(0, note='0: at the start and the end only'),
    'k': settings.samples(0, note='0: greedy only'),
    'max_parse_failure_rate': settings.FRACTION,
    'patience': settings.integer(0, note='0: never'),
  },
  'mesh': mesh.DECODE_SETTINGS,
}
REFERENCE_IS_BASE = Unused(
  ('reference.dtype', 'reference.offload_to_host'),
  '{key}.lora.rank is not 0 and {key}.reference.checkpoint is empty: the '
  'reference is the base of the adapter',
  lambda config: config.lora.rank and not config.reference.checkpoint,
)
UNUSED = (
  *training_run.UNUSED,
  judge_settings.PROMPT_UNUSED,
  Unused(
    ('reference', 'loss.kl_estimator'),
    '{key}.loss.kl_coef is 0',
    lambda config: not config.loss.kl_coef,
  ),
  REFERENCE_IS_BASE,
  # The policy of the only update is the one that sampled: the ratio is 1.
  Unused(
    ('loss.clip_low', 'loss.clip_high'),
    '{key}.num_minibatches and {key}.num_iterations are 1',
    lambda config: updates_per_rollout(config) == 1,
  ),
)


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks settings before data or weights are read; see training.run.check."""
  training_run.check(config, workdir, SETTINGS, key)
  if config.prompts_per_rollout < config.num_minibatches:
    raise UserError(
      f'{key}.num_minibatches ({config.num_minibatches}) must not exceed '
      f'{key}.prompts_per_rollout ({config.prompts_per_rollout})'
    )
  stride = updates_per_rollout(config)
  if config.steps % stride:
    raise UserError(
      f'{key}.steps is {config.steps}; set it to a multiple of the updates per '
      f'rollout, {stride} ({key}.num_minibatches * '
      f'{key}.num_iterations)'
    )
  prompt_format = training_run.prompt_format(
    config.prompt, config.checkpoint, f'{key}.prompt'
  )
  if prompt_format.reads == 'critique':
    raise UserError(
      f'{key}.checkpoint={config.checkpoint} writes critiques, which have no '
      f'scores to reward; give a judge, or set {key}.prompt.reads to scores or '
      'best'
    )
  correctness.load_reward(config.reward, f'{key}.reward')


def batch_shape(config: ConfigDict) -> BatchShape:
  """Returns the padded shapes of micro-batches."""
  batch = config.batch
  return BatchShape(
    batch.prompt_buckets, batch.generation_buckets, config.group_size
  )


def stop_rule(config: ConfigDict) -> ParseFailureStop:
  """Returns the rule of config.evaluation that ends a run."""
  evaluation = config.evaluation
  return ParseFailureStop(
    evaluation.max_parse_failure_rate, evaluation.patience
  )


def check_remaining_steps(config: ConfigDict, step: int) -> None:
  """Raises UserError if the steps after `step` are not whole rollouts."""
  total, stride = config.steps, updates_per_rollout(config)
  if step < total and (total - step) % stride:
    raise UserError(
      f'{total - step} steps remain until config.steps ({total}), which is not '
      f'a multiple of {stride}, the updates per rollout '
      '(config.num_minibatches * config.num_iterations); resume with the '
      'settings that the run started with'
    )


def updates_per_rollout(config: ConfigDict) -> int:
  """Returns the number of updates, which are steps, on a rollout."""
  return config.num_minibatches * config.num_iterations
