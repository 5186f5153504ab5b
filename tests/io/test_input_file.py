"""Paths that are not files are refused before they are read."""

import os
import socket

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io
from grm_jax.io import input_file
from grm_jax.tokenizer import tokenizer
from tests.messages import naming


def test_files_folders_and_missing_paths_pass(tmp_path):
  (tmp_path / 'f').write_text('x')
  (tmp_path / 'link').symlink_to(tmp_path / 'f')
  for path in ('f', 'link', '', 'missing', 'a\0b'):
    input_file.check(tmp_path / path)
  input_file.check('gs://bucket/f')


@pytest.mark.parametrize('kind', ['pipe', 'socket', 'device', 'terminal'])
def test_others_are_refused_with_their_key(tmp_path, kind):
  path = tmp_path / 'x'
  with socket.socket(socket.AF_UNIX) as server:
    match kind:
      case 'pipe':
        os.mkfifo(path)
      case 'socket':
        server.bind(str(path))
      case 'device':
        path.symlink_to('/dev/zero')
      case 'terminal':
        path.symlink_to('/dev/ptmx')
    with pytest.raises(UserError, match=naming(f'config.input={path}')):
      input_file.check(path, 'config.input')


def test_pipe_of_a_process_substitution_is_refused():
  reader, writer = os.pipe()
  try:
    with pytest.raises(UserError, match=naming(f'/dev/fd/{reader}')):
      input_file.check(f'/dev/fd/{reader}')
  finally:
    os.close(reader)
    os.close(writer)


def test_readers_of_whole_files_refuse_a_pipe(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  for read in (lambda x: list(judgement_io.read(x)), tokenizer.load):
    with pytest.raises(UserError, match=naming(path)):
      read(path)
