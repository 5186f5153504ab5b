"""Atomic writes: a complete file or the old one, and errors name the path."""

import os

import pytest
from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from tests.messages import naming


def test_write_file_makes_folders(tmp_path):
  atomic_io.write_file(tmp_path / 'a' / 'b.txt', 'naïve\n')
  assert (tmp_path / 'a' / 'b.txt').read_bytes() == b'na\xc3\xafve\n'
  atomic_io.write_file(str(tmp_path / 'a' / 'b.txt'), b'\x00')
  assert (tmp_path / 'a' / 'b.txt').read_bytes() == b'\x00'
  assert os.listdir(tmp_path / 'a') == ['b.txt']


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  path.write_bytes(b'old')

  def replace_on_full_disk(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'replace', replace_on_full_disk)
  with pytest.raises(UserError, match=naming(path, 'No space left on device')):
    atomic_io.write_file(path, b'new text')
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['file']


def test_parent_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(UserError, match=naming(tmp_path / 'file/inside')):
    atomic_io.write_file(tmp_path / 'file' / 'inside', b'x')


def test_failed_iterator_keeps_the_old_file(tmp_path):
  path = tmp_path / 'lines'
  assert atomic_io.write_lines(path, ['a', 'é']) == 2
  assert path.read_text(encoding='utf-8') == 'a\né\n'

  def failing_lines():
    yield 'c'
    raise KeyError('row')

  with pytest.raises(KeyError):
    atomic_io.write_lines(path, failing_lines())
  assert path.read_text(encoding='utf-8') == 'a\né\n'
  assert os.listdir(tmp_path) == ['lines']


def test_devices_and_folders_are_not_replaced(tmp_path):
  (tmp_path / 'folder').mkdir()
  os.mkfifo(tmp_path / 'pipe')
  for name in ('folder', 'pipe'):
    with pytest.raises(UserError, match=naming(tmp_path / name)):
      atomic_io.write_file(tmp_path / name, b'x')
  with pytest.raises(UserError, match=naming('/dev/null')):
    atomic_io.write_file('/dev/null', b'x')
  assert sorted(os.listdir(tmp_path)) == ['folder', 'pipe']
