"""Principles that the examples of suites are judged by, from a file.

The rows of the file are one of:

- {id, principles}, with the ids of examples in SUITE.samples.jsonl;
- lines of SUITE.samples.jsonl of an earlier evaluation, of any judge. The
  principles of an example are those of its first correct sample: the "filtered
  principles" of arXiv 2504.02495, Tables 1 and 14. The filter uses the labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io, suite_rows
from grm_jax.judgement import correctness, sections
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.preference_rows import SourceRow


def read(path: str) -> dict[str, str]:
  """Returns the principles of a file, by example id.

  Raises:
    UserError: the file cannot be read, or a row is invalid.
  """
  principles = {}
  for row in suite_rows.read(path, lambda name: True):
    id, text = _filtered(row) if 'example' in row.fields else _stated(row)
    if id in principles:
      raise row.error(f'id {id!r} is in two rows; ids must differ')
    principles[id] = text
  return principles


def _stated(row: SourceRow) -> tuple[str, str]:
  return row.text_field('id'), row.text_field('principles').strip()


def _filtered(row: SourceRow) -> tuple[str, str]:
  """Returns the principles of the first correct sample, '' without one."""
  try:
    judged = judgement_io.from_row(row.fields, row.number)
    texts = [
      sections.split(x.text).principles
      for x in judged.samples
      if correctness.has_label(judged.example)
      and correctness.is_correct(x.scores, judged.example)
    ]
  except UserError as error:
    raise row.error(str(error)) from error
  return judged.example.id, next(filter(None, texts), '')


def give(
  examples: Sequence[JudgingExample], principles: Mapping[str, str]
) -> list[JudgingExample]:
  """Returns the examples with their principles; '' where there are none."""
  return [
    dataclasses.replace(x, principles=principles.get(x.id, ''))
    for x in examples
  ]
