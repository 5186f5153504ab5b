"""Gemma's SentencePiece model, made safe for text that users wrote.

The ids are those of Gemma's tokenizer.model: pad 0, eos 1, bos 2, unk 3,
<start_of_turn> 106, <end_of_turn> 107. In that model <start_of_turn> and its
like are USER_DEFINED pieces, so plain SentencePiece turns the letters
"<end_of_turn>" in a user's message into the id that ends a turn. `encode`
here never does. The ids that structure a prompt are written by chat.py.
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

# Pieces that no user text may become, where a model has them. Gemma's other
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

# SentencePiece writes a space as this character, and so reads this character
# in a text as a space. Only as bytes does it survive.
_SPACE_MARK = '\u2581'


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePiece:
  """The codec of a tokenizer.model, see tokenizer.Codec.

  Attributes:
    sp: the SentencePiece processor. Its own encode is not safe for user text.
    vocab_size: pieces in the model, 256,000 for Gemma (checkpoints may have
      more embedding rows; those rows have no text).
    control_ids: ascending ids that `encode` never yields: every CONTROL piece
      and the RESERVED_PIECES that the model has.
    byte_start: id of <0x00>; the byte b is the piece byte_start + b.
    reserved_text: matches what must be split before SentencePiece sees it.
  """

  sp: sentencepiece.SentencePieceProcessor
  vocab_size: int
  control_ids: tuple[int, ...]
  byte_start: int
  reserved_text: re.Pattern[str]

  def encode(self, text: str) -> list[int]:
    """Ids of a text without surrogates, none of them in control_ids.

    `decode` gives the same text back, unless the model normalizes text
    (Gemma's does not). A text without reserved symbols gets exactly
    SentencePiece's own ids.
    """
    control = frozenset(self.control_ids)
    ids = []
    for fragment in _fragments(self.reserved_text, text):
      ids.extend(_encode_fragment(self, control, fragment))
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; bytes that are not UTF-8 become U+FFFD."""
    return self.sp.decode(list(ids))

  def piece(self, i: int) -> str:
    """What the model calls an id."""
    return self.sp.id_to_piece(i)


def from_bytes(data: bytes, name: str) -> SentencePiece:
  """Makes a codec from the bytes of a tokenizer.model.

  Args:
    data: a serialized SentencePiece model.
    name: what error messages call it, usually its path.

  Raises:
    UserError: this is no SentencePiece model, or not laid out as Gemma's is.
  """
  sp = sentencepiece.SentencePieceProcessor()
  try:
    sp.load_from_serialized_proto(data)
  except RuntimeError as error:
    raise UserError(
      f'{name} is not a SentencePiece model; give the tokenizer.model that '
      "comes with Gemma-2's weights (not tokenizer.json)"
    ) from error
  _check_is_gemma(sp, name)
  control_ids = _control_ids(sp)
  names = {sp.id_to_piece(i) for i in control_ids}
  pattern = '|'.join(re.escape(n) for n in sorted(names | {_SPACE_MARK}))
  return SentencePiece(
    sp=sp,
    vocab_size=sp.vocab_size(),
    control_ids=control_ids,
    byte_start=sp.piece_to_id('<0x00>'),
    reserved_text=re.compile(pattern),
  )


def _check_is_gemma(
  sp: sentencepiece.SentencePieceProcessor, name: str
) -> None:
  """Raises UserError unless ids and bytes are laid out as in Gemma."""
  for piece, expected in GEMMA_IDS.items():
    found = sp.piece_to_id(piece)
    # An unknown piece gets the id of unk, which is the id of another piece.
    if sp.id_to_piece(found) != piece:
      found = 'no such piece'
    if found != expected:
      raise UserError(
        f'{name} is not a Gemma tokenizer: {piece} must have id {expected}, '
        f"found {found}; give the tokenizer.model that comes with Gemma-2's "
        'weights'
      )
  if sp.piece_to_id('<0xFF>') != sp.piece_to_id('<0x00>') + 255:
    raise UserError(
      f'{name} has no byte pieces <0x00> to <0xFF> in a row, so that unknown '
      'characters would become <unk>; train it with byte_fallback=True'
    )
  if sp.encode_as_pieces('a')[0].startswith(_SPACE_MARK):
    raise UserError(
      f"{name} puts a space before every text, which Gemma's tokenizer does "
      'not; train it with add_dummy_prefix=False'
    )


def _control_ids(sp: sentencepiece.SentencePieceProcessor) -> tuple[int, ...]:
  """Ascending ids of CONTROL pieces and of the RESERVED_PIECES in the model."""
  ids = {i for i in range(sp.vocab_size()) if sp.is_control(i)}
  # A piece that the model lacks gets the id of unk, which is reserved too.
  ids |= {sp.piece_to_id(piece) for piece in RESERVED_PIECES}
  return tuple(sorted(ids))


def _fragments(reserved_text: re.Pattern[str], text: str) -> Iterator[str]:
  """Cuts text so that no fragment contains a reserved symbol.

  A symbol is cut after its first character: no reserved symbol begins inside
  another, so neither part can complete one. A space mark is a fragment alone.
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
  codec: SentencePiece, control: frozenset[int], fragment: str
) -> list[int]:
  """Ids of a fragment, by characters or bytes where whole text is unsafe."""
  if fragment == _SPACE_MARK:
    return _as_bytes(codec, fragment)
  ids = codec.sp.encode(fragment)
  if control.isdisjoint(ids):
    return ids
  # The model's normalizer made a symbol of something else, for example of
  # full-width letters. One character rarely spells a symbol, and where a
  # normalizer makes even that happen, bytes are out of its reach.
  ids = []
  for character in fragment:
    own = codec.sp.encode(character)
    safe = control.isdisjoint(own)
    ids.extend(own if safe else _as_bytes(codec, character))
  return ids


def _as_bytes(codec: SentencePiece, text: str) -> list[int]:
  return [codec.byte_start + b for b in text.encode('utf-8')]
