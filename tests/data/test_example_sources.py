"""Example sources: specs, splits by query, bad and skipped rows."""

import json
import logging
import pathlib
import random
import re
import subprocess
import sys

import pytest

from grm_jax.data import example_sources
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from tests.data.datasets import rows
from tests.evaluation.suites.published import without, write
from tests.messages import in_row, names, naming

ROOT = pathlib.Path(__file__).parents[2]


def offsetbias_row(question, **changes):
  return rows.OFFSETBIAS | {'instruction': question} | changes


def offsetbias_rows(n):
  return [offsetbias_row(f'question {i}') for i in range(n)]


def own_row(question, **changes):
  """Returns a row in the format of a user's own data."""
  return {'query': question, 'responses': ['a', 'b'], 'best': 0} | changes


def questions(examples):
  return {example.query[0].text for example in examples}


def read_all_splits(spec):
  return [
    x
    for split in example_sources.SPLITS
    for x in example_sources.read(spec, split)
  ]


# Splits


def asking(*texts):
  query = [Turn(('user', 'assistant')[i % 2], t) for i, t in enumerate(texts)]
  return JudgingExample('x', tuple(query), ('a',))


@pytest.mark.parametrize(
  'question, split',
  [
    ('question 0', 'train'),
    ('question 15', 'train'),
    ('question 18', 'validation'),
    ('question 4', 'held_out'),
  ],
)
def test_splits_are_stable(question, split):
  # Comparisons of model versions rely on it.
  assert example_sources.split_of(asking(question)) == split
  assert example_sources.split_of(asking(f' {question.upper()}\n')) == split
  assert (
    example_sources.split_of(asking(question.replace(' ', '\t\n '))) == split
  )


def test_a_conversation_is_in_the_split_of_its_continuations():
  for i in range(50):
    first = example_sources.split_of(asking(f'{i}'))
    assert example_sources.split_of(asking(f'{i}', 'answer', 'more')) == first
    system = (Turn('system', 'be short'), Turn('user', f'{i}'))
    assert (
      example_sources.split_of(JudgingExample('x', system, ('a',))) == first
    )


def test_split_fractions():
  splits = [example_sources.split_of(asking(f'{i}')) for i in range(2000)]
  assert 1530 < splits.count('train') < 1670
  assert 140 < splits.count('validation') < 260
  assert 140 < splits.count('held_out') < 260


def test_a_lone_surrogate_has_a_split():
  assert example_sources.split_of(asking('\ud800')) in example_sources.SPLITS


def test_splits_do_not_share_questions(tmp_path):
  table = [
    offsetbias_row(question, output_1=f'{i}')
    for i in range(60)
    for question in (f'Question {i % 20}', f'question  {i % 20} ')
  ]
  path = write(tmp_path / 'f.jsonl', table)
  by_split = {
    s: example_sources.load(f'offsetbias:{path}', s)[0]
    for s in example_sources.SPLITS
  }
  assert sum(map(len, by_split.values())) == 120
  normalized = {
    split: {' '.join(text.lower().split()) for text in questions(examples)}
    for split, examples in by_split.items()
  }
  assert all(normalized.values())
  assert sum(map(len, normalized.values())) == 20
  # The order of the rows does not matter.
  random.Random(0).shuffle(table)
  write(path, table)
  for split, examples in by_split.items():
    again = example_sources.load(f'offsetbias:{path}', split)[0]
    by_id = {example.id: example for example in again}
    assert by_id == {example.id: example for example in examples}


# Names

PUBLISHED = {
  'gsm8k': rows.gsm8k('1000'),
  'math': rows.MATH | {'answers': rows.math_answers(True, False)},
  'pandalm': rows.pandalm(0, (1, 1, 1)),
  'ultrafeedback': rows.ultrafeedback(1, 2, 3, 4),
  'offsetbias': rows.OFFSETBIAS,
  'skywork': {
    'chosen': rows.turns('a', 'x'),
    'rejected': rows.turns('a', 'y'),
  },
  'helpsteer2': rows.helpsteer2(1),
}


