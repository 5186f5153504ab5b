"""Rows of TensorFlow Datasets: the spec `tfds:NAME:SPLIT`.

  tfds:my_set:train                  the newest version on disk
  tfds:my_set/config:1.0.0:train[:10%]
  tfds:huggingface:user__set:train   as `tfds build` stored it
  tfds:gs://bucket/my_set/1.0.0:test a folder with features.json

NAME is resolved in $TFDS_DATA_DIR, or in ~/tensorflow_datasets as TFDS itself
does. Nothing is downloaded or built, and no code of a dataset runs: the files
describe their own features. SPLIT is any split that TFDS accepts, including
slices and sums. Rows are read in the order in which they were written.

Rows with the fields of judgement.example.from_row are examples. Rows of
published datasets and evaluation suites need their adapters: give the spec in
place of a path, as in `ultrafeedback:tfds:NAME:SPLIT`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError

PREFIX = 'tfds:'
_HUGGINGFACE_PREFIX = 'huggingface:'
_SPLIT_PART = r'[\w\-]+(?:\[[^\[\]]*\])?'
# The split follows the last colon outside brackets.
_SPEC = re.compile(
  rf'tfds:(?P<name>.+):(?P<split>{_SPLIT_PART}(?:\+{_SPLIT_PART})*)'
)
_NUMBER = r'(?:\d+|\*)'
_NAME = re.compile(
  rf'(?P<folder>.+?)(?::(?P<version>{_NUMBER}\.{_NUMBER}\.{_NUMBER}))?'
)
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_FEATURES_FILE = 'features.json'
_ERROR_LINE = re.compile(r'\w+Error: ')


def import_tensorflow() -> Any:
  """Imports `tensorflow` and hides all accelerators from it, for JAX.

  Raises:
    UserError: it is not installed, or already holds an accelerator.
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
      'TensorFlow already holds an accelerator that JAX needs; call '
      'grm_jax.data.tfds_source.import_tensorflow() before you use TensorFlow'
    ) from error
  return tensorflow


def numbered_rows(
  spec: str,
) -> Iterator[tuple[int, dict[str, Any] | ExampleError]]:
  """Returns an iterator over (number from 1, fields or error) of every row.

  Fields are plain Python values: str (UTF-8), int, float, bool, lists. A
  sequence of records is a list of objects, whereas TFDS itself returns an
  object of lists. A class label is its number.

  Args:
    spec: see the module docstring.

  Raises:
    UserError: at once if the spec, the dataset or the split is wrong; during
      the iteration if a file is damaged.
  """
  name, split = parse_spec(spec)
  tf = import_tensorflow()
  import tensorflow_datasets as tfds
  from google.protobuf import json_format

  folder = dataset_folder(spec, name)
  # One file after the other, so that the order is fixed; small datasets are
  # not cached in memory.
  read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  try:
    builder = tfds.builder_from_directory(os.fspath(folder))
    dataset = builder.as_dataset(split=split, read_config=read_config)
  except (ValueError, OSError, AssertionError, json_format.Error) as error:
    raise UserError(f'{spec}: {one_line(error)}') from error
  logging.info('reading %s from %s', spec, folder)
  return _rows(
    spec, builder.info.features, tfds.as_numpy(dataset), tf.errors.OpError
  )


def _rows(
  spec: str,
  features: Any,
  dataset: Iterable[Any],
  damage_error: type[Exception],
) -> Iterator[tuple[int, dict[str, Any] | ExampleError]]:
  number = 0
  try:
    for number, row in enumerate(dataset, 1):
      fields = sequences_to_lists(features, to_python(row))
      if not isinstance(fields, dict):
        raise UserError(f'{spec}: its rows have no named fields')
      yield number, _decode_row(fields, number)
  except damage_error as error:
    reason = one_line(error)
    raise UserError(f'{spec}, after row {number}: {reason}') from error


def _decode_row(
  fields: dict[str, Any], number: int
) -> dict[str, Any] | ExampleError:
  try:
    return decode_utf8(fields)
  except UserError as error:
    return ExampleError(f'row {number}', str(error))


def drop_unset_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields in the form that judgement.example.from_row accepts.

  All rows of a TensorFlow dataset have all fields, so an absent value is
  empty: `rewards` or `messages` is [], `query` is '' beside messages, `best`
  is negative. Such fields are removed.
  """
  unset = {key for key in ('rewards', 'messages') if fields.get(key) == []}
  if isinstance(best := fields.get('best'), int) and best < 0:
    unset.add('best')
  if fields.get('query') == '' and fields.get('messages'):
    unset.add('query')
  return {key: value for key, value in fields.items() if key not in unset}


def parse_spec(spec: str) -> tuple[str, str]:
  """Returns (NAME, SPLIT) of a spec.

  Raises:
    UserError: one of them is missing.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f'{spec!r} is not a TFDS source; write tfds:NAME:SPLIT, such as '
      'tfds:my_set/config:1.0.0:train[:10%]'
    )
  return match['name'], match['split']


