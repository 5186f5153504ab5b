"""Rows of the files of the stage rft: samples, and what is kept of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.rejection_sampling import FilterSample

_SHOWN = 5  # bad rows in the log


def read(
  path: str, examples: Mapping[str, JudgingExample], strict: bool
) -> dict[str, list[FilterSample]]:
  """Samples by example; rows that are wrong are named and left out.

  Args:
    path: a .json, .jsonl or .parquet file of rows of ours or of any other
      model, {id, text[, hinted, order, truncated]}; without an order the
      responses were shown as they are stored. A file with another suffix is
      JSON Lines.
    examples: by id.
    strict: whether the first bad row stops.

  Raises:
    UserError: the file cannot be read; with `strict` a row; none is left.
  """
  found, faults = {}, []
  for number, row in row_reader.read_rows(path, '.jsonl'):
    try:
      sample = _of_row(row, examples)
    except UserError as error:
      faults.append(f'{path}:{number}: {error}')
      if strict:
        raise UserError(faults[0]) from error
      continue
    found.setdefault(sample.example, []).append(sample)
  for fault in faults[:_SHOWN]:
    logging.warning('%s', fault)
  if faults:
    logging.warning('%s: bad rows left out: %d', path, len(faults))
  if not found:
    bad = f'; bad rows: {len(faults)}, the first: {faults[0]}' if faults else ''
    raise UserError(f'{path} has no samples of these examples{bad}')
  return found


def _of_row(row, examples) -> FilterSample:
  if isinstance(row, row_reader.UnreadableRow):
    raise UserError(row.reason)
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  name, text = row.get('id'), row.get('text')
  # As a row of data names its example: 7 is '7'.
  name = str(name) if type(name) is int else name
  if not isinstance(name, str) or name not in examples:
    raise UserError(
      f'config.data has no example {name!r} that says what is right'
    )
  if not isinstance(text, str):
    raise UserError('text must be a text')
  n = len(examples[name].responses)
  order = row.get('order')
  order = list(range(n)) if order is None else order
  whole = isinstance(order, list) and all(type(x) is int for x in order)
  if not whole or sorted(order) != list(range(n)):
    raise UserError(f'order {order!r} is no permutation of {n} responses')
  flags = [row.get(key) for key in ('hinted', 'truncated')]
  flags = [False if flag is None else flag for flag in flags]
  if not all(isinstance(flag, bool) for flag in flags):
    raise UserError('hinted and truncated must be true or false')
  return FilterSample(name, tuple(order), text, *flags)


def sample_of(row: Mapping[str, Any], name: str, hinted: bool) -> FilterSample:
  """The sample of a row by judgement.to_row about the example `name`."""
  cut = row['finish'] == 'length'
  return FilterSample(name, tuple(row['order']), row['text'], hinted, cut)


def kept_rows(
  example: JudgingExample, samples: Sequence[FilterSample]
) -> Iterator[dict[str, Any]]:
  """One row for each order: a prompt, and all that was written after it.

  The row is what data/sft_sources.py reads as judged. All that is known of the
  example is in it, which its prompt shows or does not by the template alone;
  that a sample was hinted is not.
  """
  by_order = {}
  for sample in samples:
    by_order.setdefault(sample.order, []).append(sample.text)
  for order, generations in by_order.items():
    row = examples_lib.to_row(example)
    name = f'{example.id} {",".join(map(str, order))}'
    yield row | {'id': name, 'order': order, 'generations': generations}
