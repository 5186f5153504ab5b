"""JSON lines one at a time; a bad one does not end the file."""

import itertools
import json
import tracemalloc

import pytest

from grm_jax.data import jsonl
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.judgement import Fault

GOOD = b'{"query": "q", "responses": ["a", "b"], "best": 1}\n'


@pytest.fixture
def written(tmp_path):
  def write(content):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(content)
    return str(path)

  return write


def test_a_row_becomes_an_example(written):
  ((number, example),) = jsonl.read(written(GOOD))
  assert number == 1
  assert isinstance(example, JudgingExample)
  assert (example.id, example.query[0].text) == ('1', 'q')
  assert (example.responses, example.best) == (('a', 'b'), 1)


def test_lines_are_numbered_as_an_editor_does(written):
  content = b'\xef\xbb\xbf' + GOOD + b'\n  \r\n' + GOOD[:-1] + b'\r\n'
  content += '{"query": "a\u2028\x85b", "responses": ["a"]}'.encode()
  found = dict(jsonl.read(written(content)))
  assert list(found) == [1, 4, 5]
  assert found[5].query[0].text == 'a\u2028\x85b'


@pytest.mark.parametrize(
  'line, id, reason',
  [
    (b'{"query": ', 'line 2', 'not JSON: '),
    (b'{"query": "\xff"}', 'line 2', 'not JSON: '),
    (b'[' * 100_000, 'line 2', 'not JSON: '),
    (b'9' * 5000, 'line 2', 'not JSON: '),
    (b'[1]', '2', 'the row is not a JSON object'),
    (b'{"id": "x", "query": "q"}', 'x', 'responses must be a list of texts'),
    (b'{"query": " ", "responses": ["a"]}', '2', 'the query is empty'),
  ],
)
def test_a_bad_line_between_good_ones(written, line, id, reason):
  first, (number, fault), last = jsonl.read(written(GOOD + line + b'\n' + GOOD))
  assert (first[0], number, last[0]) == (1, 2, 3)
  assert isinstance(fault, Fault)
  assert fault.id == id
  assert fault.reason.startswith(reason)
  assert '\n' not in fault.reason
  assert isinstance(last[1], JudgingExample)


def test_values_are_not_looked_at(written):
  found = list(jsonl.values(written(b'[1]\n\n"x"\n{')))
  assert found[:2] == [(1, [1]), (3, 'x')]
  assert found[2][0] == 4
  assert found[2][1].id == 'line 4'


def test_memory_does_not_grow_with_the_file(written):
  row = json.dumps({'query': 'q' * 50, 'responses': ['a', 'b']}).encode()
  path = written((row + b'\n') * 100_000)
  first = next(jsonl.read(path))
  assert first[0] == 1
  tracemalloc.start()
  try:
    count = sum(1 for _ in jsonl.lines(path))
    ten = list(itertools.islice(jsonl.read(path), 10))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert (count, len(ten)) == (100_000, 10)
  assert peak < 500_000  # of a file of 9 million bytes


def test_what_cannot_be_opened(tmp_path):
  for path, reason in [
    (tmp_path / 'missing.jsonl', 'No such file or directory'),
    (tmp_path, 'Is a directory'),
  ]:
    with pytest.raises(ValueError) as error:
      list(jsonl.read(str(path)))
    assert str(error.value) == f'{path} cannot be read: {reason}'


def test_a_bucket_without_what_reads_buckets(monkeypatch):
  def missing(path):
    raise ImportError('please install gcsfs')

  monkeypatch.setattr(jsonl.epath, 'Path', missing)
  with pytest.raises(ValueError, match='^gs://b/f cannot be read: .* gcsfs$'):
    list(jsonl.read('gs://b/f'))
