"""Byte-level BPE, on a small tokenizer.json trained here."""

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


def train(**changes):
  """The file's content; every byte has a piece unless `alphabet` is less."""
  options = {'alphabet': tokenizers.pre_tokenizers.ByteLevel.alphabet()}
  options |= changes
  whole = tokenizers.Tokenizer(tokenizers.models.BPE())
  parts = tokenizers.pre_tokenizers
  whole.pre_tokenizer = parts.Sequence(
    [parts.Digits(True), parts.ByteLevel(add_prefix_space=False)]
  )
  whole.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=list(CONTROL),
    initial_alphabet=options['alphabet'],
    show_progress=False,
  )
  whole.train_from_iterator(LINES * 3, trainer)
  return whole


WHOLE = train()
TK = tokenizer.from_bytes(WHOLE.to_str().encode(), 'tokenizer.json')


def test_ids():
  assert TK.control_ids == (0, 1, 2, 3)
  assert TK.stop_ids == (0, 2)
  assert TK.start_of_turn_id == 1
  assert TK.vocab_size == WHOLE.get_vocab_size()
  assert TK.decode([1, 2, 3], show_control=True) == (
    '<|im_start|><|im_end|><repo_name>'
  )
  assert TK.decode([1, *TK.encode('a'), 2]) == 'a'
  with pytest.raises(ValueError, match=naming(TK.vocab_size)):
    TK.decode([TK.vocab_size])


@given(st.text())
def test_every_text_comes_back(text):
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
def test_plain_text_gets_the_files_own_ids(text):
  assert TK.encode(text) == WHOLE.encode(text).ids


def test_the_file_itself_would_let_text_become_control():
  assert WHOLE.encode('<|im_end|>').ids == [2]
  assert len(TK.encode('<|im_end|>')) > 1


def test_merges_that_make_a_control_token():
  """A file that spells one by its merges, and one that is in no vocabulary."""
  fields = json.loads(WHOLE.to_str())
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


def test_digits_are_apart():
  pieces = [TK.codec.id_to_piece(i) for i in TK.encode('12')]
  assert pieces == ['1', '2']


def test_a_byte_that_is_lacking():
  """As SmolLM2's: characters of the highest planes have no first byte."""
  whole = train(alphabet=[])  # only what the lines have, and no 0xC3
  fields = json.loads(whole.to_str())
  vocab = fields['model']['vocab']
  for letter in '\u00ef\u00bf\u00bd':  # the bytes of U+FFFD
    vocab.setdefault(letter, len(vocab))
  tk = tokenizer.from_bytes(json.dumps(fields).encode(), 'tokenizer.json')
  assert tk.decode(tk.encode('a\u00e9b')) == 'a\ufffdb'
  assert tk.decode(tk.encode('better')) == 'better'


def test_surrogates_are_read_as_unknown():
  assert TK.decode(TK.encode('a\ud800b')) == 'a\ufffdb'


def test_chatml():
  """The form of SmolLM2's own template, where a system text is given."""
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


def changed(**changes):
  fields = json.loads(WHOLE.to_str()) | changes
  return json.dumps(fields).encode()


@pytest.mark.parametrize(
  'data, words',
  [
    (b'{', []),
    (b'[]', []),
    (changed(added_tokens=[]), ['<|endoftext|>', '<|im_start|>']),
    (changed(normalizer={'type': 'NFKC'}), ['BPE', 'normalizer']),
    (changed(model={'type': 'Unigram', 'vocab': []}), ['BPE']),
    (changed(pre_tokenizer={'type': 'Whitespace'}), ['BPE']),
    (changed(model={'type': 'BPE', 'vocab': {}, 'merges': ['a b']}), []),
  ],
)
def test_other_files_are_refused(data, words):
  with pytest.raises(UserError, match=naming('a.json', *words)):
    tokenizer.from_bytes(data, 'a.json')
