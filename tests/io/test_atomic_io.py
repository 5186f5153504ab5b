"""Files appear whole or not at all, and a path that fails is named."""

import os

import pytest
from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from tests.messages import naming


def test_writes_text_and_bytes_and_makes_folders(tmp_path):
  atomic_io.write_file(tmp_path / 'a' / 'b.txt', 'naïve\n')
  assert (tmp_path / 'a' / 'b.txt').read_bytes() == b'na\xc3\xafve\n'
  atomic_io.write_file(str(tmp_path / 'a' / 'b.txt'), b'\x00')
  assert (tmp_path / 'a' / 'b.txt').read_bytes() == b'\x00'
  assert os.listdir(tmp_path / 'a') == ['b.txt']


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  path.write_bytes(b'old')

  def full(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'replace', full)
  with pytest.raises(UserError, match=naming(path, 'No space left on device')):
    atomic_io.write_file(path, b'new text')
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['file']


def test_a_folder_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(UserError, match=naming(tmp_path / 'file/inside')):
    atomic_io.write_file(tmp_path / 'file' / 'inside', b'x')


def test_lines_that_end_in_an_error_leave_nothing(tmp_path):
  path = tmp_path / 'lines'
  assert atomic_io.write_lines(path, ['a', 'é']) == 2
  assert path.read_text(encoding='utf-8') == 'a\né\n'

  def broken():
    yield 'c'
    raise KeyError('row')

  with pytest.raises(KeyError):
    atomic_io.write_lines(path, broken())
  assert path.read_text(encoding='utf-8') == 'a\né\n'
  assert os.listdir(tmp_path) == ['lines']


def test_what_is_no_file_is_not_replaced(tmp_path):
  """A device would be gone for everybody."""
  (tmp_path / 'folder').mkdir()
  os.mkfifo(tmp_path / 'pipe')
  for name in ('folder', 'pipe'):
    with pytest.raises(UserError, match=naming(tmp_path / name)):
      atomic_io.write_file(tmp_path / name, b'x')
  with pytest.raises(UserError, match=naming('/dev/null')):
    atomic_io.write_file('/dev/null', b'x')
  assert sorted(os.listdir(tmp_path)) == ['folder', 'pipe']
