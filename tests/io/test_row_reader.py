"""Rows of JSON, JSON Lines and Parquet files: numbers, formats, bad lines."""

import itertools
import json
import os
import pathlib
import socket
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.io.row_reader import UnreadableRow, count_rows, read_rows
from tests.evaluation.suites.published import write
from tests.messages import names, naming

ROWS = [{'id': 'a', 'x': 'one'}, {'id': 'b', 'x': 'twö\u2028three'}]


def read(path, fallback=''):
  return list(read_rows(str(path), fallback))


def write_bytes(path, content):
  path.write_bytes(content)
  return str(path)


@pytest.mark.parametrize('name', ['f.json', 'f.jsonl', 'f.parquet'])
def test_all_formats_have_the_same_rows(tmp_path, name):
  path = write(tmp_path / name, ROWS)
  assert read(path) == list(enumerate(ROWS, 1))
  assert count_rows(path) == 2


def test_fixture_writer_keeps_u2028_unescaped(tmp_path):
  path = write(tmp_path / 'f.jsonl', ROWS)
  text = pathlib.Path(path).read_text('utf-8')
  assert '\u2028' in text
  assert [json.loads(line) for line in text.split('\n')[:2]] == ROWS


@pytest.mark.parametrize('name', ['f.json', 'f.jsonl'])
def test_one_object_per_line(tmp_path, name):
  content = b'\xef\xbb\xbf{"id": "a"}\n\n  \r\n{"id": "b"}\r\n'
  content += '{"id": "c\u2028\x85d"}'.encode()
  path = write_bytes(tmp_path / name, content)
  # Blank lines count, as in an editor.
  numbers, rows = zip(*read(path), strict=True)
  assert numbers == (1, 4, 5)
  assert [row['id'] for row in rows] == ['a', 'b', 'c\u2028\x85d']
  assert count_rows(path) == 3


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings_of_an_array(tmp_path, encoding):
  content = f' \n{json.dumps(ROWS, ensure_ascii=False)}'.encode(encoding)
  assert read(write_bytes(tmp_path / 'f.json', content)) == [
    (1, ROWS[0]),
    (2, ROWS[1]),
  ]


def test_unknown_suffix_needs_a_fallback(tmp_path):
  path = write(tmp_path / 'f.txt', ROWS)
  with pytest.raises(UserError, match=naming(path, *row_reader.FORMATS)):
    read(path)
  with pytest.raises(UserError, match=naming(path, *row_reader.FORMATS)):
    count_rows(path)
  assert [row for _, row in read(path, '.jsonl')] == ROWS
  assert count_rows(path, '.jsonl') == 2
  # A known suffix has priority over the fallback.
  path = write(tmp_path / 'f.json', ROWS)
  assert [row for _, row in read(path, '.jsonl')] == ROWS


@pytest.mark.parametrize(
  'line, word',
  [
    (b'{"query": ', 'column 10'),
    (b'{"query": "\xff"}', 'UTF-8'),
    (b'{"query": "\xff"}', '11'),
    (b'[' * 100_000, 'recursion'),
    (b'9' * 5000, '5000'),
  ],
)
def test_reading_continues_after_a_bad_line(tmp_path, line, word):
  path = write_bytes(tmp_path / 'f.jsonl', b'[1]\n\n"x"\n' + line + b'\n{}\n')
  first, second, (number, bad), last = read(path)
  assert (first, second, last) == ((1, [1]), (3, 'x'), (5, {}))
  assert number == 4
  assert isinstance(bad, UnreadableRow)
  assert names(bad.reason, 'JSON', word)
  assert '\n' not in bad.reason
  assert count_rows(path) == 4


def test_one_object_of_many_lines_is_a_row(tmp_path):
  path = write_bytes(tmp_path / 'f.json', b'\xef\xbb\xbf{\n"a": 1\n}\n')
  assert read(path) == [(1, {'a': 1})]
  assert count_rows(path) == 1


