"""JSON lines, one at a time: memory does not grow with the file."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from grm_jax.judging import example as examples_lib
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.judgement import Fault


def read(path: str) -> Iterator[tuple[int, JudgingExample | Fault]]:
  """(line number, example or fault) of every line that is not blank.

  Args:
    path: local or gs://; a row is what `example.from_row` takes.

  Raises:
    ValueError: the file cannot be read.
  """
  for number, row in values(path):
    if isinstance(row, Fault):
      yield number, row
      continue
    try:
      yield number, examples_lib.from_row(row, number)
    except ValueError as error:
      name = row.get('id', number) if isinstance(row, dict) else number
      yield number, Fault(str(name), str(error))


def values(path: str) -> Iterator[tuple[int, Any | Fault]]:
  """(line number, JSON value or fault) of every line that is not blank.

  Raises:
    ValueError: the file cannot be read.
  """
  for number, line in lines(path):
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as error:
      value = Fault(f'line {number}', f'not JSON: {error}')
    yield number, value


def lines(path: str) -> Iterator[tuple[int, bytes]]:
  """(number from 1, content) of lines that are not blank.

  Raises:
    ValueError: the file cannot be read.
  """
  with reading(path), epath.Path(path).open('rb') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        yield number, line


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
  """What goes wrong in opening and reading the file becomes a ValueError."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f'{path} cannot be read: {reason}') from error
  except ImportError as error:  # what gs:// needs is not installed
    raise ValueError(f'{path} cannot be read: {error}') from error
