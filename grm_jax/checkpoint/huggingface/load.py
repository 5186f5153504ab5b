"""Parameters from a Hugging Face directory, each process its own slices.

The directory holds config.json and one or many .safetensors files of
Gemma2 or Llama, each ForCausalLM or ForSequenceClassification. Files are
mapped, not read: only the bytes that a device of this process owns are ever
touched.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from grm_jax.checkpoint.huggingface.config import read_json
from grm_jax.checkpoint.huggingface.param_mapping import (
  ParamMapping,
  entries,
  letter_sizes,
)
from grm_jax.errors import UserError
from grm_jax.model import init as model_init
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer

INDEX = 'model.safetensors.index.json'
_DTYPES = {'F32': np.float32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16}
_TIED = 'lm_head.weight'


@dataclasses.dataclass(frozen=True)
class TensorSource:
  """The open safetensors files of a directory.

  Attributes:
    directory: where they are.
    tensors: key -> (open file, file name).
  """

  directory: str
  tensors: dict[str, tuple[object, str]]

  def slice(self, key: str):
    """A lazy view of a tensor: indexing it reads only those bytes."""
    return self.tensors[key][0].get_slice(key)

  def dtype(self, key: str) -> np.dtype:
    """A tensor's dtype; UserError if it is no float we know."""
    name = self.slice(key).get_dtype()
    if name not in _DTYPES:
      raise UserError(
        f'{self.directory}: {key} has dtype {name}; expected one of '
        f'{", ".join(_DTYPES)}. Save the model unquantized'
      )
    return np.dtype(_DTYPES[name])


def open_source(directory: str) -> TensorSource:
  """Opens every safetensors file of `directory`, reading headers only.

  Raises:
    UserError: no files, a listed file missing or damaged, a key twice.
  """
  tensors = {}
  for name in _file_names(directory):
    path = os.path.join(directory, name)
    try:
      file = safe_open(path, framework='np')
    except (SafetensorError, OSError) as error:
      raise UserError(
        f'{path} cannot be read, download it again: {error}'
      ) from error
    for key in file.keys():  # noqa: SIM118 (safe_open is no dict)
      if key in tensors:
        raise UserError(
          f'{directory}: {key} is in {tensors[key][1]} and in {name}; keep one'
        )
      tensors[key] = (file, name)
  return TensorSource(directory, tensors)


def _file_names(directory):
  index = os.path.join(directory, INDEX)
  if os.path.exists(index):
    files = read_json(index).get('weight_map', {})
    names = sorted(set(files.values()))
  else:
    names = [n for n in os.listdir(directory) if n.endswith('.safetensors')]
  if not names:
    raise UserError(
      f'{directory} has no .safetensors file; a checkpoint in another format '
      'can be saved again with save_pretrained(safe_serialization=True)'
    )
  missing = [n for n in names if not os.path.exists(os.path.join(directory, n))]
  if missing:
    one = len(missing) == 1
    raise UserError(
      f'{directory}: {INDEX} lists {", ".join(missing)}, which '
      f'{"is" if one else "are"} not there; download {"it" if one else "them"}'
    )
  return sorted(names)


def check_keys(source: TensorSource, size: ModelConfig, scalar: bool) -> None:
  """Every key of the table is there with its shape, and no other.

  Raises:
    UserError: naming missing or unknown keys, or a wrong shape.
  """
  table = entries(size, scalar)
  wanted = {key: entry for entry in table for key in entry.keys(size)}
  found = set(source.tensors)
  if _TIED in found and not scalar:
    _check_tied(source)
    found.discard(_TIED)
  if found != set(wanted):
    raise UserError(_key_difference(source.directory, set(wanted), found))
  for key, entry in wanted.items():
    shape = tuple(source.slice(key).get_shape())
    if shape != entry.shape(size):
      raise UserError(
        f'{source.directory}: {key} has shape {shape}, config.json asks for '
        f'{entry.shape(size)}'
      )


def _key_difference(directory, wanted, found):
  def some(keys):
    keys = sorted(keys)
    more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
    return ', '.join(keys[:5]) + more

  parts = []
  if wanted - found:
    parts.append(f'missing {some(wanted - found)}')
  if found - wanted:
    parts.append(f'unknown {some(found - wanted)}')
  return f'{directory}: {"; ".join(parts)}'


