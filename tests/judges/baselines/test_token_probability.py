"""Probabilities of verdicts, compared with one forward pass for each."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import example as examples
from grm_jax.judgement import prompt_builder, template, voting
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges.baselines.token_probability import TokenProbabilityJudge
from grm_jax.judges.baselines.verdict_scorer import VerdictScorer
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model import logprobs, quantization
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling import decode_weights
from grm_jax.sharding import mesh, rules
from grm_jax.tokenizer import chat_format
from tests.judges.fake import RuleEngine, load_tokenizer
from tests.messages import names, naming
from tests.model import tiny

SIZE = dict(vocab_size=1024, num_layers=2)
MODEL = tiny.gemma(**SIZE)
PARAMS = tiny.params(MODEL)
TEXTS = [
  ('The second, I think.\nBest: \\boxed{2}', '}'),
  ('Best: \\boxed{1}. I am quite sure.', '}'),
  ('None of them.', None),
  ('[1] says less than the others: [[1]]', ']]'),
]
EXAMPLES = [
  examples.from_row({'id': 'a', 'query': 'q', 'responses': list('xyz')}, 0),
  examples.from_row({'id': 'b', 'query': 'why', 'responses': list('uv')}, 1),
  examples.from_row({'id': 'c', 'query': 'who', 'responses': ['me'] * 3}, 2),
]


@pytest.fixture(scope='module')
def template_path(tmp_path_factory):
  """A template that renders to few tokens."""
  path = tmp_path_factory.mktemp('template') / 'short.txt'
  path.write_text(
    '{% for turn in query %}{{ turn.text }}{% endfor %}\n'
    '{% for response in responses %}{{ response }}\n{% endfor %}'
  )
  return str(path)


class Writer(RuleEngine):
  """Writes TEXTS in turn; sample 0 of the first order is the first text."""

  def __init__(self, texts=TEXTS, **more):
    super().__init__(limit=64, **more)
    self.texts = texts
    self.orders = {}  # of each example, in the order of their requests

  def generation(self, request, sample):
    tag = request.tag
    orders = self.orders.setdefault(tag.example_id, [])
    if tag.order not in orders:
      orders.append(tag.order)
    number = orders.index(tag.order) + sample
    text, _ = self.texts[number % len(self.texts)]
    generation = super().generation(request, sample)
    return dataclasses.replace(generation, text=text)


class Eager(Writer):
  """Finishes a request before it reads the next one."""

  def run(self, weights, requests, **unused):
    del weights, unused
    for request in requests:
      self.requests.append(request)
      for i in range(request.num_samples):
        yield self.generation(request, i)


def settings_of(template_path, **more):
  return JudgeConfig(template=template_path, reads='best', **more)


def verdicts(template_path, model=MODEL, weights=None, **sizes):
  if weights is None:
    weights, _ = decode_weights.place(model, PARAMS)
  sizes = (
    dict(
      prompts=2, texts_per_prompt=8, max_new_tokens=48, prompt_buckets=(32, 64)
    )
    | sizes
  )
  return VerdictScorer(
    model, weights, load_tokenizer(), settings_of(template_path), **sizes
  )


@pytest.fixture(scope='module')
def plain(template_path):
  return verdicts(template_path)


def judge(template_path, scorer, engine=None, **more):
  inner = Judge(
    engine or Writer(),
    'weights',
    load_tokenizer(),
    settings_of(template_path, **more),
  )
  return TokenProbabilityJudge(inner, scorer)


@jax.jit
def _logps(params, batch):
  return logprobs.prompt_logps(MODEL, params, batch)[0]


def total(params, tokens, count):
  """Returns the log-probability of the last `count` tokens by one pass."""
  padded = np.zeros((1, 160), np.int32)
  padded[0, : len(tokens)] = tokens
  logps = _logps(params, Batch(padded, np.array([len(tokens)], np.int32)))
  return float(np.sum(logps[0, len(tokens) - 1 - count : len(tokens) - 1]))


def reference(template_path, judged, sample, params=PARAMS, size=48):
  """Returns the expected scores of a sample whose text is in TEXTS."""
  closing = dict(TEXTS)[sample.text]
  if closing is None:
    return None
  number = sample.text.rindex(closing)
  while sample.text[number - 1].isdigit():
    number -= 1
  prompt = prompt_builder.tokenize(
    template.load(template_path),
    judged.example,
    sample.order,
    lambda text: chat_format.render_user(load_tokenizer(), text),
    limit=64,
  ).tokens
  before = load_tokenizer().encode(sample.text[:number])[-size:]
  ends = [
    load_tokenizer().encode(f'{i + 1}{closing}')
    for i in range(len(sample.order))
  ]
  logps = [total(params, [*prompt, *before, *end], len(end)) for end in ends]
  shares = np.exp(logps) / np.sum(np.exp(logps))
  return tuple(shares[sample.order.index(i)] for i in range(len(shares)))


def assert_scores(scores, expected, atol=2e-5):
  if expected is None:
    assert scores is None
    return
  assert sum(scores) == pytest.approx(1, abs=1e-12)
  assert np.ptp(expected) > 0.01  # so that another rule would differ
  np.testing.assert_allclose(scores, expected, atol=atol)


@pytest.mark.parametrize('order', ['balanced', 'fixed'])
def test_scores_are_probabilities_of_verdicts(template_path, plain, order):
  judging = judge(template_path, plain, order=order)
  results = list(judging.judge(EXAMPLES, 4))
  assert [x.example for x in results] == EXAMPLES
  num_unparsed = 0
  for judged in results:
    assert len(judged.samples) == 4
    for sample in judged.samples:
      assert_scores(sample.scores, reference(template_path, judged, sample))
      num_unparsed += sample.scores is None
  assert num_unparsed == 3


def test_votes_are_sums_of_probabilities(template_path, plain):
  (judged,) = judge(template_path, plain).judge(EXAMPLES[:1], 4)
  parsed = [s.scores for s in judged.samples]
  assert sum(voting.sum_scores(parsed, 3)) == pytest.approx(
    voting.num_parsed(parsed)
  )
  assert voting.num_parsed(parsed) < 4


def test_verdicts_of_two_digits(template_path, plain):
  """These are also more texts than one prompt takes at once."""
  row = {'id': 'd', 'query': 'q', 'responses': list('abcdefghijkl')}
  judged = JudgedExample(
    examples.from_row(row, 0),
    tuple(
      Judgement(order, text, 9, 'stop', None)
      for order, text in (
        (tuple(range(12)), TEXTS[0][0]),
        (tuple(reversed(range(12))), TEXTS[1][0]),
        (tuple(range(12)), TEXTS[1][0]),
      )
    ),
  )
  (rated,) = plain.rate([judged])
  for sample in rated.samples:
    assert len(sample.scores) == 12
    assert_scores(sample.scores, reference(template_path, judged, sample))


def test_the_beginning_of_a_long_text_is_left_out(template_path):
  scorer = verdicts(template_path, max_new_tokens=8)
  (judged,) = judge(template_path, scorer, order='fixed').judge(EXAMPLES[:1], 4)
  for sample in judged.samples:
    assert_scores(
      sample.scores, reference(template_path, judged, sample, size=8)
    )


def test_scores_do_not_depend_on_other_examples(template_path, plain):
  judging = judge(template_path, plain)
  together = list(judging.judge(EXAMPLES, 3))
  for alone, judged in zip(EXAMPLES, together, strict=True):
    assert list(judging.judge([alone], 3)) == [judged]


def decode_layout():
  table = rules.decode_rules(rules.RULES, 'resident')
  return rules.make_layout(mesh.make_mesh(2, 2, 2), table)


@pytest.mark.parametrize('kind', ['int8', 'bfloat16', 'mesh'])
def test_decode_weights(template_path, kind):
  model, params, atol = MODEL, PARAMS, 2e-5
  if kind == 'bfloat16':
    model, atol = (
      tiny.gemma(compute=ComputeConfig(dtype='bfloat16'), **SIZE),
      0.02,
    )
  if kind == 'mesh':
    model = tiny.gemma(decode_layout(), **SIZE)
  if kind == 'int8':
    params = quantization.quantize(PARAMS)
  weights, _ = decode_weights.place(model, tiny.params(model), kind == 'int8')
  scorer = verdicts(template_path, model, weights, prompts=4)
  (judged,) = judge(template_path, scorer, order='fixed').judge(EXAMPLES[:1], 1)
  (sample,) = judged.samples
  assert_scores(
    sample.scores, reference(template_path, judged, sample, params), atol
  )


def test_errors_keep_their_position_in_the_stream(template_path, plain):
  long = examples.from_row({'query': 'q', 'responses': ['x' * 900, 'y']}, 7)
  items = [
    EXAMPLES[0],
    long,
    ExampleError('f', 'bad'),
    EXAMPLES[1],
    EXAMPLES[2],
  ]
  judging = judge(template_path, plain, too_long='refuse')
  results = list(judging.judge(items, 2))
  assert [type(x) for x in results] == [
    JudgedExample,
    ExampleError,
    ExampleError,
    JudgedExample,
    JudgedExample,
  ]
  assert results[1].id == 'row 7' and names(results[1].reason, 64)
  assert results[2] == items[2]
  assert [x.example for x in (results[0], *results[3:])] == EXAMPLES


def test_a_fault_of_one_example_is_its_error(template_path, plain, monkeypatch):
  tokenize = prompt_builder.tokenize

  def fails_for_b(loaded, example, *args, **more):
    if example is EXAMPLES[1]:
      raise ZeroDivisionError('of a test')
    return tokenize(loaded, example, *args, **more)

  judged = list(judge(template_path, plain).inner.judge(EXAMPLES, 2))
  expected = plain.rate(judged)
  monkeypatch.setattr(prompt_builder, 'tokenize', fails_for_b)
  first, error, last = plain.rate(judged)
  assert (first, last) == (expected[0], expected[2])
  assert isinstance(error, ExampleError) and error.id == EXAMPLES[1].id
  assert names(error.reason, 'ZeroDivisionError')


def test_a_probability_that_is_not_finite_is_an_error(template_path, plain):
  params = jax.tree.map(lambda x: x * np.nan, PARAMS)
  scorer = verdicts(
    template_path, weights=decode_weights.place(MODEL, params)[0]
  )
  results = list(judge(template_path, scorer).judge(EXAMPLES, 1))
  assert [x.id for x in results] == [x.id for x in EXAMPLES]
  assert all(names(x.reason, 'finite') for x in results)


def test_greedy_and_streaming(template_path, plain):
  engine, read = Eager(), []

  def stream():
    for i in range(60):
      read.append(i)
      yield dataclasses.replace(EXAMPLES[1], id=str(i))

  results = judge(template_path, plain, engine).judge(stream(), 0)
  first = list(itertools.islice(results, 3))
  assert [x.example.id for x in first] == ['0', '1', '2']
  assert len(read) <= 6
  assert all(len(x.samples) == 1 for x in first)
  assert {r.temperature for r in engine.requests} == {0.0}


@pytest.mark.parametrize(
  'changes, error, message',
  [
    ({'reads': 'scores'}, ValueError, ['reads', 'scores', 'best']),
    (
      {'template': 'critique'},
      UserError,
      ['config.prompt.template', 'critique'],
    ),
  ],
)
def test_judges_without_a_verdict_raise(
  template_path, plain, changes, error, message
):
  config = dataclasses.replace(settings_of(template_path), **changes)
  inner = Judge(Writer(), 'weights', load_tokenizer(), config)
  with pytest.raises(error, match=naming(*message)):
    TokenProbabilityJudge(inner, plain)


def test_indivisible_numbers_of_prompts_raise(template_path):
  model = tiny.gemma(decode_layout(), **SIZE)
  with pytest.raises(UserError, match=naming(3, 4)):
    verdicts(template_path, model, weights=(), prompts=3)
