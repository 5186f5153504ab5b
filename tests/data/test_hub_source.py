"""Datasets of the Hugging Face Hub, with a local stand-in for the Hub."""

import fnmatch
import json
import shutil
import sys
import types

import pytest

from grm_jax.data import example_sources, hub_source
from grm_jax.data.datasets import instructions
from grm_jax.errors import UserError
from grm_jax.stages import input_identity
from tests.evaluation.suites.published import write
from tests.messages import names

MESSAGES = [
  {'role': 'user', 'content': 'Hello?'},
  {'role': 'assistant', 'content': 'Hi.'},
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """Returns (folder with the repositories, names of all downloads)."""
  repositories, cache, downloads = tmp_path / 'hub', tmp_path / 'cache', []

  def files(name):
    root = repositories / name
    if not root.is_dir():
      raise FileNotFoundError(f'404: {name}')
    return [str(x.relative_to(root)) for x in root.rglob('*') if x.is_file()]

  def snapshot_download(name, *, repo_type, revision, allow_patterns):
    assert repo_type == 'dataset'
    for file in files(name):
      if any(fnmatch.fnmatch(file, x) for x in allow_patterns):
        downloads.append(f'{name}/{file}@{revision}')
        target = cache / name / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repositories / name / file, target)
    return str(cache / name)

  class HfApi:
    def list_repo_files(self, name, *, repo_type, revision):
      return files(name)

  fake = types.SimpleNamespace(snapshot_download=snapshot_download, HfApi=HfApi)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  hub_source.local_path.cache_clear()
  yield repositories, downloads
  hub_source.local_path.cache_clear()


def test_instruction_data(hub):
  folder, downloads = hub
  rows = [{'id': str(i), 'messages': MESSAGES, 'source': 's'} for i in (1, 2)]
  data = folder / 'allenai/tulu-3-sft-mixture/data'
  for number, row in enumerate(rows):
    write(data / f'train-0000{number}-of-00002.parquet', [row])
  write(data / 'test-00000-of-00001.parquet', rows)
  spec = 'hf:allenai/tulu-3-sft-mixture'
  items = list(instructions.read('tulu3', spec))
  assert [x.id for x in items] == ['tulu3/1', 'tulu3/2']
  assert len(downloads) == 2 and not any('test' in x for x in downloads)
  identity = input_identity.of_source(f'tulu3:{spec}')
  assert identity.startswith('tulu3:train-00000-of-00002.parquet')


def test_judging_data_at_a_revision(hub):
  folder, downloads = hub
  rows = [
    {'instruction': 'q', 'output_1': 'a', 'output_2': 'b', 'label': 1},
  ]
  write(folder / 'me/bias/rows/all.jsonl', rows)
  spec = 'offsetbias:hf:me/bias/rows/*.jsonl@v1.0#'
  loaded = [
    x
    for split in example_sources.SPLITS
    for x in _load(spec.rstrip('#'), split)
  ]
  assert [x.responses for x in loaded] in ([('a', 'b')], [('b', 'a')])
  assert downloads == ['me/bias/rows/all.jsonl@v1.0']


def _load(spec, split):
  try:
    return example_sources.load(spec, split, True)[0]
  except UserError:
    return []  # the only query is in another split


@pytest.mark.parametrize(
  'spec, words',
  [
    ('hf:me', ['hf:me', 'OWNER/NAME']),
    ('hf:me/missing', ['hf:me/missing', '404']),
    ('hf:me/bias', ['hf:me/bias', 'data/train-*.parquet', 'all.jsonl']),
  ],
)
def test_what_cannot_be_downloaded(hub, spec, words):
  path = hub[0] / 'me/bias/all.jsonl'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps({}))
  with pytest.raises(UserError) as error:
    hub_source.local_path(spec)
  assert names(str(error.value), *words)


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  hub_source.local_path.cache_clear()
  with pytest.raises(UserError, match='pip install'):
    hub_source.local_path('hf:me/bias')
