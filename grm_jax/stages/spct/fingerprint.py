"""What the results of a run's stages depend on, as JSON values by user's keys.

A stage of other settings than before is another run. Settings that change how
a stage runs, and not what comes of it, are left out: how often it saves, the
mesh, how memory is saved.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from grm_jax.data import dataset_files
from grm_jax.judgement import template

_FREE = (
  'save_every',
  'max_to_keep',
  'profile_steps',
  'log_samples_every',
  'remat',
)
# Of one file; of a larger one only the length is looked at.
_MOST_BYTES = 2**30


def of(config: ConfigDict, *keys: str) -> dict[str, Any]:
  """Leaf -> value of these leaves or branches, by dotted key."""
  found = {}
  for key in keys:
    value = config
    for part in key.split('.'):
      value = value[part]
    found |= _flat(key, value)
  return json.loads(json.dumps(found))


def _flat(key: str, value: Any) -> dict[str, Any]:
  if key.rpartition('.')[2] in _FREE:
    return {}
  if not isinstance(value, ConfigDict):
    return {key: value}
  found = {}
  for name, own in value.items():
    found |= _flat(f'{key}.{name}', own)
  return found


def of_template(name: str, key: str) -> str:
  """A template's name and a digest of its content; '' is no template.

  Args:
    name: see template.load.
    key: config key of the name, for messages.
  """
  return name and f'{name}, {digest(template.load(name, key=key).source)}'


def of_source(spec: str) -> str:
  """A source of data, with a digest of the local files that it names."""
  _, _, rest = spec.partition(':')
  for name in (rest, spec):
    if not name or '://' in name:
      continue
    path = name.partition('#')[0]
    found = [x for x in dataset_files.files(path) if epath.Path(x).is_file()]
    if found == [path]:
      return f'{spec}, {_content(path)}'
    if found:
      contents = {epath.Path(x).name: _content(x) for x in found}
      return f'{spec}, {digest(contents)}'
  return spec


def _content(path: str) -> str:
  file = epath.Path(path)
  size = file.stat().length
  if size > _MOST_BYTES:
    return f'{size} bytes'
  return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def digest(value: Any) -> str:
  """Twelve hexadecimal digits of a JSON value."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def differing(
  found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Sequence[str]:
  """Keys whose values are not the same, or that only one of them has."""
  keys = sorted({*found, *wanted})
  return [key for key in keys if found.get(key) != wanted.get(key)]
