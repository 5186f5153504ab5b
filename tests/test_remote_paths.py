"""gs:// paths: everything that reads or writes, with a bucket in memory."""

import json

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from grm_jax.checkpoint import integrity, orbax_checkpoint
from grm_jax.data import dataset_files, example_sources
from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io
from grm_jax.evaluation.suites import SUITES
from grm_jax.io import atomic_io, gcs_mirror, row_reader
from grm_jax.io.journal import Journal, rows
from grm_jax.judgement import template
from grm_jax.tokenizer import tiny as tiny_tokenizer
from grm_jax.tokenizer import tokenizer
from grm_jax.training import metric_writer
from grm_jax.training import profiler as profiling
from tests import fake_bucket
from tests.evaluation.fake import query
from tests.evaluation.suites import published as published_files
from tests.messages import naming

BUCKET = 'gs://bucket'


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
  with fake_bucket.bucket(monkeypatch):
    yield


def write(name, rows, array=False):
  text = json.dumps(rows) if array else '\n'.join(map(json.dumps, rows))
  atomic_io.write_file(f'{BUCKET}/{name}', text)
  return f'{BUCKET}/{name}'


def test_suite_in_a_bucket():
  row = {'input': 'q', 'output_1': 'a', 'output_2': 'b', 'label': 2}
  write('LLMBar/Natural/dataset.json', [row, row], array=True)
  write('LLMBar/Adversarial/Manual/dataset.json', [row], array=True)
  examples = SUITES['llmbar'].load(f'{BUCKET}/LLMBar')
  assert len(examples) == 3
  assert {x.responses[x.best] for x in examples} == {'b'}
  with pytest.raises(UserError, match='gs://bucket/absent'):
    SUITES['llmbar'].load(f'{BUCKET}/absent')


def test_rows_in_a_bucket():
  good = {'query': 'q', 'responses': ['a', 'b']}
  path = write('rows.jsonl', [good, {'query': 'q'}])
  assert [number for number, _ in dataset_files.read_examples(path)] == [1, 2]
  examples, errors = example_sources.load(path)
  assert (len(examples), len(errors)) == (1, 1)
  with pytest.raises(UserError, match=naming(f'{BUCKET}/no.jsonl')):
    list(dataset_files.read_examples(f'{BUCKET}/no.jsonl'))


@pytest.mark.parametrize('suffix', ['json', 'parquet'])
def test_other_formats_in_a_bucket(tmp_path, suffix):
  rows = [{'query': 'q', 'responses': ['a', 'b']}] * 3
  local = published_files.write(tmp_path / f'rows.{suffix}', rows)
  path = f'{BUCKET}/rows.{suffix}'
  atomic_io.copy(local, path)
  assert len(example_sources.load(path)[0]) == 3
  assert row_reader.count_rows(path) == 3
  assert [x for _, x in row_reader.read_rows(path)] == rows
  with pytest.raises(UserError, match=naming(f'{BUCKET}/no.{suffix}')):
    row_reader.count_rows(f'{BUCKET}/no.{suffix}')


def test_samples_in_a_bucket():
  judged = query('a', 0, [(1, 2)])
  judgement_io.write(f'{BUCKET}/x.samples.jsonl', [judged])
  assert list(judgement_io.read(f'{BUCKET}/x.samples.jsonl')) == [judged]


def test_failed_write_keeps_the_old_file():
  atomic_io.write_file(f'{BUCKET}/folder/a', 'old')
  with (
    pytest.raises(KeyboardInterrupt),
    atomic_io.atomic_write(f'{BUCKET}/folder/a') as file,
  ):
    file.write(b'new')
    raise KeyboardInterrupt
  assert epath.Path(f'{BUCKET}/folder/a').read_bytes() == b'old'
  assert [x.name for x in epath.Path(f'{BUCKET}/folder').iterdir()] == ['a']


