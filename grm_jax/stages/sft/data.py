"""From `config.data` of the stage sft to records that fit its batches."""

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

_SHOWN = 5  # rows or texts that are left out, in the log


def read(config: ConfigDict) -> tuple[list[SFTExample], dict[str, str]]:
  """The texts of `config.data`; bad rows are named and left out.

  Returns:
    Texts of all sources but those that seqio reads, and source -> spec of
    these, whose records need the tokenizer.

  Raises:
    UserError: a source that cannot be read or has no text; with
      config.fail_on_bad_rows a bad row.
  """
  specs = {'texts': config.data.texts}
  if config.data.general_fraction:
    specs['general'] = config.data.general
  named = {
    source: spec
    for source, spec in specs.items()
    if spec.startswith(seqio_source.PREFIX)
  }
  found = [
    text
    for source, spec in specs.items()
    if source not in named
    for text in _read(spec, source, config)
  ]
  return found, named


def _read(spec, source, config) -> list[SFTExample]:
  """Texts of a source; bad rows are named and left out."""
  found, faults = [], []
  for item in sft_sources.read(
    spec, 'train', source, config.data.teacher_error_rate, config.seed
  ):
    (faults if isinstance(item, ExampleError) else found).append(item)
    if faults and config.fail_on_bad_rows:
      raise UserError(faults[0].reason)
  for fault in faults[:_SHOWN]:
    logging.warning('%s', fault.reason)
  if faults:
    logging.warning('%s: bad rows left out: %d', spec, len(faults))
  if not found:
    first = f'; the first: {faults[0].reason}' if faults else ''
    raise UserError(
      f'{spec} has no texts; {len(faults)} of its rows are bad{first}'
    )
  return found


def records_of(
  found: Sequence[SFTExample],
  named: Mapping[str, str],
  forms: PromptFormat,
  tokenizer: Tokenizer,
  limits: BatchShape,
  config: ConfigDict,
) -> list[TokenizedExample]:
  """Records of the texts that fit; the others are named and counted.

  Args:
    found, named: from `read`.
    forms: how judging examples are asked.
    tokenizer: the model's.
    limits: of the batches.
    config: says whether rows are packed.

  Raises:
    UserError: nothing fits.
  """
  reasons = []
  made = [
    dataclasses.replace(record, source=source)
    for source, spec in named.items()
    for record in seqio_source.records(spec, tokenizer)
  ]
  count = len(made) + len(found)
  for text in found:
    try:
      made.append(
        sft_sources.record(text, forms, tokenizer, limit=limits.buckets[-1])
      )
    except UserError as error:
      reasons.append((text.id, str(error)))
  made, left_out = tokenized_example.usable(made, limits)
  reasons += left_out
  if config.batch.packed:
    made = packing.pack(made, packing.room(limits))
  for name, reason in reasons[:_SHOWN]:
    logging.warning('%s: %s', name, reason)
  if reasons:
    logging.warning(
      '%d of %d texts are left out: they do not fit', len(reasons), count
    )
  if not made:
    raise UserError(f'no text fits a batch; the first: {reasons[0][1]}')
  return made
