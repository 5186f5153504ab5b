"""Published files of judging data as rows, and rows as examples.

Files are JSON (one array), JSON lines or Parquet, local or gs://; rows from
elsewhere come as a Table. Responses are put in an order that a hash of the
example's id decides, so that the right one stands in every place equally often
and a judge that likes a place gains nothing even if it is always shown the
example's own order.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from grm_jax.judging.example import JudgingExample, Turn

SUFFIXES = ('.json', '.jsonl', '.parquet')
# Another seed is another order of responses: results are not comparable.
ORDER_SEED = 0
_BATCH = 256  # rows of a Parquet file at a time


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows that are in no file that is read here, such as a TFDS split.

  Attributes:
    name: what stands for a path in errors and ids.
    rows: the fields of each; read once.
  """

  name: str
  rows: Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Row:
  """A row, which knows where it is from.

  Attributes:
    file: its path, or the name of its table.
    number: from 1; in JSON lines that of the line.
    fields: its content.
    name: of the field that holds these fields, '' at the top.
  """

  file: str
  number: int
  fields: Mapping[str, Any]
  name: str = ''

  def fault(self, what: str) -> ValueError:
    """An error that says where it is."""
    inner = f'{self.name}: ' if self.name else ''
    return ValueError(f'{self.file}, row {self.number}: {inner}{what}')

  def value(self, key: str) -> Any:
    """The field; it must exist."""
    if key not in self.fields:
      raise self.fault(f'there is no {key}, only {", ".join(self.fields)}')
    return self.fields[key]

  def text(self, key: str) -> str:
    """The field; it must be a text."""
    value = self.value(key)
    if not isinstance(value, str):
      raise self.fault(f'{key} must be a text, not {_shown(value)}')
    return value

  def listed(self, key: str) -> list[Any]:
    """The field; it must be a list of at least one value."""
    value = self.value(key)
    if not isinstance(value, list) or not value:
      raise self.fault(f'{key} must be a list of values, not {_shown(value)}')
    return value

  def texts(self, key: str) -> tuple[str, ...]:
    """The field; it must be a list of at least one text."""
    for value in (values := self.listed(key)):
      if not isinstance(value, str):
        raise self.fault(f'{key} must be texts, not {_shown(value)}')
    return tuple(values)

  def whole(self, key: str) -> int:
    """The field; it must be a whole number, as such or as a text."""
    value = self.value(key)
    if isinstance(value, str) and value.strip().isdecimal():
      return int(value)
    if type(value) is not int:
      raise self.fault(f'{key} must be a whole number, not {_shown(value)}')
    return value

  def one_of(self, key: str, choices: Iterable[str]) -> str:
    """The field; it must be one of `choices`."""
    value = self.value(key)
    if value not in (choices := tuple(choices)):
      known = ', '.join(choices)
      raise self.fault(f'{key} is {_shown(value)}, none of {known}')
    return value

  def inner(self, key: str) -> 'Row':
    """The field, which must be an object, as a row."""
    return self._row(key, self.value(key))

  def inners(self, key: str) -> tuple['Row', ...]:
    """The field, which must be a list of at least one object, as rows."""
    values = enumerate(self.listed(key))
    return tuple(self._row(f'{key}[{i}]', value) for i, value in values)

  def _row(self, key, value):
    if not isinstance(value, dict):
      raise self.fault(f'{key} must be an object, not {_shown(value)}')
    return dataclasses.replace(self, fields=value, name=key)


def load(
  path: str | Table,
  examples: Callable[[Row], Iterable[JudgingExample]],
  keep: Callable[[str], bool] = lambda name: True,
) -> list[JudgingExample]:
  """The examples of all rows of a file, or of the files below a folder.

  Args:
    path: local or gs://; or a table.
    examples: makes a row's.
    keep: given a file's path below the folder, whether it is read.

  Raises:
    ValueError: a row is wrong, two examples have the same id, or there is
      nothing; says which file and row.
  """
  found, seen = [], {}
  for row in read(path, keep):
    for example in examples(row):
      if example.id in seen:
        raise row.fault(f'id {example.id!r} was in {seen[example.id]} before')
      seen[example.id] = f'{row.file}, row {row.number}'
      found.append(example)
  if not found:
    name = path.name if isinstance(path, Table) else path
    raise ValueError(f'{name}: there is nothing to judge in these files')
  return found


