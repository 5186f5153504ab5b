"""Sources by name; splits by question; what is bad is named and left out."""

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
from tests.data import test_adapters as made
from tests.evaluation.suites.published import without, write
from tests.messages import in_row, names, naming

ROOT = pathlib.Path(__file__).parents[2]


def pair(question, **changes):
  """A row of OffsetBias."""
  return made.PAIR | {'instruction': question} | changes


def pairs(n):
  return [pair(f'question {i}') for i in range(n)]


def own(question, **changes):
  return {'query': question, 'responses': ['a', 'b'], 'best': 0} | changes


def questions(examples):
  return {example.query[0].text for example in examples}


def everything(spec):
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
def test_splits_never_change(question, split):
  # Who compares two versions of a model relies on it.
  assert example_sources.split_of(asking(question)) == split
  assert example_sources.split_of(asking(f' {question.upper()}\n')) == split
  assert (
    example_sources.split_of(asking(question.replace(' ', '\t\n '))) == split
  )


def test_a_conversation_stays_with_its_continuations():
  for i in range(50):
    first = example_sources.split_of(asking(f'{i}'))
    assert example_sources.split_of(asking(f'{i}', 'answer', 'more')) == first
    system = (Turn('system', 'be short'), Turn('user', f'{i}'))
    assert (
      example_sources.split_of(JudgingExample('x', system, ('a',))) == first
    )


def test_shares_of_splits():
  found = [example_sources.split_of(asking(f'{i}')) for i in range(2000)]
  assert 1530 < found.count('train') < 1670
  assert 140 < found.count('validation') < 260
  assert 140 < found.count('held_out') < 260


def test_half_a_surrogate_has_a_split():
  assert example_sources.split_of(asking('\ud800')) in example_sources.SPLITS


def test_no_question_is_in_two_splits(tmp_path):
  table = [
    pair(question, output_1=f'{i}')
    for i in range(60)
    for question in (f'Question {i % 20}', f'question  {i % 20} ')
  ]
  path = write(tmp_path / 'f.jsonl', table)
  found = {
    s: example_sources.load(f'offsetbias:{path}', s)[0]
    for s in example_sources.SPLITS
  }
  assert sum(map(len, found.values())) == 120
  folded = {
    split: {' '.join(text.lower().split()) for text in questions(examples)}
    for split, examples in found.items()
  }
  assert all(folded.values())
  assert sum(map(len, folded.values())) == 20
  # In any order of rows the same examples with the same content.
  random.Random(0).shuffle(table)
  write(path, table)
  for split, examples in found.items():
    again = example_sources.load(f'offsetbias:{path}', split)[0]
    by_id = {example.id: example for example in again}
    assert by_id == {example.id: example for example in examples}


# Names

PUBLISHED = {
  'gsm8k': made.gsm8k('1000'),
  'math': made.MATH | {'answers': made.answers(True, False)},
  'pandalm': made.panda(0, (1, 1, 1)),
  'ultrafeedback': made.ultrafeedback(1, 2, 3, 4),
  'offsetbias': made.PAIR,
  'skywork': {
    'chosen': made.turns('a', 'x'),
    'rejected': made.turns('a', 'y'),
  },
  'helpsteer2': made.helpsteer2(1),
}


@pytest.mark.parametrize('suffix', ['json', 'jsonl', 'parquet'])
@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sets(tmp_path, name, suffix):
  path = write(tmp_path / f'f.{suffix}', [PUBLISHED[name]])
  examples = everything(f'{name}:{path}')
  assert len(examples) == (2 if name in ('gsm8k', 'math') else 1)
  for example in examples:
    assert example.id.startswith(f'{name}/')
    assert example.tags['suite'] == name
  assert len({example_sources.split_of(example) for example in examples}) == 1


@pytest.mark.parametrize(
  'spec',
  ['rows.csv', 'rows', '', 'jsonl:', 'gsm8k:', 'gsm9k:f.jsonl', 'f.jsonl#no'],
)
def test_no_such_source(spec):
  with pytest.raises(UserError) as error:
    example_sources.read(spec)
  message = str(error.value)
  assert names(message, repr(spec), 'config.data', 'FILE.jsonl')
  for name in ('jsonl', *PUBLISHED):
    assert f'{name}:PATH' in message
  assert '\n' not in message


def test_no_such_split():
  with pytest.raises(
    ValueError, match=naming('split', 'test', 'train', 'validation')
  ):
    example_sources.read('f.jsonl', 'test')


