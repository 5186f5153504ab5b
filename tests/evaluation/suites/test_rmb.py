"""Tests of RMB: four sections of pairs and best-of-n lists."""

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation.suites import rmb
from tests.evaluation.suites.published import judged, without, write
from tests.messages import in_row


def turn(text, role='user'):
  return {'content': text, 'language': 'English', 'role': role}


def answer(text):
  return {'llm_name': 'm', 'answer': text}


def pair(name, path):
  return {
    'pair_uid': name,
    'conversation_input': [turn(f'hello {name}')],
    'chosen': answer(f'{name} good') | {'score': 5.0},
    'reject': answer(f'{name} bad') | {'score': 4.5},
    'category_path': f'Pairwise_set/{path}',
  }


def bon(name, path, losers=2):
  return {
    'conversation_input': [
      turn('hello'),
      turn('hi', 'assistant'),
      turn(f'more {name}'),
    ],
    'bon_best': answer(f'{name} good'),
    'loser_list': [answer(f'{name} bad {i}') for i in range(losers)],
    'bon_uid': name,
    'category_path': f'BoN_set/{path}',
  }


FILES = {
  'Pairwise_set/Helpfulness/Chat/Discussion': [
    pair('1', 'Helpfulness/Chat/Discussion'),
    pair('2', 'Helpfulness/Chat/Discussion'),
  ],
  'Pairwise_set/Harmlessness/S1': [pair('1', 'Harmlessness/S1')],
  'BoN_set/Helpfulness/Open QA/Factual': [
    bon('3', 'Helpfulness/Open QA/Factual'),
    bon('4', 'Helpfulness/Open QA/Factual', losers=3),
  ],
  'BoN_set/Helpfulness/Chat/Discussion': [
    bon('5', 'Helpfulness/Chat/Discussion', losers=1)
  ],
  'BoN_set/Harmlessness/multi': [bon('6', 'Harmlessness/multi')],
}
VOTES = {
  '1 good': 7,
  '1 bad': 3,
  '2 good': 4,
  '2 bad': 4,
  '3 good': 9,
  '3 bad 0': 8,
  '3 bad 1': 1,
  '4 good': 9,
  '4 bad 0': 9,
  '4 bad 1': 1,
  '4 bad 2': 1,
  '5 good': 2,
  '5 bad 0': 1,
  '6 good': 3,
  '6 bad 0': 5,
  '6 bad 1': 1,
}


@pytest.fixture
def root(tmp_path):
  for name, rows in FILES.items():
    write(tmp_path / 'RMB_dataset' / f'{name}.json', rows)
  write(tmp_path / 'eval' / 'result.json', {'accuracy': 1})
  return tmp_path


def test_load_rows(root):
  examples = {e.id: e for e in rmb.load(str(root))}
  assert len(examples) == 7
  example = examples['rmb/BoN_set/Helpfulness/Open QA/Factual/2/4']
  assert [t.role for t in example.query] == ['user', 'assistant', 'user']
  assert example.query[2].text == 'more 4'
  assert len(example.responses) == 4
  assert example.responses[example.best] == '4 good'
  assert example.tags['section'] == 'Helpfulness BoN_set'


def test_score_by_hand(root):
  score = rmb.score(judged(rmb.load(str(root)), VOTES))
  assert score.sections == pytest.approx(
    {
      'Helpfulness Pairwise_set': 0.75,
      'Helpfulness BoN_set': 2.5 / 3,
      'Harmlessness Pairwise_set': 1,
      'Harmlessness BoN_set': 0,
    }
  )
  assert score.overall == pytest.approx((0.75 + 2.5 / 3 + 1 + 0) / 4)
  # A tie with one of three losers is half a win.
  assert score.subsets['BoN_set/Helpfulness/Open QA/Factual'] == 0.75
  assert score.counts['BoN_set/Helpfulness/Open QA/Factual'] == 2
  assert (score.failures, score.ties) == (0, 2)


def test_strict_ties_by_hand(root):
  results = judged(rmb.load(str(root)), VOTES)
  score = rmb.score(results, 'strict')
  assert score.sections == pytest.approx(
    {
      'Helpfulness Pairwise_set': 0.5,
      'Helpfulness BoN_set': 2 / 3,
      'Harmlessness Pairwise_set': 1,
      'Harmlessness BoN_set': 0,
    }
  )
  low, high = rmb.interval(results, 'strict')
  assert low <= score.overall <= high


def test_lists_as_pairs_by_hand(root):
  examples = rmb.load(str(root), 'pairs')
  lists = [e for e in examples if 'BoN_set' in e.id]
  assert len(examples) == 3 + len(lists) == 3 + 2 + 3 + 1 + 2
  assert {len(e.responses) for e in examples} == {2}
  assert all(e.responses[e.best].endswith('good') for e in examples)
  assert len({e.id for e in examples}) == len(examples)
  # Pairs of list 4: a tie, a win and a win. Pairs of list 6: a loss and a win.
  score = rmb.score(judged(examples, VOTES))
  assert score.sections == pytest.approx(
    {
      'Helpfulness Pairwise_set': 0.75,
      'Helpfulness BoN_set': (1 + 1 / 2 + 1) / 3,
      'Harmlessness Pairwise_set': 1,
      'Harmlessness BoN_set': 0,
    }
  )
  assert score.counts['BoN_set/Helpfulness/Open QA/Factual'] == 2
  two_ties = VOTES | {'4 bad 1': 9}
  score = rmb.score(judged(examples, two_ties))
  assert score.sections['Helpfulness BoN_set'] == (1 + 1 / 4 + 1) / 3
  score = rmb.score(judged(examples, two_ties), 'strict')
  assert score.sections['Helpfulness BoN_set'] == 2 / 3


def test_parse_failure_is_wrong(root):
  score = rmb.score(judged(rmb.load(str(root)), VOTES | {'5 good': None}))
  assert score.sections['Helpfulness BoN_set'] == pytest.approx(1.5 / 3)
  assert score.failures == 1


@pytest.mark.parametrize(
  'below, number', [('BoN_set', 4), ('Pairwise_set/Harmlessness', 1)]
)
def test_score_of_one_part(root, below, number):
  results = judged(rmb.load(str(root / 'RMB_dataset' / below)), VOTES)
  assert len(results) == number
  low, high = rmb.interval(results)
  assert low <= rmb.score(results).overall <= high


PLACE = 'Harmlessness/S1'


@pytest.mark.parametrize(
  'bad, mentioned',
  [
    (without(pair('1', PLACE), 'reject'), ['reject']),
    (pair('1', PLACE) | {'chosen': 'x'}, ['chosen', "'x'"]),
    (bon('1', PLACE, losers=0), ['loser_list']),
    (
      bon('1', PLACE) | {'loser_list': [{'llm_name': 'm'}]},
      ['loser_list[0]', 'answer'],
    ),
    (pair('1', PLACE) | {'category_path': 'x/y/z'}, ['category_path', 'x/y/z']),
    (
      pair('1', PLACE) | {'conversation_input': [turn('a', 'assistant')]},
      ['query', 'user'],
    ),
    (
      pair('1', PLACE) | {'conversation_input': []},
      ['conversation_input'],
    ),
  ],
)
def test_invalid_rows(tmp_path, bad, mentioned):
  path = write(tmp_path / 'f.json', [pair('0', PLACE), bad])
  with pytest.raises(UserError, match=in_row('f.json', 2, *mentioned)):
    rmb.load(path)
