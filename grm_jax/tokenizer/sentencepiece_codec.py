"""Gemma's SentencePiece model, safe for text that users wrote.

The ids are those of Gemma's tokenizer.model: pad 0, eos 1, bos 2, unk 3,
<start_of_turn> 106, <end_of_turn> 107. In that model <start_of_turn> and
similar symbols are USER_DEFINED pieces, so plain SentencePiece turns the
letters "<end_of_turn>" in a user's message into the id that ends a turn.
`encode` here never does. Only chat_format.py writes the ids that structure a
prompt.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import sentencepiece

from grm_jax.errors import UserError

PAD, EOS, BOS, UNK = 0, 1, 2, 3
START_OF_TURN, END_OF_TURN = 106, 107

GEMMA_IDS = {
  '<pad>': PAD,
  '<eos>': EOS,
  '<bos>': BOS,
  '<unk>': UNK,
  '<start_of_turn>': START_OF_TURN,
  '<end_of_turn>': END_OF_TURN,
}

# Pieces that no user text may become, if a model has them. Gemma's other
# USER_DEFINED pieces (HTML tags, runs of newlines and spaces) are plain text.
RESERVED_PIECES = (
  '<pad>',
  '<eos>',
  '<bos>',
  '<unk>',
  '<mask>',
  '<2mass>',
  '[@BOS@]',
  *(f'<unused{i}>' for i in range(99)),
  '<start_of_turn>',
  '<end_of_turn>',
)

# SentencePiece writes a space as this character, so it would read this
# character in a text as a space. Encoded as bytes, it survives.
_SPACE_MARK = '\u2581'


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePieceCodec:
  """The codec of a tokenizer.model, see tokenizer.Codec.

  Attributes:
    sp: the SentencePiece processor. Its own encode is not safe for user text.
    vocab_size: number of pieces, 256,000 for Gemma. Checkpoints may have more
      embedding rows.
    control_ids: ascending ids that `encode` never returns: every CONTROL piece
      and the RESERVED_PIECES that the model has.
    byte_start: id of <0x00>; byte b is the piece byte_start + b.
    reserved_text: matches what must be split before SentencePiece reads it.
  """

  sp: sentencepiece.SentencePieceProcessor
  vocab_size: int
  control_ids: tuple[int, ...]
  byte_start: int
  reserved_text: re.Pattern[str]

  def encode(self, text: str) -> list[int]:
    """Encodes text without surrogates; returns no id of control_ids.

    `decode` returns the same text, unless the model normalizes text (Gemma's
    does not). Text without reserved symbols gets SentencePiece's own ids.
    """
    control = frozenset(self.control_ids)
    ids = []
    for fragment in _fragments(self.reserved_text, text):
      ids.extend(_encode_fragment(self, control, fragment))
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids; bytes that are not UTF-8 become U+FFFD."""
    return self.sp.decode(list(ids))

  def id_to_piece(self, i: int) -> str:
    """Returns the model's name of an id."""
    return self.sp.id_to_piece(i)


def from_bytes(data: bytes, name: str) -> SentencePieceCodec:
  """Makes a codec from the bytes of a tokenizer.model.

  Args:
    data: a serialized SentencePiece model.
    name: its path, for error messages.

  Raises:
    UserError: the data is not a SentencePiece model with Gemma's layout.
  """
  sp = sentencepiece.SentencePieceProcessor()
  try:
    sp.load_from_serialized_proto(data)
  except RuntimeError as error:
    raise UserError(
      f'{name} is not a SentencePiece model; give the tokenizer.model that '
      "comes with Gemma-2's weights (not tokenizer.json)"
    ) from error
  _check_layout(sp, name)
  control_ids = _control_ids(sp)
  symbols = {sp.id_to_piece(i) for i in control_ids} | {_SPACE_MARK}
  pattern = '|'.join(re.escape(symbol) for symbol in sorted(symbols))
  return SentencePieceCodec(
    sp=sp,
    vocab_size=sp.vocab_size(),
    control_ids=control_ids,
    byte_start=sp.piece_to_id('<0x00>'),
    reserved_text=re.compile(pattern),
  )


def _check_layout(sp: sentencepiece.SentencePieceProcessor, name: str) -> None:
  """Raises UserError unless ids and bytes are laid out as in Gemma."""
  for piece, expected in GEMMA_IDS.items():
    actual = sp.piece_to_id(piece)
    # An unknown piece gets the id of unk, which has another name.
    exists = sp.id_to_piece(actual) == piece
    if not exists or actual != expected:
      raise UserError(
        f'{name} is not a Gemma tokenizer: {piece} must have id {expected}, '
        f'but {f"has id {actual}" if exists else "does not exist"}; give the '
        "tokenizer.model that comes with Gemma-2's weights"
      )
  if sp.piece_to_id('<0xFF>') != sp.piece_to_id('<0x00>') + 255:
    raise UserError(
      f'{name} does not have the byte pieces <0x00> to <0xFF> in order, so '
      'unknown characters would become <unk>; train it with byte_fallback=True'
    )
  if sp.encode_as_pieces('a')[0].startswith(_SPACE_MARK):
    raise UserError(
      f"{name} adds a space before every text, which Gemma's tokenizer does "
      'not; train it with add_dummy_prefix=False'
    )


def _control_ids(sp: sentencepiece.SentencePieceProcessor) -> tuple[int, ...]:
  """Returns ascending ids of CONTROL pieces and existing RESERVED_PIECES."""
  ids = {i for i in range(sp.vocab_size()) if sp.is_control(i)}
  # A piece that the model lacks gets the id of unk, which is reserved anyway.
  ids |= {sp.piece_to_id(piece) for piece in RESERVED_PIECES}
  return tuple(sorted(ids))


def _fragments(reserved_text: re.Pattern[str], text: str) -> Iterator[str]:
  """Splits text into fragments that contain no reserved symbol.

  A symbol is split after its first character. No reserved symbol begins inside
  another one, so neither half can complete a symbol. A space mark is a fragment
  of its own.
  """
  start = 0
  for match in reserved_text.finditer(text):
    cut = match.start()
    if match.group() == _SPACE_MARK:
      yield text[start:cut]
      start = cut
    cut += 1
    yield text[start:cut]
    start = cut
  yield text[start:]


def _encode_fragment(
  codec: SentencePieceCodec, control: frozenset[int], fragment: str
) -> list[int]:
  """Encodes a fragment; falls back to characters, then to bytes."""
  if fragment == _SPACE_MARK:
    return _byte_ids(codec, fragment)
  ids = codec.sp.encode(fragment)
  if control.isdisjoint(ids):
    return ids
  # The model's normalizer produced a symbol, for example from full-width
  # letters. A single character rarely becomes a symbol; if the normalizer does
  # even that, bytes are out of its reach.
  ids = []
  for character in fragment:
    character_ids = codec.sp.encode(character)
    safe = control.isdisjoint(character_ids)
    ids.extend(character_ids if safe else _byte_ids(codec, character))
  return ids


def _byte_ids(codec: SentencePieceCodec, text: str) -> list[int]:
  return [codec.byte_start + b for b in text.encode('utf-8')]
