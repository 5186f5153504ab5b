"""Tests of samples.jsonl: round trips, and errors that name the line."""

import dataclasses
import itertools
import json
import math
import os

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement
from tests.evaluation.fake import judged, query
from tests.messages import in_row, naming

ODD = JudgedExample(
  JudgingExample(
    id='odd \u2028 "id"',
    query=(
      Turn('system', 'Sei genau.'),
      Turn('user', ''),
      Turn('assistant', '\x00\x85\r\n'),
      Turn('user', '数学 \U0001f600'),
    ),
    responses=('', 'lone \ud800 surrogate', '</pre>'),
    best=None,
    rewards=(1.0, 0.5, -2.0),
    reference='42',
    tags={'suite': 'odd', 'subset': 'ä'},
  ),
  samples=(
    Judgement((2, 0, 1), 'cut \udfff off', 7, 'length', None, None),
    Judgement((0, 1, 2), '\\boxed{1, 2, 3}', 0, 'string', (1, 2, 3), -1e-9),
  ),
  greedy=None,
)


def write_text(tmp_path, *lines):
  path = tmp_path / 'samples.jsonl'
  path.write_bytes(b''.join(lines))
  return path


def good_line():
  return judgement_io.to_line(
    query('good', 0, [(1, 2), None], greedy=[None])
  ).encode()


def test_round_trip(tmp_path):
  path = tmp_path / 'folder' / 'samples.jsonl'
  everything = [ODD, *judged(20, 3, n=(1, 2, 5)), query('none', None, [])]
  assert judgement_io.write(path, iter(everything)) == 22
  assert list(judgement_io.read(path)) == everything
  assert list(judgement_io.read(str(path))) == everything
  assert os.listdir(path.parent) == ['samples.jsonl']
  # One line per query, whatever the texts contain.
  assert path.read_bytes().count(b'\n') == len(path.read_text().splitlines())
  assert len(path.read_text().splitlines()) == 22
  row = json.loads(path.read_text().splitlines()[0])
  assert row['example']['messages'][0]['content'] == 'Sei genau.'
  assert row['samples'][0]['scores'] is None


def test_read_is_lazy(tmp_path):
  path = write_text(tmp_path, good_line() * 2, b'damaged\n')
  rows = judgement_io.read(path)
  assert [x.example.id for x in itertools.islice(rows, 2)] == ['good', 'good']
  with pytest.raises(UserError, match=in_row('samples.jsonl', 3, 'JSON')):
    next(rows)


def test_interrupted_write_keeps_the_old_file(tmp_path):
  path = write_text(tmp_path, b'old')

  def rows():
    yield ODD
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    judgement_io.write(path, rows())
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['samples.jsonl']


def test_non_finite_meta_scores_round_trip(tmp_path):
  metas = [math.nan, math.inf, -math.inf, 1e308]
  judged_query = query('a', 0, [(1, 2)] * 4, metas)
  assert '"meta": "-inf"' in judgement_io.to_line(judged_query)
  path = tmp_path / 'samples.jsonl'
  judgement_io.write(path, [judged_query])
  (back,) = judgement_io.read(path)
  restored_metas = [sample.meta for sample in back.samples]
  assert math.isnan(restored_metas[0]) and restored_metas[1:] == metas[1:]


def test_float_scores_round_trip(tmp_path):
  judgement = Judgement((0, 1), '', 0, '', (0.1 + 0.2, -3.0))
  judged_query = dataclasses.replace(query('a', 0, []), samples=(judgement,))
  judgement_io.write(tmp_path / 'samples.jsonl', [judged_query])
  assert list(judgement_io.read(tmp_path / 'samples.jsonl')) == [judged_query]


def test_to_line_and_from_row():
  row = json.loads(judgement_io.to_line(ODD))
  assert judgement_io.from_row(row, 1) == ODD
  del row['example']['id']
  assert judgement_io.from_row(row, 7).example.id == 'row 7'
  with pytest.raises(UserError, match='example'):
    judgement_io.from_row({}, 1)


@pytest.mark.parametrize(
  'bad',
  [
    query('bad', 0, [(1, 2)], rewards=(1.0, math.nan)),
    query('bad', 0, [(1, math.inf)]),
  ],
)
def test_non_finite_rewards_and_scores_are_rejected(tmp_path, bad):
  with pytest.raises(UserError, match=naming('bad')):
    judgement_io.write(tmp_path / 'samples.jsonl', [bad])
  assert os.listdir(tmp_path) == []


def test_unreadable_and_unwritable_paths(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(UserError, match='file/inside'):
    judgement_io.write(tmp_path / 'file' / 'inside', [])
  with pytest.raises(
    UserError, match=naming(str(tmp_path / 'none'), 'No such file')
  ):
    list(judgement_io.read(tmp_path / 'none'))


@pytest.mark.parametrize(
  'line, mentioned',
  [
    (good_line()[:-20], ['JSON']),
    (b'\n', ['JSON']),
    (b'\xff\xfe{}\n', ['UTF-8', 0]),
    (b'[]\n', ['object']),
    (b'{"example": {}}\n', ['samples']),
  ],
)
def test_invalid_line_is_named(tmp_path, line, mentioned):
  path = write_text(tmp_path, good_line(), line)
  with pytest.raises(UserError, match=in_row('samples.jsonl', 2, *mentioned)):
    list(judgement_io.read(path))


@pytest.mark.parametrize(
  'change, mentioned',
  [
    (lambda row: row.update(samples={}), ['samples']),
    (lambda row: row['example'].pop('responses'), ['responses']),
    (lambda row: row['example'].update(best=2), ['best', 2]),
    (lambda row: row['samples'].insert(1, 'x'), [1, 'object']),
    (lambda row: row['samples'][1].pop('text'), [1, 'text']),
    (lambda row: row['samples'][0].update(order=[0, 0]), [0, 'order']),
    (lambda row: row['samples'][0].update(order='01'), [0, 'order']),
    (lambda row: row['samples'][0].update(text=None), [0, 'text']),
    (
      lambda row: row['samples'][0].update(num_tokens=-1),
      [0, 'num_tokens', -1],
    ),
    (lambda row: row['samples'][0].update(finish='eos'), [0, 'finish', 'eos']),
    (lambda row: row['samples'][0].update(scores=[1]), [0, 'scores', 2]),
    (lambda row: row['samples'][0].update(scores=[1, '2']), [0, 'scores', 2]),
    (lambda row: row['samples'][0].update(scores=[True, 1]), [0, 'scores', 2]),
    (lambda row: row['samples'][0].update(meta='1'), [0, 'meta', "'1'"]),
    (lambda row: row['samples'][0].update(meta=10**400), [0, 'meta']),
    (lambda row: row['samples'][0].update(meta=float('nan')), ['NaN']),
    (lambda row: row['greedy'].update(scores=3), ['greedy', 'scores', 3]),
  ],
)
def test_invalid_field_is_named(tmp_path, change, mentioned):
  row = json.loads(good_line())
  change(row)
  path = write_text(tmp_path, good_line(), json.dumps(row).encode())
  with pytest.raises(UserError, match=in_row('samples.jsonl', 2, *mentioned)):
    list(judgement_io.read(path))


def test_last_line_without_line_feed(tmp_path):
  path = write_text(tmp_path, good_line(), good_line()[:-1])
  assert len(list(judgement_io.read(path))) == 2
