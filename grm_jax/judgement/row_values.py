"""Numbers in rows, and the message for rows of another format."""

import math
import numbers
import re
from collections.abc import Iterable
from typing import Any

from grm_jax.errors import UserError

_INTEGER = re.compile(r'\s*([+-]?\d{1,18})(?:\.0{0,18})?\s*')
_NUMBER = re.compile(r'\s*[+-]?(?:\d{1,18}\.?\d{0,18}|\.\d{1,18})\s*')
_MAX_COLUMNS, _MAX_CHARS = 12, 30


def integer(value: Any) -> int | None:
  """Returns an integer in any of its spellings, None for all other values.

  pandas writes the integers of a column with gaps as 2.0, and CSV files have
  texts: '-2', ' +2 ' and '2.0' are integers; 2.5, '1e3', True and NaN are not.
  """
  if isinstance(value, str):
    match = _INTEGER.fullmatch(value)
    return int(match[1]) if match else None
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return None
  if isinstance(value, numbers.Integral):
    return int(value)
  whole = float(value)
  return int(whole) if whole.is_integer() else None


def finite_number(value: Any) -> float | None:
  """Returns a finite number, also from a text like '-0.5'; None for others."""
  if isinstance(value, str):
    return float(value) if _NUMBER.fullmatch(value) else None
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return None
  try:
    number = float(value)
  except OverflowError:  # an integer beyond the range of float
    return None
  return number if math.isfinite(number) else None


def missing_field(name: str, columns: Iterable[str]) -> UserError:
  """Returns the error for rows that have other columns than are read.

  Args:
    name: the missing field, or several as a phrase.
    columns: the columns that the row has.
  """
  columns = [str(column) for column in columns]
  names = ', '.join(x[:_MAX_CHARS] for x in columns[:_MAX_COLUMNS])
  if len(columns) > _MAX_COLUMNS:
    names += f' and {len(columns) - _MAX_COLUMNS} more'
  return UserError(
    f'no field {name} in a row with the columns {names or "(none)"}; '
    f'{_cure(set(columns))}'
  )


def _cure(columns: set[str]) -> str:
  """Returns how a user makes rows with these columns readable."""
  if columns >= {'chosen', 'rejected'}:
    return (
      'write the pair as query (or messages), responses [chosen, rejected] and '
      'best 0, or read conversations that end in a turn of the assistant as '
      'config.data=skywork:PATH'
    )
  if columns >= {'completions', 'labels'}:
    return (
      'write a row per prompt with query (or messages), the completions as '
      'responses and the labels as rewards 1 or 0, and for one right '
      'completion its index as best'
    )
  if columns >= {'prompt', 'completion'}:
    return (
      'for fine-tuning texts rename prompt to query and completion to '
      'generation; rows to judge have query (or messages) and responses'
    )
  return (
    'rename the columns (rows to judge have query or messages, and responses), '
    'or choose the source or suite that reads these columns'
  )
