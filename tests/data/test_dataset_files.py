"""Rows of data files: examples, errors of bad rows, text digests."""

import hashlib
import itertools
import json
import re
import tracemalloc

import pytest

from grm_jax.data import dataset_files, example_sources, sft_sources
from grm_jax.errors import UserError
from grm_jax.evaluation.suites import llmbar
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError
from tests.evaluation.suites.published import write
from tests.messages import in_row, names, naming

GOOD = b'{"query": "q", "responses": ["a", "b"], "best": 1}\n'
SUFFIXES = ['json', 'jsonl', 'parquet']


@pytest.fixture
def rows_file(tmp_path):
  def write_content(content):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(content)
    return str(path)

  return write_content


def test_a_row_becomes_an_example(rows_file):
  ((number, example),) = dataset_files.read_examples(rows_file(GOOD))
  assert number == 1
  assert isinstance(example, JudgingExample)
  assert (example.id, example.query[0].text) == ('row 1', 'q')
  assert (example.responses, example.best) == (('a', 'b'), 1)


def test_rows_have_the_line_numbers_of_an_editor(rows_file):
  content = b'\xef\xbb\xbf' + GOOD + b'\n  \r\n' + GOOD[:-1] + b'\r\n'
  content += '{"query": "a\u2028\x85b", "responses": ["a"]}'.encode()
  rows_ = dict(dataset_files.read_examples(rows_file(content)))
  assert list(rows_) == [1, 4, 5]
  assert rows_[5].query[0].text == 'a\u2028\x85b'


@pytest.mark.parametrize(
  'line, id, word',
  [
    (b'{"query": ', 'line 2', 'JSON'),
    (b'{"query": "\xff"}', 'line 2', 'JSON'),
    (b'[' * 100_000, 'line 2', 'JSON'),
    (b'9' * 5000, 'line 2', 'JSON'),
    (b'[1]', 'row 2', 'object'),
    (b'{"id": "x", "query": "q"}', 'x', 'responses'),
    (b'{"query": " ", "responses": ["a"]}', 'row 2', 'query'),
  ],
)
def test_a_bad_line_between_good_ones(rows_file, line, id, word):
  path = rows_file(GOOD + line + b'\n' + GOOD)
  first, (number, error), last = dataset_files.read_examples(path)
  assert (first[0], number, last[0]) == (1, 2, 3)
  assert isinstance(error, ExampleError)
  assert error.id == id
  assert names(error.reason, word)
  assert '\n' not in error.reason
  assert isinstance(last[1], JudgingExample)
  located = list(
    dataset_files.with_row_location(path, dataset_files.read_examples(path))
  )
  assert located[0] == first[1]
  assert located[1].id == id
  assert re.match(in_row(path, 2, word), located[1].reason)


def test_numbered_rows_do_not_check_values(rows_file):
  rows_ = list(dataset_files.numbered_rows(rows_file(b'[1]\n\n"x"\n{')))
  assert rows_[:2] == [(1, [1]), (3, 'x')]
  assert rows_[2][0] == 4
  assert rows_[2][1].id == 'line 4'


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
def test_all_formats_yield_the_same_examples(tmp_path, suffix):
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
    and str(bad.id) == '7'
    and names(bad.reason, 'best')
  )
  assert (single.id, single.query[0].text) == ('row 3', 'm')
  assert (single.best, single.rewards) == (None, (1.0,))
  assert (single.tags, bare.tags) == ({'suite': 's'}, {'subset': 't'})


def test_memory_does_not_grow_with_the_file(rows_file):
  row = json.dumps({'query': 'q' * 50, 'responses': ['a', 'b']}).encode()
  path = rows_file((row + b'\n') * 100_000)
  tracemalloc.start()
  try:
    ten = list(itertools.islice(dataset_files.read_examples(path), 10))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert [number for number, _ in ten] == list(range(1, 11))
  assert peak < 500_000  # the file has 9 million bytes


def test_files_that_cannot_be_opened(tmp_path):
  for path, reason in [
    (tmp_path / 'missing.jsonl', 'No such file or directory'),
    (tmp_path / 'missing', 'No such file or directory'),
    (tmp_path, 'Is a directory'),
  ]:
    with pytest.raises(UserError, match=naming(str(path), reason)):
      list(dataset_files.read_examples(str(path)))


def test_an_unknown_suffix(tmp_path):
  path = tmp_path / 'rows.txt'
  path.write_bytes(GOOD)
  # Own rows are then JSON Lines; published datasets have a known suffix.
  assert len(list(dataset_files.read_examples(str(path)))) == 1
  with pytest.raises(UserError, match=naming(str(path), '.parquet')):
    list(dataset_files.numbered_rows(str(path)))


def test_text_digests_are_stable():
  # Ids contain digests: other digests mean other samples and orders.
  assert dataset_files.text_digest('a', 'b') == '3554d2b8a1e34099'
  ab = dataset_files.text_digest('a', 'b')
  assert dataset_files.text_digest('ab', '') != ab


def test_text_digest_of_a_lone_surrogate():
  digest = dataset_files.text_digest('\ud800')
  assert digest == hashlib.sha256(rb'["\ud800"]').hexdigest()[:16]


def test_rows_without_an_id_never_have_the_id_of_another_row(tmp_path):
  plain = {'query': 'q', 'responses': ['a']}
  rows_of_file = [
    plain | {'id': '2'},
    plain,
    plain | {'id': 2},
    plain | {'id': 'row 2'},
    plain | {'id': 'row 5'},
    plain,
  ]
  path = write(tmp_path / 'f.jsonl', rows_of_file)
  items = [item for _, item in dataset_files.read_examples(str(path))]
  bad = items.pop(3)
  assert isinstance(bad, ExampleError) and names(bad.reason, "'row 2'")
  assert [x.stated_id for x in items] == ['2', 'row 2', 2, 'row 5', 'row 6']


TURN = [{'role': 'assistant', 'content': '4'}]
TRL_ROWS = [
  {'prompt': 'q', 'chosen': '4', 'rejected': '5'},
  {'prompt': TURN, 'chosen': TURN, 'rejected': TURN},
  {'chosen': '4', 'rejected': '5'},
  {'prompt': '2 * 3?', 'completions': ['6', '7'], 'labels': [True, False]},
]


@pytest.mark.parametrize('row', TRL_ROWS)
@pytest.mark.parametrize(
  'reader', ['examples', 'skywork', 'offsetbias', 'texts']
)
def test_rows_of_trl_are_refused_with_columns_and_cure(tmp_path, reader, row):
  path = str(write(tmp_path / 'f.jsonl', [row]))
  match reader:
    case 'examples':
      ((_, item),) = dataset_files.read_examples(path)
    case 'texts':
      (item,) = sft_sources.read(f'texts:{path}', 'train', 'mine')
    case _:
      (item,) = example_sources.read(f'{reader}:{path}')
  assert isinstance(item, ExampleError)
  problem, cure = item.reason.split(';', 1)
  assert names(problem, 'columns', *row)
  assert names(cure, 'query', 'responses')
  with pytest.raises(UserError, match=naming('f.jsonl', *row, 'query')):
    llmbar.load(path)
