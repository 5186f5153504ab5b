"""Reading samples of other models, and the rows of kept.jsonl."""

import json

import pytest

from tests.evaluation.suites import published
from tests.messages import names
from tests.stages.rft.fixtures import (
  FILTER,
  kept_texts,
  read_rows,
  row,
  write_rows,
)

# ml_collections.config_flags loads config files with load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


OTHER = [
  ({'id': 'mixed', 'text': r'a \boxed{1, 2}'}, []),
  ({'id': 'mixed', 'text': r'b \boxed{2, 1}'}, []),  # wrong
  ({'id': 'nobody', 'text': 'c'}, ['nobody']),
  ({'id': ['mixed'], 'text': 'c'}, ["['mixed']"]),
  ({'text': 'c'}, ['id', 'text']),
  ('not json', ['JSON']),
  ([1], ['object']),
  ({'id': 'mixed', 'text': 7}, ['text']),
  ({'id': 'mixed'}, ['text']),
  ({'id': 'mixed', 'text': 'c', 'order': [0]}, ['order', '[0]', 2]),
  ({'id': 'mixed', 'text': 'c', 'order': [0, 2]}, ['order', '[0, 2]']),
  ({'id': 'mixed', 'text': 'c', 'order': [True, 0]}, ['order', '[True, 0]']),
  ({'id': 'mixed', 'text': 'c', 'order': '01'}, ['order', '01']),
  ({'id': 'mixed', 'text': 'c', 'hinted': 'yes'}, ['hinted']),
  (
    {
      'id': 'saved',
      'text': r'd \boxed{1, 9, 2}',
      'hinted': True,
      'order': [1, 2, 0],
    },
    [],
  ),
  ({'id': 'easy', 'text': r'e \boxed{2, 1}', 'truncated': True}, []),
]


def test_samples_of_another_model(workdir, run, error_of, caplog):
  path = workdir.parent / 'other.jsonl'
  write_rows(path, [x for x, _ in OTHER])
  arguments = [*FILTER, f'--config.samples={path}']
  with caplog.at_level('WARNING'):
    run(*arguments)
  assert kept_texts(workdir) == {'mixed 0,1': 'a ', 'saved 1,2,0': 'd '}
  bad = [(i, words) for i, (_, words) in enumerate(OTHER, 1) if words]
  # The log names the first bad rows, and counts all of them.
  for number, words in bad[:5]:
    assert any(names(x, path, number, *words) for x in caplog.messages)
  assert any(names(x, path, len(bad)) for x in caplog.messages)
  counts = json.loads((workdir / 'filter.json').read_text())['counts'][
    'synthetic'
  ]
  assert counts['unhinted_correct'] == counts['hinted_correct'] == 1
  assert counts['unhinted_incorrect'] == counts['unhinted_truncated'] == 1
  line = error_of(*arguments, '--config.fail_on_bad_rows=true')
  assert names(line, path, 3, 'config.data', 'nobody')


@pytest.mark.parametrize('number', [i for i, x in enumerate(OTHER) if x[1]])
def test_each_kind_of_bad_row_is_named(workdir, error_of, number):
  path = workdir.parent / 'other.jsonl'
  write_rows(path, [OTHER[0][0], '', OTHER[number][0]])
  line = error_of(
    *FILTER, f'--config.samples={path}', '--config.fail_on_bad_rows=true'
  )
  assert names(line, path, 3, *OTHER[number][1])


@pytest.mark.parametrize('suffix', ['json', 'parquet', 'txt'])
def test_samples_in_another_format(workdir, run, suffix):
  rows = [
    {'id': 'mixed', 'text': r'a \boxed{1, 2}', 'order': [0, 1]},
    {'id': 'mixed', 'text': r'b \boxed{2, 1}'},  # wrong
    {'id': 'saved', 'text': r'd \boxed{1, 2, 9}', 'hinted': True},
  ]
  # In Parquet every row has all columns.
  empty = dict.fromkeys(('order', 'hinted', 'truncated'))
  rows = [empty | row for row in rows]
  path = published.write(workdir.parent / f'other.{suffix}', rows)
  run(*FILTER, f'--config.samples={path}')
  assert kept_texts(workdir) == {'mixed 0,1': 'a ', 'saved 0,1,2': 'd '}


def test_a_file_without_good_rows_is_an_error(workdir, error_of):
  path = workdir.parent / 'other.jsonl'
  write_rows(path, ['{', {'id': 'nobody', 'text': 'x'}])
  line = error_of(*FILTER, f'--config.samples={path}')
  assert names(line, path, 2, 1, 'JSON')


def test_ids_can_be_integers(workdir, run):
  write_rows(workdir.parent / 'rows.jsonl', [row(7, 'rrr/r')])
  path = workdir.parent / 'other.jsonl'
  write_rows(path, [{'id': 7, 'text': r'a \boxed{9, 1}', 'hinted': True}])
  run(*FILTER, f'--config.samples={path}')
  assert kept_texts(workdir) == {'7 0,1': 'a '}


def test_each_order_of_an_example_is_a_prompt(workdir, run):
  write_rows(
    workdir.parent / 'other.jsonl',
    [
      {'id': 'mixed', 'text': r'a \boxed{1, 2}'},
      {'id': 'mixed', 'text': r'b \boxed{2, 1}', 'order': [1, 0]},
      {'id': 'mixed', 'text': r'c \boxed{3, 9}'},
      {'id': 'mixed', 'text': r'd \boxed{9, 3}'},
    ],
  )
  run(*FILTER, f'--config.samples={workdir.parent}/other.jsonl')
  kept = read_rows(workdir / 'kept.jsonl')
  assert [(x['id'], x['order'], x['generations']) for x in kept] == [
    ('mixed 0,1', [0, 1], [r'a \boxed{1, 2}', r'c \boxed{3, 9}']),
    ('mixed 1,0', [1, 0], [r'b \boxed{2, 1}']),
  ]
