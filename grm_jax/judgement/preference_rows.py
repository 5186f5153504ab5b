"""Checked fields of a data row, and the judging examples made from them.

This module reads no files: a row is a dict with its location. The order of an
example's responses is a hash of its id, so that the best response is in every
position equally often. A judge with a position bias gains nothing, even if it
always reads the responses in the example's own order.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import row_values
from grm_jax.judgement.example import JudgingExample, Turn

# Another seed gives other response orders: results would not be comparable.
ORDER_SEED = 0
_MAX_CHARS_IN_MESSAGE = 60


@dataclasses.dataclass(frozen=True)
class RowTable:
  """Rows that do not come from a file read here, such as a TFDS split.

  Attributes:
    name: stands for the path in errors and ids.
    rows: the fields of each row; iterated once.
  """

  name: str
  rows: Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class SourceRow:
  """A row of a dataset with its location, for error messages.

  Attributes:
    file: path of the file, or name of the table.
    number: row number from 1; the line number in JSON Lines.
    fields: the content.
    name: key of the nested object that `fields` are; '' for the whole row.
  """

  file: str
  number: int
  fields: Mapping[str, Any]
  name: str = ''

  def error(self, problem: str) -> UserError:
    """Returns an error that names the file and the row."""
    prefix = f'{self.name}: ' if self.name else ''
    return UserError(f'{self.file}, row {self.number}: {prefix}{problem}')

  def field(self, key: str) -> Any:
    """Returns a field of any type.

    Raises:
      UserError: the row has no such field. The methods below raise it for a
        field of another type as well.
    """
    if key not in self.fields:
      raise self.error(str(row_values.missing_field(key, self.fields)))
    return self.fields[key]

  def text_field(self, key: str) -> str:
    """Returns a string field."""
    value = self.field(key)
    if not isinstance(value, str):
      raise self.error(f'{key} must be a string, not {_abbreviated(value)}')
    return value

  def list_field(self, key: str) -> list[Any]:
    """Returns a list field with at least one value."""
    value = self.field(key)
    if not isinstance(value, list) or not value:
      raise self.error(
        f'{key} must be a non-empty list, not {_abbreviated(value)}'
      )
    return value

  def text_list_field(self, key: str) -> tuple[str, ...]:
    """Returns a field with a list of at least one string."""
    values = self.list_field(key)
    for value in values:
      if not isinstance(value, str):
        raise self.error(
          f'{key} must be a list of strings, not {_abbreviated(value)}'
        )
    return tuple(values)

  def int_field(self, key: str) -> int:
    """Returns an integer field, see row_values.integer."""
    value = row_values.integer(self.field(key))
    if value is None:
      raise self.error(
        f'{key} must be an integer, not {_abbreviated(self.field(key))}'
      )
    return value

  def number_field(self, key: str) -> float:
    """Returns a finite number, see row_values.finite_number."""
    value = row_values.finite_number(self.field(key))
    if value is None:
      raise self.error(
        f'{key} must be a finite number, not {_abbreviated(self.field(key))}'
      )
    return value

  def choice_field(self, key: str, choices: Iterable[str]) -> str:
    """Returns a field that is one of `choices`."""
    value, choices = self.field(key), tuple(choices)
    if value not in choices:
      raise self.error(
        f'{key} is {_abbreviated(value)}; it must be one of '
        f'{", ".join(choices)}'
      )
    return value

  def object_field(self, key: str) -> 'SourceRow':
    """Returns a nested object as a row with the same location."""
    return self._nested(key, self.field(key))

  def object_list_field(self, key: str) -> tuple['SourceRow', ...]:
    """Returns a list of at least one nested object, as rows."""
    return tuple(
      self._nested(f'{key}[{i}]', value)
      for i, value in enumerate(self.list_field(key))
    )

  def _nested(self, key: str, value: Any) -> 'SourceRow':
    if not isinstance(value, dict):
      raise self.error(f'{key} must be an object, not {_abbreviated(value)}')
    return dataclasses.replace(self, fields=value, name=key)


def shuffled_example(
  row: SourceRow,
  id: str,
  query: Sequence[Turn],
  responses: Sequence[str],
  best: int | None = None,
  rewards: Sequence[float] | None = None,
  tags: Mapping[str, str] | None = None,
  reference: str = '',
) -> JudgingExample:
  """Returns an example with its responses in the order given by its id.

  Args:
    row: the row that the fields come from, for errors.
    id: unique id of the example.
    query: the conversation.
    responses: [C] texts in the order of the dataset.
    best: index of the best response in that order.
    rewards: [C], one number per response in that order.
    tags: origin of the example: suite, section, subset.
    reference: a correct answer; '' if there is none.

  Raises:
    UserError: the fields do not make a valid example.
  """
  order = shuffled_order(id, len(responses))
  return make_example(
    row,
    id=id,
    query=query,
    responses=tuple(responses[i] for i in order),
    best=None if best is None else order.index(best),
    rewards=rewards and tuple(float(rewards[i]) for i in order),
    tags=tags or {},
    reference=reference,
  )


def make_example(row: SourceRow, **fields: Any) -> JudgingExample:
  """Returns a JudgingExample.

  Raises:
    UserError: the fields are invalid; the message names the row.
  """
  try:
    return JudgingExample(**fields)
  except UserError as error:
    raise row.error(str(error)) from error


def shuffled_order(id: str, n: int) -> tuple[int, ...]:
  """Returns a permutation of n response indices, by SHA-256 of the id."""

  def sort_key(index: int) -> bytes:
    text = f'{ORDER_SEED}/{id}/{index}'
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()

  return tuple(sorted(range(n), key=sort_key))


def user_query(text: str) -> tuple[Turn, ...]:
  """Returns a conversation of one user turn."""
  return (Turn('user', text),)


def _abbreviated(value: Any) -> str:
  text = repr(value)
  limit = _MAX_CHARS_IN_MESSAGE
  return text if len(text) <= limit else f'{text[: limit - 3]}...'
