"""Byte-level BPE (tokenizer.json), made safe for text that users wrote.

The pieces and merges are those of the file, applied by the package
`tokenizers`. The file's added tokens (<|im_end|> and its like) are kept from
it, so that text which spells one is text.

Chats are ChatML's, as SmolLM2 was trained on: a turn is <|im_start|>user, a
newline, what is said, <|im_end|>, and a newline.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.errors import UserError

# The end of a text, the start of a turn, and its end.
TURNS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# A decoder of bytes as tokenizer.json spells it.
BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': True,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Bpe:
  """The codec of a tokenizer.json, see tokenizer.Codec.

  Attributes:
    tokenizer: a tokenizers.Tokenizer without the added tokens.
    vocab_size: ids are below it.
    control_ids: ascending ids of the added tokens.
    names: what they are called.
    turn_ids: ids of TURNS.
    lacking: bytes that the vocabulary has no piece for.
  """

  tokenizer: Any
  vocab_size: int
  control_ids: tuple[int, ...]
  names: Mapping[int, str]
  turn_ids: tuple[int, int, int]
  lacking: frozenset[int]

  def encode(self, text: str) -> list[int]:
    """Ids of a text without surrogates, none of them in control_ids.

    A character with a byte that the vocabulary lacks is read as U+FFFD:
    SmolLM2 has no piece for some control characters and for the bytes that
    begin U+40000 to U+BFFFF, where nothing is assigned.
    """
    if not self.lacking.isdisjoint(text.encode()):
      text = ''.join(
        c if self.lacking.isdisjoint(c.encode()) else '\ufffd' for c in text
      )
    ids = self.tokenizer.encode(text, add_special_tokens=False).ids
    if frozenset(self.control_ids).isdisjoint(ids):
      return ids
    # A file may have merges that make one of them, or look whole words up.
    pieces = (_alphabet()[b] for b in text.encode())
    return [self.tokenizer.token_to_id(piece) for piece in pieces]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; bytes that are not UTF-8 become U+FFFD."""
    return self.tokenizer.decode(list(ids), skip_special_tokens=False)

  def piece(self, i: int) -> str:
    """What the vocabulary calls an id."""
    return self.names.get(i) or self.tokenizer.id_to_token(i)


def from_json(data: bytes, name: str) -> Bpe:
  """Makes a codec from the bytes of a tokenizer.json.

  Args:
    data: as the package `tokenizers` writes it.
    name: what error messages call it, usually its path.

  Raises:
    UserError: this is no byte-level BPE with ChatML's tokens.
  """
  fields, model = _fields(data, name)
  vocab = model['vocab']
  added = {x['content']: x['id'] for x in fields.get('added_tokens') or ()}
  missing = [x for x in TURNS if x not in added]
  if missing:
    raise UserError(
      f'{name} has no {", ".join(missing)} among its added_tokens; give the '
      'tokenizer.json of a model that chats in ChatML, such as SmolLM2'
    )
  package = _package()
  # With no regard for what a file may do besides: what is kept is known.
  kept = {key: fields[key] for key in ('model', 'pre_tokenizer')}
  kept |= {'version': '1.0', 'decoder': BYTE_LEVEL}
  try:
    tokenizer = package.Tokenizer.from_str(json.dumps(kept))
  except Exception as error:  # it raises nothing narrower
    raise UserError(f'{name} cannot be read: {error}') from error
  alphabet = _alphabet()
  return Bpe(
    tokenizer=tokenizer,
    vocab_size=max(*vocab.values(), *added.values()) + 1,
    control_ids=tuple(sorted(added.values())),
    names={i: content for content, i in added.items()},
    turn_ids=tuple(added[x] for x in TURNS),
    lacking=frozenset(b for b in range(256) if alphabet[b] not in vocab),
  )


def _fields(data, name):
  """(the file's content, its model), of the kind that we know."""
  try:
    fields = json.loads(data)
    model = fields['model']
    kinds = _kinds(fields['pre_tokenizer'])
    known = model['type'] == 'BPE' and 'ByteLevel' in kinds
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{name} is no tokenizer.json: {error!r}') from error
  if not known or fields.get('normalizer'):
    raise UserError(
      f'{name} is not byte-level BPE without a normalizer, the only kind of '
      "tokenizer.json that is read; Gemma's tokenizer is its tokenizer.model"
    )
  return fields, model


def _kinds(step):
  """Types of a pre-tokenizer and of its parts."""
  parts = step.get('pretokenizers', ())
  return {step['type'], *(kind for part in parts for kind in _kinds(part))}


def _package():
  try:
    import tokenizers
  except ImportError as error:
    raise UserError(
      'a tokenizer.json needs the package tokenizers: pip install -r '
      'requirements-smollm2.txt'
    ) from error
  return tokenizers


@functools.cache
def _alphabet() -> tuple[str, ...]:
  """The character that stands for each byte in the vocabulary.

  Source: GPT-2's byte-level BPE. Bytes that print as a character in Latin-1
  are that character, the others those from U+0100 on, in order.
  """
  prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = iter(range(0x100, 0x200))
  return tuple(chr(b if b in prints else next(others)) for b in range(256))