def test_a_file_of_ones_own_is_whole_in_every_split(tmp_path):
  table = [own(f'question {i}') for i in range(40)]
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
def test_a_file_of_ones_own_in_any_format(tmp_path, suffix):
  table = [own(f'question {i}') for i in range(40)]
  table[1] = own('bad', best=9)
  path = write(tmp_path / f'f.{suffix}', table)
  for spec in (path, f'jsonl:{path}'):
    examples, (fault,) = example_sources.load(spec)
    assert [x.query[0].text for x in examples] == [
      f'question {i}' for i in range(40) if i != 1
    ]
    assert re.match(in_row(path, 2, 'best'), fault.reason)
  parts = [
    example_sources.load(f'{path}#split', s)[0] for s in example_sources.SPLITS
  ]
  assert sum(map(len, parts)) == 39
  with pytest.raises(UserError, match=in_row(path, 2, 'best')):
    example_sources.load(path, fail_on_bad_rows=True)


def test_any_suffix_may_hold_lines(tmp_path):
  path = tmp_path / 'rows.txt'
  path.write_text(json.dumps(own('q')))
  assert len(example_sources.load(f'jsonl:{path}')[0]) == 1


def test_several_files_are_read_in_order_of_their_names(tmp_path):
  for i in (3, 0, 2, 1):
    write(tmp_path / f'{i}.json{"l" * (i % 2)}', [pair(f'question {i}')])
  (tmp_path / 'README.md').write_text('no rows')
  found = example_sources.read(f'offsetbias:{tmp_path}/*.json*')
  assert [example.query[0].text for example in found] == [
    f'question {i}' for i in range(4)
  ]
  with pytest.raises(UserError, match=naming('x*.json')):
    everything(f'offsetbias:{tmp_path}/x*.json')


def test_a_folder_is_the_data_file_in_it(tmp_path):
  (tmp_path / 'LICENSE').write_text('no rows')
  for spec in (f'offsetbias:{tmp_path}', f'gsm8k:{tmp_path}'):
    with pytest.raises(UserError, match=naming(str(tmp_path), '.jsonl')):
      everything(spec)
  write(tmp_path / 'b.json', [pair('question b')])
  assert questions(everything(f'offsetbias:{tmp_path}')) == {'question b'}
  write(tmp_path / 'a.jsonl', [pair('question a')])
  with pytest.raises(UserError) as error:
    everything(f'offsetbias:{tmp_path}')
  assert names(error.value, str(tmp_path), 'a.jsonl', 'b.json')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, file, row',
  [
    ('gsm8k', 'example_model_solutions.jsonl', made.gsm8k('0110')),
    ('gsm8k_pairs', 'example_model_solutions.jsonl', made.gsm8k('0110')),
    ('pandalm', 'testset-v1.json', made.panda(0, (1, 1, 1))),
  ],
)
def test_a_folder_with_what_was_published_under_this_name(
  tmp_path, name, file, row
):
  write(tmp_path / file, [row])
  write(tmp_path / 'others.json', [{'what': 'else'}])
  found = everything(f'{name}:{tmp_path}')
  assert found == everything(f'{name}:{tmp_path / file}')
  assert any(isinstance(x, JudgingExample) for x in found)


@pytest.mark.parametrize(
  'name, content, word',
  [
    ('f.json', '{\n"a": 1}', 'array'),
    ('f.json', '[{"a": 1},', 'JSON'),
    ('f.json', '[' * 100_000, 'JSON'),
    ('f.parquet', 'PAR1', 'Parquet'),
    ('f.csv', 'a,b', '.parquet'),
  ],
)
def test_files_of_another_format(tmp_path, name, content, word):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(UserError) as error:
    example_sources.load(f'gsm8k:{path}')
  assert names(error.value, str(path), word)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', ['json', 'jsonl', 'parquet'])
def test_files_that_are_missing(tmp_path, suffix):
  path = tmp_path / f'missing.{suffix}'
  with pytest.raises(UserError, match=naming(str(path))):
    example_sources.load(f'gsm8k:{path}')


# Bad rows


@pytest.mark.parametrize('suffix', ['json', 'jsonl'])
@pytest.mark.parametrize(
  'bad, words',
  [
    (without(made.PAIR, 'label'), ['label']),
    (pair('q', output_1=True), ['output_1', True]),
    (pair(' '), ['query']),
    ([1], ['object']),
    (None, ['object']),
  ],
)
def test_a_bad_row_is_named_and_the_rest_goes_on(tmp_path, suffix, bad, words):
  table = pairs(20)
  table.insert(7, bad)
  path = write(tmp_path / f'f.{suffix}', table)
  examples, faults = example_sources.load(f'offsetbias:{path}')
  assert len(faults) == 1
  assert faults[0].id == 'row 8'
  assert re.match(in_row(path, 8, *words), faults[0].reason)
  write(path, pairs(20))
  assert example_sources.load(f'offsetbias:{path}') == (examples, [])
  assert 'question 19' in questions(examples)


