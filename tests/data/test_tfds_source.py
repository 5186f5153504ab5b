"""TFDS source: fields, splits, names and versions, bad rows, suites."""

import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from grm_jax.data import dataset_files, example_sources, tfds_source
from grm_jax.data.datasets import preferences
from grm_jax.errors import UserError
from grm_jax.evaluation import suite_rows
from grm_jax.evaluation.suites import rewardbench, rmb
from grm_jax.judgement.example import Turn
from grm_jax.judgement.judgement import ExampleError
from grm_jax.stages import evaluate
from tests.data.tfds_files import write
from tests.messages import in_row, names, naming

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Returns DATA_DIR and the module tfds.features."""
  tfds_source.import_tensorflow()
  import tensorflow_datasets as lib

  return tmp_path_factory.mktemp('tfds'), lib.features


@pytest.fixture(autouse=True)
def data_dir_variable(data, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data[0]))


@pytest.fixture(scope='module')
def kinds(data):
  """Writes a dataset with every kind of field: 5 rows in 2 files."""
  folder, f = data
  features = {
    'text': f.Text(),
    'whole': f.Scalar(np.int64),
    'part': f.Scalar(np.float32),
    'truth': f.Scalar(np.bool_),
    'label': f.ClassLabel(names=['no', 'yes']),
    'texts': f.Sequence(f.Text()),
    'grid': f.Tensor(shape=(2, 2), dtype=np.int32),
    'turns': f.Sequence({'role': f.Text(), 'marks': f.Sequence(np.int32)}),
    'nested': f.Sequence({'inner': f.Sequence({'x': f.Text()})}),
    'set': f.Dataset({'y': f.Text()}),
    'object': {'list': f.Sequence(f.Text())},
  }
  write(
    folder / 'kinds' / '1.0.0',
    features,
    {'train': [kinds_row(i) for i in range(5)]},
    shards=2,
  )


def kinds_row(i):
  return {
    'text': f'tëxt {i}',
    'whole': i,
    'part': 0.5,
    'truth': True,
    'label': 1,
    'texts': ['a', 'b'][:i],
    'grid': [[1, 2], [3, 4]],
    'turns': [
      {'role': 'user', 'marks': [1] * i},
      {'role': 'system', 'marks': [2, 3]},
    ],
    'nested': [{'inner': [{'x': 'v'}] * i}, {'inner': []}],
    'set': [{'y': 'w'}] * i,
    'object': {'list': ['k']},
  }


def test_fields_are_plain_python_values(kinds):
  numbered = list(tfds_source.numbered_rows('tfds:kinds:train'))
  assert [number for number, _ in numbered] == [1, 2, 3, 4, 5]
  fields = [fields for _, fields in numbered]
  # A sequence of objects becomes a list; an object of lists stays one.
  assert fields == [kinds_row(i) for i in range(5)]
  for key, kind in (('whole', int), ('part', float), ('truth', bool)):
    assert type(fields[0][key]) is kind


@pytest.mark.parametrize(
  'split, numbers',
  [
    ('train', [0, 1, 2, 3, 4]),
    ('train[:40%]', [0, 1]),
    ('train[3:]+train[:1]', [3, 4, 0]),
  ],
)
def test_splits_and_slices(kinds, split, numbers):
  for _ in range(2):
    rows = tfds_source.numbered_rows(f'tfds:kinds:{split}')
    assert [fields['whole'] for _, fields in rows] == numbers


def test_files_are_read_in_order(data):
  folder, f = data
  rows = [{'i': i} for i in range(80)]
  version_folder = folder / 'long' / '1.0.0'
  write(version_folder, {'i': f.Scalar(np.int64)}, {'train': rows}, shards=4)
  assert [
    fields for _, fields in tfds_source.numbered_rows('tfds:long:train')
  ] == rows


@pytest.fixture(scope='module')
def versions(data):
  folder, f = data
  for version in ('1.9.0', '1.10.0', '2.0.0'):
    rows = {'train': [{'x': version}]}
    write(folder / 'versions' / version, {'x': f.Text()}, rows)
  for config in ('a', 'b-c'):
    version_folder = folder / 'configs' / config / '1.0.0'
    write(version_folder, {'x': f.Text()}, {'test': [{'x': config}]})
  version_folder = folder / 'user__my_set' / 'default' / '0.0.0'
  write(version_folder, {'x': f.Text()}, {'train': [{'x': 'hub'}]})
  (folder / 'empty').mkdir()
  return folder


@pytest.mark.parametrize(
  'spec, text',
  [
    ('tfds:versions:train', '2.0.0'),
    ('tfds:versions:1.9.0:train', '1.9.0'),
    ('tfds:versions:1.*.*:train[:1]', '1.10.0'),
    ('tfds:configs/b-c:test', 'b-c'),
    ('tfds:configs/a:1.0.0:test', 'a'),
    ('tfds:huggingface:user__my-set/default:train', 'hub'),
    ('tfds:{}/versions/1.9.0:train', '1.9.0'),
    ('tfds:{}/versions:1.9.0:train', '1.9.0'),
  ],
)
def test_names(versions, spec, text):
  assert list(tfds_source.numbered_rows(spec.format(versions))) == [
    (1, {'x': text})
  ]


@pytest.mark.parametrize(
  'spec, message',
  [
    ('tfds:versions', 'tfds:NAME:SPLIT'),
    ('tfds:versions:1.9.0', 'tfds:NAME:SPLIT'),
    ('tfds::train', 'tfds:NAME:SPLIT'),
    (
      'tfds:nothing:train',
      naming('tfds build', 'TFDS_DATA_DIR'),
    ),
    ('tfds:versions:3.0.0:train', naming('1.9.0', '1.10.0', '2.0.0', '3.0.0')),
    ('tfds:configs:test', naming('a, b-c', 'tfds:configs/a')),
    ('tfds:empty:train', naming('features.json')),
    ('tfds:versions:test', naming('test', 'train')),
    ('tfds:versions:train[x:]', r'train\[x:\]'),
    ('tfds:versions:train[7:]', naming('train[7:]', 1)),
  ],
)
def test_wrong_specs_fail_at_once_in_one_line(versions, spec, message):
  with pytest.raises(UserError, match=message) as error:
    tfds_source.numbered_rows(spec)
  assert spec in str(error.value) and '\n' not in str(error.value)


def test_damaged_files(data):
  folder, f = data
  version_folder = folder / 'damaged' / '1.0.0'
  write(version_folder, {'x': f.Text()}, {'train': [{'x': 'a'}, {'x': 'b'}]})
  file = next(version_folder.glob('*.tfrecord*'))
  file.write_bytes(file.read_bytes()[:-3])
  rows = tfds_source.numbered_rows('tfds:damaged:train')
  assert next(rows) == (1, {'x': 'a'})
  with pytest.raises(UserError, match=in_row('tfds:damaged:train', 1)) as error:
    next(rows)
  assert '\n' not in str(error.value)
  (version_folder / 'dataset_info.json').write_text('{')
  with pytest.raises(UserError, match='tfds:damaged:train') as error:
    tfds_source.numbered_rows('tfds:damaged:train')
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def own_rows(data):
  folder, f = data
  features = {
    'id': f.Text(),
    'query': f.Text(),
    'messages': f.Sequence({'role': f.Text(), 'content': f.Text()}),
    'responses': f.Sequence(f.Text()),
    'best': f.Scalar(np.int64),
    'rewards': f.Sequence(np.float32),
    'tags': {'subset': f.Text()},
  }
  pair = {
    'id': 'pair',
    'query': 'q?',
    'messages': [],
    'responses': ['good', 'bad'],
    'best': 0,
    'rewards': [],
    'tags': {'subset': 's'},
  }
  turns = [('user', 'hi'), ('assistant', 'yes?'), ('user', 'bye')]
  single = pair | {
    'id': 'single',
    'query': '',
    'messages': [{'role': r, 'content': c} for r, c in turns],
    'responses': ['so long'],
    'best': -1,
    'rewards': [1.0],
  }
  bad = pair | {'id': 'bad', 'best': 2}
  torn = pair | {'id': 'torn', 'responses': [b'good', b'b\xff']}
  rows = {'train': [pair, single, bad, torn], 'good': [pair, single]}
  write(folder / 'own_rows' / '1.0.0', features, rows)


def test_own_rows_are_examples_or_errors(own_rows):
  pair, single, bad, torn = dataset_files.read_examples('tfds:own_rows:train')
  assert [pair[0], single[0], bad[0], torn[0]] == [1, 2, 3, 4]
  assert pair[1].id == 'pair' and pair[1].query == (Turn('user', 'q?'),)
  assert pair[1].responses == ('good', 'bad') and pair[1].best == 0
  assert pair[1].rewards is None and pair[1].tags == {'subset': 's'}
  assert [turn.text for turn in single[1].query] == ['hi', 'yes?', 'bye']
  assert single[1].best is None and single[1].rewards == (1.0,)
  assert isinstance(bad[1], ExampleError) and isinstance(torn[1], ExampleError)
  assert (bad[1].id, torn[1].id) == ('bad', 'row 4')
  assert names(bad[1].reason, 'best', 2)
  assert names(torn[1].reason, 'responses[1]', 'UTF-8', 1)


def test_a_row_table_fails_at_a_bad_row(own_rows):
  with pytest.raises(
    ValueError, match=in_row('tfds:own_rows:train', 4, 'responses[1]')
  ):
    list(dataset_files.row_table('tfds:own_rows:train').rows)
  rows = list(dataset_files.row_table('tfds:own_rows:good').rows)
  assert [fields['id'] for fields in rows] == ['pair', 'single']


def test_an_adapter_reads_a_row_table(data):
  folder, f = data
  completion = {'response': f.Text(), 'overall_score': f.Scalar(np.float32)}
  features = {'instruction': f.Text(), 'completions': f.Sequence(completion)}
  scores = {'worst': 1.0, 'best': 4.5, 'middling': 3.0}
  completions = [{'response': r, 'overall_score': s} for r, s in scores.items()]
  row = {'instruction': 'write', 'completions': completions}
  write(folder / 'ultra' / '1.0.0', features, {'train': [row]})
  table = dataset_files.row_table('tfds:ultra:train')
  (example,) = suite_rows.load(table, preferences.ultrafeedback)
  assert example.responses[example.best] == 'best'
  assert sorted(example.rewards) == [1.0, 3.0, 4.5]


REWARDBENCH = {
  'prompt': 'p',
  'chosen': 'right',
  'rejected': 'wrong',
  'subset': 'hep-go',
  'id': 30,
}


@pytest.fixture(scope='module')
def suites(data):
  folder, f = data
  features = dict.fromkeys(REWARDBENCH, f.Text()) | {'id': f.Scalar(np.int64)}
  write(
    folder / 'bench' / '1.0.0',
    features,
    {'filtered': [REWARDBENCH | {'id': i} for i in range(3)]},
  )
  message = {'role': f.Text(), 'content': f.Text()}
  answer = {'answer': f.Text()}
  features = {
    'pair_uid': f.Text(),
    'category_path': f.Text(),
    'conversation_input': f.Sequence(message),
    'chosen': answer,
    'reject': answer,
  }
  row = {
    'pair_uid': 'u',
    'category_path': 'Pairwise_set/Harmlessness/S1',
    'conversation_input': [{'role': 'user', 'content': 'how?'}],
    'chosen': {'answer': 'no'},
    'reject': {'answer': 'yes'},
  }
  write(folder / 'rmb' / '1.0.0', features, {'test': [row]})


def test_suites_read_row_tables(suites):
  examples = rewardbench.load(dataset_files.row_table('tfds:bench:filtered'))
  assert [x.id for x in examples] == [
    f'rewardbench/hep-go/{i}' for i in range(3)
  ]
  assert examples[0].tags['section'] == 'Reasoning'
  assert examples[0].responses[examples[0].best] == 'right'
  (example,) = rmb.load(dataset_files.row_table('tfds:rmb:test'))
  assert example.tags['section'] == 'Harmlessness Pairwise_set'
  assert example.query == (Turn('user', 'how?'),)
  with pytest.raises(UserError, match=in_row('tfds:rmb:test', 1, 'subset')):
    rewardbench.load(dataset_files.row_table('tfds:rmb:test'))


@pytest.mark.parametrize(
  'suite, spec, words',
  [
    ('llmbar', 'tfds:bench:filtered', ['config.suites.llmbar']),
    ('ppe', 'tfds:bench:filtered', ['config.suites.ppe']),
    ('realmistake', 'seqio:m/x:test', ['config.suites.realmistake']),
    ('rewardbench', 'tfds:none:test', ['tfds:none:test']),
  ],
)
def test_evaluation_accepts_dataset_names(suites, tmp_path, suite, spec, words):
  path = str(ROOT / 'configs/evaluate.py')
  config = runpy.run_path(path)['get_config']('tiny')
  config.suites[suite] = spec
  config.sampling.concurrent_prompts = 8  # a multiple of the devices
  with pytest.raises(UserError, match=naming(*words)) as error:
    evaluate.run(config, str(tmp_path))
  assert '\n' not in str(error.value)


def test_the_error_without_tensorflow_names_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(
    ValueError, match=naming('tensorflow_datasets', 'pip install')
  ):
    tfds_source.numbered_rows('tfds:kinds:train')


def test_tensorflow_must_not_hold_an_accelerator(monkeypatch):
  def refuse(devices, kind):
    raise RuntimeError('Visible devices cannot be modified')

  config = tfds_source.import_tensorflow().config
  monkeypatch.setattr(config, 'set_visible_devices', refuse)
  with pytest.raises(UserError, match='TensorFlow'):
    tfds_source.numbered_rows('tfds:kinds:train')


def test_importing_sources_does_not_import_tensorflow():
  code = (
    'import sys\n'
    'from grm_jax.data import example_sources, seqio_source, tfds_source\n'
    'tfds_source.parse_spec("tfds:a:train")\n'
    'seqio_source.parse_spec("seqio:a/b:train")\n'
    'print([m for m in ("tensorflow", "tensorflow_datasets", "seqio", "jax")'
    ' if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert out.stdout.strip() == '[]', out.stderr


def test_example_sources_read_tfds_rows(data):
  folder, f = data
  own_rows = {'query': f.Text(), 'responses': f.Sequence(f.Text())}
  rows_ = [{'query': f'q{i}', 'responses': ['a', 'b']} for i in range(30)]
  rows_[4]['query'] = ''
  write(folder / 'ours' / '1.0.0', own_rows, {'train': rows_})
  examples, errors = example_sources.load('tfds:ours:train')
  assert (len(examples), len(errors)) == (29, 1)
  assert re.search(in_row('tfds:ours:train', 5), errors[0].reason)
  parts = [
    example_sources.load('tfds:ours:train#split', split)[0]
    for split in ('train', 'validation', 'held_out')
  ]
  assert sum(map(len, parts)) == 29 and len(parts[0]) > 15
  pairs = {
    'instruction': f.Text(),
    'output_1': f.Text(),
    'output_2': f.Text(),
    'label': f.Scalar(np.int64),
  }
  rows_ = [
    {'instruction': f'q{i}', 'output_1': 'a', 'output_2': 'b', 'label': 2}
    for i in range(30)
  ]
  write(folder / 'pairs' / '1.0.0', pairs, {'train': rows_})
  examples, _ = example_sources.load('offsetbias:tfds:pairs:train')
  assert examples and {x.responses[x.best] for x in examples} == {'b'}
