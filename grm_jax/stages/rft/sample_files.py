"""Rows of the files of RFT: the samples, and the selected generations."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import row_values
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.rejection_sampling import FilterSample

_MAX_LOGGED_ERRORS = 5


def read(
  path: str, examples: Mapping[str, JudgingExample], fail_on_bad_rows: bool
) -> dict[str, list[FilterSample]]:
  """Reads samples; logs and skips bad rows.

  Args:
    path: a .json, .jsonl or .parquet file of rows {id, text[, hinted, order,
      truncated]}, by this project or any other model. Without `order` the
      prompt had the responses in their stored order. Other suffixes are read
      as JSON Lines.
    examples: labelled examples by id.
    fail_on_bad_rows: raise an error at the first bad row instead of skipping
      it.

  Returns:
    Samples by example id.

  Raises:
    UserError: the file cannot be read, no row is good, or with
      `fail_on_bad_rows` a row is bad.
  """
  samples: dict[str, list[FilterSample]] = {}
  errors = []
  for number, row in row_reader.read_rows(path, '.jsonl'):
    try:
      sample = _parse_row(row, examples)
    except UserError as error:
      errors.append(f'{path}:{number}: {error}')
      if fail_on_bad_rows:
        raise UserError(errors[0]) from error
      continue
    samples.setdefault(sample.example_id, []).append(sample)
  for message in errors[:_MAX_LOGGED_ERRORS]:
    logging.warning('%s', message)
  if errors:
    logging.warning('%s: skipped %d bad rows', path, len(errors))
  if not samples:
    bad = f'; bad rows: {len(errors)}, first: {errors[0]}' if errors else ''
    raise UserError(f'{path} has no samples of the examples{bad}')
  return samples


def _parse_row(
  row: Any, examples: Mapping[str, JudgingExample]
) -> FilterSample:
  if isinstance(row, row_reader.UnreadableRow):
    raise UserError(row.reason)
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  for key in ('id', 'text'):
    if row.get(key) is None:
      raise row_values.missing_field(key, row)
  id, text = str(examples_lib.id_of_row(row, 0)), row['text']
  if id not in examples:
    raise UserError(f'config.data has no labelled example {row["id"]!r:.60}')
  if not isinstance(text, str):
    raise UserError('text is not a string')
  hinted, truncated = (_flag(row, key) for key in ('hinted', 'truncated'))
  order = _order(row, len(examples[id].responses))
  return FilterSample(id, order, text, hinted, truncated)


def _flag(row: Mapping[str, Any], key: str) -> bool:
  value = row.get(key)
  if value is None:
    return False
  if not isinstance(value, bool):
    raise UserError(f'{key} is {value!r}; it must be true or false')
  return value


def _order(row: Mapping[str, Any], n: int) -> tuple[int, ...]:
  order = row.get('order')
  if order is None:
    return tuple(range(n))
  indices = map(row_values.integer, order if isinstance(order, list) else [])
  positions = tuple(x for x in indices if x is not None)
  if sorted(positions) != list(range(n)) or len(order) != n:
    raise UserError(f'order {order!r} is not a permutation of {n} responses')
  return positions


def kept_rows(
  example: JudgingExample, samples: Sequence[FilterSample]
) -> Iterator[dict[str, Any]]:
  """Yields a row per order of responses: a prompt and all its generations.

  data/sft_sources.py reads these rows as `judged:PATH`. A row has all fields of
  the example; the template decides which of them the prompt shows. It does not
  store that a sample was hinted: fine-tuning must not see hints.
  """
  by_order: dict[tuple[int, ...], list[str]] = {}
  for sample in samples:
    by_order.setdefault(sample.order, []).append(sample.text)
  for order, generations in by_order.items():
    id = f'{example.id} {",".join(map(str, order))}'
    row = examples_lib.to_row(example)
    yield row | {'id': id, 'order': order, 'generations': generations}
