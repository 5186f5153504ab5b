"""Saves parameters as a Hugging Face directory, one file at a time."""

import json
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm

from grm_jax.checkpoint.huggingface.config import to_hf_config
from grm_jax.checkpoint.huggingface.load import INDEX
from grm_jax.checkpoint.huggingface.param_mapping import (
  ParamMapping,
  param_mappings,
)
from grm_jax.io import atomic_io
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer


def save_directory(
  directory: str, params: dict, model: Transformer, file_bytes: int = 5 * 10**9
) -> None:
  """Writes config.json and safetensors files.

  The host holds the tensors of one file at a time.

  Args:
    directory: created if it does not exist.
    params: the parameter tree. With several processes all must call; the first
      one writes.
    model: configuration, and whether the model has a scalar head.
    file_bytes: a new file begins when the next tensor would exceed this size.

  Raises:
    UserError: the directory cannot be written.
  """
  with atomic_io.wrap_os_errors(directory):
    os.makedirs(directory, exist_ok=True)
  parts: list[tuple[list[str], int]] = []
  pending: dict[str, np.ndarray] = {}
  dtypes = set()
  mappings = param_mappings(model.config, model.scalar)
  num_tensors = sum(len(x.hf_keys(model.config)) for x in mappings)
  for key, tensor in tqdm(
    hf_tensors(params, model, mappings),
    'writing',
    num_tensors,
    unit='tensor',
    disable=None,
  ):
    if pending and _num_bytes(pending) + tensor.nbytes > file_bytes:
      parts.append(_write_part(directory, len(parts), pending))
      pending = {}
    pending[key] = tensor
    dtypes.add(tensor.dtype.name)
  parts.append(_write_part(directory, len(parts), pending))
  if jax.process_index() == 0:
    dtype = 'float32' if 'float32' in dtypes else dtypes.pop()
    fields = to_hf_config(model.config, model.scalar, dtype)
    _rename_parts(directory, parts)
    # Last, so that a directory with config.json is complete.
    atomic_io.write_file(
      os.path.join(directory, 'config.json'), json.dumps(fields, indent=2)
    )


def hf_tensors(
  params: dict, model: Transformer, mappings: Sequence[ParamMapping]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (Hugging Face key, tensor on the host), one at a time.

  With several processes all must iterate, and each gets every tensor.
  """
  config = model.config
  replicated = jax.sharding.NamedSharding(
    model.layout.mesh, jax.sharding.PartitionSpec()
  )
  get_layer = jax.jit(lambda x, i: x[i], out_shardings=replicated)
  replicate = jax.jit(lambda x: x, out_shardings=replicated)
  for mapping in mappings:
    leaf = params
    for name in mapping.path:
      leaf = leaf[name]
    for i, key in enumerate(mapping.hf_keys(config)):
      x = replicate(leaf) if mapping.layer is None else get_layer(leaf, i)
      yield key, _to_hf(np.asarray(x.addressable_data(0)), mapping, config)


def _to_hf(
  x: np.ndarray, mapping: ParamMapping, config: ModelConfig
) -> np.ndarray:
  if 'V' in mapping.dims:
    x = x[: config.vocab_size]  # without padding rows
  hf_order = ''.join(mapping.hf_dims)
  x = x.transpose([mapping.dims.index(c) for c in hf_order])
  return np.ascontiguousarray(x.reshape(mapping.hf_shape(config)))


def _num_bytes(tensors: dict[str, np.ndarray]) -> int:
  return sum(x.nbytes for x in tensors.values())


def _write_part(
  directory: str, number: int, tensors: dict[str, np.ndarray]
) -> tuple[list[str], int]:
  """Writes one file under a temporary name; returns (keys, bytes)."""
  if jax.process_index() == 0:
    path = os.path.join(directory, f'part-{number}')
    try:
      save_file(tensors, path, metadata={'format': 'pt'})
    except (OSError, SafetensorError) as error:
      raise atomic_io.cannot_write(path, error) from error
  return list(tensors), _num_bytes(tensors)


def _rename_parts(directory: str, parts: list[tuple[list[str], int]]) -> None:
  """Gives the files their final names, which contain the number of files."""
  names = ['model.safetensors']
  if len(parts) > 1:
    count = len(parts)
    names = [
      f'model-{i + 1:05d}-of-{count:05d}.safetensors' for i in range(count)
    ]
    weight_map = {
      key: name
      for (keys, _), name in zip(parts, names, strict=True)
      for key in keys
    }
    total = sum(size for _, size in parts)
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    atomic_io.write_file(
      os.path.join(directory, INDEX), json.dumps(index, indent=2)
    )
  for i, name in enumerate(names):
    part = os.path.join(directory, f'part-{i}')
    os.replace(part, os.path.join(directory, name))
