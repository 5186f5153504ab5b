"""Loads labelled examples for RFT and GRPO."""

from collections.abc import Sequence

from absl import logging

from grm_jax.data import example_sources
from grm_jax.errors import UserError
from grm_jax.judgement import correctness
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat


def load(
  spec: str, fail_on_bad_rows: bool, prompt_format: PromptFormat
) -> list[JudgingExample]:
  """Returns the training examples of a source that have a label.

  For critiques, returns one example per response, which needs no label.

  Args:
    spec: source, see data/example_sources.py.
    fail_on_bad_rows: raise an error at the first bad row instead of skipping
      it.
    prompt_format: format of the prompts that the examples are rendered to.

  Raises:
    UserError: no example is labelled, or the templates need fields that the
      examples lack; or none has several responses, if the generations name
      the best one.
  """
  loaded, _ = example_sources.load(spec, 'train', fail_on_bad_rows)
  if prompt_format.reads == 'critique':
    return [x for y in loaded for x in examples_lib.single_responses(y)]
  examples = keep_labelled(loaded, spec)
  if prompt_format.reads == 'best':
    examples = keep_preferences(examples, spec)
  _check_templates(examples, prompt_format, spec)
  return examples


def keep_labelled(
  examples: Sequence[JudgingExample], source: str
) -> list[JudgingExample]:
  """Returns the examples that have a label; logs how many have none.

  Args:
    examples: examples with and without labels.
    source: where they come from, for messages.

  Raises:
    UserError: no example has a label.
  """
  labelled = [x for x in examples if correctness.has_label(x)]
  if not labelled:
    raise UserError(
      f'{source}: none of {len(examples)} examples has a label; set `best`, or '
      'for a single response `rewards` to [0] or [1]'
    )
  if len(labelled) < len(examples):
    logging.warning(
      '%s: skipping %d of %d examples without a label',
      *(source, len(examples) - len(labelled), len(examples)),
    )
  return labelled


def keep_preferences(
  examples: Sequence[JudgingExample], source: str
) -> list[JudgingExample]:
  """Returns the examples with several responses; logs how many have one.

  Args:
    examples: labelled examples.
    source: where they come from, for messages.

  Raises:
    UserError: all examples have a single response.
  """
  preferences = [x for x in examples if len(x.responses) > 1]
  if not preferences:
    raise UserError(
      f'{source}: all {len(examples)} examples have a single response, but an '
      'LLM-as-a-Judge names the best of several; give preferences, or set '
      'config.prompt.reads=scores'
    )
  if len(preferences) < len(examples):
    logging.warning(
      '%s: skipping %d of %d examples with a single response, because '
      'config.prompt.reads is best',
      *(source, len(examples) - len(preferences), len(examples)),
    )
  return preferences


def _check_templates(
  examples: Sequence[JudgingExample], prompt_format: PromptFormat, source: str
) -> None:
  key = prompt_format.key
  if not prompt_format.single and any(len(x.responses) == 1 for x in examples):
    raise UserError(
      f'{source} has examples with a single response and a label of 0 or 1, '
      f'but {key}.single is empty; set it to a template that requests such a '
      'score'
    )
  fields = prompt_format.template_for(2).used_variables
  if 'principles' in fields and not all(x.principles for x in examples):
    raise UserError(
      f'{key}.template={prompt_format.template} needs principles, which some '
      f'examples of {source} lack; use a template that lets the model write '
      'its principles'
    )
