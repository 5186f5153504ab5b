"""Outputs of other judges become samples of the examples of a suite."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import published_outputs
from grm_jax.evaluation.suites import SUITES
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample, Turn
from tests.evaluation.suites import test_suites
from tests.evaluation.suites.published import write
from tests.messages import names


def make_examples(*sizes, suite='judgebench'):
  return [
    JudgingExample(
      id=f'{suite}/{i}',
      query=(Turn('user', 'q'),),
      responses=('r',) * n,
      best=0,
      tags={'suite': suite},
    )
    for i, n in enumerate(sizes)
  ]


def load(tmp_path, rows, *sizes):
  path = write(tmp_path / 'outputs.jsonl', rows)
  examples = make_examples(*sizes)
  return published_outputs.load(path, {'judgebench': examples})['judgebench']


@pytest.mark.parametrize('suite', SUITES)
def test_scores_have_the_order_of_the_published_file(
  tmp_path, monkeypatch, suite
):
  name, rows = test_suites.FILES[suite]
  path = write(tmp_path / f'{name}.jsonl', rows)
  examples = SUITES[suite].load(path)
  with monkeypatch.context() as patch:
    patch.setattr(
      preference_rows, 'shuffled_order', lambda id, n: tuple(range(n))
    )
    published = SUITES[suite].load(path)
  outputs = [
    {'id': x.id, 'scores': [list(range(len(x.responses)))]} for x in published
  ]
  (judged,) = published_outputs.load(
    write(tmp_path / 'outputs.parquet', outputs), {suite: examples}
  ).values()
  assert published_outputs.count_missing(judged) == 0
  for example, x in zip(published, judged, strict=True):
    (sample,) = x.samples
    responses = tuple(example.responses[score] for score in sample.scores)
    assert responses == x.example.responses


def test_verdicts_become_scores(tmp_path):
  rows = [
    {'id': 'judgebench/0', 'verdicts': ['A>B', 'B>A', 'A=B', None, 1]},
    {'id': 'judgebench/1', 'verdicts': [2, 0, '1', None, None], 'greedy': 2},
  ]
  first, second = load(tmp_path, rows, 2, 3)
  expected = [(1, 0), (0, 1), (0, 0), None, (0, 1)]
  assert [x.scores for x in first.samples] == expected
  assert first.greedy.scores is None
  expected = [(0, 0, 1), (1, 0, 0), (0, 1, 0), None, None]
  assert [x.scores for x in second.samples] == expected
  assert second.greedy.scores == (0, 0, 1)


@pytest.mark.parametrize(
  'scores, kind', [([8.0, 3], int), ([-1.5, 3], float), ([70, 3], float)]
)
def test_integers_are_scores_from_0_to_10(tmp_path, scores, kind):
  (x,) = load(tmp_path, [{'id': 'judgebench/0', 'scores': [scores]}], 2)
  assert x.samples[0].scores == tuple(scores)
  assert {type(score) for score in x.samples[0].scores} == {kind}


@pytest.mark.parametrize(
  'row, word',
  [
    ({'id': 'judgebench/9', 'scores': [[1, 2]]}, 'judgebench/9'),
    ({'id': 'judgebench/1', 'scores': [[1, 2]]}, 'judgebench/1'),
    ({'scores': [[1, 2]]}, 'id'),
    ({'id': 'judgebench/0'}, 'scores'),
    ({'id': 'judgebench/0', 'scores': []}, 'scores'),
    ({'id': 'judgebench/0', 'scores': 7}, 'scores'),
    ({'id': 'judgebench/0', 'scores': [7, 3]}, '7'),
    ({'id': 'judgebench/0', 'scores': [[1, 2, 3]]}, '[1, 2, 3]'),
    ({'id': 'judgebench/0', 'scores': [['a', 2]]}, "['a', 2]"),
    ({'id': 'judgebench/0', 'scores': [[1, 2], [1, 2]]}, '2 samples'),
    ({'id': 'judgebench/0', 'scores': [[1, 2]], 'metas': [None]}, 'metas'),
    ({'id': 'judgebench/0', 'scores': [[1, 2]], 'metas': [1, 2]}, 'metas'),
    ({'id': 'judgebench/0', 'scores': [[1, 2]], 'greedy': [1]}, '[1]'),
    ({'id': 'judgebench/0', 'verdicts': ['A']}, "'A'"),
    ({'id': 'judgebench/0', 'verdicts': [2]}, '2'),
    ({'id': 'judgebench/0', 'verdicts': [0], 'scores': [[1, 2]]}, 'verdicts'),
    ([], 'object'),
  ],
  ids=str,
)
def test_bad_rows_are_named_and_count_as_failures(tmp_path, caplog, row, word):
  good = [{'id': f'judgebench/{i}', 'scores': [[1, 2]]} for i in (1, 2)]
  judged = load(tmp_path, [*good, row], 2, 2, 2)
  assert published_outputs.count_missing(judged) == 1
  assert [x.scores for x in judged[0].samples] == [None]
  assert [x.samples[0].scores for x in judged[1:]] == [(1, 2)] * 2
  first, *_, missing = caplog.messages
  assert names(first, 'outputs.jsonl', word)
  assert any(names(x, '1 bad rows') for x in caplog.messages)
  assert names(missing, '1 of 3')


def test_without_any_output_of_a_suite(tmp_path):
  with pytest.raises(UserError) as error:
    load(tmp_path, [{'id': 'a', 'scores': [[1, 2]]}, 'text'], 2)
  assert names(str(error.value), 'judgebench/0', 'bad rows: 2', "'a'")


def test_metas_of_some_rows_only(tmp_path):
  rows = [{'id': f'judgebench/{i}', 'scores': [[1, 2]]} for i in (0, 1)]
  with pytest.raises(UserError) as error:
    load(tmp_path, [rows[0], rows[1] | {'metas': [0.5]}], 2, 2)
  assert names(str(error.value), 'judgebench/0')


def test_one_response_needs_scores(tmp_path):
  rows = [{'id': 'judgebench/0', 'scores': [[7]]}]
  assert load(tmp_path, rows, 1)[0].samples[0].scores == (7,)
  with pytest.raises(UserError):
    load(tmp_path, [{'id': 'judgebench/0', 'verdicts': [0]}], 1)
