"""Checks the settings of GRPO, and values derived from them."""

from ml_collections import ConfigDict

from grm_jax.data import tokenized_example
from grm_jax.errors import UserError
from grm_jax.judgement import temperature_range
from grm_jax.stages.grpo import update
from grm_jax.training import reference_policy
from grm_jax.training import run as training_run
from grm_jax.training.run_state import ParseFailureStop


def check(config: ConfigDict, workdir: str, key: str = 'config') -> None:
  """Checks settings before data or weights are read; see training.run.check."""
  training_run.check(
    config,
    workdir,
    ('group_size', config.group_size, 2),
    ('prompts_per_rollout', config.prompts_per_rollout, 1),
    ('num_minibatches', config.num_minibatches, 1),
    ('num_iterations', config.num_iterations, 1),
    ('max_resample_attempts', config.max_resample_attempts, 0),
    ('batch.micro_batch_prompts', config.batch.micro_batch_prompts, 1),
    ('rollout.concurrent_prompts', config.rollout.concurrent_prompts, 1),
    (
      'rollout.generations_per_prompt',
      config.rollout.generations_per_prompt,
      1,
    ),
    ('rollout.decode_steps_per_call', config.rollout.decode_steps_per_call, 1),
    ('evaluation.k', config.evaluation.k, 0),
    key=key,
  )
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
  # Not greedy: the generations of a group must differ.
  temperature_range.check(
    f'{key}.temperature', config.temperature, temperature_range.MIN
  )
  batch_shape(config, key)
  update.make_loss_config(config, key)
  reference_policy.check_dtype(config.reference.dtype, f'{key}.reference.dtype')
  stop_rule(config, key)


def batch_shape(
  config: ConfigDict, key: str = 'config'
) -> tokenized_example.BatchShape:
  """Returns the padded shapes of micro-batches; UserError if they are wrong."""
  return tokenized_example.make_batch_shape(
    config.batch.prompt_buckets,
    config.batch.generation_buckets,
    config.group_size,
    f'{key}.batch',
  )


def stop_rule(config: ConfigDict, key: str = 'config') -> ParseFailureStop:
  """Returns the rule of config.evaluation that ends a run."""
  return ParseFailureStop(
    config.evaluation.max_parse_failure_rate,
    config.evaluation.patience,
    f'{key}.evaluation',
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
