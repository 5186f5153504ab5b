"""What a user names and may not be read is one line with its path."""

import os

import pytest

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.evaluation.suites import SUITES
from grm_jax.io import atomic_io, row_reader
from grm_jax.judgement import template
from grm_jax.tokenizer import tokenizer
from tests import unreadable

FOLDER_READERS = {
  'suite': SUITES['rewardbench'].load,
  'data': lambda path: list(dataset_files.read_examples(f'{path}/rows.jsonl')),
  'data folder': dataset_files.list_files,
  'data pattern': lambda path: dataset_files.list_files(f'{path}/*.jsonl'),
  'files': lambda path: atomic_io.list_files(path, '*'),
  'checkpoint': lambda path: orbax_checkpoint.read_json(path, 'model'),
  'steps': orbax_checkpoint.steps,
  'tokenizer': lambda path: tokenizer.load(f'{path}/tokenizer.model'),
  'Hugging Face': hf_load.open_source,
  'template': lambda path: template.load(f'{path}/template.txt'),
  'identity': lambda path: model_directory.identity(path, None),
}
FILE_READERS = {
  'suite': SUITES['rewardbench'].load,
  'rows': lambda path: list(row_reader.read_rows(path, '.jsonl')),
  'tokenizer': tokenizer.load,
  'template': template.load,
  'judge.json': lambda path: model_directory.read_trained_judge(
    os.path.dirname(path)
  ),
}


@pytest.mark.parametrize('reader', FOLDER_READERS)
def test_folders(reader):
  with unreadable.folder() as folder:
    path = os.path.join(folder, 'secret')
    os.mkdir(path)
    with (
      unreadable.made(path),
      pytest.raises(UserError, match='Permission denied') as caught,
    ):
      FOLDER_READERS[reader](path)
  assert path in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('reader', FILE_READERS)
def test_files(reader):
  with unreadable.folder() as folder:
    path = os.path.join(folder, 'judge.json')
    with open(path, 'w') as file:
      file.write('{}')
    with (
      unreadable.made(path),
      pytest.raises(UserError, match='Permission denied') as caught,
    ):
      FILE_READERS[reader](path)
  assert path in str(caught.value) and '\n' not in str(caught.value)