@pytest.mark.parametrize('suffix', ['json', 'jsonl', 'parquet'])
@pytest.mark.parametrize('name', PUBLISHED)
def test_published_datasets(tmp_path, name, suffix):
  path = write(tmp_path / f'f.{suffix}', [PUBLISHED[name]])
  examples = read_all_splits(f'{name}:{path}')
  assert len(examples) == (2 if name in ('gsm8k', 'math') else 1)
  for example in examples:
    assert example.id.startswith(f'{name}/')
    assert example.tags['suite'] == name
  assert len({example_sources.split_of(example) for example in examples}) == 1


@pytest.mark.parametrize(
  'spec',
  ['rows.csv', 'rows', '', 'jsonl:', 'gsm8k:', 'gsm9k:f.jsonl', 'f.jsonl#no'],
)
def test_unknown_sources(spec):
  with pytest.raises(UserError) as error:
    example_sources.read(spec)
  message = str(error.value)
  assert names(message, repr(spec), 'config.data', 'FILE.jsonl')
  for name in ('jsonl', *PUBLISHED):
    assert f'{name}:PATH' in message
  assert '\n' not in message


def test_an_unknown_split():
  with pytest.raises(
    ValueError, match=naming('split', 'test', 'train', 'validation')
  ):
    example_sources.read('f.jsonl', 'test')


def test_an_own_file_is_the_same_in_every_split(tmp_path):
  table = [own_row(f'question {i}') for i in range(40)]
  path = write(tmp_path / 'f.jsonl', table)
  for split in example_sources.SPLITS:
    for spec in (path, f'jsonl:{path}'):
      assert len(example_sources.load(spec, split)[0]) == 40
  parts = [
    example_sources.load(f'{path}#split', s)[0] for s in example_sources.SPLITS
  ]
  assert all(parts)
  assert sum(map(len, parts)) == 40
  assert len(set.union(*map(questions, parts))) == 40
  assert parts[0] == example_sources.load(f'jsonl:{path}#split')[0]


@pytest.mark.parametrize('suffix', ['json', 'jsonl', 'parquet'])
def test_an_own_file_in_any_format(tmp_path, suffix):
  table = [own_row(f'question {i}') for i in range(40)]
  table[1] = own_row('bad', best=9)
  path = write(tmp_path / f'f.{suffix}', table)
  for spec in (path, f'jsonl:{path}'):
    examples, (error,) = example_sources.load(spec)
    assert [x.query[0].text for x in examples] == [
      f'question {i}' for i in range(40) if i != 1
    ]
    assert re.match(in_row(path, 2, 'best'), error.reason)
  parts = [
    example_sources.load(f'{path}#split', s)[0] for s in example_sources.SPLITS
  ]
  assert sum(map(len, parts)) == 39
  with pytest.raises(UserError, match=in_row(path, 2, 'best')):
    example_sources.load(path, fail_on_bad_rows=True)


def test_jsonl_prefix_reads_any_suffix(tmp_path):
  path = tmp_path / 'rows.txt'
  path.write_text(json.dumps(own_row('q')))
  assert len(example_sources.load(f'jsonl:{path}')[0]) == 1


def test_several_files_are_read_in_the_order_of_names(tmp_path):
  for i in (3, 0, 2, 1):
    write(
      tmp_path / f'{i}.json{"l" * (i % 2)}', [offsetbias_row(f'question {i}')]
    )
  (tmp_path / 'README.md').write_text('no rows')
  examples = example_sources.read(f'offsetbias:{tmp_path}/*.json*')
  assert [example.query[0].text for example in examples] == [
    f'question {i}' for i in range(4)
  ]
  with pytest.raises(UserError, match=naming('x*.json')):
    read_all_splits(f'offsetbias:{tmp_path}/x*.json')


