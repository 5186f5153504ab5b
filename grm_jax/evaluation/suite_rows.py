"""Loads the files of a benchmark; every row must be valid.

The score of a benchmark depends on all of its rows. An invalid row is therefore
an error; it is not skipped.
"""

from collections.abc import Callable, Iterable, Iterator

from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io, row_reader
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.preference_rows import RowTable, SourceRow


def load(
  path: str | RowTable,
  examples: Callable[[SourceRow], Iterable[JudgingExample]],
  keep: Callable[[str], bool] = lambda name: True,
) -> list[JudgingExample]:
  """Returns the examples of all rows of a file, a folder or a table.

  Args:
    path: a .json, .jsonl or .parquet file or a folder of them, local or gs://;
      or a table.
    examples: returns the examples of a row.
    keep: returns whether to read a file, given its path below the folder.

  Raises:
    UserError: a row is invalid, two examples have the same id, or there are no
      examples. The message names the file and the row.
  """
  loaded: list[JudgingExample] = []
  locations: dict[str, str] = {}
  for row in read(path, keep):
    for example in examples(row):
      if example.id in locations:
        raise row.error(
          f'id {example.id!r} is also in {locations[example.id]}; ids must '
          'differ'
        )
      locations[example.id] = f'{row.file}, row {row.number}'
      loaded.append(example)
  if not loaded:
    name = path.name if isinstance(path, RowTable) else path
    raise UserError(f'{name}: the files have no examples to judge')
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
      raise row.error(fields.reason)
    if not isinstance(fields, dict):
      raise row.error('the row is not an object')
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
  with atomic_io.wrap_read_errors(path):
    if not root.is_dir():
      return [str(path)]
    files = [
      str(file)
      for file in _files_below(root)
      if keep(file.relative_to(root).as_posix())
    ]
  if not files:
    raise UserError(
      f'{path}: the folder has no file of this benchmark; give the folder or '
      'file of its published data'
    )
  return files


def _files_below(folder):
  """Yields files with a known suffix, except in hidden (cache) folders."""
  for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
    if entry.name.startswith('.'):
      continue
    if entry.is_dir():
      yield from _files_below(entry)
    elif entry.suffix in row_reader.FORMATS:
      yield entry


def last_mentioned(path: str, names: Iterable[str]) -> str | None:
  """Returns the name that occurs last in a path, or None."""
  mentioned = [name for name in names if name in path]
  return max(mentioned, key=path.rfind) if mentioned else None


def path_mentions(path: str, names: Iterable[str]) -> Callable[[str], bool]:
  """Returns a filter of files below `path` whose whole path has a name."""
  names = tuple(names)
  return lambda file: last_mentioned(f'{path}/{file}', names) is not None


def file_starts_with(prefix: str) -> Callable[[str], bool]:
  """Returns a filter of files whose name without folders has a prefix."""
  return lambda file: file.rpartition('/')[2].startswith(prefix)
