"""Rows of files as examples or faults: a bad row does not end the file."""

import itertools
import json
import re
import tracemalloc

import pytest

from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError
from tests.evaluation.suites.published import write
from tests.messages import in_row, names, naming

GOOD = b'{"query": "q", "responses": ["a", "b"], "best": 1}\n'
SUFFIXES = ['json', 'jsonl', 'parquet']


@pytest.fixture
def written(tmp_path):
  def write(content):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(content)
    return str(path)

  return write


def test_a_row_becomes_an_example(written):
  ((number, example),) = dataset_files.read_examples(written(GOOD))
  assert number == 1
  assert isinstance(example, JudgingExample)
  assert (example.id, example.query[0].text) == ('1', 'q')
  assert (example.responses, example.best) == (('a', 'b'), 1)


def test_lines_are_numbered_as_an_editor_does(written):
  content = b'\xef\xbb\xbf' + GOOD + b'\n  \r\n' + GOOD[:-1] + b'\r\n'
  content += '{"query": "a\u2028\x85b", "responses": ["a"]}'.encode()
  found = dict(dataset_files.read_examples(written(content)))
  assert list(found) == [1, 4, 5]
  assert found[5].query[0].text == 'a\u2028\x85b'


@pytest.mark.parametrize(
  'line, id, word',
  [
    (b'{"query": ', 'line 2', 'JSON'),
    (b'{"query": "\xff"}', 'line 2', 'JSON'),
    (b'[' * 100_000, 'line 2', 'JSON'),
    (b'9' * 5000, 'line 2', 'JSON'),
    (b'[1]', '2', 'object'),
    (b'{"id": "x", "query": "q"}', 'x', 'responses'),
    (b'{"query": " ", "responses": ["a"]}', '2', 'query'),
  ],
)
def test_a_bad_line_between_good_ones(written, line, id, word):
  path = written(GOOD + line + b'\n' + GOOD)
  first, (number, fault), last = dataset_files.read_examples(path)
  assert (first[0], number, last[0]) == (1, 2, 3)
  assert isinstance(fault, ExampleError)
  assert fault.id == id
  assert names(fault.reason, word)
  assert '\n' not in fault.reason
  assert isinstance(last[1], JudgingExample)
  located = list(
    dataset_files.with_row_location(path, dataset_files.read_examples(path))
  )
  assert located[0] == first[1]
  assert located[1].id == id
  assert re.match(in_row(path, 2, word), located[1].reason)


def test_values_are_not_looked_at(written):
  found = list(dataset_files.numbered_rows(written(b'[1]\n\n"x"\n{')))
  assert found[:2] == [(1, [1]), (3, 'x')]
  assert found[2][0] == 4
  assert found[2][1].id == 'line 4'


ROWS = [
  {'id': 'pair', 'query': 'q', 'responses': ['a', 'b'], 'best': 1},
  {'id': 7, 'query': 'q', 'responses': ['a'], 'best': 1},  # a bad row
  {
    'messages': [{'role': 'user', 'content': 'm'}],
    'responses': ['a'],
    'rewards': [1.0],
    'tags': {'suite': 's'},
  },
  {'query': 'q', 'responses': ['a'], 'tags': {'subset': 't'}},
]


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_formats_make_the_same_examples(tmp_path, suffix):
  rows = ROWS
  if suffix == 'parquet':  # every column is in every row and has one type
    columns = dict.fromkeys(key for row in ROWS for key in row)
    rows = [columns | row for row in ROWS]
    rows = [row | {'id': row['id'] and str(row['id'])} for row in rows]
  path = write(tmp_path / f'f.{suffix}', rows)
  numbers, items = zip(*dataset_files.read_examples(path), strict=True)
  assert numbers == (1, 2, 3, 4)
  pair, bad, single, bare = items
  assert (pair.id, pair.responses, pair.best) == ('pair', ('a', 'b'), 1)
  assert (pair.rewards, pair.tags) == (None, {})
  assert (
    isinstance(bad, ExampleError)
    and bad.id == '7'
    and names(bad.reason, 'best')
  )
  assert (single.id, single.query[0].text) == ('3', 'm')
  assert (single.best, single.rewards) == (None, (1.0,))
  assert (single.tags, bare.tags) == ({'suite': 's'}, {'subset': 't'})


def test_memory_does_not_grow_with_the_file(written):
  row = json.dumps({'query': 'q' * 50, 'responses': ['a', 'b']}).encode()
  path = written((row + b'\n') * 100_000)
  tracemalloc.start()
  try:
    ten = list(itertools.islice(dataset_files.read_examples(path), 10))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert [number for number, _ in ten] == list(range(1, 11))
  assert peak < 500_000  # of a file of 9 million bytes


def test_what_cannot_be_opened(tmp_path):
  for path, reason in [
    (tmp_path / 'missing.jsonl', 'No such file or directory'),
    (tmp_path / 'missing', 'No such file or directory'),
    (tmp_path, 'Is a directory'),
  ]:
    with pytest.raises(UserError, match=naming(str(path), reason)):
      list(dataset_files.read_examples(str(path)))


def test_a_suffix_that_names_no_format(tmp_path):
  path = tmp_path / 'rows.txt'
  path.write_bytes(GOOD)
  # A user's own rows are lines then; a published set has a known suffix.
  assert len(list(dataset_files.read_examples(str(path)))) == 1
  with pytest.raises(UserError, match=naming(str(path), '.parquet')):
    list(dataset_files.numbered_rows(str(path)))
