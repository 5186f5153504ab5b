"""The fields of a row of judging data, checked, and examples made of rows.

Nothing here reads a file; a row is a dict that knows where it is from.
Responses are put in an order that a hash of the example's id decides, so that
the right one stands in every place equally often and a judge that likes a
place gains nothing even if it is always shown the example's own order.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn

# Another seed is another order of responses: results are not comparable.
ORDER_SEED = 0


@dataclasses.dataclass(frozen=True)
class RowTable:
  """Rows that are in no file that is read here, such as a TFDS split.

  Attributes:
    name: what stands for a path in errors and ids.
    rows: the fields of each; read once.
  """

  name: str
  rows: Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class SourceRow:
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

  def fault(self, what: str) -> UserError:
    """An error that says where it is."""
    inner = f'{self.name}: ' if self.name else ''
    return UserError(f'{self.file}, row {self.number}: {inner}{what}')

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

  def inner(self, key: str) -> 'SourceRow':
    """The field, which must be an object, as a row."""
    return self._row(key, self.value(key))

  def inners(self, key: str) -> tuple['SourceRow', ...]:
    """The field, which must be a list of at least one object, as rows."""
    values = enumerate(self.listed(key))
    return tuple(self._row(f'{key}[{i}]', value) for i, value in values)

  def _row(self, key, value):
    if not isinstance(value, dict):
      raise self.fault(f'{key} must be an object, not {_shown(value)}')
    return dataclasses.replace(self, fields=value, name=key)


def arranged(
  row: SourceRow,
  id: str,
  query: Sequence[Turn],
  responses: Sequence[str],
  best: int | None = None,
  rewards: Sequence[float] | None = None,
  tags: Mapping[str, str] | None = None,
) -> JudgingExample:
  """An example with its responses in the order that its id decides.

  Raises:
    UserError: they make no example; says which row.
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


def example(row: SourceRow, **fields: Any) -> JudgingExample:
  """A JudgingExample; if it refuses the fields, the error says which row."""
  try:
    return JudgingExample(**fields)
  except UserError as error:
    raise row.fault(str(error)) from error


def places(id: str, n: int) -> tuple[int, ...]:
  """Which of n responses stands at each place, by SHA-256 of the id."""

  def key(i):
    text = f'{ORDER_SEED}/{id}/{i}'
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()

  return tuple(sorted(range(n), key=key))


def asked(text: str) -> tuple[Turn, ...]:
  """A query of one turn."""
  return (Turn('user', text),)


def _shown(value):
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
