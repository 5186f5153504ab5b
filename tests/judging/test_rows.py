"""Reading published files; where the responses stand."""

import json
import pathlib
import sys

import pytest

from grm_jax.judging import rows
from tests.evaluation.suites.published import write

ROWS = [{'id': 'a', 'x': 'one'}, {'id': 'b', 'x': 'twö\u2028three'}]


def every(name):
  return True


def read(path, keep=every):
  return list(rows.read(str(path), keep))


@pytest.mark.parametrize('name', ['f.json', 'f.jsonl', 'f.parquet'])
def test_the_three_formats_hold_the_same_rows(tmp_path, name):
  path = write(tmp_path / name, ROWS)
  found = read(path)
  assert [row.fields for row in found] == ROWS
  assert [row.number for row in found] == [1, 2]
  assert {row.file for row in found} == {path}


def test_json_lines_may_be_blank_and_start_with_a_byte_order_mark(tmp_path):
  path = tmp_path / 'f.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\n\n{"id": "b"}\r\n')
  assert [(r.number, r.fields['id']) for r in read(path)] == [
    (1, 'a'),
    (3, 'b'),
  ]


def test_parquet_rows_are_numbered_through_batches(tmp_path):
  path = write(tmp_path / 'f.parquet', [{'i': i} for i in range(600)])
  found = read(path)
  assert [row.fields['i'] for row in found] == list(range(600))
  assert [row.number for row in found] == list(range(1, 601))


def test_a_folder_is_read_in_order_of_names(tmp_path):
  for name in ('b/2.json', 'a.jsonl', 'b/1.json', '.cache/x.json', 'no.json'):
    write(tmp_path / name, [{'id': name}])
  (tmp_path / 'README.md').write_text('no rows')
  found = read(tmp_path, lambda name: name != 'no.json')
  assert [r.fields['id'] for r in found] == ['a.jsonl', 'b/1.json', 'b/2.json']


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('f.jsonl', b'{"a": 1}\n{"a": \n', r'f\.jsonl, line 2: not JSON'),
    ('f.json', b'[{"a": 1},\n{"a" 2}]', r'f\.json, line 2: not JSON'),
    ('f.json', b'{"a": 1}', r'f\.json: .* one array'),
    ('f.jsonl', b'{"a": 1}\n[2]\n', r'f\.jsonl, row 2: the row is not'),
    ('f.jsonl', b'{"a": "\xff"}', r'f\.jsonl: not UTF-8 at byte 7'),
    ('f.parquet', b'PAR1 or not', r'f\.parquet: not a Parquet file'),
    ('f.csv', b'a,b', r'f\.csv: not one of \.json'),
  ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    read(tmp_path / name)
  assert '\n' not in str(error.value)


