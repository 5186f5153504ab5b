"""Writes small files in the layouts that benchmarks are published in."""

import json
import pathlib

import pyarrow
import pyarrow.parquet

from grm_jax.evaluation.metrics import Result


def write(path, rows):
  """Writes rows in the format of the suffix; creates folders."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.parquet':
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  elif path.suffix == '.json':
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
  else:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text('\n'.join(lines) + '\n')
  return str(path)


def judged(examples, votes):
  """Returns results, given a vote for the text of each response.

  A text without one, or with None, makes its example one that did not parse.
  """
  results = []
  for example in examples:
    values = tuple(votes.get(text) for text in example.responses)
    results.append(Result(example, None if None in values else values))
  return results


def without(row, *keys):
  return {key: value for key, value in row.items() if key not in keys}
