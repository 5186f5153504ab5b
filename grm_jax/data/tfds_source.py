"""Rows of TensorFlow Datasets: `tfds:NAME:SPLIT`.

  tfds:my_set:train                  the newest version that is there
  tfds:my_set/config:1.0.0:train[:10%]
  tfds:huggingface:user__set:train   as `tfds build` stored it
  tfds:gs://bucket/my_set/1.0.0:test a folder that has features.json

NAME is looked for in $TFDS_DATA_DIR, or in ~/tensorflow_datasets as TFDS does.
Nothing is downloaded or built here, and no code of a dataset is run: the files
say what they hold. SPLIT is what TFDS allows, slices and sums too; it is read
in the order in which it was written, always the same.

A row whose fields are those of `judging.example.from_row` is an example. Rows
of published sets and suites are what their adapters expect: give the spec
where a path would stand, as in `ultrafeedback:tfds:NAME:SPLIT`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError

PREFIX = 'tfds:'
NAMESPACE = 'huggingface:'
_PART = r'[\w\-]+(?:\[[^\[\]]*\])?'
# The split stands behind the last colon that is not in brackets.
_SPEC = re.compile(rf'tfds:(?P<name>.+):(?P<split>{_PART}(?:\+{_PART})*)')
_NUMBER = r'(?:\d+|\*)'
_NAME = re.compile(
  rf'(?P<folder>.+?)(?::(?P<version>{_NUMBER}\.{_NUMBER}\.{_NUMBER}))?'
)
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_FILE = 'features.json'
_ERROR = re.compile(r'\w+Error: ')


def tensorflow() -> Any:
  """The module `tensorflow`, which leaves accelerators to JAX.

  Raises:
    UserError: it is not installed, or has taken an accelerator already.
  """
  try:
    import tensorflow
    import tensorflow_datasets  # noqa: F401
  except ImportError as error:
    raise UserError(
      f'TFDS and seqio sources need {error.name}; pip install tensorflow '
      "'tensorflow-datasets>=4.9.10,<4.10' 'seqio>=0.0.20,<0.1'"
    ) from error
  try:
    for kind in ('GPU', 'TPU'):
      tensorflow.config.set_visible_devices([], kind)
  except RuntimeError as error:
    raise UserError(
      'TensorFlow was used before and holds an accelerator that JAX needs; '
      'call grm_jax.data.tfds_source.tensorflow() before it is used'
    ) from error
  return tensorflow


def values(spec: str) -> Iterator[tuple[int, dict[str, Any] | ExampleError]]:
  """(number from 1, fields or fault) of every row.

  Fields are plain Python: str of UTF-8, int, float, bool, lists. A sequence of
  records is a list of objects, whereas TFDS itself gives an object of lists. A
  class label is its number.

  Args:
    spec: see above.

  Raises:
    UserError: the spec, the dataset or the split is wrong, at once; the files
      are damaged, when they are read.
  """
  name, split = parse(spec)
  tf = tensorflow()
  import tensorflow_datasets as tfds
  from google.protobuf import json_format

  folder = find(spec, name)
  try:
    builder = tfds.builder_from_directory(os.fspath(folder))
    dataset = builder.as_dataset(split=split, read_config=_in_order(tfds))
  except (ValueError, OSError, AssertionError, json_format.Error) as error:
    raise UserError(f'{spec}: {one_line(error)}') from error
  logging.info('%s is read from %s', spec, folder)
  features = builder.info.features
  return _values(spec, features, tfds.as_numpy(dataset), tf.errors.OpError)


def native(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields as `judging.example.from_row` takes them.

  All rows of a TensorFlow dataset have all fields, so that what a row does
  not have is there and empty: no rewards, an empty query or no messages (never
  both), a best below 0.
  """
  empty = {key for key in ('rewards', 'messages') if fields.get(key) == []}
  if isinstance(best := fields.get('best'), int) and best < 0:
    empty.add('best')
  if fields.get('query') == '' and fields.get('messages'):
    empty.add('query')
  return {key: value for key, value in fields.items() if key not in empty}


