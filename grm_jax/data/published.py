"""Rows of published files, one by one: a bad row is a fault, not the end.

What a row makes is up to an adapter (grm_jax/data/adapters), a function from a
row to any number of examples, which raises `row.fault(...)` for a mistake of
the file and yields `Dropped` for a row that is right and still of no use.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from grm_jax.data import jsonl, seqio_source, tfds
from grm_jax.judging import rows
from grm_jax.judging.judgement import Fault

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Dropped:
  """What a row makes that gives no example though nothing is wrong with it."""

  reason: str


def read(
  path: str, make: Callable[[rows.Row], Iterable[T]], name: str = ''
) -> Iterator[T | Fault]:
  """What the rows of a file make, and a fault for each that is wrong.

  Args:
    path: a .json (one array), .jsonl or .parquet file, local or gs://; a `*`
      in its name stands for several files, read in order of their names. A
      folder is the one such file in it. Or tfds:NAME:SPLIT or
      seqio:NAME:SPLIT.
    make: an adapter.
    name: of the file to take from a folder that has several, as the set is
      published.

  Raises:
    ValueError: a file cannot be read, or is not of its format at all; which
      file of a folder is meant is not clear.
  """
  for file in _files(path, name):
    for number, value in values(file):
      yield from _made(rows.Row(file, number, value), make)


def digest(*texts: str) -> str:
  """16 letters that stand for these texts, for ids that outlive edits.

  Row numbers would shift when a row is deleted, and samples kept by id would
  then belong to other examples.
  """
  # JSON escapes what UTF-8 cannot hold, and marks where each text ends.
  return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _made(row, make):
  try:
    if isinstance(row.fields, Fault):
      raise row.fault(row.fields.reason)
    if not isinstance(row.fields, dict):
      raise row.fault('the row is not an object')
    return list(make(row))
  except ValueError as error:
    return [Fault(f'row {row.number}', str(error))]


def _named(path):
  """The module that reads this name, None for a path."""
  for module in (tfds, seqio_source):
    if path.startswith(module.PREFIX):
      return module
  return None


def files(path: str) -> list[str]:
  """Data files that a path may stand for, in order of their names.

  Those of a folder (its licence and the like are none), those that a `*` in
  the name matches; any other path stands for itself, be there a file or not.
  """
  root = epath.Path(path)
  if '*' in root.name:
    return sorted(str(file) for file in root.parent.glob(root.name))
  if not root.is_dir():
    return [path]
  return sorted(str(x) for x in root.iterdir() if x.suffix in rows.SUFFIXES)


def _files(path, name):
  if _named(path):
    return [path]
  found = files(path)
  if epath.Path(path).is_dir():
    return [_the_one(path, found, name)]
  if not found:
    raise ValueError(f'{path}: no file has such a name')
  return found


def _the_one(folder, found, name):
  names = [epath.Path(file).name for file in found]
  if name in names:
    return found[names.index(name)]
  if len(found) != 1:
    several = f'several data files ({", ".join(names)})' if found else 'no file'
    raise ValueError(
      f'{folder}: a folder with {several}; name one of '
      f'{", ".join(rows.SUFFIXES)}, or several as FOLDER/*.json'
    )
  return found[0]


def values(file: str) -> Iterator[tuple[int, Any]]:
  """(number from 1, JSON value or fault) of rows.

  Args:
    file: .json, .jsonl or .parquet, or tfds:NAME:SPLIT or seqio:NAME:SPLIT.

  Raises:
    ValueError: it cannot be read, or is none of these.
  """
  if module := _named(file):
    return module.values(file)
  suffix = epath.Path(file).suffix
  if suffix == '.jsonl':
    return jsonl.values(file)
  if suffix == '.json':
    return _array(file)
  if suffix == '.parquet':
    return _parquet(file)
  known = ', '.join(rows.SUFFIXES)
  raise ValueError(f'{file}: not one of {known}')


def _array(file):
  with jsonl.reading(file):
    content = epath.Path(file).read_bytes()
  try:
    # Of bytes: JSON finds the encoding and a byte order mark by itself.
    values = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file}: not JSON: {error}') from error
  if not isinstance(values, list):
    raise ValueError(f'{file}: a .json file must be one array of rows')
  return enumerate(values, 1)


def _parquet(file):
  with jsonl.reading(file):
    for row in rows.read(file, lambda name: True):
      yield row.number, row.fields
