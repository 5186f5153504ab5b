"""A journal continues after its last complete line."""

import json
import subprocess
import sys

import pytest

from grm_jax.errors import UserError
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
  lines = path.read_text().splitlines()
  assert [json.loads(x) for x in lines] == [{'a': 1}, {'i': 0}]


def test_delete(tmp_path):
  journal = Journal(tmp_path / 'j', HEADER)
  journal.delete()
  assert not (tmp_path / 'j').exists()
