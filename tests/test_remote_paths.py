"""gs:// paths: what reads and writes goes through etils, here into memory."""

import json

import fsspec
import pytest
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem

from grm_jax.data import jsonl, sources
from grm_jax.evaluation import samples
from grm_jax.evaluation.suites import SUITES
from grm_jax.parallel import files
from tests.evaluation.fake import query

# Where TensorFlow is installed, etils would ask the real service through it.
BUCKET = 'gs://bucket'


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
  fsspec.register_implementation('gcs', MemoryFileSystem, clobber=True)
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  yield
  MemoryFileSystem.store.clear()


def write(name, rows, array=False):
  text = json.dumps(rows) if array else '\n'.join(map(json.dumps, rows))
  files.write_whole(f'{BUCKET}/{name}', text)
  return f'{BUCKET}/{name}'


def test_a_suite_in_a_bucket():
  row = {'input': 'q', 'output_1': 'a', 'output_2': 'b', 'label': 2}
  write('LLMBar/Natural/dataset.json', [row, row], array=True)
  write('LLMBar/Adversarial/Manual/dataset.json', [row], array=True)
  found = SUITES['llmbar'].load(f'{BUCKET}/LLMBar')
  assert len(found) == 3
  assert {x.responses[x.best] for x in found} == {'b'}
  with pytest.raises(ValueError, match='gs://bucket/nowhere'):
    SUITES['llmbar'].load(f'{BUCKET}/nowhere')


def test_rows_in_a_bucket():
  good = {'query': 'q', 'responses': ['a', 'b']}
  path = write('rows.jsonl', [good, {'query': 'q'}])
  assert [number for number, _ in jsonl.read(path)] == [1, 2]
  found, faults = sources.load(path)
  assert (len(found), len(faults)) == (1, 1)
  with pytest.raises(ValueError, match='gs://bucket/no.jsonl cannot be read'):
    list(jsonl.read(f'{BUCKET}/no.jsonl'))


def test_samples_in_a_bucket():
  one = query('a', 0, [(1, 2)])
  samples.write(f'{BUCKET}/x.samples.jsonl', [one])
  assert list(samples.read(f'{BUCKET}/x.samples.jsonl')) == [one]


def test_a_write_that_fails_leaves_what_was_there():
  files.write_whole(f'{BUCKET}/whole/a', 'old')
  with (
    pytest.raises(KeyboardInterrupt),
    files.whole(f'{BUCKET}/whole/a') as file,
  ):
    file.write(b'new')
    raise KeyboardInterrupt
  assert epath.Path(f'{BUCKET}/whole/a').read_bytes() == b'old'
  assert [x.name for x in epath.Path(f'{BUCKET}/whole').iterdir()] == ['a']
