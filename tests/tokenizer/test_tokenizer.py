"""The tokenizer, with small models trained here with Gemma's pieces."""

import io
import pathlib
import pickle
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.tokenizer import tokenizer
from tests.messages import naming

SYMBOLS = (
  ['<mask>', '<2mass>', '[@BOS@]']
  + [f'<unused{i}>' for i in range(99)]
  + ['<start_of_turn>', '<end_of_turn>']
)
PLAIN_SYMBOLS = ['\n', '\n\n', '\u2581\u2581', '<b>', '</b>']  # 108 to 112

# Each character is a piece and no two merge, so expected pieces are known:
# 4 + 104 + 5 + 256 bytes + 45 characters.
ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789<>_[]@/: '


def train(**changes):
  model = io.BytesIO()
  options = {
    'sentence_iterator': iter([ALPHABET]),
    'model_writer': model,
    'model_type': 'bpe',
    'vocab_size': 4 + 104 + 5 + 256 + len(ALPHABET),
    'hard_vocab_limit': False,
    'character_coverage': 1.0,
    'byte_fallback': True,
    'split_digits': True,
    'add_dummy_prefix': False,
    'remove_extra_whitespaces': False,
    'normalization_rule_name': 'identity',
    'pad_id': 0,
    'eos_id': 1,
    'bos_id': 2,
    'unk_id': 3,
    'pad_piece': '<pad>',
    'eos_piece': '<eos>',
    'bos_piece': '<bos>',
    'unk_piece': '<unk>',
    'user_defined_symbols': SYMBOLS + PLAIN_SYMBOLS,
    'num_threads': 1,
    'minloglevel': 2,
  }
  sentencepiece.SentencePieceTrainer.train(**(options | changes))
  return model.getvalue()


def from_training(**changes):
  return tokenizer.from_bytes(train(**changes), 'a model')


TK = from_training()


def pieces(ids, tk=TK):
  return [tk.codec.sp.id_to_piece(i) for i in ids]


def test_ids_equal_those_of_gemma():
  assert (TK.eos_id, TK.bos_id) == (1, 2)
  assert (TK.start_of_turn_id, TK.end_of_turn_id) == (106, 107)
  assert TK.stop_ids == (1, 107)
  assert TK.vocab_size == 414
  assert TK.control_ids == tuple(range(108))
  assert TK.codec.byte_start == 113


def test_control_pieces_of_a_model_are_control_ids():
  tk = from_training(
    control_symbols=['<image>'], user_defined_symbols=SYMBOLS[1:]
  )
  assert tk.codec.sp.id_to_piece(4) == '<image>'
  assert tk.control_ids == tuple(range(108))
  assert tk.decode([4, *tk.encode('<image>')]) == '<image>'


def test_missing_reserved_pieces_are_not_control_ids():
  filler = [f'<x{i}>' for i in range(102)]
  tk = from_training(user_defined_symbols=filler + SYMBOLS[-2:])
  assert tk.control_ids == (0, 1, 2, 3, 106, 107)


def test_plain_sentencepiece_would_create_control_ids():
  assert TK.codec.sp.encode('<start_of_turn>') == [106]
  assert TK.codec.sp.encode('[@BOS@]<mask>') == [6, 4]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('ab', ['a', 'b']),
    ('<eos>', ['<', 'e', 'o', 's', '>']),
    ('<pad>', ['<', 'p', 'a', 'd', '>']),
    ('<bos><unk>', list('<bos><unk>')),
    ('<mask>', ['<', 'm', 'a', 's', 'k', '>']),
    ('<2mass>', ['<', '2', 'm', 'a', 's', 's', '>']),
    ('<unused98>', list('<unused98>')),
    ('a<start_of_turn>b', list('a<start_of_turn>b')),
    (
      '<end_of_turn>\n<start_of_turn>model',
      [*'<end_of_turn>', '\n', *'<start_of_turn>model'],
    ),
    ('<start_of_<start_of_turn>turn>', list('<start_of_<start_of_turn>turn>')),
    ('<<mask>>', list('<<mask>>')),
    ('[@BOS@]', ['[', '@', '<0x42>', '<0x4F>', '<0x53>', '@', ']']),
    # Gemma's other symbols are plain text and stay in one piece.
    ('<b>a</b>', ['<b>', 'a', '</b>']),
    ('\n\n\n', ['\n\n', '\n']),
    ('a  b c', ['a', '\u2581\u2581', 'b', '\u2581', 'c']),
    ('<mask>\n\n<b>', [*'<mask>', '\n\n', '<b>']),
    ('', []),
    # SentencePiece would read this character as a space.
    ('\u2581', ['<0xE2>', '<0x96>', '<0x81>']),
    ('\0', ['<0x00>']),
    ('\r\n', ['<0x0D>', '\n']),
    ('\ud800', ['<0xEF>', '<0xBF>', '<0xBD>']),
    ('<0x0A>', ['<', '0', 'x', '0', '<0x41>', '>']),
  ],
)
def test_encode(text, expected):
  assert pieces(TK.encode(text)) == expected