def _check_tied(source):
  """A separate head is accepted only as a copy of the embedding table."""
  head, table = source.slice(_TIED), source.slice('model.embed_tokens.weight')
  same = head.get_shape() == table.get_shape()
  step, rows = 8192, head.get_shape()[0]
  for start in range(0, rows if same else 0, step):
    stop = min(start + step, rows)
    if head[start:stop].tobytes() != table[start:stop].tobytes():
      same = False
      break
  if not same:
    raise UserError(
      f'{source.directory}: {_TIED} differs from model.embed_tokens.weight; '
      'models here have their head tied to the table'
    )


def read(
  source: TensorSource, entry: ParamMapping, size: ModelConfig, index, dtype
) -> np.ndarray:
  """The part `index` of a parameter, from the bytes that hold it and no more.

  Args:
    source: the open files.
    entry: which parameter.
    size: the model's size.
    index: one slice per dimension of ours, as a sharding gives them.
    dtype: of the result.

  Returns:
    The part, in our layout; rows past the vocabulary are zero.
  """
  keys = entry.keys(size)
  if entry.layer is None:
    return _read_tensor(source, keys[0], entry, size, index, dtype)
  chosen = keys[index[0]]
  parts = (
    _read_tensor(source, key, entry, size, index[1:], dtype) for key in chosen
  )
  first = next(parts)
  out = np.empty((len(chosen), *first.shape), dtype)
  out[0] = first
  for number, part in enumerate(parts, 1):
    out[number] = part
  return out


def _read_tensor(source, key, entry, size, index, dtype):
  """The part `index` of one tensor, in the order of our letters."""
  view = source.slice(key)
  if entry.ours[0] == 'V':
    return _read_table(view, size, index, dtype)
  sizes = letter_sizes(size)
  spans = {
    letter: part.indices(sizes[letter])[:2]
    for letter, part in zip(entry.ours, index, strict=True)
  }
  rows, shape, rest = [], [], []
  for outer, *inner in entry.theirs:
    # The outer letter of flattened ones is a run of rows; inner letters are
    # cut afterwards (a mesh rarely splits them).
    inner_size = int(np.prod([sizes[c] for c in inner], dtype=int))
    start, stop = spans[outer]
    rows.append(slice(start * inner_size, stop * inner_size))
    shape += [stop - start, *(sizes[c] for c in inner)]
    rest += [slice(None), *(slice(*spans[c]) for c in inner)]
  piece = view[tuple(rows)].reshape(shape)[tuple(rest)]
  flat = ''.join(entry.theirs)
  piece = piece.transpose([flat.index(c) for c in entry.ours])
  return np.asarray(piece, dtype)


def _read_table(view, size, index, dtype):
  """Rows of the embedding table; those past the vocabulary are zero."""
  start, stop, _ = index[0].indices(size.table_rows)
  first, last = (min(x, size.vocab_size) for x in (start, stop))
  columns = slice(*index[1].indices(size.width)[:2])
  if last == stop:
    return np.asarray(view[first:last, columns], dtype)
  out = np.zeros((stop - start, columns.stop - columns.start), dtype)
  if first < last:
    out[: last - first] = view[first:last, columns]
  return out


def load_params(source: TensorSource, model: Transformer, dtype: str) -> dict:
  """Parameters straight into their shards; each process reads only its own.

  Args:
    source: the open files, keys checked.
    model: size, layout, and whether it is scalar.
    dtype: 'source' keeps each tensor's own, or 'float32', 'bfloat16'.

  Returns:
    The parameter tree.
  """
  abstract = model_init.abstract_params(model)
  params = {}
  for entry in tqdm(
    entries(model.size, model.scalar), 'reading', unit='tensor', disable=None
  ):
    like = abstract
    for name in entry.path:
      like = like[name]
    kind = _stored_dtype(source, entry, model.size, dtype)

    def callback(index, entry=entry, kind=kind):
      return read(source, entry, model.size, index, kind)

    leaf = jax.make_array_from_callback(like.shape, like.sharding, callback)
    _put(params, entry.path, leaf)
  return params


def _stored_dtype(source, entry, size, dtype):
  if dtype != 'source':
    return jnp.dtype(dtype)
  kinds = {key: source.dtype(key) for key in entry.keys(size)}
  if len(set(kinds.values())) > 1:
    raise UserError(
      f'{source.directory}: layers of {entry.key} differ in dtype '
      f'({", ".join(sorted({str(k) for k in kinds.values()}))}); set '
      '--config.dtype=float32 or bfloat16'
    )
  kind = next(iter(kinds.values()))
  if kind == np.float16:
    raise UserError(
      f'{source.directory} is float16, which TPUs do not compute in; set '
      '--config.dtype=float32 or bfloat16'
    )
  return kind


def _put(tree, path, leaf):
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  tree[path[-1]] = leaf
