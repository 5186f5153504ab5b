"""Says loudly that most judgements are useless, and names the likely cause."""

import collections
from collections.abc import Iterable

from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.judgement import template
from grm_jax.judges import factory


def of_samples(config: ConfigDict, samples: Iterable[tuple[bool, bool]]) -> str:
  """Returns a warning if more than half of the samples fail, else ''.

  Args:
    config: of score, evaluate or serve.
    samples: whether each has no scores, and whether it is truncated.
  """
  counts = collections.Counter(samples)
  return of_counts(
    config,
    counts.total(),
    failures=counts[True, True] + counts[True, False],
    truncated=counts[True, True] + counts[False, True],
  )


def of_counts(
  config: ConfigDict, count: int, *, failures: int, truncated: int
) -> str:
  """As `of_samples`, for numbers of samples."""
  if 2 * failures <= count and 2 * truncated <= count:
    return ''
  if config.checkpoint == model_directory.RANDOM:
    return ''  # nothing else can be expected
  return (
    f'WARNING: {failures} of {count} judgements have no scores, {truncated} '
    f'are truncated. Likely cause: {_cause(config, count, truncated)}'
  )


def _cause(config: ConfigDict, count: int, truncated: int) -> str:
  """Returns the most likely cause and its cure."""
  checkpoint = config.checkpoint
  trained = model_directory.read_trained_judge(checkpoint)
  used = factory.make_judge_config(config).template
  length = factory.sampling_options(config.sampling, checkpoint)[
    'max_new_tokens'
  ]
  if config.judge == 'grm' and trained and trained.template:
    if template.source(used) != trained.template.source:
      return (
        f'config.prompt.template is {used}, but {checkpoint} was trained with '
        f"{trained.template}; set config.prompt.template=''"
      )
  elif trained is None:
    return (
      f'{checkpoint} has no judge.json: it is a base model, or was trained '
      f'with another template than {used}; set config.prompt.template to the '
      'one of its training, or train it with configs/sft.py. If judgements are '
      f'only cut off, raise config.sampling.max_new_tokens={length}'
    )
  has_trained_length = trained and length >= trained.max_new_tokens
  if 2 * truncated > count and not has_trained_length:
    return (
      f'config.sampling.max_new_tokens={length} is too small; raise it, or set '
      'it to 0 for the length in training'
    )
  return (
    f'{checkpoint} has not learned to write scores by config.prompt.template='
    f'{used} within config.sampling.max_new_tokens={length}; train it longer '
    '(configs/sft.py)'
  )
