"""Judgements of pairs from Prometheus' feedback on single responses."""

import json
import re

import pytest

from grm_jax.data import sft_sources
from grm_jax.data.datasets import prometheus
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.score_parser import parse_scores
from tests.messages import in_row


def row(query, response, scores, feedback, criterion='Is it polite?'):
  """Returns a published row: sections in one text, scores and feedback."""
  return {
    'idx': 7,
    'instruction': '\n'.join(
      [
        '###Task Description:',
        'Judge by the rubric.',
        '',
        '###The instruction to evaluate:',
        query,
        '',
        '###Response to evaluate:',
        response,
        '',
        '###Reference Answer (Score 5):',
        'The best there is.',
        '',
        '###Score Rubrics:',
        f'[{criterion}]',
        'Score 1: never',
        'Score 5: always',
        '',
        '###Feedback: ',
      ]
    ),
    'gpt4_score': scores,
    'gpt4_feedback': feedback,
  }


def write_rows(tmp_path, *rows):
  path = tmp_path / 'eval.json'
  path.write_text(json.dumps(rows))
  return str(path)


GOOD = row('Greet me.', 'Good day!', [5, 4, 5], ['Fine.', 'Short. No.', 'So.'])
BAD = row(
  'Greet me.',
  'Go away.\n\nNow.',
  [1, 2, 3],
  ['Rude.', 'It is rude. It gives an order.  It ends there.', 'Hm.'],
)


def test_judgement_of_a_pair(tmp_path):
  (results,) = prometheus.judgements(write_rows(tmp_path, GOOD, BAD), seed=0)
  example, order, text = results
  assert example.responses == ('Good day!', 'Go away.\n\nNow.')
  assert example.query[0].text == 'Greet me.'
  assert example.best == 0
  assert example.rewards == pytest.approx((14 / 3, 2.0))
  analyses = ['Fine.', 'It is rude. It gives an order.']
  scores = [9, 4]
  assert text == '\n'.join(
    [
      'Specific Criteria:',
      '1. Is it polite? (100%)',
      '',
      'Analysis:',
      f'Response 1: {analyses[order[0]]}',
      f'Response 2: {analyses[order[1]]}',
      '',
      f'Scores: \\boxed{{{scores[order[0]]}, {scores[order[1]]}}}',
    ]
  )
  assert parse_scores(text, 2) is not None


def test_pairs_have_one_question_and_different_scores(tmp_path):
  """Other queries, other rubrics and equal scores do not make pairs."""
  equal = row('Greet me.', 'Hello.', [5, 5, 4], ['a', 'b', 'c'])
  other = row('Leave.', 'Bye.', [1], ['No.'])
  rubric = row('Greet me.', 'Hi.', [1], ['No.'], criterion='Is it long?')
  path = write_rows(tmp_path, GOOD, equal, BAD, other, rubric)
  results = [x[0] for x in prometheus.judgements(path, 0)]
  assert [x.responses[0] for x in results] == ['Good day!', 'Hello.']
  assert [x.responses[1] for x in results] == ['Go away.\n\nNow.'] * 2
  assert len({x.id for x in results}) == 2


def test_bad_rows_are_reported_and_skipped(tmp_path):
  no_rubric = dict(GOOD, instruction=GOOD['instruction'].replace('[', '('))
  no_response = dict(
    GOOD, instruction=GOOD['instruction'].replace('to evaluate:\nGood', 'x')
  )
  path = write_rows(
    tmp_path,
    no_rubric,
    no_response,
    dict(GOOD, gpt4_score=[6, 1, 1]),
    dict(GOOD, gpt4_score=[5]),
    {'instruction': 3},
    GOOD,
    BAD,
  )
  results = list(prometheus.judgements(path, 0))
  words = [
    ['rubric', 'criterion'],
    ['instruction', '###Response to evaluate:'],
    ['gpt4_score', '[6, 1, 1]'],
    ['gpt4_score', 1, 'gpt4_feedback', 3],
    ['instruction', 3],
  ]
  reasons = [x.reason for x in results if isinstance(x, ExampleError)]
  for number, (reason, named) in enumerate(zip(reasons, words, strict=True), 1):
    assert re.search(in_row(path, number, *named), reason)
  assert len(results) == 6


def test_as_sft_examples(tmp_path):
  path = write_rows(tmp_path, GOOD, BAD)
  (text,) = sft_sources.read(f'prometheus:{path}', 'train', 'texts')
  assert text.id.startswith('prometheus/')
  assert sorted(text.order) == [0, 1]
  assert text.generations[0].startswith('Specific Criteria:')
  orders = {
    next(
      sft_sources.read(f'prometheus:{path}', 'train', 'texts', seed=seed)
    ).order
    for seed in range(20)
  }
  assert len(orders) == 2
