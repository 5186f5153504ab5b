"""Byte-level BPE from a tokenizer.json, safe for text that users wrote.

The package `tokenizers` applies the pieces and merges of the file. The file's
added tokens, such as <|im_end|>, are withheld from it, so text that spells one
stays text.

Conversations are in ChatML, in which SmolLM2 was trained: a turn is
<|im_start|>, the role, a newline, the content, <|im_end|> and a newline.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.errors import UserError

# End of text, start of turn, end of turn.
CHATML_TOKENS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# The decoder of byte-level pieces, as tokenizer.json writes it.
BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': True,
}


@dataclasses.dataclass(frozen=True, eq=False)
class BPECodec:
  """The codec of a tokenizer.json, see tokenizer.Codec.

  Attributes:
    tokenizer: a tokenizers.Tokenizer without the added tokens.
    vocab_size: number of ids.
    control_ids: ascending ids of the added tokens.
    control_names: id -> added token.
    chatml_ids: ids of CHATML_TOKENS.
    missing_bytes: bytes for which the vocabulary has no piece.
  """

  tokenizer: Any
  vocab_size: int
  control_ids: tuple[int, ...]
  control_names: Mapping[int, str]
  chatml_ids: tuple[int, int, int]
  missing_bytes: frozenset[int]

  def encode(self, text: str) -> list[int]:
    """Encodes text without surrogates; returns no id of control_ids.

    A character with a byte that the vocabulary lacks is replaced by U+FFFD.
    SmolLM2 lacks some control characters, and the bytes with which U+40000 to
    U+BFFFF begin, which are unassigned.
    """
    if not self.missing_bytes.isdisjoint(text.encode()):
      text = ''.join(
        c if self.missing_bytes.isdisjoint(c.encode()) else '\ufffd'
        for c in text
      )
    ids = self.tokenizer.encode(text, add_special_tokens=False).ids
    if frozenset(self.control_ids).isdisjoint(ids):
      return ids
    # The file's merges or whole-word lookup can still produce an added token.
    # Single bytes cannot.
    pieces = (_byte_to_piece()[b] for b in text.encode())
    return [self.tokenizer.token_to_id(piece) for piece in pieces]

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids; bytes that are not UTF-8 become U+FFFD."""
    return self.tokenizer.decode(list(ids), skip_special_tokens=False)

  def id_to_piece(self, i: int) -> str:
    """Returns the vocabulary's name of an id."""
    return self.control_names.get(i) or self.tokenizer.id_to_token(i)


def from_json(data: bytes, name: str) -> BPECodec:
  """Makes a codec from the bytes of a tokenizer.json.

  Args:
    data: as the package `tokenizers` writes it.
    name: its path, for error messages.

  Raises:
    UserError: the file is not byte-level BPE with the tokens of ChatML.
  """
  fields, model = _parse(data, name)
  vocab = model['vocab']
  added = {x['content']: x['id'] for x in fields.get('added_tokens') or ()}
  missing = [x for x in CHATML_TOKENS if x not in added]
  if missing:
    raise UserError(
      f'{name} has no {", ".join(missing)} in its added_tokens; give the '
      'tokenizer.json of a model that chats in ChatML, such as SmolLM2'
    )
  end_of_text, start_of_turn, end_of_turn = (added[x] for x in CHATML_TOKENS)
  alphabet = _byte_to_piece()
  return BPECodec(
    tokenizer=_without_added_tokens(fields, name),
    vocab_size=max(*vocab.values(), *added.values()) + 1,
    control_ids=tuple(sorted(added.values())),
    control_names={i: content for content, i in added.items()},
    chatml_ids=(end_of_text, start_of_turn, end_of_turn),
    missing_bytes=frozenset(b for b in range(256) if alphabet[b] not in vocab),
  )


def _without_added_tokens(fields, name):
  """Makes a tokenizers.Tokenizer of the model and pre-tokenizer alone.

  The file's other parts (added tokens, post-processor, ...) are dropped, so
  they cannot have an effect.
  """
  package = _import_tokenizers()
  parts = {key: fields[key] for key in ('model', 'pre_tokenizer')}
  parts |= {'version': '1.0', 'decoder': BYTE_LEVEL}
  try:
    return package.Tokenizer.from_str(json.dumps(parts))
  except Exception as error:  # the package raises nothing narrower
    raise UserError(
      f'{name} cannot be read: {error}; download the file again'
    ) from error


def _parse(data, name):
  """Returns (the file's content, its `model`) of a supported file."""
  try:
    fields = json.loads(data)
    model = fields['model']
    types = _pre_tokenizer_types(fields['pre_tokenizer'])
    supported = model['type'] == 'BPE' and 'ByteLevel' in types
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{name} is not a tokenizer.json ({type(error).__name__}: {error}); give '
      'the file of a model that chats in ChatML, such as SmolLM2'
    ) from error
  if not supported or fields.get('normalizer'):
    raise UserError(
      f'{name} is not byte-level BPE without a normalizer, the only supported '
      'kind of tokenizer.json; for Gemma give its tokenizer.model instead'
    )
  return fields, model


def _pre_tokenizer_types(pre_tokenizer):
  """Returns the types of a pre-tokenizer and, recursively, of its parts."""
  parts = pre_tokenizer.get('pretokenizers', ())
  nested = (kind for part in parts for kind in _pre_tokenizer_types(part))
  return {pre_tokenizer['type'], *nested}


def _import_tokenizers():
  try:
    import tokenizers
  except ImportError as error:
    raise UserError(
      'a tokenizer.json needs the package tokenizers; run pip install -r '
      'requirements-smollm2.txt'
    ) from error
  return tokenizers


@functools.cache
def _byte_to_piece() -> tuple[str, ...]:
  """Returns the character that represents each byte in the vocabulary.

  Source: GPT-2's byte-level BPE. A byte that is a printable character of
  Latin-1 is that character; the others are U+0100, U+0101, ... in order.
  """
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  substitutes = iter(range(0x100, 0x200))
  return tuple(
    chr(b if b in printable else next(substitutes)) for b in range(256)
  )