def dataset_folder(spec: str, name: str) -> epath.Path:
  """Returns the folder of a dataset's config (if it has configs) and version.

  Args:
    spec: the spec, for error messages.
    name: NAME of the spec.

  Raises:
    UserError: there is no such folder, config or version; names the expected
      place or the available ones.
  """
  match = _NAME.fullmatch(name)
  assert match is not None  # the pattern matches every non-empty name
  folder = _base_folder(match['folder'].rstrip('/'))
  if not folder.is_dir():
    raise UserError(
      f'{spec}: the folder {folder} does not exist; build the dataset with '
      '`tfds build`, or set TFDS_DATA_DIR to the folder it was built into'
    )
  if not match['version'] and (folder / _FEATURES_FILE).exists():
    return folder
  versions = _versions(folder)
  if not versions:
    raise UserError(f'{spec}: {_missing_version(folder)}')
  wanted = match['version'] or '*.*.*'
  pattern = re.escape(wanted).replace(r'\*', r'\d+')
  matching = [v for v in versions if re.fullmatch(pattern, v)]
  if not matching:
    raise UserError(
      f'{spec}: {folder} does not have version {wanted}; use one of '
      f'{", ".join(versions)}'
    )
  return folder / matching[-1]


def _base_folder(name: str) -> epath.Path:
  if name.startswith(_HUGGINGFACE_PREFIX):
    # TFDS derives the folder name from the name on the hub.
    name = re.sub(
      r'[^\w/]', '_', name.removeprefix(_HUGGINGFACE_PREFIX).lower()
    )
  return epath.Path(name) if '://' in name else epath.Path(data_dir()) / name


def data_dir() -> str:
  """Returns the folder in which TFDS keeps datasets."""
  default = os.path.join('~', 'tensorflow_datasets')
  return os.path.expanduser(os.environ.get('TFDS_DATA_DIR', default))


def _versions(folder: epath.Path) -> list[str]:
  """Returns the versions in a folder, ascending."""
  versions = [
    entry.name
    for entry in folder.iterdir()
    if _VERSION.fullmatch(entry.name) and (entry / _FEATURES_FILE).exists()
  ]
  return sorted(versions, key=lambda name: tuple(map(int, name.split('.'))))


def _missing_version(folder: epath.Path) -> str:
  entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
  configs = [x.name for x in entries if x.is_dir() and _versions(x)]
  if configs:
    return (
      f'{folder} has the configs {", ".join(configs)}; name one, as in '
      f'tfds:{folder.name}/{configs[0]}:SPLIT'
    )
  return (
    f'{folder} has no {_FEATURES_FILE}, so it was built with TFDS before 4.0; '
    'build it again'
  )


def to_python(value: Any) -> Any:
  """Converts tensors and arrays to lists and Python scalars; keeps bytes.

  Args:
    value: nested dicts of eager tensors or NumPy values.
  """
  import tensorflow as tf

  if isinstance(value, Mapping):
    return {key: to_python(inner) for key, inner in value.items()}
  if isinstance(value, bytes | str | int | float):
    return value
  if isinstance(value, tf.RaggedTensor):
    return value.to_list()
  if isinstance(value, tf.Tensor):
    return to_python(value.numpy())
  if isinstance(value, np.ndarray | np.generic):
    return value.tolist()
  return [to_python(inner) for inner in value]  # a nested tf.data.Dataset


def sequences_to_lists(features: Any, value: Any) -> Any:
  """Converts objects of lists to lists of objects for sequence features.

  Args:
    features: a tfds.features.FeatureConnector.
    value: its value, converted by `to_python`.
  """
  import tensorflow_datasets as tfds

  if isinstance(features, tfds.features.FeaturesDict):
    return {
      key: sequences_to_lists(features[key], value[key]) for key in features
    }
  if isinstance(features, tfds.features.Dataset):
    return [sequences_to_lists(features.feature, inner) for inner in value]
  if isinstance(features, tfds.features.Sequence):
    return [
      sequences_to_lists(features.feature, _element(value, i))
      for i in range(_sequence_length(value))
    ]
  return value


def _sequence_length(value: Any) -> int:
  if isinstance(value, dict):
    return _sequence_length(next(iter(value.values())))
  return len(value)


def _element(value: Any, index: int) -> Any:
  if isinstance(value, dict):
    return {key: _element(inner, index) for key, inner in value.items()}
  return value[index]


def decode_utf8(value: Any, name: str = '') -> Any:
  """Converts all bytes in a nested value to str.

  Args:
    value: nested dicts and lists.
    name: name of the field that holds it, for error messages.

  Raises:
    UserError: a field is not valid UTF-8.
  """
  if isinstance(value, dict):
    dot = f'{name}.' if name else ''
    return {key: decode_utf8(x, f'{dot}{key}') for key, x in value.items()}
  if isinstance(value, list):
    return [decode_utf8(x, f'{name}[{i}]') for i, x in enumerate(value)]
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode('utf-8')
  except UnicodeDecodeError as error:
    raise UserError(f'{name} is not UTF-8 at byte {error.start}') from error


def one_line(error: Exception) -> str:
  """Returns the message of an error as one line.

  TensorFlow's messages can contain the traceback of Python code that it
  called. The result is then the line with the error; otherwise the first line.
  """
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  error_lines = [line for line in lines if _ERROR_LINE.match(line)]
  return (error_lines[-1:] or lines[:1] or [type(error).__name__])[0]
