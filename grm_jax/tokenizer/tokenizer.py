"""Text to ids and back, safe for text that users wrote.

Text never becomes a control id, whatever it spells: the ids that structure a
prompt are written by chat.py alone. How letters become pieces is a codec's
matter: Gemma's SentencePiece (tokenizer.model, sentencepiece_codec.py) or
byte-level BPE (tokenizer.json, bpe_codec.py).
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from etils import epath

from grm_jax.errors import UserError
from grm_jax.tokenizer import bpe_codec, sentencepiece_codec

_SURROGATE = re.compile('[\ud800-\udfff]')


class Codec(Protocol):
  """What a tokenizer asks of SentencePiece or BPE.

  Attributes:
    vocab_size: ids are below it.
    control_ids: ascending ids that `encode` never yields.
  """

  vocab_size: int
  control_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Ids of a text without surrogates, none of them in control_ids."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; bytes that are not UTF-8 become U+FFFD."""

  def piece(self, i: int) -> str:
    """What the vocabulary calls an id."""


@dataclasses.dataclass(frozen=True)
class ChatFormat:
  """How a model's conversations are written, see chat.py.

  Attributes:
    opening: ids before the first turn.
    model: what the model's own turns are called.
    system: whether a system text is a turn; it is else part of the user's.
  """

  opening: tuple[int, ...]
  model: str
  system: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A loaded tokenizer; make one with `load`.

  Attributes:
    codec: how text becomes pieces.
    turns: how conversations are written.
    eos_id, end_of_turn: what ends a text, and a turn.
    bos_id, start_of_turn: what begins them.
  """

  codec: Codec
  turns: ChatFormat
  eos_id: int
  bos_id: int
  start_of_turn: int
  end_of_turn: int

  @property
  def vocab_size(self) -> int:
    """Ids are below it; a checkpoint may have more embedding rows."""
    return self.codec.vocab_size

  @property
  def control_ids(self) -> tuple[int, ...]:
    """Ascending ids that `encode` never yields and `decode` hides."""
    return self.codec.control_ids

  @property
  def stop_ids(self) -> tuple[int, int]:
    """The ids that end a generation: (eos, end of turn)."""
    return (self.eos_id, self.end_of_turn)

  def encode(self, text: str) -> list[int]:
    """Encodes text that a user or a model wrote; adds no bos and no eos.

    Args:
      text: any str. Each surrogate code point, which UTF-8 cannot hold, is
        read as U+FFFD.

    Returns:
      Ids, none of them in control_ids. `decode` gives the same text back,
      unless the codec normalizes text or lacks some of its bytes.
    """
    return self.codec.encode(_SURROGATE.sub('\ufffd', text))

  def decode(self, ids: Iterable[int], show_control: bool = False) -> str:
    """The text of ids.

    Args:
      ids: ids of this model: a list, or a one-dimensional integer array.
      show_control: True prints control ids by name, such as "<eos>"; False
        prints nothing for them.

    Returns:
      The text. Bytes that are not UTF-8 (a character cut in half by a length
      limit) are printed as U+FFFD.

    Raises:
      ValueError: an id is negative or not below vocab_size.
    """
    ids = [int(i) for i in ids]
    for i in ids:
      if not 0 <= i < self.vocab_size:
        raise ValueError(
          f'cannot decode id {i}: the tokenizer has ids 0 to '
          f'{self.vocab_size - 1}; mask the padded embedding rows before '
          'choosing a token'
        )
    control = frozenset(self.control_ids)
    if not show_control:
      return self.codec.decode([i for i in ids if i not in control])
    parts = []
    for hidden, run in itertools.groupby(ids, control.__contains__):
      run = list(run)
      show = self.codec.piece if hidden else self.codec.decode
      parts += map(show, run) if hidden else [show(run)]
    return ''.join(parts)


def load(path: str | os.PathLike[str]) -> Tokenizer:
  """Reads a tokenizer.model, or a tokenizer.json of byte-level BPE.

  Raises:
    UserError: the file cannot be read, or is not laid out as Gemma's
      tokenizer.model or SmolLM2's tokenizer.json is.
  """
  try:
    data = epath.Path(path).read_bytes()
  except OSError as error:
    raise UserError(
      f'cannot read the tokenizer {path}: {error.strerror or error}; give the '
      "path of the tokenizer.model that comes with Gemma-2's weights"
    ) from error
  return from_bytes(data, str(path))


def from_bytes(data: bytes, name: str) -> Tokenizer:
  """Makes a tokenizer from the bytes of a file.

  Args:
    data: a serialized SentencePiece model, or a tokenizer.json.
    name: what error messages call it, usually its path; a name that ends in
      .json is the latter.

  Raises:
    UserError: as for `load`.
  """
  if name.endswith('.json'):
    return _bpe(bpe_codec.from_json(data, name))
  return _gemma(sentencepiece_codec.from_bytes(data, name))


def _gemma(codec: sentencepiece_codec.SentencePiece) -> Tokenizer:
  ids = sentencepiece_codec
  return Tokenizer(
    codec,
    ChatFormat(opening=(ids.BOS,), model='model', system=False),
    eos_id=ids.EOS,
    bos_id=ids.BOS,
    start_of_turn=ids.START_OF_TURN,
    end_of_turn=ids.END_OF_TURN,
  )


def _bpe(codec: bpe_codec.Bpe) -> Tokenizer:
  end_of_text, start, end = codec.turn_ids
  return Tokenizer(
    codec,
    ChatFormat(opening=(), model='assistant', system=True),
    eos_id=end_of_text,
    bos_id=start,
    start_of_turn=start,
    end_of_turn=end,
  )
