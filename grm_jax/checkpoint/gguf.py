"""Reads a GGUF file of a Llama-style model as a Hugging Face TensorSource.

The package `gguf` parses and dequantizes the file. Tensors get their Hugging
Face names, so huggingface/load.py can load them. llama.cpp interleaves the two
RoPE halves of query and key rows; this module restores the Hugging Face order.

Source of names and row order: llama.cpp's convert_hf_to_gguf.py.
"""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from grm_jax.checkpoint.huggingface.load import TensorSource
from grm_jax.errors import UserError
from grm_jax.model.config import LLAMA, ModelConfig
from grm_jax.tokenizer import bpe_codec

_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_LAYER_NAMES = {
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
  'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm',
}
_LAYER_TENSOR = re.compile(r'blk\.(\d+)\.(\w+)')
# Keys of the architecture that are read, or change nothing.
_ARCHITECTURE_KEYS = frozenset(
  f'llama.{key}'
  for key in (
    *('block_count', 'context_length', 'embedding_length', 'vocab_size'),
    *('feed_forward_length', 'attention.head_count', 'rope.freq_base'),
    *('attention.head_count_kv', 'attention.layer_norm_rms_epsilon'),
    *('attention.key_length', 'attention.value_length'),
    'rope.dimension_count',
  )
)
_CONTROL = 3  # gguf's TokenType.CONTROL
# 'smollm' splits digits one by one and then words as GPT-2 does.
_PRE_TOKENIZERS = {
  'smollm': {
    'type': 'Sequence',
    'pretokenizers': [
      {'type': 'Digits', 'individual_digits': True},
      bpe_codec.BYTE_LEVEL,
    ],
  }
}


@dataclasses.dataclass(frozen=True)
class GGUFFile:
  """An open GGUF file.

  Attributes:
    path: path of the file, for messages.
    reader: gguf.GGUFReader, which maps tensors into memory lazily.
  """

  path: str
  reader: Any

  def field(self, key: str, default: Any = None) -> Any:
    """Returns a metadata value.

    Raises:
      UserError: the key is missing and has no default.
    """
    field = self.reader.fields.get(key)
    if field is not None:
      return field.contents()
    if default is None:
      raise UserError(
        f'{self.path} has no key {key}; give the GGUF file of a Llama model'
      )
    return default


def open_file(path: str) -> GGUFFile:
  """Opens a GGUF file and reads its metadata.

  Raises:
    UserError: the file cannot be read or is not a Llama model, or the package
      gguf is not installed.
  """
  try:
    import gguf
  except ImportError as error:
    raise UserError(
      f'{path} needs the package gguf; pip install -r requirements-smollm2.txt'
    ) from error
  try:
    reader = gguf.GGUFReader(path)
  except Exception as error:  # truncated files raise various NumPy errors
    raise UserError(
      f'cannot read {path} as GGUF: {error}; download it again'
    ) from error
  file = GGUFFile(path, reader)
  architecture = file.field('general.architecture')
  if architecture != 'llama':
    raise UserError(
      f'{path}: architecture {architecture!r}; only "llama" is supported'
    )
  return file