@pytest.mark.parametrize('symbol', ['<pad>', '<eos>', '<bos>', *SYMBOLS])
def test_every_reserved_symbol_stays_text(symbol):
  ids = TK.encode(f'x{symbol}{symbol} y')
  assert min(ids) > 107
  assert TK.decode(ids) == f'x{symbol}{symbol} y'


HAZARDS = [
  '<start_of_turn>',
  '<end_of_turn>\n<start_of_turn>model',
  '<eos>',
  '<unused7>',
  '<0x41>',
  '<b>',
  '<',
  'start_of_turn>',
  '\u2581',
  '\0',
  '\r\n',
  '  ',
  '\n\n\n',
  '\ufffd',
  '\ufeff',
  '\U0001f468\u200d\U0001f469',
]
TEXTS = st.lists(
  st.one_of(
    st.sampled_from(HAZARDS),
    st.text(st.characters(exclude_categories=()), max_size=4),
    st.characters(categories=('Cs',)),
  )
).map(''.join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_decode_inverts_encode_without_control_ids(text):
  ids = TK.encode(text)
  assert set(TK.control_ids).isdisjoint(ids)
  expected = ''.join(
    '\ufffd' if 0xD800 <= ord(c) <= 0xDFFF else c for c in text
  )
  assert TK.decode(ids) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=ALPHABET.replace('<', '') + '\n\u00e9\U0001f600'))
def test_text_without_symbols_gets_the_ids_of_sentencepiece(text):
  assert TK.encode(text) == TK.codec.sp.encode(text)


def test_leading_and_trailing_spaces_survive():
  assert TK.decode(TK.encode('  a \n ')) == '  a \n '


def test_a_normalizing_model_creates_no_control_ids():
  tk = from_training(normalization_rule_name='nfkc')
  text = 'a \uff1cstart_of_turn\uff1e b'
  assert 106 in tk.codec.sp.encode(text)
  ids = tk.encode(text)
  assert set(tk.control_ids).isdisjoint(ids)
  assert tk.decode(ids) == 'a <start_of_turn> b'


def test_a_character_normalized_to_a_symbol_becomes_bytes(tmp_path):
  rules = tmp_path / 'rules.tsv'
  symbol = ' '.join(f'{ord(c):X}' for c in '<start_of_turn>')
  rules.write_text(f'E000\t{symbol}\n')
  tk = from_training(
    normalization_rule_name='', normalization_rule_tsv=str(rules)
  )
  assert tk.codec.sp.encode('\ue000') == [106]
  expected = ['a', '<0xEE>', '<0x80>', '<0x80>', 'b']
  assert pieces(tk.encode('a\ue000b'), tk) == expected


def encoding_seconds(text):
  """Returns the smaller of two CPU times, free of other processes."""
  seconds = []
  for _ in range(2):
    start = time.process_time()
    TK.encode(text)
    seconds.append(time.process_time() - start)
  return min(seconds)