def test_nothing_to_read(tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    read(tmp_path / 'missing.json')
  with pytest.raises(ValueError, match='no file of this set'):
    read(tmp_path)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
  path = write(tmp_path / 'f.parquet', ROWS)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  with pytest.raises(ValueError, match=r"pip install 'pyarrow>=") as error:
    read(path)
  assert '\n' not in str(error.value)


FIELDS = {
  'text': 'x',
  'number': 3,
  'digits': ' 4',
  'texts': ['x', 'y'],
  'objects': [{'text': 'a'}, {'text': 5}],
  'object': {'text': None},
  'empty': [],
  'truth': True,
}
ROW = rows.Row('f.json', 7, FIELDS)


def test_fields():
  assert ROW.text('text') == 'x'
  assert (ROW.whole('number'), ROW.whole('digits')) == (3, 4)
  assert ROW.texts('texts') == ('x', 'y')
  assert ROW.inners('objects')[0].text('text') == 'a'
  assert ROW.one_of('text', ['x', 'y']) == 'x'


@pytest.mark.parametrize(
  'read, message',
  [
    (lambda: ROW.text('none'), 'there is no none, only text, number'),
    (lambda: ROW.text('number'), 'number must be a text, not 3'),
    (lambda: ROW.whole('text'), "text must be a whole number, not 'x'"),
    (lambda: ROW.whole('truth'), 'truth must be a whole number, not True'),
    (lambda: ROW.texts('text'), "text must be a list of values, not 'x'"),
    (lambda: ROW.texts('empty'), r'empty must be a list of values, not \[\]'),
    (lambda: ROW.texts('objects'), r'objects must be texts, not \{'),
    (lambda: ROW.one_of('text', 'ab'), "text is 'x', none of a, b"),
    (lambda: ROW.inner('text'), "text must be an object, not 'x'"),
    (lambda: ROW.inner('object').text('text'), 'object: text must be a text'),
    (
      lambda: ROW.inners('objects')[1].text('text'),
      r'objects\[1\]: text must be a text, not 5',
    ),
  ],
)
def test_faults_of_fields(read, message):
  with pytest.raises(ValueError, match=f'^f.json, row 7: {message}'):
    read()


def test_a_long_value_is_cut_in_an_error():
  row = rows.Row('f', 1, {'a': ['x' * 500]})
  with pytest.raises(ValueError, match=r"not \['x+\.\.\.$") as error:
    row.text('a')
  assert len(str(error.value)) < 120


def an_example(row):
  yield rows.arranged(
    row, row.text('id'), rows.asked(row.text('x')), ('right', 'wrong'), best=0
  )


def test_a_table_is_read_as_a_file_is():
  found = list(rows.read(rows.Table('tfds:a:test', iter(ROWS)), every))
  assert [(r.file, r.number, r.fields) for r in found] == [
    ('tfds:a:test', 1, ROWS[0]),
    ('tfds:a:test', 2, ROWS[1]),
  ]
  examples = rows.load(rows.Table('tfds:a:test', iter(ROWS)), an_example)
  assert [example.id for example in examples] == ['a', 'b']


@pytest.mark.parametrize(
  'fields, message',
  [
    ([], '^tfds:a:test: there is nothing to judge'),
    ([['a']], '^tfds:a:test, row 1: the row is not an object'),
    ([ROWS[1], {'id': 'a'}], '^tfds:a:test, row 2: there is no x, only id'),
    ([ROWS[1]] * 2, "row 2: id 'b' was in tfds:a:test, row 1 before"),
  ],
)
def test_faults_of_a_table(fields, message):
  with pytest.raises(ValueError, match=message):
    rows.load(rows.Table('tfds:a:test', fields), an_example)


def test_ids_are_unique(tmp_path):
  path = write(tmp_path / 'f.json', [*ROWS, ROWS[0]])
  with pytest.raises(
    ValueError, match=r"row 3: id 'a' was in .*f\.json, row 1 before"
  ):
    rows.load(path, an_example)


def test_what_makes_no_example_is_a_fault_of_its_row(tmp_path):
  path = write(tmp_path / 'f.json', [ROWS[0], {'id': 'b', 'x': ' '}])
  with pytest.raises(ValueError, match=r'f\.json, row 2: the query is empty'):
    rows.load(path, an_example)
  with pytest.raises(ValueError, match='nothing to judge'):
    rows.load(path, lambda row: [])


def test_places_never_change():
  # Other places are other prompts: no result would be comparable.
  assert rows.places('a', 2) == (1, 0)
  assert rows.places('b', 2) == (0, 1)
  assert rows.places('a', 4) == (2, 1, 3, 0)


def test_the_right_response_stands_everywhere():
  numbers = [rows.places(f'id{i}', 4).index(0) for i in range(4000)]
  for place in range(4):
    assert 920 < numbers.count(place) < 1080


def test_best_and_rewards_move_with_the_responses():
  for i in range(20):
    example = rows.arranged(
      ROW, str(i), rows.asked('q'), 'abc', best=1, rewards=(0, 1, 0)
    )
    assert sorted(example.responses) == ['a', 'b', 'c']
    assert example.responses[example.best] == 'b'
    assert example.rewards[example.best] == 1
    assert sum(example.rewards) == 1


def test_names_in_paths(tmp_path):
  assert rows.named('/x/A/B-A/f', ['A', 'B']) == 'A'
  assert rows.named('/x/A/B/f', ['A', 'B']) == 'B'
  assert rows.named('/x/f', ['A', 'B']) is None
  assert rows.naming('/x', ['A'])('A/f.json')
  assert rows.naming('/x/A', ['A'])('f.json')
  assert not rows.naming('/x', ['A'])('f.json')
  assert rows.starting('test')('data/test-0.parquet')
  assert not rows.starting('test')('test/train-0.parquet')


def test_json_is_written_as_published(tmp_path):
  # The writer of these tests, not the reader: U+2028 stays unescaped.
  path = write(tmp_path / 'f.jsonl', ROWS)
  text = pathlib.Path(path).read_text('utf-8')
  assert '\u2028' in text
  assert [json.loads(line) for line in text.split('\n')[:2]] == ROWS
