"""JSON files that record how results were made: reading and comparing them."""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from grm_jax.errors import UserError

_MAX_DIFFERENCES = 8  # in a message


def read(
  path: str | os.PathLike[str],
  *keys: str,
  remedy: str = 'restore it, or choose another --workdir',
) -> dict[str, Any] | None:
  """Returns the object in a file; None if the file does not exist.

  Args:
    path: local or gs://.
    *keys: keys that it must have.
    remedy: what the user can do, for messages.

  Raises:
    UserError: the file cannot be read, or is not such an object.
  """
  try:
    record = json.loads(epath.Path(path).read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise UserError(f'cannot read {path}: {error}; {remedy}') from error
  if not isinstance(record, dict) or not {*keys} <= {*record}:
    raise UserError(f'{path} is not the record of a run; {remedy}')
  return record


def differences(stored: Any, current: Mapping[str, Any]) -> str:
  """Describes the keys that have other values; '' if all are equal.

  Args:
    stored: JSON values by config key.
    current: the same of this run. A key that only one of them has is a
      difference.
  """
  if not isinstance(stored, dict):
    return 'no settings are stored'
  parts = [
    f'config.{key} was {stored.get(key)!r}, now {current.get(key)!r}'
    for key in sorted({*stored, *current})
    if stored.get(key) != current.get(key)
  ]
  num_hidden = len(parts) - _MAX_DIFFERENCES
  more = [f'{num_hidden} more'] if num_hidden > 0 else []
  return '; '.join([*parts[:_MAX_DIFFERENCES], *more])
