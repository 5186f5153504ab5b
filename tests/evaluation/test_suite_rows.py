"""Tests of loading benchmark files: folders, tables, invalid rows."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import suite_rows
from grm_jax.judgement import preference_rows
from tests.evaluation.suites.published import write
from tests.messages import naming

ROWS = [{'id': 'a', 'x': 'one'}, {'id': 'b', 'x': 'two'}]


def every(name):
  return True


def read(path, keep=every):
  return list(suite_rows.read(str(path), keep))


def an_example(row):
  yield preference_rows.shuffled_example(
    row,
    row.text_field('id'),
    preference_rows.user_query(row.text_field('x')),
    ('right', 'wrong'),
    best=0,
  )


@pytest.mark.parametrize('name', ['f.json', 'f.jsonl', 'f.parquet'])
def test_rows_have_file_and_number(tmp_path, name):
  path = write(tmp_path / name, ROWS)
  rows = read(path)
  assert [row.fields for row in rows] == ROWS
  assert [row.number for row in rows] == [1, 2]
  assert {row.file for row in rows} == {path}
  assert [x.id for x in suite_rows.load(path, an_example)] == ['a', 'b']


def test_folder_is_read_in_name_order(tmp_path):
  for name in (
    'b/2.json',
    'a.jsonl',
    'b/1.json',
    'c.parquet',
    '.cache/x.json',
    'no.json',
  ):
    write(tmp_path / name, [{'id': name}])
  (tmp_path / 'README.md').write_text('no rows')
  rows = read(tmp_path, lambda name: name != 'no.json')
  names = ['a.jsonl', 'b/1.json', 'b/2.json', 'c.parquet']
  assert [row.fields['id'] for row in rows] == names
  assert [row.file for row in rows] == [f'{tmp_path}/{x}' for x in names]


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('f.jsonl', b'{"a": 1}\n{"a": \n', r'f\.jsonl\D+2\b.*JSON'),
    ('f.json', b'[{"a": 1},\n{"a" 2}]', r'f\.json\b.*JSON\D+2\b'),
    ('f.json', b'{\n"a": 1', r'f\.json\b.*array'),
    ('f.jsonl', b'{"a": 1}\n[2]\n', r'f\.jsonl\D+2\b.*object'),
    ('f.json', b'[{"a": 1}, 2]', r'f\.json\D+2\b.*object'),
    ('f.jsonl', b'{"a": "\xff"}', r'f\.jsonl\D+1\b.*UTF-8.*\b7\b'),
    ('f.parquet', b'PAR1 or not', r'f\.parquet.*Parquet'),
    ('f.csv', b'a,b', r'f\.csv.*\.json'),
  ],
)
def test_unreadable_file(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path / name)
  assert '\n' not in str(error.value)


def test_folder_without_files_raises(tmp_path):
  for name in ('missing.json', 'missing'):
    with pytest.raises(UserError, match=naming(name, 'No such file')):
      read(tmp_path / name)
  with pytest.raises(UserError, match=naming(str(tmp_path))):
    read(tmp_path)


def test_table_is_read_like_a_file():
  table = preference_rows.RowTable('tfds:a:test', iter(ROWS))
  rows = list(suite_rows.read(table, every))
  assert [(r.file, r.number, r.fields) for r in rows] == [
    ('tfds:a:test', 1, ROWS[0]),
    ('tfds:a:test', 2, ROWS[1]),
  ]
  table = preference_rows.RowTable('tfds:a:test', iter(ROWS))
  examples = suite_rows.load(table, an_example)
  assert [example.id for example in examples] == ['a', 'b']


@pytest.mark.parametrize(
  'fields, message',
  [
    ([], 'tfds:a:test'),
    ([['a']], r'tfds:a:test\D+1\b.*object'),
    ([ROWS[1], {'id': 'a'}], r'tfds:a:test\D+2\b.*\bx\b.*\bid\b'),
    ([ROWS[1]] * 2, naming('tfds:a:test', "'b'", 2, 1)),
  ],
)
def test_invalid_row_of_a_table(fields, message):
  with pytest.raises(UserError, match=message):
    suite_rows.load(preference_rows.RowTable('tfds:a:test', fields), an_example)


def test_ids_are_unique(tmp_path):
  path = write(tmp_path / 'f.json', [*ROWS, ROWS[0]])
  with pytest.raises(UserError, match=r"f\.json\D+3\b.*'a'.*\b1\b"):
    suite_rows.load(path, an_example)


def test_invalid_example_names_its_row(tmp_path):
  path = write(tmp_path / 'f.json', [ROWS[0], {'id': 'b', 'x': ' '}])
  with pytest.raises(UserError, match=r'f\.json\D+2\b.*query'):
    suite_rows.load(path, an_example)
  with pytest.raises(UserError, match=r'f\.json'):
    suite_rows.load(path, lambda row: [])


def test_path_filters():
  assert suite_rows.last_mentioned('/x/A/B-A/f', ['A', 'B']) == 'A'
  assert suite_rows.last_mentioned('/x/A/B/f', ['A', 'B']) == 'B'
  assert suite_rows.last_mentioned('/x/f', ['A', 'B']) is None
  assert suite_rows.path_mentions('/x', ['A'])('A/f.json')
  assert suite_rows.path_mentions('/x/A', ['A'])('f.json')
  assert not suite_rows.path_mentions('/x', ['A'])('f.json')
  assert suite_rows.file_starts_with('test')('data/test-0.parquet')
  assert not suite_rows.file_starts_with('test')('test/train-0.parquet')
