"""A journal continues after its last intact line."""

import logging
import subprocess
import sys

import pytest

from grm_jax.errors import UserError
from grm_jax.io import journal as journals
from grm_jax.io.journal import Journal
from tests import full_disk
from tests.messages import naming

HEADER = {'k': 8, 'seed': 0, 'buckets': (1, 2)}


def write(path, count):
  """Appends rows to a journal until it has `count`."""
  with Journal(path, HEADER) as journal:
    for i in range(journal.count, count):
      journal.append({'i': i, 'text': 'é\u2028\ud800'})


def test_rows_are_read_in_order(tmp_path):
  path = tmp_path / 'new folder' / 'j'
  write(path, 3)
  with Journal(path, HEADER) as journal:
    assert journal.count == 3
    assert [row['i'] for row in journal.rows()] == [0, 1, 2]
    assert next(journal.rows())['text'] == 'é\u2028\ud800'
  assert not list(Journal(tmp_path / 'empty', HEADER).rows())


@pytest.mark.parametrize('num_lost_bytes', range(1, 80, 3))
def test_incomplete_line_is_written_again(tmp_path, num_lost_bytes):
  path = tmp_path / 'j'
  write(path, 3)
  complete = path.read_bytes()
  path.write_bytes(complete[:-num_lost_bytes])
  write(path, 3)
  assert path.read_bytes() == complete


def test_another_header_is_refused(tmp_path):
  path = tmp_path / 'j'
  write(path, 2)
  before = path.read_bytes()
  with pytest.raises(UserError, match=naming(path, 'k', 8, 16)):
    Journal(path, HEADER | {'k': 16})
  with pytest.raises(UserError, match=naming(path, 'seed', 0, None)):
    Journal(path, {'k': 8, 'buckets': [1, 2]})
  assert path.read_bytes() == before


def test_other_files_are_not_changed(tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_text('dear diary\n')
  with pytest.raises(UserError, match=naming(path)):
    Journal(path, HEADER)
  assert path.read_text() == 'dear diary\n'


def test_path_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=naming(tmp_path / 'file/j')):
    Journal(tmp_path / 'file' / 'j', HEADER)


def test_full_disk_keeps_earlier_rows(tmp_path):
  path = tmp_path / 'j'
  write(path, 2)
  message = naming(path, full_disk.ERROR_TEXT)
  with (
    full_disk.limit_file_size(path.stat().st_size + 5),
    pytest.raises(UserError, match=message),
  ):
    write(path, 4)
  write(path, 4)
  with Journal(path, HEADER) as journal:
    assert [row['i'] for row in journal.rows()] == [0, 1, 2, 3]


def test_appended_row_survives_sigkill(tmp_path):
  path = tmp_path / 'j'
  code = (
    'import os, signal, sys\n'
    'from grm_jax.io.journal import Journal\n'
    'journal = Journal(sys.argv[1], {"a": 1})\n'
    'journal.append({"i": 0})\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  process = subprocess.run([sys.executable, '-c', code, str(path)])
  assert process.returncode == -9
  assert list(journals.rows(path)) == [{'i': 0}]


def test_delete(tmp_path):
  journal = Journal(tmp_path / 'j', HEADER)
  journal.delete()
  assert not (tmp_path / 'j').exists()


def damage(lines, kind):
  """Returns the lines of a journal with line 3, the second row, damaged."""
  second = lines[2]
  return {
    'changed': [*lines[:2], second.replace(b'"i": 1', b'"i": 7'), *lines[3:]],
    'doubled': [*lines[:2], lines[1], *lines[2:]],
    'missing': [*lines[:2], *lines[3:]],
    'exchanged': [*lines[:2], lines[3], second, *lines[4:]],
    'NUL': [*lines[:2], bytes(len(second)), *lines[3:]],
    'NUL line': [*lines[:2], b'\0\n', *lines[2:]],
    'blank': [*lines[:2], b'\n', *lines[2:]],
    'not UTF-8': [*lines[:2], b'\xff\xfe\n', *lines[2:]],
    'not JSON': [*lines[:2], second[:20] + b'\n', *lines[3:]],
  }[kind]


DAMAGES = ['changed', 'doubled', 'missing', 'exchanged', 'NUL', 'blank'] + [
  'NUL line',
  'not UTF-8',
  'not JSON',
]


@pytest.mark.parametrize('kind', DAMAGES)
def test_damaged_rows_are_written_again(tmp_path, caplog, kind):
  path = tmp_path / 'j'
  write(path, 4)
  intact = path.read_bytes()
  path.write_bytes(b''.join(damage(intact.splitlines(True), kind)))
  with caplog.at_level(logging.WARNING), Journal(path, HEADER) as journal:
    assert journal.count == 1
  assert str(path) in caplog.text and 'line 3' in caplog.text
  write(path, 4)
  assert path.read_bytes() == intact


@pytest.mark.parametrize('kind', DAMAGES)
def test_damaged_rows_are_not_results(tmp_path, kind):
  path = tmp_path / 'j'
  write(path, 4)
  path.write_bytes(b''.join(damage(path.read_bytes().splitlines(True), kind)))
  rows = journals.rows(path)
  assert next(rows)['i'] == 0
  with pytest.raises(UserError, match=naming(path, 3)):
    list(rows)


def test_zeros_after_a_crash_are_replaced(tmp_path):
  path = tmp_path / 'j'
  path.write_bytes(bytes(512))
  write(path, 2)
  assert [row['i'] for row in journals.rows(path)] == [0, 1]


def test_a_file_without_rows_binds_no_run(tmp_path):
  path = tmp_path / 'j'
  write(path, 0)
  with Journal(path, HEADER | {'k': 16}) as journal:
    journal.append({'i': 5})
  assert [row['i'] for row in journals.rows(path)] == [5]
  with pytest.raises(UserError, match=naming(path, 'k', 16, 8)):
    Journal(path, HEADER)
