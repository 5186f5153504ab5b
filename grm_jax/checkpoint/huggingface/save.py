"""Parameters into a Hugging Face directory, one file's tensors at a time."""

import json
import os
from collections.abc import Iterator

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm

from grm_jax.checkpoint.huggingface.config import write_config
from grm_jax.checkpoint.huggingface.load import INDEX
from grm_jax.checkpoint.huggingface.param_mapping import entries
from grm_jax.io import atomic_io
from grm_jax.model.transformer import Transformer


def tensors(
  params: dict, model: Transformer
) -> Iterator[tuple[str, np.ndarray]]:
  """(their key, their tensor) of every parameter, one at a time, on the host.

  With several processes each gets every tensor; all must iterate.
  """
  size = model.size
  replicated = jax.sharding.NamedSharding(
    model.layout.mesh, jax.sharding.PartitionSpec()
  )
  layer_of = jax.jit(lambda x, i: x[i], out_shardings=replicated)
  whole = jax.jit(lambda x: x, out_shardings=replicated)
  for entry in entries(size, model.scalar):
    leaf = params
    for name in entry.path:
      leaf = leaf[name]
    for number, key in enumerate(entry.keys(size)):
      x = whole(leaf) if entry.layer is None else layer_of(leaf, number)
      yield key, _to_theirs(np.asarray(x.addressable_data(0)), entry, size)


def _to_theirs(x, entry, size):
  if 'V' in entry.ours:
    x = x[: size.vocab_size]
  flat = ''.join(entry.theirs)
  x = x.transpose([entry.ours.index(c) for c in flat])
  return np.ascontiguousarray(x.reshape(entry.shape(size)))


def save_directory(
  directory: str, params: dict, model: Transformer, file_bytes: int = 5 * 10**9
) -> None:
  """Writes config.json and safetensors files, one file's tensors at a time.

  Args:
    directory: made if absent.
    params: the parameter tree; with several processes all must call, and the
      first one writes.
    model: its size and whether it is scalar.
    file_bytes: a new file begins when the next tensor would exceed this.

  Raises:
    UserError: the directory cannot be written.
  """
  with atomic_io.wrap_os_errors(directory):
    os.makedirs(directory, exist_ok=True)
  parts, held, kinds = [], {}, set()
  table = entries(model.size, model.scalar)
  count = sum(len(entry.keys(model.size)) for entry in table)
  for key, tensor in tqdm(
    tensors(params, model), 'writing', count, unit='tensor', disable=None
  ):
    if held and sum(x.nbytes for x in held.values()) + tensor.nbytes > (
      file_bytes
    ):
      parts.append(_write_part(directory, len(parts), held))
      held = {}
    held[key] = tensor
    kinds.add(tensor.dtype.name)
  parts.append(_write_part(directory, len(parts), held))
  if jax.process_index() == 0:
    kind = 'float32' if 'float32' in kinds else kinds.pop()
    fields = write_config(model.size, model.scalar, kind)
    _name_parts(directory, parts)
    atomic_io.write_whole(
      os.path.join(directory, 'config.json'), json.dumps(fields, indent=2)
    )


def _write_part(directory, number, held):
  """One safetensors file under a passing name; returns (keys, bytes)."""
  size = sum(x.nbytes for x in held.values())
  if jax.process_index() == 0:
    path = os.path.join(directory, f'part-{number}')
    try:
      save_file(held, path, metadata={'format': 'pt'})
    except (OSError, SafetensorError) as error:
      raise atomic_io.cannot_write(path, error) from error
  return list(held), size


def _name_parts(directory, parts):
  """Gives the files their names, once it is known how many there are."""
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
    atomic_io.write_whole(
      os.path.join(directory, INDEX), json.dumps(index, indent=2)
    )
  for number, name in enumerate(names):
    part = os.path.join(directory, f'part-{number}')
    os.replace(part, os.path.join(directory, name))
