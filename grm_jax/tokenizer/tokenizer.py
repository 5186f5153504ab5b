"""Text to ids and back, safe for text that users wrote.

Text never becomes a control id, whatever it spells. Only chat_format.py writes
the ids that structure a prompt. A codec maps text to pieces: Gemma's
SentencePiece (tokenizer.model) or byte-level BPE (tokenizer.json).
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import input_file
from grm_jax.tokenizer import bpe_codec, sentencepiece_codec
from grm_jax.tokenizer.chat_template import ChatTemplate

_SURROGATE = re.compile('[\ud800-\udfff]')


class Codec(Protocol):
  """Interface that a tokenizer needs from SentencePiece or BPE."""

  @property
  def vocab_size(self) -> int:
    """Number of ids; all ids are below it."""

  @property
  def control_ids(self) -> tuple[int, ...]:
    """Ascending ids that `encode` never returns."""

  def encode(self, text: str) -> list[int]:
    """Encodes text without surrogates; returns no id of control_ids."""

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids; bytes that are not UTF-8 become U+FFFD."""

  def id_to_piece(self, i: int) -> str:
    """Returns the vocabulary's name of an id."""


@dataclasses.dataclass(frozen=True)
class ChatFormat:
  """Format of a model's conversations, see chat_format.py.

  Attributes:
    name: 'gemma' or 'chatml', or that of the template.
    prefix_ids: ids before the first turn.
    model_role: the name of the model's own turns.
    has_system_role: whether a system text is a turn of its own. If not, it is
      joined to the first user turn.
    template: writes the conversations instead, if given.
  """

  name: str
  prefix_ids: tuple[int, ...]
  model_role: str
  has_system_role: bool
  template: ChatTemplate | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A tokenizer; `load` makes one from a file.

  Attributes:
    codec: maps text to pieces.
    chat_format: how conversations are written.
    eos_id: ends a text.
    bos_id: begins a text.
    start_of_turn_id: begins a turn.
    end_of_turn_id: ends a turn.
  """

  codec: Codec
  chat_format: ChatFormat
  eos_id: int
  bos_id: int
  start_of_turn_id: int
  end_of_turn_id: int

  @property
  def vocab_size(self) -> int:
    """Number of ids; a checkpoint may have more embedding rows."""
    return self.codec.vocab_size

  @property
  def control_ids(self) -> tuple[int, ...]:
    """Ascending ids that `encode` never returns and `decode` hides."""
    return self.codec.control_ids

  @property
  def stop_ids(self) -> tuple[int, int]:
    """The ids that end a generation: (eos, end of turn)."""
    return (self.eos_id, self.end_of_turn_id)

  def encode(self, text: str) -> list[int]:
    """Encodes text of a user or a model, without bos and eos.

    Args:
      text: any str. Surrogate code points, which UTF-8 cannot represent, are
        replaced by U+FFFD.

    Returns:
      Ids, none of them in control_ids. `decode` returns the same text, unless
      the codec normalizes text or lacks pieces for some bytes.
    """
    return self.codec.encode(_SURROGATE.sub('\ufffd', text))

  def decode(self, ids: Iterable[int], show_control: bool = False) -> str:
    """Decodes ids.

    Args:
      ids: a list or a one-dimensional integer array.
      show_control: whether to print control ids by name, such as "<eos>",
        instead of leaving them out.

    Returns:
      The text. Bytes that are not UTF-8 (a character that a length limit cut in
      half) become U+FFFD.

    Raises:
      ValueError: an id is negative or not below vocab_size.
    """
    ids = [int(i) for i in ids]
    for i in ids:
      if not 0 <= i < self.vocab_size:
        raise ValueError(
          f'cannot decode id {i}: the tokenizer has ids 0 to '
          f'{self.vocab_size - 1}; mask the padding rows of the embedding '
          'table when sampling'
        )
    control = frozenset(self.control_ids)
    if not show_control:
      return self.codec.decode([i for i in ids if i not in control])
    parts: list[str] = []
    # Text ids are decoded in runs: a character may span several of them.
    for is_control, group in itertools.groupby(ids, control.__contains__):
      if is_control:
        parts += [self.codec.id_to_piece(i) for i in group]
      else:
        parts.append(self.codec.decode(list(group)))
    return ''.join(parts)


def load(path: str | os.PathLike[str]) -> Tokenizer:
  """Reads a tokenizer.model, or a tokenizer.json of byte-level BPE.

  Args:
    path: local or gs://.

  Raises:
    UserError: the file cannot be read, or does not have the layout of Gemma's
      tokenizer.model or SmolLM2's tokenizer.json.
  """
  input_file.check(path)
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
    name: its path, for error messages. If it ends in .json, the data is a
      tokenizer.json.

  Raises:
    UserError: as for `load`.
  """
  if name.endswith('.json'):
    return _bpe_tokenizer(bpe_codec.from_json(data, name))
  return _gemma_tokenizer(sentencepiece_codec.from_bytes(data, name))


def _gemma_tokenizer(codec: sentencepiece_codec.SentencePieceCodec):
  return Tokenizer(
    codec,
    ChatFormat(
      name='gemma',
      prefix_ids=(sentencepiece_codec.BOS,),
      model_role='model',
      has_system_role=False,
    ),
    eos_id=sentencepiece_codec.EOS,
    bos_id=sentencepiece_codec.BOS,
    start_of_turn_id=sentencepiece_codec.START_OF_TURN,
    end_of_turn_id=sentencepiece_codec.END_OF_TURN,
  )


def _bpe_tokenizer(codec: bpe_codec.BPECodec):
  end_of_text, start_of_turn, end_of_turn = codec.chatml_ids
  return Tokenizer(
    codec,
    ChatFormat(
      name='chatml',
      prefix_ids=(),
      model_role='assistant',
      has_system_role=True,
    ),
    eos_id=end_of_text,
    bos_id=start_of_turn,
    start_of_turn_id=start_of_turn,
    end_of_turn_id=end_of_turn,
  )
