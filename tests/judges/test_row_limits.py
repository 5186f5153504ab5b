"""One bad row is an error with its id; every judge judges the others."""

import numpy as np
import pytest

from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judges import row_limits
from grm_jax.judges.baselines.pairwise_rm import PairJudge
from grm_jax.judges.baselines.scalar_rm import ScalarJudge
from grm_jax.judges.baselines.semi_scalar import SemiScalarJudge
from grm_jax.sampling.scalar_scorer import ScalarScorer
from tests.judges import fake
from tests.messages import names


class CountingScorer:
  """Scores texts by their length, and counts them."""

  prompts, prompt_buckets, max_new_tokens = 4, (3000,), 200

  def __init__(self):
    self.num_texts = 0

  def rejection_reason(self, item):
    return None

  def score(self, items):
    self.num_texts += sum(len(texts) for _, texts in items)
    return [np.array([float(len(x)) for x in texts]) for _, texts in items]


def judge_of(kind, scorer):
  if kind == 'scalar':
    return ScalarJudge(scorer, fake.load_tokenizer())
  if kind == 'pair':
    return PairJudge(scorer, fake.load_tokenizer())
  if kind == 'semi_scalar':
    return SemiScalarJudge(fake.judge(template='critic'), scorer)
  return fake.judge()


@pytest.mark.parametrize('kind', ['grm', 'scalar', 'pair', 'semi_scalar'])
def test_a_huge_row_is_an_error_and_the_rest_is_judged(kind):
  many = fake.example('many', *('x' for _ in range(20_000)))
  long = fake.example('long', *['x' * (row_limits.MAX_CHARACTERS // 4)] * 5)
  rows = [fake.example('a', 'r 1', 'r 2'), many, long]
  rows.append(fake.example('b', 'r 3', 'r 4'))
  scorer = CountingScorer()
  a, first, second, b = judge_of(kind, scorer).judge(rows, 2)
  assert isinstance(a, JudgedExample) and a.example.id == 'a'
  assert isinstance(b, JudgedExample) and b.example.id == 'b'
  assert isinstance(first, ExampleError) and first.id == 'many'
  assert names(first.reason, 20_000)
  assert isinstance(second, ExampleError) and second.id == 'long'
  assert names(second.reason, row_limits.MAX_CHARACTERS)
  assert scorer.num_texts <= 8


class StrictScorer(CountingScorer):
  """Has the limits of a model."""

  prompt_buckets = (3000,)
  rejection_reason = ScalarScorer.rejection_reason


class NotFiniteScorer(CountingScorer):
  """Scores texts of more than 60 tokens with a value that is not finite."""

  def __init__(self, value):
    super().__init__()
    self.value = value

  def score(self, items):
    return [
      np.where(x > 60, self.value, x) for x in CountingScorer.score(self, items)
    ]


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('kind', ['scalar', 'pair'])
def test_a_score_that_is_not_finite_is_an_error(kind, value):
  rows = [
    fake.example('a', 'r 1', 'r 2'),
    fake.example('bad', 'r 1', 'x y ' * 60),
    fake.example('b', 'r 3', 'r 4'),
  ]
  scorer = NotFiniteScorer(value)
  a, bad, b = judge_of(kind, scorer).judge(rows, 1)
  assert isinstance(bad, ExampleError) and bad.id == 'bad'
  assert names(bad.reason, 'finite')
  assert [x.example for x in (a, b)] == [rows[0], rows[2]]


@pytest.mark.parametrize('kind', ['grm', 'scalar', 'pair', 'semi_scalar'])
def test_long_texts_are_shortened_and_counted(kind):
  scorer = StrictScorer()
  rows = [
    fake.example('a', 'r 1', 'r 2'),
    fake.example('response', 'r 1', 'x y ' * 6000),
    fake.example('query', 'r 1', 'r 2', query='x y ' * 6000),
  ]
  judged = list(judge_of(kind, scorer).judge(rows, 1))
  assert [x.example for x in judged] == rows
  assert [x.samples[0].shortened for x in judged] == [False, True, True]


@pytest.mark.parametrize('kind', ['scalar', 'pair'])
def test_long_texts_are_refused_on_request(kind):
  scorer = StrictScorer()
  judge = judge_of(kind, scorer)
  judge.too_long = 'refuse'
  rows = [
    fake.example('a', 'r 1', 'r 2'),
    fake.example('response', 'r 1', 'x y ' * 6000),
    fake.example('query', 'r 1', 'r 2', query='x y ' * 6000),
  ]
  first, *errors = judge.judge(rows, 1)
  assert isinstance(first, JudgedExample)
  assert [x.id for x in errors] == ['response', 'query']
  assert names(errors[0].reason, 'config.sampling.max_new_tokens', 200)
  assert names(errors[1].reason, 3000)


def test_pairs_have_a_lower_limit():
  limit = row_limits.MAX_PAIRED_RESPONSES
  judge = PairJudge(CountingScorer(), fake.load_tokenizer())
  rows = [
    fake.example(str(n), *(f'r{i}' for i in range(n)))
    for n in (limit, limit + 1)
  ]
  fits, too_many = judge.judge(rows)
  assert len(fits.samples[0].scores) == limit
  assert names(too_many.reason, limit, limit + 1)
