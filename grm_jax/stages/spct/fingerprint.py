"""Settings that the result of a stage depends on, as JSON values by config key.

A stage with other settings is another run. Settings that do not change the
result are not included: checkpoint intervals, the mesh, rematerialization.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from grm_jax.data import dataset_files
from grm_jax.judgement import template

# Leaves that do not change the result, in any branch.
_IGNORED = (
  'save_every',
  'max_to_keep',
  'profile_steps',
  'log_samples_every',
  'remat',
)
# A larger file is identified by its length only.
_MAX_HASHED_BYTES = 2**30


def of(config: ConfigDict, *keys: str) -> dict[str, Any]:
  """Returns the leaves below some dotted config keys, as JSON values."""
  settings: dict[str, Any] = {}
  for key in keys:
    value = config
    for part in key.split('.'):
      value = value[part]
    settings |= _leaves(key, value)
  # JSON turns tuples into lists, as in stored settings.
  return json.loads(json.dumps(settings))


def _leaves(key: str, value: Any) -> dict[str, Any]:
  if key.rpartition('.')[2] in _IGNORED:
    return {}
  if not isinstance(value, ConfigDict):
    return {key: value}
  leaves: dict[str, Any] = {}
  for name, child in value.items():
    leaves |= _leaves(f'{key}.{name}', child)
  return leaves


def of_template(name: str, key: str) -> str:
  """Returns a template's name with a digest of its content; '' for no name.

  Args:
    name: name or path, see template.load.
    key: config key of the name, for messages.
  """
  return name and f'{name}, {digest(template.load(name, key=key).source)}'


def of_source(spec: str) -> str:
  """Returns a data source with a digest of the local files that it names."""
  _, _, rest = spec.partition(':')
  for name in (rest, spec):  # with and without a prefix such as 'judged:'
    if not name or '://' in name:
      continue
    path = name.partition('#')[0]
    files = [
      x for x in dataset_files.list_files(path) if epath.Path(x).is_file()
    ]
    if files == [path]:
      return f'{spec}, {_file_digest(path)}'
    if files:
      digests = {epath.Path(x).name: _file_digest(x) for x in files}
      return f'{spec}, {digest(digests)}'
  return spec


def _file_digest(path: str) -> str:
  file = epath.Path(path)
  size = file.stat().length
  if size > _MAX_HASHED_BYTES:
    return f'{size} bytes'
  return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def digest(value: Any) -> str:
  """Returns twelve hexadecimal digits of a JSON value."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def first_difference(
  stored: Mapping[str, Any], current: Mapping[str, Any]
) -> str | None:
  """Returns the first key, in sorted order, with different values.

  A key that only one of the mappings has is a difference. Returns None if the
  mappings are equal.
  """
  for key in sorted({*stored, *current}):
    if stored.get(key) != current.get(key):
      return key
  return None