def test_long_text_full_of_symbols_takes_linear_time():
  text = '<start_of_turn>' * 100_000
  long = encoding_seconds(text)
  assert long < 5  # 0.3 s when written.
  # 4 times as long if linear; 16 times if each symbol copied the rest.
  assert long < 8 * encoding_seconds(text[: len(text) // 4])
  ids = TK.encode(text)
  assert len(ids) == 1_500_000
  assert TK.decode(ids) == text


def test_decode_hides_or_shows_control_ids():
  ids = [2, 106, *TK.encode('a b'), 107, *TK.encode('\n'), 3, 1, 0, 0]
  assert TK.decode(ids) == 'a b\n'
  assert (
    TK.decode(ids, show_control=True)
    == '<bos><start_of_turn>a b<end_of_turn>\n<unk><eos><pad><pad>'
  )
  assert TK.decode([0, 1, 2, 3]) == ''
  assert TK.decode([]) == ''
  assert TK.decode([], show_control=True) == ''


def test_decode_keeps_a_space_after_a_hidden_id():
  assert TK.decode([2, *TK.encode(' a')]) == ' a'
  assert TK.decode([2, *TK.encode(' a')], show_control=True) == '<bos> a'


def test_decode_replaces_half_a_character_by_u_fffd():
  ids = TK.encode('a\u00e9')
  assert pieces(ids) == ['a', '<0xC3>', '<0xA9>']
  assert TK.decode(ids[:-1]) == 'a\ufffd'


@pytest.mark.parametrize('array', [np.array, jnp.array])
def test_decode_reads_integer_arrays(array):
  assert TK.decode(array([2, *TK.encode('abc')])) == 'abc'


@pytest.mark.parametrize('invalid', [-1, 414])
def test_decode_rejects_ids_outside_the_vocabulary(invalid):
  with pytest.raises(ValueError, match=naming(invalid, 413)):
    TK.decode([2, invalid])


def test_load_and_pickle_keep_the_tokenizer(tmp_path):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(train())
  for tk in (tokenizer.load(path), tokenizer.load(str(path))):
    copy = pickle.loads(pickle.dumps(tk))
    assert copy.control_ids == TK.control_ids
    assert copy.encode('a<mask>') == TK.encode('a<mask>')


def test_load_rejects_a_missing_file_and_a_folder(tmp_path):
  for path, reason in (
    (tmp_path / 'none.model', 'No such file or directory'),
    (tmp_path, 'Is a directory'),
  ):
    with pytest.raises(UserError, match=naming(path, reason)):
      tokenizer.load(path)


@pytest.mark.parametrize('data', [b'', b'junk', b'{"version": "1.0"}'])
def test_load_rejects_other_kinds_of_files(tmp_path, data):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(data)
  with pytest.raises(UserError, match=naming(path, 'SentencePiece')):
    tokenizer.load(path)


@pytest.mark.parametrize(
  ('changes', 'piece', 'expected', 'actual'),
  [
    (
      {'user_defined_symbols': SYMBOLS[1:]},
      '<start_of_turn>',
      106,
      [105],
    ),
    (
      {'user_defined_symbols': SYMBOLS[:-2] + SYMBOLS[:-3:-1]},
      '<start_of_turn>',
      106,
      [107],
    ),
    (
      {'user_defined_symbols': SYMBOLS[:-1]},
      '<end_of_turn>',
      107,
      [],
    ),
    ({'pad_id': 3, 'unk_id': 0}, '<pad>', 0, [3]),
    ({'eos_id': 2, 'bos_id': 1}, '<eos>', 1, [2]),
    ({'eos_piece': '</s>'}, '<eos>', 1, []),
    ({'bos_piece': '<s>'}, '<bos>', 2, []),
    ({'unk_piece': '[UNK]'}, '<unk>', 3, []),
  ],
)
def test_other_ids_are_rejected(changes, piece, expected, actual):
  with pytest.raises(UserError, match=naming(piece, expected, *actual)):
    from_training(**changes)


def test_a_model_without_byte_pieces_is_rejected():
  with pytest.raises(
    UserError, match=naming('<0x00>', '<0xFF>', 'byte_fallback')
  ):
    from_training(byte_fallback=False, vocab_size=158)


def test_a_model_that_adds_a_space_is_rejected():
  with pytest.raises(UserError, match=naming('add_dummy_prefix')):
    from_training(add_dummy_prefix=True)


def test_tokenizer_imports_neither_jax_nor_tensorflow():
  code = (
    'import sys, grm_jax.tokenizer.tokenizer, grm_jax.tokenizer.chat_format\n'
    "print({'jax', 'flax', 'tensorflow'} & set(sys.modules))"
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert process.stdout == 'set()\n'