def test_a_line_that_is_not_json(tmp_path):
  path = tmp_path / 'f.jsonl'
  good = [json.dumps(row) for row in pairs(20)]
  path.write_text('\n'.join([*good[:10], '{"instruction"', '', *good[10:]]))
  examples, (fault,) = example_sources.load(f'offsetbias:{path}')
  assert re.match(in_row(path, 11, 'JSON'), fault.reason)
  assert 'question 19' in questions(examples)


def test_bad_rows_of_ones_own(tmp_path):
  table = [own('a'), own('b', id='B', best=5), [], own('c', id='C')]
  path = write(tmp_path / 'f.jsonl', table)
  examples, faults = example_sources.load(path)
  assert [example.id for example in examples] == ['1', 'C']
  assert [fault.id for fault in faults] == ['B', '3']
  assert re.match(in_row(path, 2, 'best', 5, 2), faults[0].reason)
  assert re.match(in_row(path, 3, 'object'), faults[1].reason)


def test_strict_stops_at_the_first_bad_row(tmp_path):
  path = write(tmp_path / 'f.jsonl', [own('a'), {}, own('b', best=9)])
  with pytest.raises(UserError, match=in_row(path, 2, 'responses')):
    example_sources.load(path, fail_on_bad_rows=True)


def test_the_log_names_the_first_bad_rows(tmp_path, caplog):
  path = write(tmp_path / 'f.jsonl', [own('a'), *[{}] * 8])
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
    ([pair('q', label=3), {}], 1, ['label', 3]),
    ([pair('question 0'), pair('question 1')], None, [2, 'split']),
    (
      [pair('question 4', output_1='two'), pair('question 0'), {}],
      3,
      ['instruction', 'response', 'split'],
    ),
  ],
)
def test_no_example_is_left(tmp_path, table, row, words):
  path = write(tmp_path / 'f.json', table)
  with pytest.raises(UserError) as error:
    example_sources.load(f'offsetbias:{path}', 'held_out')
  message = str(error.value)
  assert names(message, f'offsetbias:{path}', 'held_out', *words)
  assert row is None or re.search(in_row(path, row), message)
  assert '\n' not in message


def test_repeated_rows(tmp_path):
  table = [own('a', id='A'), own('a', id='A'), own('b', id='A'), own('b')]
  path = write(tmp_path / 'f.jsonl', table)
  examples, (fault,) = example_sources.load(path)
  assert [(e.id, e.query[0].text) for e in examples] == [('A', 'a'), ('4', 'b')]
  assert fault.id == 'A' and names(fault.reason, path, "'A'")


def test_equal_responses_are_no_pair(tmp_path):
  same = pair('question 0', output_2='one')
  path = write(tmp_path / 'f.jsonl', [same, pair('question 1')])
  examples, faults = example_sources.load(f'offsetbias:{path}')
  assert (len(examples), faults) == (1, [])
  # Rows of one's own are as one wants them.
  path = write(tmp_path / 'own.jsonl', [own('a', responses=['x', 'x'])])
  assert len(example_sources.load(path)[0]) == 1


@pytest.mark.parametrize('name', ['jsonl', 'offsetbias'])
def test_rows_are_read_when_they_are_asked_for(tmp_path, name):
  row = own('question 0') if name == 'jsonl' else pair('question 0')
  path = tmp_path / 'f.jsonl'
  # More than a buffer, or the bad byte would be read together with the row.
  path.write_text(f'{json.dumps(row)}\n' + ' ' * 1_000_000 + '\n{')
  found = example_sources.read(f'{name}:{path}')
  assert next(found).query[0].text == 'question 0'
  path.write_text('')
  assert list(found) == []


def test_without_tensorflow(tmp_path):
  write(tmp_path / 'f.jsonl', [own('a')])
  write(tmp_path / 'g.json', pairs(1))
  code = (
    'import sys\n'
    'from grm_jax.data import sources\n'
    f'sources.load("{tmp_path}/f.jsonl")\n'
    f'sources.load("offsetbias:{tmp_path}/g.json")\n'
    'unwanted = ("tensorflow", "tensorflow_datasets", "seqio", "jax")\n'
    'print([name for name in unwanted if name in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert out.stdout.strip() == '[]', out.stderr