def test_a_folder_stands_for_its_data_file(tmp_path):
  (tmp_path / 'LICENSE').write_text('no rows')
  for spec in (f'offsetbias:{tmp_path}', f'gsm8k:{tmp_path}'):
    with pytest.raises(UserError, match=naming(str(tmp_path), '.jsonl')):
      read_all_splits(spec)
  write(tmp_path / 'b.json', [offsetbias_row('question b')])
  assert questions(read_all_splits(f'offsetbias:{tmp_path}')) == {'question b'}
  write(tmp_path / 'a.jsonl', [offsetbias_row('question a')])
  with pytest.raises(UserError) as error:
    read_all_splits(f'offsetbias:{tmp_path}')
  assert names(error.value, str(tmp_path), 'a.jsonl', 'b.json')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, file, row',
  [
    ('gsm8k', 'example_model_solutions.jsonl', rows.gsm8k('0110')),
    ('gsm8k_pairs', 'example_model_solutions.jsonl', rows.gsm8k('0110')),
    ('pandalm', 'testset-v1.json', rows.pandalm(0, (1, 1, 1))),
  ],
)
def test_a_folder_with_the_published_file_name(tmp_path, name, file, row):
  write(tmp_path / file, [row])
  write(tmp_path / 'others.json', [{'what': 'else'}])
  examples = read_all_splits(f'{name}:{tmp_path}')
  assert examples == read_all_splits(f'{name}:{tmp_path / file}')
  assert any(isinstance(x, JudgingExample) for x in examples)


@pytest.mark.parametrize(
  'name, content, word',
  [
    ('f.json', '{\n"a": 1', 'array'),
    ('f.json', '[{"a": 1},', 'JSON'),
    ('f.json', '[' * 100_000, 'JSON'),
    ('f.parquet', 'PAR1', 'Parquet'),
    ('f.csv', 'a,b', '.parquet'),
  ],
)
def test_invalid_files(tmp_path, name, content, word):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(UserError) as error:
    example_sources.load(f'gsm8k:{path}')
  assert names(error.value, str(path), word)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', ['json', 'jsonl', 'parquet'])
def test_missing_files(tmp_path, suffix):
  path = tmp_path / f'missing.{suffix}'
  with pytest.raises(UserError, match=naming(str(path))):
    example_sources.load(f'gsm8k:{path}')


# Several sources


def two_sources(tmp_path):
  """Returns the paths of a published file and of own rows."""
  published = write(tmp_path / 'p.jsonl', [*offsetbias_rows(2), {}])
  own = [own_row('a', id=7), own_row('b'), own_row('c', tags={'suite': 'x'})]
  return published, write(tmp_path / 'mine.jsonl', own)


def test_several_sources(tmp_path, capsys):
  published, own = two_sources(tmp_path)
  spec = f'offsetbias:{published}, {own}'
  examples, (error,) = example_sources.load(spec)
  assert [x.query[0].text for x in examples] == [
    'question 0',
    'question 1',
    *'abc',
  ]
  assert [x.id for x in examples[2:]] == ['7', 'row 2', 'row 3']
  assert [x.tags['suite'] for x in examples] == [
    'offsetbias',
    'offsetbias',
    'mine',
    'mine',
    'x',
  ]
  assert re.match(in_row(published, 3, 'instruction'), error.reason)
  # source, examples, used, labelled, skipped, bad rows
  table = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ['offsetbias', '2', '2', '2', '0', '1'] in table
  assert ['mine', '3', '3', '3', '0', '0'] in table
  with pytest.raises(UserError, match=in_row(published, 3)):
    example_sources.load(spec, fail_on_bad_rows=True)
  with pytest.raises(UserError, match=naming(f'offsetbias:{published}', 3)):
    example_sources.load(spec, 'held_out')


def test_ids_of_several_sources_are_unique(tmp_path):
  same = own_row('a', id='same')
  first = write(tmp_path / '1/f.jsonl', [same, own_row('b'), own_row('c')])
  other = [same, own_row('d'), own_row('e', id=7), own_row('f')]
  second = write(tmp_path / '2/f.jsonl', other)
  third = write(tmp_path / 'g.jsonl', [own_row('h', id=7)])
  examples, _ = example_sources.load(f'{first},{second},{third}')
  assert {x.id: x.query[0].text for x in examples} == {
    'same': 'a',
    'row 2': 'b',
    'row 3': 'c',
    'f 2/row 2': 'd',
    '7': 'e',
    'row 4': 'f',
    'g/7': 'h',
  }
  assert examples[-1].stated_id == 'g/7' and examples[4].stated_id == 7
  # A row that states the id that another one would get.
  write(third, [own_row('h', id='f 3/row 2')])
  with pytest.raises(UserError, match=naming("'f 3/row 2'")):
    example_sources.load(f'{first},{third},{second}')


