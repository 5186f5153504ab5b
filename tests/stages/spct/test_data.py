"""The examples of a whole run: which stage gets which."""

import json

import pytest

from grm_jax.errors import UserError
from grm_jax.stages.spct import data as spct_data
from tests import test_main
from tests.messages import naming
from tests.stages import spct_run

# ml_collections.config_flags loads config files with load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(test_main.ROOT)


COUNTS = dict(
  texts=10, rft=6, grpo=9, meta_rm_samples=5, validation=4, held_out=7
)


def write(folder, *arguments, **counts):
  """Writes the examples; returns their rows by part."""
  settings = [
    f'--config.examples.{k}={v}' for k, v in (COUNTS | counts).items()
  ]
  config = spct_run.parse(*settings, *arguments)
  spct_data.check(config)
  assert spct_data.write(config, str(folder))
  return {
    path.stem: [json.loads(x) for x in path.read_text().splitlines()]
    for path in folder.iterdir()
  }


def ids(rows):
  return [row['id'] for row in rows]


def queries(rows):
  return {row['messages'][0]['content'] for row in rows}


def rows(tmp_path, count=200, **fields):
  """Writes two examples of each query; returns the argument that uses them."""
  path = tmp_path / 'rows.jsonl'
  examples = [
    {
      'id': f'{i}{x}',
      'query': f'query {i}',
      'responses': ['a', 'b', x],
      'best': i % 3,
    }
    | fields
    for i in range(count)
    for x in 'xy'
  ]
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in examples))
  return f'--config.data={path}#split'


def test_practice_examples(tmp_path):
  parts = write(tmp_path)
  assert {part: len(rows) for part, rows in parts.items()} == {
    'rft': 6,
    'grpo': 9,
    'fresh': 5,
    'train': 14,
    'validation': 4,
    'held_out': 7,
  }
  train = ids(parts['train'])
  assert ids(parts['rft']) == train[:6] and ids(parts['grpo']) == train[:9]
  assert ids(parts['fresh']) == train[9:]
  # The teacher writes about the ten before them; the families alternate.
  assert train[0].startswith('practice/') and '/train/' in train[0]
  assert not any(name.endswith('/0') for name in train)
  assert all('/held_out/' in name for name in ids(parts['held_out']))
  assert all('/validation/' in name for name in ids(parts['validation']))


def test_examples_of_a_file(tmp_path):
  data = rows(tmp_path)
  parts = write(tmp_path / 'a', data)
  assert len(parts['cold_start']) == 10 and len(parts['train']) == 14
  disjoint = ('cold_start', 'train', 'validation', 'held_out')
  sets = [queries(parts[part]) for part in disjoint]
  for i, queries_of_part in enumerate(sets):
    for other in sets[i + 1 :]:
      assert not queries_of_part & other
  assert ids(parts['fresh']) == ids(parts['train'])[-5:]
  # The examples are shuffled, in the same way for every seed.
  numbers = [int(name[:-1]) for name in ids(parts['train'])]
  assert numbers != sorted(numbers)
  assert write(tmp_path / 'b', data, '--config.seed=5') == parts
  assert parts['rft'][0]['best'] is not None


def test_the_cold_start_has_complete_queries(tmp_path):
  """Eleven examples would end between the two examples of a query."""
  parts = write(tmp_path / 'a', rows(tmp_path), texts=11)
  assert len(parts['cold_start']) == 12
  assert not queries(parts['cold_start']) & queries(parts['train'])


def test_stages_share_few_examples(tmp_path):
  """The cold start gets a third; the other stages use the same examples."""
  parts = write(
    tmp_path / 'a',
    rows(tmp_path, 30),
    texts=999,
    rft=999,
    grpo=20,
    meta_rm_samples=20,
  )
  cold, train = parts['cold_start'], parts['train']
  assert (len(cold), len(train)) == (18, 36)  # 27 queries
  assert ids(parts['rft']) == ids(train)
  assert ids(parts['fresh']) == ids(train)[-20:]


def test_cold_start_texts_of_the_user_need_no_examples(tmp_path):
  data = rows(tmp_path)
  parts = write(tmp_path / 'a', data, '--config.sft.data.texts=judged:x.jsonl')
  assert 'cold_start' not in parts and len(parts['train']) == 14
  parts = write(
    tmp_path / 'b', data, '--config.stages=rft', '--config.checkpoint=base'
  )
  assert 'cold_start' not in parts


def test_no_validation_examples(tmp_path):
  assert 'validation' not in write(tmp_path, validation=0)


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(best=None), ['rows.jsonl', 'rewards']),
    (
      dict(responses=['a'], best=None, rewards=[1.0]),
      ['config.data', 'rows.jsonl', 'best'],
    ),
  ],
)
def test_unsuitable_examples_are_an_error(tmp_path, fields, words):
  with pytest.raises(UserError, match=naming(*words)):
    write(tmp_path / 'a', rows(tmp_path, **fields))


def test_too_few_examples_for_a_cold_start(tmp_path):
  with pytest.raises(
    ValueError, match=naming('config.data', 344, 'config.sft.data.texts')
  ):
    write(tmp_path / 'a', rows(tmp_path), texts=0)


def test_several_sources(tmp_path):
  """Practice problems beside others are examples like these."""
  data = f'{rows(tmp_path)},practice:40*0.5'
  parts = write(tmp_path / 'a', data, rft=400, grpo=400, texts=10)
  suites = {row['tags']['suite'] for row in parts['train']}
  assert suites == {'rows', 'practice'}
  assert not queries(parts['held_out']) & queries(parts['train'])
  with pytest.raises(UserError, match=naming('config.data', 'practice')):
    write(tmp_path / 'b', '--config.data=practice*0.5')