@pytest.mark.parametrize(
  'name, content, words',
  [
    ('f.json', b'[{"a": 1},\n{"a" 2}]', ('JSON', 'line 2')),
    ('f.json', b'[' * 100_000, ('JSON',)),
    ('f.json', b'[{"a": "\xff"}]', ('JSON', 'UTF-8', 8)),
    ('f.json', b'', ('JSON',)),
    ('f.json', b'7', ('array',)),
    ('f.json', b'{\n"a" 1\n}\n', ('array', 'line', 'row 1')),
    ('f.parquet', b'PAR1 or not', ('Parquet',)),
    ('f.parquet', b'', ('Parquet',)),
  ],
)
def test_content_does_not_match_the_suffix(tmp_path, name, content, words):
  path = write_bytes(tmp_path / name, content)
  for function in (read, count_rows):
    with pytest.raises(UserError, match=naming(path, *words)) as error:
      function(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('fallback', ['', '.jsonl'])
def test_path_that_cannot_be_opened(tmp_path, fallback):
  missing = 'No such file or directory'
  for path, reason in [
    *((tmp_path / f'missing{x}', missing) for x in ('', *row_reader.FORMATS)),
    (write_folder(tmp_path / 'folder.jsonl'), 'Is a directory'),
    (write_folder(tmp_path / 'folder.json'), 'Is a directory'),
    (write_folder(tmp_path / 'folder.parquet'), 'Is a directory'),
  ]:
    for function in (read, count_rows):
      with pytest.raises(UserError, match=naming(str(path), reason)) as error:
        function(str(path), fallback)
      assert '\n' not in str(error.value)


def write_folder(path):
  path.mkdir()
  return path


def test_bucket_needs_a_package(monkeypatch):
  def missing(path):
    raise ImportError('please install gcsfs')

  monkeypatch.setattr(row_reader.epath, 'Path', missing)
  with pytest.raises(UserError, match=naming('gs://b/f', 'gcsfs')):
    read('gs://b/f')


def test_memory_does_not_grow_with_the_file(tmp_path):
  line = json.dumps({'query': 'q' * 50, 'responses': ['a', 'b']}).encode()
  path = write_bytes(tmp_path / 'f.jsonl', (line + b'\n') * 100_000)
  assert next(read_rows(path))[0] == 1
  tracemalloc.start()
  try:
    count = count_rows(path)
    first_rows = list(itertools.islice(read_rows(path), 10))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert (count, len(first_rows)) == (100_000, 10)
  assert peak < 500_000  # bytes; the file has 9 million


def test_parquet_row_numbers_continue_across_batches(tmp_path):
  path = write(tmp_path / 'f.parquet', [{'i': i} for i in range(600)])
  assert read(path) == [(i + 1, {'i': i}) for i in range(600)]
  assert count_rows(path) == 600


def test_parquet_values_are_converted_to_json_values(tmp_path):
  schema = pyarrow.schema(
    {
      'messages': pyarrow.list_(
        pyarrow.struct({'role': pyarrow.string(), 'content': pyarrow.string()})
      ),
      'tags': pyarrow.map_(pyarrow.string(), pyarrow.string()),
      'rewards': pyarrow.list_(pyarrow.float32()),
      'best': pyarrow.int8(),
    }
  )
  rows = [
    {
      'messages': [{'role': 'user', 'content': 'q'}],
      'tags': {'suite': 's'},
      'rewards': [0.5, 1.0],
      'best': 1,
    },
    dict.fromkeys(schema.names),
  ]
  path = tmp_path / 'f.parquet'
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
  assert [row for _, row in read(path)] == rows


@pytest.mark.parametrize('start, stop', [(4, 200), (1000, 3000), (-200, -20)])
def test_damaged_parquet(tmp_path, start, stop):
  path = write(tmp_path / 'f.parquet', [{'x': f'abc{i}'} for i in range(5000)])
  content = bytearray(pathlib.Path(path).read_bytes())
  size = len(content[start:stop])
  content[start:stop] = b'\xff' * size
  pathlib.Path(path).write_bytes(content)
  with pytest.raises(UserError, match=naming(path)) as error:
    read(path)
  assert '\n' not in str(error.value)


def test_duplicate_key_in_a_parquet_map(tmp_path):
  map_type = pyarrow.map_(pyarrow.string(), pyarrow.int64())
  column = pyarrow.array([[('a', 0)], [('a', 1), ('a', 2)]], map_type)
  path = tmp_path / 'f.parquet'
  pyarrow.parquet.write_table(pyarrow.table({'tags': column}), path)
  with pytest.raises(UserError, match=naming(str(path), "'a'")) as error:
    read(path)
  assert '\n' not in str(error.value)


def test_error_without_pyarrow_states_the_package(tmp_path, monkeypatch):
  path = write(tmp_path / 'f.parquet', ROWS)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  for function in (read, count_rows):
    with pytest.raises(UserError, match=naming(path, 'pyarrow')) as error:
      function(path)
    assert names(error.value, 'pip install')
    assert '\n' not in str(error.value)


ARRAY = json.dumps(ROWS).encode()
PARQUET = b'PAR1\x15\x04\x15'


@pytest.mark.parametrize(
  'name, content, cure',
  [
    ('f.jsonl', ARRAY, '.json'),
    ('f.jsonl', b'\xef\xbb\xbf' + ARRAY, '.json'),
    ('f.jsonl', json.dumps(ROWS * 300).encode(), '.json'),
    ('f.jsonl', json.dumps(ROWS, indent=2).encode(), '.json'),
    ('f.txt', b'[\n' + b',\n'.join([b'{"a": 1}'] * 3) + b'\n]\n', '.json'),
    ('f.jsonl', PARQUET, '.parquet'),
    ('f.json', PARQUET, '.parquet'),
    ('f.parquet', ARRAY, '.json'),
    ('f.jsonl', b'\x1f\x8b\x08\x00', 'gunzip'),
  ],
)
def test_wrong_suffix_is_named_with_the_cure(tmp_path, name, content, cure):
  path = write_bytes(tmp_path / name, content)
  for function in (read, count_rows):
    with pytest.raises(UserError, match=naming(path)) as error:
      function(path, '.jsonl')
    assert names(str(error.value).split(';')[1], cure)


def test_first_line_that_is_an_array_is_one_bad_row(tmp_path):
  path = write_bytes(tmp_path / 'f.jsonl', b'[{"a": 1}]\n{"b": 2}\n')
  assert read(path) == [(1, [{'a': 1}]), (2, {'b': 2})]


@pytest.mark.parametrize('name', ['f', *(f'f{x}' for x in row_reader.FORMATS)])
def test_pipe_socket_and_device_are_refused_at_once(tmp_path, name):
  pipe, device = tmp_path / name, tmp_path / f'zero{name}'
  os.mkfifo(pipe)
  device.symlink_to('/dev/zero')
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(tmp_path / f'socket{name}'))
    for path in (pipe, device, tmp_path / f'socket{name}'):
      for function in (read, count_rows):
        with pytest.raises(UserError, match=naming(str(path))):
          function(str(path), '.jsonl')