def test_a_fraction_of_the_queries(tmp_path):
  # The second 8 bytes of SHA-256 of 'question N', divided by 2**64, are 0.19,
  # 0.17, 0.95, 0.64, 0.72, 0.65, 0.39 and 0.08.
  table = [
    offsetbias_row(f'question {i}', output_1=f'{x}')
    for i in range(8)
    for x in (1, 2)
  ]
  path = write(tmp_path / 'f.jsonl', [own_row(f'question {i}') for i in '267'])
  write(tmp_path / 'o.jsonl', table)

  def used(spec):
    return [x.query[0].text[-1] for x in example_sources.load(spec)[0]]

  assert used(f'{path}*0.4') == ['6', '7']
  assert used(f'{path}*0.3') == ['7']
  # Questions 2 and 4 are in other splits.
  spec = f'offsetbias:{tmp_path}/o.jsonl'
  assert used(f'{spec}*0.65') == [*'001133556677']
  assert used(f'{spec}*0.18, {path}*.5') == [*'1177', *'67']
  with pytest.raises(UserError, match=naming(f'{path}*0.01', 3)):
    example_sources.load(f'{path}*0.01')


def test_one_source_is_not_changed(tmp_path, capsys):
  path = write(tmp_path / 'f.jsonl', [own_row('a')])
  (example,), _ = example_sources.load(path)
  assert (example.id, example.tags) == ('row 1', {})
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
  'spec, part',
  [
    ('practice:1,gsm9k:f.jsonl', 'gsm9k:f.jsonl'),
    ('practice:1,my', 'my'),
    ('practice:x,practice', 'practice:x'),
  ],
)
def test_errors_name_the_part(spec, part):
  with pytest.raises(UserError, match=naming(f"'{part}'")):
    example_sources.load(spec)


# Bad rows


@pytest.mark.parametrize('suffix', ['json', 'jsonl'])
@pytest.mark.parametrize(
  'bad, words',
  [
    (without(rows.OFFSETBIAS, 'label'), ['label']),
    (offsetbias_row('q', output_1=True), ['output_1', True]),
    (offsetbias_row(' '), ['query']),
    ([1], ['object']),
    (None, ['object']),
  ],
)
def test_a_bad_row_is_reported_and_skipped(tmp_path, suffix, bad, words):
  table = offsetbias_rows(20)
  table.insert(7, bad)
  path = write(tmp_path / f'f.{suffix}', table)
  examples, errors = example_sources.load(f'offsetbias:{path}')
  assert len(errors) == 1
  assert errors[0].id == 'row 8'
  assert re.match(in_row(path, 8, *words), errors[0].reason)
  write(path, offsetbias_rows(20))
  assert example_sources.load(f'offsetbias:{path}') == (examples, [])
  assert 'question 19' in questions(examples)


def test_a_line_that_is_not_json(tmp_path):
  path = tmp_path / 'f.jsonl'
  good = [json.dumps(row) for row in offsetbias_rows(20)]
  path.write_text('\n'.join([*good[:10], '{"instruction"', '', *good[10:]]))
  examples, (error,) = example_sources.load(f'offsetbias:{path}')
  assert re.match(in_row(path, 11, 'JSON'), error.reason)
  assert 'question 19' in questions(examples)


def test_bad_rows_of_own_data(tmp_path):
  table = [own_row('a'), own_row('b', id='B', best=5), [], own_row('c', id='C')]
  path = write(tmp_path / 'f.jsonl', table)
  examples, errors = example_sources.load(path)
  assert [example.id for example in examples] == ['row 1', 'C']
  assert [error.id for error in errors] == ['B', 'row 3']
  assert re.match(in_row(path, 2, 'best', 5, 2), errors[0].reason)
  assert re.match(in_row(path, 3, 'object'), errors[1].reason)


def test_fail_on_bad_rows(tmp_path):
  path = write(tmp_path / 'f.jsonl', [own_row('a'), {}, own_row('b', best=9)])
  with pytest.raises(UserError, match=in_row(path, 2, 'responses')):
    example_sources.load(path, fail_on_bad_rows=True)


