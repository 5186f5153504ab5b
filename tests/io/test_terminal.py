"""Text for terminals: nothing in it controls the terminal."""

import pytest

from grm_jax.io import terminal


@pytest.mark.parametrize(
  'text, shown',
  [
    ('plain é 数 🙂', 'plain é 数 🙂'),
    ('', ''),
    ('\x1b[31mred\x1b[0m', r'\x1b[31mred\x1b[0m'),
    ('a\nb\r\tc\x00\x7f', r'a\nb\r\tc\x00\x7f'),
    ('\x9b2J', r'\x9b2J'),  # CSI in one character
    ('\u202egpj.exe', r'\u202egpj.exe'),
    ('\u2028\u2029\x85', r'\u2028\u2029\x85'),
    ('\ud800', r'\ud800'),
  ],
)
def test_printable(text, shown):
  assert terminal.printable(text) == shown


def test_short_keeps_both_ends():
  assert terminal.short('a' * 300) == 'a' * 300
  shown = terminal.short('begin' + 'x' * 10_000 + 'end')
  assert shown.startswith('begin') and shown.endswith('end')
  assert len(shown) == 300
  assert len(terminal.short('\x1b' * 10_000)) <= 300
