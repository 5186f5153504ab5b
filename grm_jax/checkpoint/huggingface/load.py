"""Loads parameters from a Hugging Face directory into their shards.

The directory holds config.json and one or more .safetensors files of a Gemma-2
or Llama model, ForCausalLM or ForSequenceClassification. The files are
memory-mapped, and each process reads only the slices that its devices own.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from grm_jax.checkpoint.huggingface.config import read_json
from grm_jax.checkpoint.huggingface.param_mapping import (
  ParamMapping,
  param_mappings,
)
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.model import init as model_init
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer

INDEX = 'model.safetensors.index.json'
_DTYPES = {'F32': np.float32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16}
_TIED_HEAD = 'lm_head.weight'
_CHUNK_ROWS = 8192  # of the table, compared at a time


@dataclasses.dataclass(frozen=True)
class TensorSource:
  """The open files of a model.

  Attributes:
    path: directory of the files, for messages.
    tensors: key -> (open file, file name).
  """

  path: str
  tensors: dict[str, tuple[Any, str]]

  def slice(self, key: str) -> Any:
    """Returns a lazy view of a tensor; indexing it reads only that part."""
    return self.tensors[key][0].get_slice(key)

  def dtype(self, key: str) -> np.dtype:
    """Returns the dtype of a tensor.

    Raises:
      UserError: the dtype is not a supported float.
    """
    name = self.slice(key).get_dtype()
    if name not in _DTYPES:
      raise UserError(
        f'{self.path}: {key} has dtype {name}; expected one of '
        f'{", ".join(_DTYPES)}. Save the model without quantization'
      )
    return np.dtype(_DTYPES[name])


def open_source(
  directory: str, names: Sequence[str] | None = None
) -> TensorSource:
  """Opens safetensors files of a directory and reads their headers.

  Args:
    directory: folder of the files.
    names: their names; None for all.

  Raises:
    UserError: no files, a missing or damaged file, or a duplicate key.
  """
  tensors: dict[str, tuple[Any, str]] = {}
  for name in names or _file_names(directory):
    path = os.path.join(directory, name)
    try:
      file = safe_open(path, framework='np')
    except (SafetensorError, OSError) as error:
      raise UserError(
        f'cannot read {path}: {error}; download it again'
      ) from error
    for key in file.keys():  # noqa: SIM118 (not a dict)
      if key in tensors:
        raise UserError(
          f'{directory}: {key} is in {tensors[key][1]} and {name}; delete one'
        )
      tensors[key] = (file, name)
  return TensorSource(directory, tensors)


def _file_names(directory: str) -> list[str]:
  index = os.path.join(directory, INDEX)
  if os.path.exists(index):
    files = read_json(index).get('weight_map', {})
    names = sorted(set(files.values()))
  else:
    with atomic_io.wrap_read_errors(directory):
      names = [n for n in os.listdir(directory) if n.endswith('.safetensors')]
  if not names:
    raise UserError(
      f'{directory} has no .safetensors file; save the model again with '
      'save_pretrained(safe_serialization=True)'
    )
  missing = [n for n in names if not os.path.exists(os.path.join(directory, n))]
  if missing:
    raise UserError(
      f'{directory}: {INDEX} lists missing files: {", ".join(missing)}; '
      'download them again'
    )
  return sorted(names)


def check_keys(source: TensorSource, config: ModelConfig, scalar: bool) -> None:
  """Checks that exactly the expected tensors exist, with their shapes.

  Raises:
    UserError: missing or unknown keys, or a wrong shape.
  """
  keys = set(source.tensors)
  if _TIED_HEAD in keys and not scalar:
    _check_tied_head(source)
    keys.discard(_TIED_HEAD)
  check_tensors(source, config, param_mappings(config, scalar), keys)


def check_tensors(
  source: TensorSource,
  config: ModelConfig,
  mappings: Sequence[ParamMapping],
  keys: set[str] | None = None,
) -> None:
  """Checks that the tensors are those of `mappings`, with their shapes.

  Args:
    source: the open files.
    config: configuration of the model.
    mappings: the expected tensors.
    keys: names of the tensors to check; None for all.

  Raises:
    UserError: missing or unknown keys, or a wrong shape.
  """
  keys = set(source.tensors) if keys is None else keys
  expected = {
    key: mapping for mapping in mappings for key in mapping.hf_keys(config)
  }
  if keys != set(expected):
    raise UserError(_key_difference(source.path, set(expected), keys))
  for key, mapping in expected.items():
    shape = tuple(source.slice(key).get_shape())
    if shape != mapping.hf_shape(config):
      raise UserError(
        f'{source.path}: {key} has shape {shape}, its configuration implies '
        f'{mapping.hf_shape(config)}; use the files of one model'
      )


def _key_difference(path: str, expected: set[str], keys: set[str]) -> str:
  def first_five(names):
    """Returns the first five names as text, with the number of the rest."""
    names = sorted(names)
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(names[:5]) + more

  differences = []
  if expected - keys:
    differences.append(f'missing {first_five(expected - keys)}')
  if keys - expected:
    differences.append(f'unknown {first_five(keys - expected)}')
  return f'{path}: {", ".join(differences)}; use an unmodified model'


def _check_tied_head(source: TensorSource) -> None:
  """Accepts a separate head only if it is a copy of the embedding table."""
  head = source.slice(_TIED_HEAD)
  table = source.slice('model.embed_tokens.weight')
  is_copy = head.get_shape() == table.get_shape() and all(
    head[rows].tobytes() == table[rows].tobytes()
    for rows in _chunks(head.get_shape()[0])
  )
  if not is_copy:
    raise UserError(
      f'{source.path}: {_TIED_HEAD} differs from model.embed_tokens.weight; '
      'only models with a tied head are supported'
    )


def _chunks(num_rows: int) -> list[slice]:
  return [
    slice(start, min(start + _CHUNK_ROWS, num_rows))
    for start in range(0, num_rows, _CHUNK_ROWS)
  ]


def load_params(source: TensorSource, model: Transformer, dtype: str) -> dict:
  """Loads parameters into their shards; each process reads only its own.

  Args:
    source: the open files, checked by `check_keys`.
    model: configuration, sharding, and whether the model has a scalar head.
    dtype: 'source' keeps the dtype of each tensor; or 'float32', 'bfloat16'.

  Returns:
    The parameter tree.

  Raises:
    UserError: dtype is 'source', but the tensors are float16 or differ.
  """
  mappings = param_mappings(model.config, model.scalar)
  abstract = model_init.abstract_params(model)
  return read_params(source, model.config, mappings, abstract, dtype)


def read_params(
  source: TensorSource,
  config: ModelConfig,
  mappings: Sequence[ParamMapping],
  abstract_params: dict,
  dtype: str,
) -> dict:
  """Loads the parameters of `mappings`; see `load_params`."""
  params: dict = {}
  for mapping in tqdm(mappings, 'reading', unit='tensor', disable=None):
    abstract: Any = abstract_params
    for name in mapping.path:
      abstract = abstract[name]
    leaf_dtype = _leaf_dtype(source, mapping, config, dtype)

    # Bind the loop variables: JAX calls this for every shard.
    def read_shard(index, mapping=mapping, leaf_dtype=leaf_dtype):
      """Returns the elements at `index` of the whole parameter."""
      return read_param(source, mapping, config, index, leaf_dtype)

    leaf = jax.make_array_from_callback(
      abstract.shape, abstract.sharding, read_shard
    )
    _insert(params, mapping.path, leaf)
  return params


def _leaf_dtype(
  source: TensorSource, mapping: ParamMapping, config: ModelConfig, dtype: str
) -> np.dtype:
  if dtype != 'source':
    return jnp.dtype(dtype)
  dtypes = {source.dtype(key) for key in mapping.hf_keys(config)}
  if len(dtypes) > 1:
    raise UserError(
      f'{source.path}: layers of {mapping.hf_key} differ in dtype '
      f'({", ".join(sorted(map(str, dtypes)))}); set '
      '--config.dtype=float32 or bfloat16'
    )
  (leaf_dtype,) = dtypes
  if leaf_dtype == np.float16:
    raise UserError(
      f'{source.path} is float16, which TPUs do not support; set '
      '--config.dtype=float32 or bfloat16'
    )
  return leaf_dtype


def _insert(tree: dict, path: Sequence[str], leaf: jax.Array) -> None:
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  tree[path[-1]] = leaf


def read_param(
  source: TensorSource,
  mapping: ParamMapping,
  config: ModelConfig,
  index: tuple[slice, ...],
  dtype: np.dtype,
) -> np.ndarray:
  """Reads a part of a parameter, and no bytes outside of it.

  Args:
    source: the open files.
    mapping: the parameter.
    config: configuration of the model.
    index: one slice for each dimension of the parameter, from its sharding.
    dtype: dtype of the result.

  Returns:
    The part in the layout of the parameter; rows of the embedding table past
    the vocabulary are zero.
  """
  keys = mapping.hf_keys(config)
  if mapping.layer is None:
    return _read_tensor(source.slice(keys[0]), mapping, config, index, dtype)

  def read_layer(key):
    """Returns the slice index[1:] of one layer."""
    return _read_tensor(source.slice(key), mapping, config, index[1:], dtype)

  # Fill one array layer by layer: stacking would hold all layers twice.
  layer_keys = keys[index[0]]
  first = read_layer(layer_keys[0])
  result = np.empty((len(layer_keys), *first.shape), dtype)
  result[0] = first
  for i, key in enumerate(layer_keys[1:], start=1):
    result[i] = read_layer(key)
  return result


def _read_tensor(
  view: Any,
  mapping: ParamMapping,
  config: ModelConfig,
  index: tuple[slice, ...],
  dtype: np.dtype,
) -> np.ndarray:
  """Reads a part of one tensor and permutes it to the parameter's axes."""
  if mapping.dims[0] == 'V':
    return _read_table(view, config, index, dtype)
  sizes = mapping.sizes(config)
  bounds = {
    letter: part.indices(sizes[letter])[:2]
    for letter, part in zip(mapping.dims, index, strict=True)
  }
  file_index, shape, inner_index = [], [], []
  for letters in mapping.hf_dims:
    outer, inner = letters[0], letters[1:]
    # A flattened dimension such as NH: a range of N is a contiguous range of
    # rows in the file. Inner letters are read in full and cut afterwards,
    # since a mesh rarely splits them.
    inner_size = int(np.prod([sizes[c] for c in inner], dtype=int))
    start, stop = bounds[outer]
    file_index.append(slice(start * inner_size, stop * inner_size))
    shape += [stop - start, *(sizes[c] for c in inner)]
    inner_index += [slice(None), *(slice(*bounds[c]) for c in inner)]
  part = view[tuple(file_index)].reshape(shape)[tuple(inner_index)]
  hf_order = ''.join(mapping.hf_dims)
  part = part.transpose([hf_order.index(c) for c in mapping.dims])
  return np.asarray(part, dtype)


def _read_table(
  view: Any, config: ModelConfig, index: tuple[slice, ...], dtype: np.dtype
) -> np.ndarray:
  """Reads rows of the embedding table; padding rows are zero."""
  start, stop, _ = index[0].indices(config.padded_vocab_size)
  first, last = (min(x, config.vocab_size) for x in (start, stop))
  columns = slice(*index[1].indices(config.width)[:2])
  if last == stop:
    return np.asarray(view[first:last, columns], dtype)
  rows = np.zeros((stop - start, columns.stop - columns.start), dtype)
  if first < last:
    rows[: last - first] = view[first:last, columns]
  return rows
