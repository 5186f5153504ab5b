"""Loads the files of a benchmark: every row must be right.

A benchmark with a row left out has another score, so the first row that is
wrong ends the run.
"""

from collections.abc import Callable, Iterable, Iterator

from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.preference_rows import RowTable, SourceRow


def load(
  path: str | RowTable,
  examples: Callable[[SourceRow], Iterable[JudgingExample]],
  keep: Callable[[str], bool] = lambda name: True,
) -> list[JudgingExample]:
  """Returns the examples of all rows of a file, a folder or a table.

  Args:
    path: a .json, .jsonl or .parquet file or a folder of them, local or
      gs://; or a table.
    examples: makes the examples of a row.
    keep: given a file's path below the folder, whether it is read.

  Raises:
    UserError: a row is wrong, two examples have the same id, or there is no
      example; names the file and the row.
  """
  loaded, places = [], {}
  for row in read(path, keep):
    for example in examples(row):
      if example.id in places:
        raise row.fault(f'id {example.id!r} was in {places[example.id]} before')
      places[example.id] = f'{row.file}, row {row.number}'
      loaded.append(example)
  if not loaded:
    name = path.name if isinstance(path, RowTable) else path
    raise UserError(f'{name}: there is nothing to judge in these files')
  return loaded


def read(
  path: str | RowTable, keep: Callable[[str], bool]
) -> Iterator[SourceRow]:
  """Yields the rows of a file, a table, or the files below a folder.

  Files are read in the order of their names.
  """
  for file, number, fields in _numbered(path, keep):
    row = SourceRow(file, number, fields)
    if isinstance(fields, row_reader.UnreadableRow):
      raise row.fault(fields.reason)
    if not isinstance(fields, dict):
      raise row.fault('the row is not an object')
    yield row


def _numbered(path, keep):
  """Yields (file, number, fields) of every row."""
  if isinstance(path, RowTable):
    for number, fields in enumerate(path.rows, 1):
      yield path.name, number, fields
    return
  for file in _files(path, keep):
    for number, fields in row_reader.read_rows(file):
      yield file, number, fields


def _files(path, keep) -> list[str]:
  root = epath.Path(path)
  if not root.is_dir():
    return [str(path)]
  files = [
    str(file)
    for file in _files_below(root)
    if keep(file.relative_to(root).as_posix())
  ]
  if not files:
    raise UserError(f'{path}: no file of this set is in this folder')
  return files


def _files_below(folder):
  """Yields files with a known suffix; hidden folders are download caches."""
  for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
    if entry.name.startswith('.'):
      continue
    if entry.is_dir():
      yield from _files_below(entry)
    elif entry.suffix in row_reader.FORMATS:
      yield entry


def named(path: str, words: Iterable[str]) -> str | None:
  """Returns the one of `words` that a path mentions last, or None."""
  mentioned = [word for word in words if word in path]
  return max(mentioned, key=path.rfind) if mentioned else None


def naming(path: str, words: Iterable[str]) -> Callable[[str], bool]:
  """Keeps files below `path` whose whole path mentions one of `words`."""
  words = tuple(words)
  return lambda name: named(f'{path}/{name}', words) is not None


def starting(word: str) -> Callable[[str], bool]:
  """Keeps files whose own name starts with `word`."""
  return lambda name: name.rpartition('/')[2].startswith(word)
