"""A GGUF file of a Llama-style model, as a Hugging Face directory would be.

The package `gguf` reads and dequantizes it. Tensors appear under the names
that reading.py asks for; what llama.cpp stores differently (its interleaved
RoPE wants the rows of queries and keys in another order) is put back here.

Source: llama.cpp's convert_hf_to_gguf.py for names and the order of rows.
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
_IN_LAYER = re.compile(r'blk\.(\d+)\.(\w+)')
_CONTROL = 3  # gguf's TokenType.CONTROL
# Digits one by one, then GPT-2's split into words: what `pre` smollm means.
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
    path: where it is.
    reader: gguf.GGUFReader; tensors are mapped, not read.
  """

  path: str
  reader: Any

  def field(self, key: str, default: Any = None) -> Any:
    """A metadata value; UserError if it is not there and has no default."""
    found = self.reader.fields.get(key)
    if found is not None:
      return found.contents()
    if default is None:
      raise UserError(f'{self.path} lacks {key}; give a GGUF of a Llama')
    return default


def open_file(path: str) -> GGUFFile:
  """Opens a GGUF file, reading its metadata only.

  Raises:
    UserError: it cannot be read, or is no Llama.
  """
  try:
    import gguf
  except ImportError as error:
    raise UserError(
      f'{path} needs the package gguf: pip install -r requirements-smollm2.txt'
    ) from error
  try:
    reader = gguf.GGUFReader(path)
  except Exception as error:  # a cut file raises whatever numpy finds first
    raise UserError(
      f'{path} cannot be read as GGUF, download it again: {error}'
    ) from error
  file = GGUFFile(path, reader)
  kind = file.field('general.architecture')
  if kind != 'llama':
    raise UserError(f'{path}: architecture {kind!r}; only "llama" is read')
  return file


def size_of(file: GGUFFile) -> ModelConfig:
  """The Size that the metadata tells.

  Raises:
    UserError: metadata missing, or a feature that we do not have.
  """
  heads = file.field('llama.attention.head_count')
  width = file.field('llama.embedding_length')
  head_dim = file.field('llama.rope.dimension_count', width // heads)
  if 'llama.rope.scaling.type' in file.reader.fields:
    raise UserError(f'{file.path}: scaled RoPE is not implemented')
  epsilon = file.field('llama.attention.layer_norm_rms_epsilon')
  return ModelConfig(
    num_layers=file.field('llama.block_count'),
    width=width,
    mlp_width=file.field('llama.feed_forward_length'),
    num_heads=heads,
    num_kv_heads=file.field('llama.attention.head_count_kv', heads),
    head_dim=head_dim,
    query_pre_attn_scalar=head_dim,
    vocab_size=len(file.field('tokenizer.ggml.tokens')),
    rope_base=file.field('llama.rope.freq_base', 10_000.0),
    # float32 there; the number that was meant has few digits.
    norm_eps=float(f'{epsilon:.6g}'),
    **LLAMA,
  )


def tokenizer_json(file: GGUFFile) -> str:
  """Its tokenizer as a tokenizer.json, see bpe_codec.py.

  Raises:
    UserError: another kind of tokenizer.
  """
  kind = file.field('tokenizer.ggml.pre')
  if kind not in _PRE_TOKENIZERS:
    raise UserError(
      f'{file.path}: its tokenizer splits text by the rules {kind!r}; known '
      f'are {", ".join(_PRE_TOKENIZERS)}'
    )
  pieces = file.field('tokenizer.ggml.tokens')
  kinds = file.field('tokenizer.ggml.token_type')
  added = [
    {'id': i, 'content': piece, 'special': True}
    for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    if kind == _CONTROL
  ]
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  model = {
    'type': 'BPE',
    'vocab': {piece: i for i, piece in enumerate(pieces)},
    'merges': file.field('tokenizer.ggml.merges'),
  }
  content = {
    'version': '1.0',
    'added_tokens': [x | dict.fromkeys(flags, False) for x in added],
    'pre_tokenizer': _PRE_TOKENIZERS[kind],
    'decoder': bpe_codec.BYTE_LEVEL,
    'model': model,
  }
  text = json.dumps(content, ensure_ascii=False)
  bpe_codec.from_json(text.encode(), file.path)
  return text


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
  """One tensor, in place of a safetensors file and of its slice.

  Attributes:
    stored: gguf.ReaderTensor.
    heads: of queries or keys, whose rows llama.cpp interleaves; else 0.
  """

  stored: Any
  heads: int

  def get_slice(self, key: str) -> 'GGUFTensor':
    """The view that reading.py indexes; `key` is its name there."""
    del key
    return self

  def get_shape(self) -> list[int]:
    """Sizes of the dimensions as Hugging Face has them."""
    return [int(n) for n in reversed(self.stored.shape)]

  def get_dtype(self) -> str:
    """What `__getitem__` yields."""
    return 'F32'

  def __getitem__(self, index: Any) -> np.ndarray:
    import gguf

    x = gguf.dequantize(self.stored.data, self.stored.tensor_type)
    x = np.asarray(x, np.float32).reshape(self.get_shape())
    if self.heads:
      # Rows (i, half) of each head there, (half, i) here.
      halves = x.reshape(self.heads, -1, 2, x.shape[-1])
      x = halves.swapaxes(1, 2).reshape(x.shape)
    return x[index]


def source(file: GGUFFile, size: ModelConfig) -> TensorSource:
  """Its tensors under Hugging Face's names, dequantized when they are read."""
  heads = {'attn_q': size.num_heads, 'attn_k': size.num_kv_heads}
  tensors = {}
  for stored in file.reader.tensors:
    stem, _, kind = stored.name.rpartition('.')
    inside = _IN_LAYER.fullmatch(stem)
    part = inside[2] if inside else stem
    tensor = GGUFTensor(stored, heads.get(part, 0))
    tensors[f'{_name(stem, inside)}.{kind}'] = (tensor, file.path)
  return TensorSource(file.path, tensors)


def _name(stem, inside):
  """Hugging Face's; one that is not known stays, for reading.py to refuse."""
  if inside and inside[2] in _LAYER_NAMES:
    return f'model.layers.{inside[1]}.{_LAYER_NAMES[inside[2]]}'
  return _NAMES.get(stem, stem)
