"""Reads `config.data` of the stage sft and tokenizes it."""

import dataclasses
from collections.abc import Mapping, Sequence

from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import packing, seqio_source, sft_sources, tokenized_example
from grm_jax.data.sft_sources import SFTExample
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.tokenizer.tokenizer import Tokenizer

_MAX_LOGGED = 5  # number of skipped rows or examples that the log names


def read(config: ConfigDict) -> tuple[list[SFTExample], dict[str, str]]:
  """Reads the texts of `config.data`; skips and logs bad rows.

  Returns:
    The texts of all sources except those that seqio reads, and the specs of
    the latter by source name. seqio needs the tokenizer; see `tokenize`.

  Raises:
    UserError: a source cannot be read or has no text, or a row is bad and
      config.fail_on_bad_rows is set.
  """
  specs = {'texts': config.data.texts}
  if config.data.general_fraction:
    specs['general'] = config.data.general
  seqio_specs = {
    source: spec
    for source, spec in specs.items()
    if spec.startswith(seqio_source.PREFIX)
  }
  examples = [
    example
    for source, spec in specs.items()
    if source not in seqio_specs
    for example in _read_source(spec, source, config)
  ]
  return examples, seqio_specs


def _read_source(
  spec: str, source: str, config: ConfigDict
) -> list[SFTExample]:
  examples, errors = [], []
  for row in sft_sources.read(
    spec, 'train', source, config.data.teacher_error_rate, config.seed
  ):
    if not isinstance(row, ExampleError):
      examples.append(row)
    elif config.fail_on_bad_rows:
      raise UserError(row.reason)
    else:
      errors.append(row)
  for error in errors[:_MAX_LOGGED]:
    logging.warning('%s', error.reason)
  if errors:
    logging.warning('%s: skipped %d bad rows', spec, len(errors))
  if not examples:
    first = f'; the first: {errors[0].reason}' if errors else ''
    raise UserError(f'{spec} has no texts and {len(errors)} bad rows{first}')
  return examples


def tokenize(
  examples: Sequence[SFTExample],
  seqio_specs: Mapping[str, str],
  prompt_format: PromptFormat,
  tokenizer: Tokenizer,
  batch_shape: BatchShape,
  packed: bool,
) -> list[TokenizedExample]:
  """Returns the tokenized examples that fit a batch; logs the others.

  Args:
    examples: from `read`.
    seqio_specs: from `read`.
    prompt_format: format of the prompts of judging examples.
    tokenizer: tokenizer of the model.
    batch_shape: what must fit.
    packed: whether to pack several examples into each row.

  Raises:
    UserError: nothing fits.
  """
  tokenized = [
    dataclasses.replace(example, source=source)
    for source, spec in seqio_specs.items()
    for example in seqio_source.tokenized_examples(spec, tokenizer)
  ]
  num_examples = len(tokenized) + len(examples)
  misfits = []  # (id, reason)
  for example in examples:
    try:
      tokenized.append(
        sft_sources.tokenize(
          example,
          prompt_format,
          tokenizer,
          limit=batch_shape.prompt_buckets[-1],
        )
      )
    except UserError as error:
      misfits.append((example.id, str(error)))
  tokenized, too_long = tokenized_example.partition_by_fit(
    tokenized, batch_shape
  )
  misfits += too_long
  if packed:
    tokenized = packing.pack(tokenized, packing.packed_row_length(batch_shape))
  for example_id, reason in misfits[:_MAX_LOGGED]:
    logging.warning('%s: %s', example_id, reason)
  if misfits:
    logging.warning(
      'skipped %d of %d texts that do not fit', len(misfits), num_examples
    )
  if not tokenized:
    raise UserError(f'no text fits a batch; the first: {misfits[0][1]}')
  return tokenized
