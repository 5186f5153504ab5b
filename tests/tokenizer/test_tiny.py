"""The tiny tokenizer: Gemma's layout, the same bytes every time."""

import os
import pathlib
import subprocess
import sys

import pytest

from grm_jax.tokenizer import tiny as tiny_tokenizer
from grm_jax.tokenizer import tokenizer

TRAIN = """
import sys
from grm_jax.tokenizer import tiny
tiny.train(sys.argv[1])
"""


@pytest.fixture(scope='module')
def tk(tmp_path_factory):
  return tiny_tokenizer.train(tmp_path_factory.mktemp('tk') / 'tiny.model')


def pieces(tk, text):
  return [tk.codec.sp.id_to_piece(i) for i in tk.encode(text)]


def test_layout(tk):
  assert tk.vocab_size == 1024
  assert [tk.codec.sp.id_to_piece(i) for i in range(110)] == [
    *('<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '<2mass>', '[@BOS@]'),
    *(f'<unused{i}>' for i in range(99)),
    *('<start_of_turn>', '<end_of_turn>', '\n', '<0x00>'),
  ]
  assert tk.control_ids == tuple(range(108))
  assert tk.encode('\n\n') == [108, 108]


def test_two_processes_write_the_same_bytes_and_print_nothing(tmp_path):
  for name in ('1', '2'):
    process = subprocess.run(
      [sys.executable, '-c', TRAIN, str(tmp_path / name)],
      capture_output=True,
      text=True,
      env=os.environ | {'PYTHONHASHSEED': name},
      cwd=pathlib.Path(__file__).parents[2],
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, '', '')
  first, second = ((tmp_path / n).read_bytes() for n in ('1', '2'))
  assert len(first) > 10_000
  assert first == second


def test_learned_pieces(tk):
  assert pieces(tk, 'Response 2048') == [
    *('Response', '\u2581', '2', '0', '4', '8'),
  ]
  assert pieces(tk, '\u00e9') == ['<0xC3>', '<0xA9>']
  assert pieces(tk, '  x') == ['\u2581', '\u2581', 'x']
  assert tk.decode(tk.encode(' \ufb01  \u2460 ')) == ' \ufb01  \u2460 '
  judgement = 'Critique: 6 * 7 = 42.\nScores: \\boxed{8, 3}\n'
  assert tk.decode(tk.encode(judgement)) == judgement
  assert len(tk.encode(judgement)) < 30  # 45 characters


def test_load_reads_the_written_file(tk, tmp_path):
  path = tmp_path / 'tiny.model'
  path.write_bytes(b'old')
  tiny_tokenizer.train(str(path))
  loaded = tokenizer.load(path)
  assert loaded.encode('Scores: <eos>') == tk.encode('Scores: <eos>')
  assert os.listdir(tmp_path) == ['tiny.model']