def parse(spec: str) -> tuple[str, str]:
  """(NAME, SPLIT) of a spec.

  Raises:
    UserError: it has not both.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f'{spec!r} is no TFDS source; it is tfds:NAME:SPLIT, such as '
      'tfds:my_set/config:1.0.0:train[:10%]'
    )
  return match['name'], match['split']


def find(spec: str, name: str) -> epath.Path:
  """The folder of a dataset: of one config, if it has some, and version.

  Raises:
    UserError: it is not there; says where it should be, or what is.
  """
  match = _NAME.fullmatch(name)
  root = epath.Path(data_dir())
  place = match['folder'].rstrip('/')
  if place.startswith(NAMESPACE):
    # TFDS stores them by names of its own making.
    place = re.sub(r'[^\w/]', '_', place.removeprefix(NAMESPACE).lower())
  folder = epath.Path(place) if '://' in place else root / place
  if not folder.is_dir():
    raise UserError(
      f'{spec}: there is no {folder}; build the dataset with `tfds build`, or '
      'set TFDS_DATA_DIR to the folder it was built into'
    )
  if not match['version'] and (folder / _FILE).exists():
    return folder
  versions = _versions(folder)
  if not versions:
    raise UserError(f'{spec}: {_no_version(folder)}')
  wanted = match['version'] or '*.*.*'
  pattern = re.escape(wanted).replace(r'\*', r'\d+')
  fitting = [v for v in versions if re.fullmatch(pattern, v)]
  if not fitting:
    raise UserError(
      f'{spec}: {folder} has the versions {", ".join(versions)}, not {wanted}'
    )
  return folder / fitting[-1]


def data_dir() -> str:
  """Where TFDS keeps datasets."""
  home = os.path.join('~', 'tensorflow_datasets')
  return os.path.expanduser(os.environ.get('TFDS_DATA_DIR', home))


def plain(value: Any) -> Any:
  """Tensors and arrays as lists, their scalars as Python's; bytes stay.

  Args:
    value: a nest of dicts of eager tensors or NumPy values.
  """
  import tensorflow as tf

  if isinstance(value, Mapping):
    return {key: plain(inner) for key, inner in value.items()}
  if isinstance(value, bytes | str | int | float):
    return value
  if isinstance(value, tf.RaggedTensor):
    return value.to_list()
  if isinstance(value, tf.Tensor):
    return plain(value.numpy())
  if isinstance(value, np.ndarray | np.generic):
    return value.tolist()
  return [plain(inner) for inner in value]  # a nested tf.data.Dataset


def shaped(features: Any, value: Any) -> Any:
  """Objects of lists as lists of objects, where the features say sequence.

  Args:
    features: a tfds.features.FeatureConnector.
    value: what it holds, plain.
  """
  import tensorflow_datasets as tfds

  if isinstance(features, tfds.features.FeaturesDict):
    return {key: shaped(features[key], value[key]) for key in features}
  if isinstance(features, tfds.features.Dataset):
    return [shaped(features.feature, inner) for inner in value]
  if isinstance(features, tfds.features.Sequence):
    places = range(_length(value))
    return [shaped(features.feature, _at(value, i)) for i in places]
  return value


def decoded(value: Any, name: str = '') -> Any:
  """The value with bytes as text.

  Raises:
    UserError: bytes that are not UTF-8; names the field.
  """
  if isinstance(value, dict):
    dot = f'{name}.' if name else ''
    return {key: decoded(x, f'{dot}{key}') for key, x in value.items()}
  if isinstance(value, list):
    return [decoded(x, f'{name}[{i}]') for i, x in enumerate(value)]
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode('utf-8')
  except UnicodeDecodeError as error:
    where = f'{name} is not UTF-8 at byte {error.start}'
    raise UserError(where) from error


def one_line(error: Exception) -> str:
  """What an error says, in a line.

  TensorFlow writes a traceback of Python code that it called: of that, the
  line with the error; of anything else, the first line.
  """
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  named = [line for line in lines if _ERROR.match(line)]
  return (named[-1:] or lines[:1] or [type(error).__name__])[0]


def _in_order(tfds):
  """One file after the other; small sets are not kept in memory."""
  return tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)


def _values(spec, features, dataset, damaged):
  number = 0
  try:
    for number, row in enumerate(dataset, 1):
      fields = shaped(features, plain(row))
      if not isinstance(fields, dict):
        raise UserError(f'{spec}: its rows have no named fields')
      yield number, _decoded_or_fault(fields, number)
  except damaged as error:
    reason = one_line(error)
    raise UserError(f'{spec}, after row {number}: {reason}') from error


def _decoded_or_fault(fields, number):
  try:
    return decoded(fields)
  except UserError as error:
    return ExampleError(f'row {number}', str(error))


def _versions(folder):
  """Versions in a folder, ascending."""
  found = [
    entry.name
    for entry in folder.iterdir()
    if _VERSION.fullmatch(entry.name) and (entry / _FILE).exists()
  ]
  return sorted(found, key=lambda name: tuple(map(int, name.split('.'))))


def _no_version(folder):
  entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
  configs = [x.name for x in entries if x.is_dir() and _versions(x)]
  if configs:
    return (
      f'{folder} has the configs {", ".join(configs)}; name one, as in '
      f'tfds:{folder.name}/{configs[0]}:SPLIT'
    )
  return f'{folder} has no {_FILE}; TFDS before 4.0 wrote it, build it again'


def _length(value):
  if isinstance(value, dict):
    return _length(next(iter(value.values())))
  return len(value)


def _at(value, place):
  if isinstance(value, dict):
    return {key: _at(inner, place) for key, inner in value.items()}
  return value[place]
