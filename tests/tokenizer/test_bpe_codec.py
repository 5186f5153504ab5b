"""Byte-level BPE, with a small tokenizer.json trained here."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.tokenizer import chat_format, tokenizer
from tests.messages import naming

CONTROL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<repo_name>')
LINES = [
  'Which response is better, and why? Response 1 is right: 12 + 30 = 42.',
  "It's not what they'd asked for; the second one ends too early.\n\n",
  'user assistant system <|im_start|> <|im_end|>',
]


def train(alphabet=None):
  """Trains a tokenizer; every byte has a piece unless `alphabet` lacks it."""
  if alphabet is None:
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trained = tokenizers.Tokenizer(tokenizers.models.BPE())
  parts = tokenizers.pre_tokenizers
  trained.pre_tokenizer = parts.Sequence(
    [parts.Digits(True), parts.ByteLevel(add_prefix_space=False)]
  )
  trained.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=list(CONTROL),
    initial_alphabet=alphabet,
    show_progress=False,
  )
  trained.train_from_iterator(LINES * 3, trainer)
  return trained


FULL_TOKENIZER = train()
TK = tokenizer.from_bytes(FULL_TOKENIZER.to_str().encode(), 'tokenizer.json')


def test_ids():
  assert TK.control_ids == (0, 1, 2, 3)
  assert TK.stop_ids == (0, 2)
  assert TK.start_of_turn_id == 1
  assert TK.vocab_size == FULL_TOKENIZER.get_vocab_size()
  assert TK.decode([1, 2, 3], show_control=True) == (
    '<|im_start|><|im_end|><repo_name>'
  )
  assert TK.decode([1, *TK.encode('a'), 2]) == 'a'
  with pytest.raises(ValueError, match=naming(TK.vocab_size)):
    TK.decode([TK.vocab_size])


@given(st.text())
def test_decode_inverts_encode(text):
  ids = TK.encode(text)
  assert not set(ids) & set(TK.control_ids)
  assert TK.decode(ids) == text


@given(
  st.lists(
    st.one_of(
      st.sampled_from([*CONTROL, '<|im_', 'end|>', '<|', '|>', '\n', ' ']),
      st.text(max_size=4),
    )
  ).map(''.join)
)
def test_no_text_becomes_a_control_id(text):
  ids = TK.encode(text)
  assert not set(ids) & set(TK.control_ids)
  assert TK.decode(ids) == text


@pytest.mark.parametrize('text', [*LINES[:2], '  two  spaces', '\u00e9t\u00e9'])
def test_plain_text_gets_the_ids_of_the_file(text):
  assert TK.encode(text) == FULL_TOKENIZER.encode(text).ids


def test_the_file_alone_would_create_control_ids():
  assert FULL_TOKENIZER.encode('<|im_end|>').ids == [2]
  assert len(TK.encode('<|im_end|>')) > 1


def test_control_tokens_that_merges_produce():
  """One control token is made by merges, another is not in the vocabulary."""
  fields = json.loads(FULL_TOKENIZER.to_str())
  model = fields['model']
  for piece in ('me', 'name'):
    model['vocab'].setdefault(piece, len(model['vocab']))
  model['merges'] = [['m', 'e'], ['n', 'a'], ['na', 'me'], *model['merges']]
  model['vocab'].setdefault('na', len(model['vocab']))
  size = len(model['vocab'])
  fields['added_tokens'] += [
    {'id': model['vocab']['name'], 'content': 'name'},
    {'id': size, 'content': '<tool>'},
  ]
  tk = tokenizer.from_bytes(json.dumps(fields).encode(), 'tokenizer.json')
  assert tk.vocab_size == size + 1
  ids = tk.encode('a name<tool>')
  assert not set(ids) & set(tk.control_ids)
  assert tk.decode(ids) == 'a name<tool>'
  assert tk.decode([size], show_control=True) == '<tool>'
  assert tk.decode([size]) == ''


def test_digits_are_separate_pieces():
  pieces = [TK.codec.id_to_piece(i) for i in TK.encode('12')]
  assert pieces == ['1', '2']


def test_characters_with_missing_bytes_become_u_fffd():
  """SmolLM2, for example, lacks the first byte of the highest planes."""
  trained = train(alphabet=[])  # only the bytes of LINES; no 0xC3
  fields = json.loads(trained.to_str())
  vocab = fields['model']['vocab']
  for letter in '\u00ef\u00bf\u00bd':  # the bytes of U+FFFD
    vocab.setdefault(letter, len(vocab))
  tk = tokenizer.from_bytes(json.dumps(fields).encode(), 'tokenizer.json')
  assert tk.decode(tk.encode('a\u00e9b')) == 'a\ufffdb'
  assert tk.decode(tk.encode('better')) == 'better'


def test_surrogates_become_u_fffd():
  assert TK.decode(TK.encode('a\ud800b')) == 'a\ufffdb'


def test_chatml():
  """Equals SmolLM2's own template with a system text."""
  ids = chat_format.render(
    TK,
    [
      {'role': 'system', 'content': 'Judge.'},
      {'role': 'user', 'content': 'Is 7 prime?<|im_end|>'},
      {'role': 'model', 'content': 'Yes.'},
      {'role': 'user', 'content': 'And 9?'},
    ],
  )
  assert TK.decode(ids, show_control=True) == (
    '<|im_start|>system\nJudge.<|im_end|>\n'
    '<|im_start|>user\nIs 7 prime?<|im_end|><|im_end|>\n'
    '<|im_start|>assistant\nYes.<|im_end|>\n'
    '<|im_start|>user\nAnd 9?<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  assert ids.count(TK.end_of_turn_id) == 4
  ids = chat_format.render_user(TK, 'Is 7 prime?')
  assert TK.decode(ids, show_control=True) == (
    '<|im_start|>user\nIs 7 prime?<|im_end|>\n<|im_start|>assistant\n'
  )


def changed_file(**changes):
  fields = json.loads(FULL_TOKENIZER.to_str()) | changes
  return json.dumps(fields).encode()


@pytest.mark.parametrize(
  'data, words',
  [
    (b'{', []),
    (b'[]', []),
    (b'\xff' * 5000, ['UnicodeDecodeError']),  # without the 5000 bytes
    (changed_file(added_tokens=[]), ['<|endoftext|>', '<|im_start|>']),
    (changed_file(normalizer={'type': 'NFKC'}), ['BPE', 'normalizer']),
    (changed_file(model={'type': 'Unigram', 'vocab': []}), ['BPE']),
    (changed_file(pre_tokenizer={'type': 'Whitespace'}), ['BPE']),
    (changed_file(model={'type': 'BPE', 'vocab': {}, 'merges': ['a b']}), []),
  ],
)
def test_unsupported_files_are_rejected(data, words):
  with pytest.raises(UserError, match=naming('a.json', *words)) as caught:
    tokenizer.from_bytes(data, 'a.json')
  assert len(str(caught.value)) < 400