def read_config(file: GGUFFile) -> ModelConfig:
  """Returns the ModelConfig from the metadata.

  Raises:
    UserError: missing metadata, or an unsupported feature.
  """
  _check_unknown(file)
  num_heads = file.field('llama.attention.head_count')
  width = file.field('llama.embedding_length')
  head_dim = file.field('llama.attention.key_length', width // num_heads)
  for key in ('rope.dimension_count', 'attention.value_length'):
    if (value := file.field(f'llama.{key}', head_dim)) != head_dim:
      raise UserError(
        f'{file.path}: llama.{key} is {value!r}, but heads have {head_dim} '
        'dimensions; only the same number is supported'
      )
  epsilon = file.field('llama.attention.layer_norm_rms_epsilon')
  return ModelConfig(
    num_layers=file.field('llama.block_count'),
    width=width,
    mlp_width=file.field('llama.feed_forward_length'),
    num_heads=num_heads,
    num_kv_heads=file.field('llama.attention.head_count_kv', num_heads),
    head_dim=head_dim,
    query_pre_attn_scalar=head_dim,
    vocab_size=len(file.field('tokenizer.ggml.tokens')),
    rope_base=file.field('llama.rope.freq_base', 10_000.0),
    # Stored as float32: round to the decimal number that was converted.
    norm_eps=float(f'{epsilon:.6g}'),
    **LLAMA,
  )


def _check_unknown(file: GGUFFile) -> None:
  """Raises UserError for metadata that may change what the model computes."""
  for key in sorted(file.reader.fields):
    if not key.startswith('llama.'):
      continue
    value = file.field(key)
    # A known key can have one value per layer. In others, 0, False and 'none'
    # turn a feature off.
    is_known = key in _ARCHITECTURE_KEYS and not isinstance(value, list)
    if not is_known and value not in (0, 0.0, False, '', 'none'):
      raise UserError(
        f'{file.path}: {key} is {value!r}, which is not supported; use a model '
        'without it'
      )


def tokenizer_json(file: GGUFFile) -> str:
  """Returns the tokenizer as the text of a tokenizer.json (bpe_codec.py).

  Raises:
    UserError: an unsupported kind of tokenizer.
  """
  pre_tokenizer = file.field('tokenizer.ggml.pre')
  if pre_tokenizer not in _PRE_TOKENIZERS:
    raise UserError(
      f'{file.path}: pre-tokenizer {pre_tokenizer!r} is not supported; '
      f'supported: {", ".join(_PRE_TOKENIZERS)}'
    )
  pieces = file.field('tokenizer.ggml.tokens')
  token_types = file.field('tokenizer.ggml.token_type')
  control_tokens = [
    {'id': i, 'content': piece, 'special': True}
    for i, (piece, token_type) in enumerate(
      zip(pieces, token_types, strict=True)
    )
    if token_type == _CONTROL
  ]
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  model = {
    'type': 'BPE',
    'vocab': {piece: i for i, piece in enumerate(pieces)},
    'merges': file.field('tokenizer.ggml.merges'),
  }
  content = {
    'version': '1.0',
    'added_tokens': [x | dict.fromkeys(flags, False) for x in control_tokens],
    'pre_tokenizer': _PRE_TOKENIZERS[pre_tokenizer],
    'decoder': bpe_codec.BYTE_LEVEL,
    'model': model,
  }
  text = json.dumps(content, ensure_ascii=False)
  bpe_codec.from_json(text.encode(), file.path)  # validates the text
  return text


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
  """One tensor with the interface of a safetensors file and of its slice.

  Attributes:
    reader_tensor: gguf.ReaderTensor.
    num_heads: number of query or key heads, whose rows are interleaved; 0 for
      other tensors.
  """

  reader_tensor: Any
  num_heads: int

  def get_slice(self, key: str) -> 'GGUFTensor':
    """Returns the lazy view that load.py indexes."""
    del key
    return self

  def get_shape(self) -> list[int]:
    """Returns the shape in the order of Hugging Face."""
    return [int(n) for n in reversed(self.reader_tensor.shape)]

  def get_dtype(self) -> str:
    """Returns the safetensors name of the dtype of `__getitem__`."""
    return 'F32'

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a part of the dequantized tensor, float32."""
    import gguf

    stored = self.reader_tensor
    x = gguf.dequantize(stored.data, stored.tensor_type)
    x = np.asarray(x, np.float32).reshape(self.get_shape())
    if self.num_heads:
      # [heads, H / 2, 2 halves, D] in GGUF -> [heads, 2 halves, H / 2, D].
      halves = x.reshape(self.num_heads, -1, 2, x.shape[-1])
      x = halves.swapaxes(1, 2).reshape(x.shape)
    return x[index]


def tensor_source(file: GGUFFile, config: ModelConfig) -> TensorSource:
  """Returns the tensors under Hugging Face names, dequantized when read."""
  num_heads = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads}
  tensors: dict[str, tuple[Any, str]] = {}
  for stored in file.reader.tensors:
    stem, _, suffix = stored.name.rpartition('.')
    match = _LAYER_TENSOR.fullmatch(stem)
    tensor = GGUFTensor(stored, num_heads.get(match[2] if match else stem, 0))
    tensors[f'{_hf_name(stem, match)}.{suffix}'] = (tensor, file.path)
  return TensorSource(file.path, tensors)


def _hf_name(stem: str, match: re.Match | None) -> str:
  """Returns the Hugging Face name; load.py rejects unknown ones."""
  if match and match[2] in _LAYER_NAMES:
    return f'model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}'
  return _NAMES.get(stem, stem)