def test_journal_in_a_bucket():
  path = f'{BUCKET}/a/x.partial'
  with Journal(path, {'k': 1}) as journal:
    journal.append({'n': 1})
    journal.append({'n': 2})
  assert list(rows(path)) == [{'n': 1}, {'n': 2}]
  with Journal(path, {'k': 1}) as journal:
    assert journal.count == 2
    journal.append({'n': 3})
    assert [x['n'] for x in journal.rows()] == [1, 2, 3]
  with pytest.raises(UserError, match=naming(path, 'k', 1, 2)):
    Journal(path, {'k': 2})
  Journal(path, {'k': 1}).delete()
  assert not atomic_io.exists(path)


def test_killed_run_keeps_the_last_upload(monkeypatch):
  path = f'{BUCKET}/a/x.partial'
  journal = Journal(path, {'k': 1})
  journal.append({'n': 1})
  assert not atomic_io.exists(path)  # before the first upload
  monkeypatch.setattr(gcs_mirror, 'UPLOAD_INTERVAL_S', 0)
  journal.append({'n': 2})
  monkeypatch.setattr(gcs_mirror, 'UPLOAD_INTERVAL_S', 1000)
  journal.append({'n': 3})
  # The first journal is never closed.
  assert Journal(path, {'k': 1}).count == 2


def test_metrics_in_a_bucket():
  work = f'{BUCKET}/work'
  with metric_writer.MetricWriter(work) as writer:
    writer.write(1, {'loss': 2.0})
    writer.write(2, {'loss': 1.0})
    writer.commit(2)
    uploaded = epath.Path(work, metric_writer.FILE).read_text()
    assert [json.loads(x)['step'] for x in uploaded.splitlines()] == [1, 2]
    writer.write(3, {'loss': 0.5})
  with metric_writer.MetricWriter(work, 2) as writer:
    writer.write(3, {'loss': 0.25})
  lines = epath.Path(work, metric_writer.FILE).read_text().splitlines()
  assert [json.loads(x)['loss'] for x in lines] == [2, 1, 0.25]
  assert len(list(epath.Path(work, metric_writer.TENSORBOARD).iterdir())) == 2


def test_profile_in_a_bucket():
  with profiling.Profiler((1, 1), f'{BUCKET}/work') as profiler:
    profiler.begin(1)
    profiler.end(1, jnp.ones(3) + 1)
  files = list(epath.Path(BUCKET, 'work', profiling.FOLDER).glob('*/*/*/*'))
  assert any(x.name.endswith('.xplane.pb') for x in files), files


def test_tokenizer_and_template_in_a_bucket():
  tiny_tokenizer.train(f'{BUCKET}/m/tokenizer.model')
  loaded = tokenizer.load(f'{BUCKET}/m/tokenizer.model')
  assert loaded.vocab_size == tiny_tokenizer.VOCAB_SIZE
  with pytest.raises(UserError, match=f'{BUCKET}/no/tokenizer.model'):
    tokenizer.load(f'{BUCKET}/no/tokenizer.model')
  atomic_io.write_file(f'{BUCKET}/t.txt', '{{ query }}{{ responses }}')
  assert template.load(f'{BUCKET}/t.txt').used_variables == {
    'query',
    'responses',
  }


def test_checkpoints_in_a_bucket_need_a_package(monkeypatch):
  monkeypatch.setattr(integrity, '_has_gcs_client', lambda: False)
  for function in (orbax_checkpoint.steps, orbax_checkpoint.CheckpointManager):
    with pytest.raises(
      ValueError, match=naming(f'{BUCKET}/model', 'requirements-tpu.txt')
    ):
      function(f'{BUCKET}/model')


def test_checkpoints_in_a_bucket():
  directory = f'{BUCKET}/model'
  with orbax_checkpoint.CheckpointManager(directory, max_to_keep=2) as writer:
    for step in (1, 2, 3):
      writer.save(step, {'a': jnp.full(5, step)}, meta={'step': step})
  assert orbax_checkpoint.steps(directory) == [2, 3]
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.ShapeDtypeStruct((5,), jnp.int32, sharding=sharding)
  params = orbax_checkpoint.restore_params(directory, {'a': abstract}, 2)
  assert params['a'].tolist() == [2] * 5
  assert orbax_checkpoint.read_json(directory, 'meta') == {'step': 3}