def test_the_log_lists_the_first_bad_rows(tmp_path, caplog):
  path = write(tmp_path / 'f.jsonl', [own_row('a'), *[{}] * 8])
  with caplog.at_level(logging.WARNING, 'absl'):
    caplog.clear()
    example_sources.load(path)
  *first, last = [record.getMessage() for record in caplog.records]
  for number, text in zip(range(2, 7), first, strict=True):
    assert re.match(in_row(path, number), text)
  assert names(last, path, 'train', 8)


@pytest.mark.parametrize(
  'table, row, words',
  [
    ([], None, []),
    ([offsetbias_row('q', label=3), {}], 1, ['label', 3]),
    (
      [offsetbias_row('question 0'), offsetbias_row('question 1')],
      None,
      [2, 'split'],
    ),
    (
      [
        offsetbias_row('question 4', output_1='two'),
        offsetbias_row('question 0'),
        {},
      ],
      3,
      ['instruction', 'response', 'split'],
    ),
  ],
)
def test_no_examples_remain(tmp_path, table, row, words):
  path = write(tmp_path / 'f.json', table)
  with pytest.raises(UserError) as error:
    example_sources.load(f'offsetbias:{path}', 'held_out')
  message = str(error.value)
  assert names(message, f'offsetbias:{path}', 'held_out', *words)
  assert row is None or re.search(in_row(path, row), message)
  assert '\n' not in message


def test_repeated_ids(tmp_path):
  table = [
    own_row('a', id='A'),
    own_row('a', id='A'),
    own_row('b', id='A'),
    own_row('b'),
  ]
  path = write(tmp_path / 'f.jsonl', table)
  examples, (error,) = example_sources.load(path)
  assert [(e.id, e.query[0].text) for e in examples] == [
    ('A', 'a'),
    ('row 4', 'b'),
  ]
  assert error.id == 'A' and names(error.reason, path, "'A'")


def test_pairs_of_equal_responses_are_skipped(tmp_path):
  same = offsetbias_row('question 0', output_2='one')
  path = write(tmp_path / 'f.jsonl', [same, offsetbias_row('question 1')])
  examples, errors = example_sources.load(f'offsetbias:{path}')
  assert (len(examples), errors) == (1, [])
  # Own rows are not filtered.
  path = write(tmp_path / 'own.jsonl', [own_row('a', responses=['x', 'x'])])
  assert len(example_sources.load(path)[0]) == 1


@pytest.mark.parametrize('name', ['jsonl', 'offsetbias'])
def test_rows_are_read_lazily(tmp_path, name):
  row = (
    own_row('question 0') if name == 'jsonl' else offsetbias_row('question 0')
  )
  path = tmp_path / 'f.jsonl'
  # More than a buffer, so the bad line is not read together with the row.
  path.write_text(f'{json.dumps(row)}\n' + ' ' * 1_000_000 + '\n{')
  examples = example_sources.read(f'{name}:{path}')
  assert next(examples).query[0].text == 'question 0'
  path.write_text('')
  assert list(examples) == []


def test_reading_files_does_not_import_tensorflow_or_jax(tmp_path):
  write(tmp_path / 'f.jsonl', [own_row('a')])
  write(tmp_path / 'g.json', offsetbias_rows(1))
  code = (
    'import sys\n'
    'from grm_jax.data import example_sources as sources\n'
    f'sources.load("{tmp_path}/f.jsonl")\n'
    f'sources.load("offsetbias:{tmp_path}/g.json")\n'
    'unwanted = ("tensorflow", "tensorflow_datasets", "seqio", "jax")\n'
    'print([name for name in unwanted if name in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert out.stdout.strip() == '[]', out.stderr


@pytest.mark.parametrize(
  'count', ['0', '-1', '1.5', '\u0663', '9' * 30, '10000001']
)
def test_a_count_out_of_range(count):
  with pytest.raises(UserError, match=naming('COUNT')):
    example_sources.load(f'practice:{count}')


@pytest.mark.parametrize('spec', ['ultrafeedback:{}', 'math:{}', 'jsonl:{}'])
@pytest.mark.parametrize('name', ['MISSING', 'missing.jsonl', 'missing.txt'])
def test_missing_file_is_reported_as_missing(tmp_path, spec, name):
  path = tmp_path / name
  with pytest.raises(UserError, match=naming(path, 'No such file')) as error:
    list(example_sources.read(spec.format(path)))
  assert '.parquet' not in str(error.value)