def read(path: str | Table, keep: Callable[[str], bool]) -> Iterator[Row]:
  """Rows of a file, or of the files below a folder in order of their names."""
  for file, number, fields in _numbered(path, keep):
    row = Row(file, number, fields)
    if not isinstance(fields, dict):
      raise row.fault('the row is not an object')
    yield row


def _numbered(path, keep):
  """(file, number, fields) of every row."""
  if isinstance(path, Table):
    for number, fields in enumerate(path.rows, 1):
      yield path.name, number, fields
    return
  readers = {'.json': _json, '.jsonl': _lines, '.parquet': _parquet}
  for file in _files(path, keep):
    for number, fields in readers[file.suffix](file):
      yield str(file), number, fields


def arranged(
  row: Row,
  id: str,
  query: Sequence[Turn],
  responses: Sequence[str],
  best: int | None = None,
  rewards: Sequence[float] | None = None,
  tags: Mapping[str, str] | None = None,
) -> JudgingExample:
  """An example with its responses in the order that its id decides.

  Raises:
    ValueError: they make no example; says which row.
  """
  order = places(id, len(responses))
  return example(
    row,
    id=id,
    query=query,
    responses=tuple(responses[i] for i in order),
    best=None if best is None else order.index(best),
    rewards=rewards and tuple(float(rewards[i]) for i in order),
    tags=tags or {},
  )


def example(row: Row, **fields: Any) -> JudgingExample:
  """A JudgingExample; if it refuses the fields, the error says which row."""
  try:
    return JudgingExample(**fields)
  except ValueError as error:
    raise row.fault(str(error)) from error


def places(id: str, n: int) -> tuple[int, ...]:
  """Which of n responses stands at each place, by SHA-256 of the id."""

  def key(i):
    return hashlib.sha256(f'{ORDER_SEED}/{id}/{i}'.encode()).digest()

  return tuple(sorted(range(n), key=key))


def named(path: str, words: Iterable[str]) -> str | None:
  """The one of `words` that a path mentions last, or None."""
  found = [word for word in words if word in path]
  return max(found, key=path.rfind) if found else None


def naming(path: str, words: Iterable[str]) -> Callable[[str], bool]:
  """Keeps files below `path` whose whole path mentions one of `words`."""
  words = tuple(words)
  return lambda name: named(f'{path}/{name}', words) is not None


def starting(word: str) -> Callable[[str], bool]:
  """Keeps files whose own name starts with `word`."""
  return lambda name: name.rpartition('/')[2].startswith(word)


def asked(text: str) -> tuple[Turn, ...]:
  """A query of one turn."""
  return (Turn('user', text),)


def _files(path, keep):
  root = epath.Path(path)
  if root.is_dir():
    files = [f for f in _below(root) if keep(f.relative_to(root).as_posix())]
    if not files:
      raise ValueError(f'{path}: no file of this set is in this folder')
    return files
  if not root.exists():
    raise ValueError(f'{path}: there is no such file or folder')
  if root.suffix not in SUFFIXES:
    raise ValueError(f'{path}: not one of {", ".join(SUFFIXES)}')
  return [root]


def _below(folder):
  """Files with a known suffix; hidden folders are caches of a download."""
  for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
    if entry.name.startswith('.'):
      continue
    if entry.is_dir():
      yield from _below(entry)
    elif entry.suffix in SUFFIXES:
      yield entry


def _json(file):
  rows = _parsed(_decoded(file), file, 1)
  if not isinstance(rows, list):
    raise ValueError(f'{file}: a .json file must be one array of rows')
  return enumerate(rows, 1)


def _lines(file):
  # Not splitlines(): texts may contain U+2028 and the like unescaped.
  for number, line in enumerate(_decoded(file).split('\n'), 1):
    if line.strip():
      yield number, _parsed(line, file, number)


def _parsed(text, file, number):
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    line = number + error.lineno - 1
    raise ValueError(f'{file}, line {line}: not JSON: {error.msg}') from error


def _decoded(file):
  try:
    return file.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file}: not UTF-8 at byte {error.start}') from error


def _parquet(file):
  try:
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(
      f"{file}: reading Parquet needs pyarrow; pip install 'pyarrow>=18,<27'"
    ) from error
  with file.open('rb') as stream:
    try:
      table = pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowInvalid as error:
      raise ValueError(f'{file}: not a Parquet file') from error
    batches = table.iter_batches(_BATCH)
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from enumerate(rows, 1)


def _shown(value):
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
