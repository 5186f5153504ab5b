"""The examples of a whole run: who gets which, and that none is in two."""

import json

import pytest

from grm_jax.errors import UserError
from grm_jax.stages.spct import data as spct_data
from tests import test_main
from tests.messages import naming
from tests.stages import spct_run

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(test_main.ROOT)


COUNTS = dict(texts=10, rft=6, grpo=9, fresh=5, validation=4, held_out=7)


def made(folder, *arguments, **counts):
  """part -> rows of what is written."""
  given = [f'--config.examples.{k}={v}' for k, v in (COUNTS | counts).items()]
  config = spct_run.parse(*given, *arguments)
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
  """Two examples of each query."""
  path = tmp_path / 'rows.jsonl'
  some = [
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
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in some))
  return f'--config.data={path}#split'


def test_practice_examples(tmp_path):
  found = made(tmp_path)
  assert {part: len(own) for part, own in found.items()} == {
    'rft': 6,
    'grpo': 9,
    'fresh': 5,
    'train': 14,
    'validation': 4,
    'held_out': 7,
  }
  train = ids(found['train'])
  assert ids(found['rft']) == train[:6] and ids(found['grpo']) == train[:9]
  assert ids(found['fresh']) == train[9:]
  # The teacher writes about the ten before: families come in turn.
  assert train[0].startswith('practice/') and '/train/' in train[0]
  assert not any(name.endswith('/0') for name in train)
  assert all('/held_out/' in name for name in ids(found['held_out']))
  assert all('/validation/' in name for name in ids(found['validation']))


def test_examples_of_a_file(tmp_path):
  given = rows(tmp_path)
  found = made(tmp_path / 'a', given)
  assert len(found['cold_start']) == 10 and len(found['train']) == 14
  parts = ('cold_start', 'train', 'validation', 'held_out')
  sets = [queries(found[part]) for part in parts]
  for i, one in enumerate(sets):
    for other in sets[i + 1 :]:
      assert not one & other
  assert ids(found['fresh']) == ids(found['train'])[-5:]
  # Not the first rows of the file, and the same for every seed.
  numbers = [int(name[:-1]) for name in ids(found['train'])]
  assert numbers != sorted(numbers)
  assert made(tmp_path / 'b', given, '--config.seed=5') == found
  assert found['rft'][0]['best'] is not None


def test_a_query_is_not_cut_in_two(tmp_path):
  """Eleven would end between the two examples of a query."""
  found = made(tmp_path / 'a', rows(tmp_path), texts=11)
  assert len(found['cold_start']) == 12
  assert not queries(found['cold_start']) & queries(found['train'])


def test_few_examples_are_shared(tmp_path):
  """A third is for the cold start; the last ones are of all stages."""
  found = made(
    tmp_path / 'a', rows(tmp_path, 30), texts=999, rft=999, grpo=20, fresh=20
  )
  cold, train = found['cold_start'], found['train']
  assert (len(cold), len(train)) == (18, 36)  # of 27 queries
  assert ids(found['rft']) == ids(train)
  assert ids(found['fresh']) == ids(train)[-20:]


def test_texts_of_the_users_own_need_no_examples(tmp_path):
  given = rows(tmp_path)
  found = made(tmp_path / 'a', given, '--config.sft.data.texts=judged:x.jsonl')
  assert 'cold_start' not in found and len(found['train']) == 14
  found = made(
    tmp_path / 'b', given, '--config.stages=rft', '--config.checkpoint=base'
  )
  assert 'cold_start' not in found


def test_no_validation(tmp_path):
  assert 'validation' not in made(tmp_path, validation=0)


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
def test_examples_of_no_use(tmp_path, fields, words):
  with pytest.raises(UserError, match=naming(*words)):
    made(tmp_path / 'a', rows(tmp_path, **fields))


def test_too_few_for_a_cold_start(tmp_path):
  with pytest.raises(
    ValueError, match=naming('config.data', 344, 'config.sft.data.texts')
  ):
    made(tmp_path / 'a', rows(tmp_path), texts=0)
