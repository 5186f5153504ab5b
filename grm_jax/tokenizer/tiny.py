"""The tokenizer of the tiny model: Gemma's layout in 1,024 pieces.

Tests and `:tiny` configs run without Gemma's tokenizer.model. This tokenizer is
trained in seconds on tiny_corpus.txt, which was written for this project. It
has Gemma's control ids, byte pieces and newline piece.
"""

import io
import os
import pathlib
from collections.abc import Iterable

import sentencepiece

from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.tokenizer import sentencepiece_codec, tokenizer

VOCAB_SIZE = 1024

_CORPUS = pathlib.Path(__file__).with_name('tiny_corpus.txt')
# Pieces with ids from 4 on, as in Gemma. The trainer takes ids 0 to 3 by name.
_SYMBOLS = [*sentencepiece_codec.RESERVED_PIECES[4:], '\n']


def train(
  path: str | os.PathLike[str], lines: Iterable[str] | None = None
) -> tokenizer.Tokenizer:
  """Trains the tiny tokenizer and writes it to `path` atomically.

  The same version of sentencepiece always gives the same bytes.

  Args:
    path: the file to write; an existing file is replaced, and missing folders
      are created.
    lines: text to train on in addition to the project's corpus. Texts with few
      different words alone would not give enough pieces.

  Returns:
    The tokenizer that tokenizer.load(path) returns.

  Raises:
    UserError: the path cannot be written, or there is too little text.
  """
  corpus = _CORPUS.read_text(encoding='utf-8').splitlines()
  try:
    data = _train_bytes((*(lines or ()), *corpus))
  except RuntimeError as error:
    raise UserError(
      f'cannot train a tokenizer of {VOCAB_SIZE} pieces on these texts: '
      f'{" ".join(str(error).split())}; give more text'
    ) from error
  atomic_io.write_file(path, data)
  return tokenizer.from_bytes(data, str(path))


def _train_bytes(lines: Iterable[str]) -> bytes:
  """Returns a serialized BPE model trained on the non-empty lines."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=(line for line in lines if line),
    model_writer=model,
    model_type='bpe',
    vocab_size=VOCAB_SIZE,
    character_coverage=1.0,
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name='identity',
    pad_id=sentencepiece_codec.PAD,
    eos_id=sentencepiece_codec.EOS,
    bos_id=sentencepiece_codec.BOS,
    unk_id=sentencepiece_codec.UNK,
    pad_piece='<pad>',
    eos_piece='<eos>',
    bos_piece='<bos>',
    unk_piece='<unk>',
    user_defined_symbols=_SYMBOLS,
    num_threads=1,  # the order of merges must not depend on the machine
    minloglevel=2,  # errors only; the trainer logs its progress to stderr
  )
  return model.getvalue()
