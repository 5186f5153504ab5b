"""Probabilities of verdicts, against a forward pass for each of them."""

import dataclasses
import itertools
import time

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.judgement import example as examples
from grm_jax.judgement import prompt_builder, template, voting
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.score_parser import parse_scores
from grm_jax.judges.baselines.token_probability import TokenProbabilityJudge
from grm_jax.judges.baselines.verdict_opening import Opening, find_opening
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

BOX = 'Best: \\boxed{'
# (text, all before the number, what closes it), for verdicts 1 to 3.
OPENINGS = [
  ('Best: \\boxed{2}', BOX, '}'),
  ('Best: \\boxed{2}. Thank you.\n', BOX, '}'),
  ('Best: \\boxed{ 2 }', BOX, '}'),
  ('Best: \\\\boxed {2}', 'Best: \\\\boxed {', '}'),
  ('Best: \\boxed{\\text{2}}', BOX, '}'),
  ('Best: \\boxed{[2]}', BOX, '}'),
  ('Best: \\boxed{\\[2\\]}', BOX, '}'),
  ('\\boxed{1}? No, \\boxed{3}', '\\boxed{1}? No, \\boxed{', '}'),
  ('\\boxed{1}, \\boxed{3}', '\\boxed{1}, \\boxed{', '}'),
  ('\\boxed{\\boxed{2}}', '\\boxed{\\boxed{', '}'),
  ('\\boxed{\\boxed{} 2}', '\\boxed{', '}'),
  # No verdicts: out of range, another thing, two numbers, cut off.
  ('Best: \\boxed{2} of \\boxed{4}', BOX, '}'),
  ('Best: \\boxed{2}, \\boxed{so}', BOX, '}'),
  ('Best: \\boxed{2} \\boxed{1, 3}', BOX, '}'),
  ('Best: \\boxed{2} \\text{1} \\boxed{3', BOX, '}'),
  # A box counts before any list.
  ('Best: \\boxed{2} [[3]] Score: [1]', BOX, '}'),
  ('Best: [[2]], not [3]', 'Best: [[', ']]'),
  ('[[1]], or rather [ [2] ]', '[[1]], or rather [ [', ']]'),
  ('[**[2]**]', '[**[', ']]'),
  ('[1] says so. Score: [2]', '[1] says so. Score: [', ']'),
  ('Score: [2]. See [3].', 'Score: [', ']'),
  ('The rating of the response is [2]', 'The rating of the response is [', ']'),
  ('\\boxed{7} [[2]] \\boxed{x}', '\\boxed{7} [[', ']]'),
  # Full-width forms.
  ('Best: ＼ｂｏｘｅｄ｛２｝', 'Best: ＼ｂｏｘｅｄ｛', '}'),
  ('Ｓｃｏｒｅ：【2】', 'Ｓｃｏｒｅ：【', ']'),
]


@pytest.mark.parametrize('text, before, closing', OPENINGS)
def test_openings(text, before, closing):
  assert find_opening(text, 3) == Opening(before, closing)
  for i in (1, 2, 3):
    assert parse_scores(f'{before}{i}{closing}', 1, 1, 3) == (i,)


@pytest.mark.parametrize(
  'text',
  ['', 'The second.', '2', 'See [2].', '\\boxed{2', '\\boxed{4}', '\\boxed{}'],
)
def test_no_opening(text):
  assert find_opening(text, 3) is None


@example('\\boxed{2[Response 1: }')
@settings(max_examples=500, deadline=None)
@given(
  st.lists(
    st.sampled_from(
      ['\\boxed{', '\\', '{', '}', '[', ']', '2', '1, 3', ' ', 'x', 'Score: ']
      + ['Response 1: ', '\\text{', '｛', '【']
    ),
    max_size=14,
  ).map(''.join)
)
def test_there_is_an_opening_where_a_verdict_is_read(text):
  opening = find_opening(text, 3)
  assert (opening is None) == (parse_scores(text, 1, 1, 3) is None)
  if opening is not None:
    assert text.startswith(opening.text) and opening.text[-1] in '{[｛【'


@pytest.mark.parametrize('part', ['\\boxed{', '[', 'score ', ' ', '\\boxed{4}'])
def test_any_text_is_read_fast(part):
  # Of the process, whatever else is running: a scan from each place takes more.
  begin = time.process_time()
  text = '\\boxed{2} [[2]] ' + part * 4000
  find_opening(text, 3)
  find_opening(part * 4000, 3)
  assert time.process_time() - begin < 30


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
def form(tmp_path_factory):
  """A template that asks with few tokens."""
  path = tmp_path_factory.mktemp('form') / 'short.txt'
  path.write_text(
    '{% for turn in query %}{{ turn.text }}{% endfor %}\n'
    '{% for response in responses %}{{ response }}\n{% endfor %}'
  )
  return str(path)


class Writer(RuleEngine):
  """Writes TEXTS in turn, the first one as sample 0 of the first order."""

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
    found = super().generation(request, sample)
    return dataclasses.replace(found, text=text)


class Eager(Writer):
  """Ends a request before it takes the next one."""

  def run(self, weights, requests, **unused):
    del weights, unused
    for request in requests:
      self.requests.append(request)
      for i in range(request.num_samples):
        yield self.generation(request, i)


def settings_of(form, **more):
  return JudgeConfig(template=form, reads='best', **more)


def verdicts(form, model=MODEL, weights=None, **sizes):
  if weights is None:
    weights, _ = decode_weights.place(model, PARAMS)
  sizes = (
    dict(
      prompts=2, texts_per_prompt=8, max_new_tokens=48, prompt_buckets=(32, 64)
    )
    | sizes
  )
  return VerdictScorer(
    model, weights, load_tokenizer(), settings_of(form), **sizes
  )


@pytest.fixture(scope='module')
def plain(form):
  return verdicts(form)


def judge(form, made, engine=None, **more):
  inner = Judge(
    engine or Writer(), 'weights', load_tokenizer(), settings_of(form, **more)
  )
  return TokenProbabilityJudge(inner, made)


@jax.jit
def _logps(params, batch):
  return logprobs.prompt_logps(MODEL, params, batch)[0]


def total(params, tokens, count):
  """Log-probability of the last `count` tokens by one pass over all."""
  padded = np.zeros((1, 160), np.int32)
  padded[0, : len(tokens)] = tokens
  logps = _logps(params, Batch(padded, np.array([len(tokens)], np.int32)))
  return float(np.sum(logps[0, len(tokens) - 1 - count : len(tokens) - 1]))


def reference(form, judged, sample, params=PARAMS, size=48):
  """Scores of a sample whose closing stands in TEXTS."""
  closing = dict(TEXTS)[sample.text]
  if closing is None:
    return None
  number = sample.text.rindex(closing)
  while sample.text[number - 1].isdigit():
    number -= 1
  own = prompt_builder.tokenize(
    template.load(form),
    judged.example,
    sample.order,
    lambda text: chat_format.render_user(load_tokenizer(), text),
    limit=64,
  )
  before = load_tokenizer().encode(sample.text[:number])[-size:]
  ends = [
    load_tokenizer().encode(f'{i + 1}{closing}')
    for i in range(len(sample.order))
  ]
  logps = [total(params, [*own, *before, *end], len(end)) for end in ends]
  shares = np.exp(logps) / np.sum(np.exp(logps))
  return tuple(shares[sample.order.index(i)] for i in range(len(shares)))


def assert_scores(found, expected, atol=2e-5):
  if expected is None:
    assert found is None
    return
  assert sum(found) == pytest.approx(1, abs=1e-12)
  assert np.ptp(expected) > 0.01  # or another rule would give the same
  np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize('order', ['balanced', 'fixed'])
def test_scores_are_probabilities_of_verdicts(form, plain, order):
  made = judge(form, plain, order=order)
  found = list(made.judge(EXAMPLES, 4))
  assert [x.example for x in found] == EXAMPLES
  silent = 0
  for judged in found:
    assert len(judged.samples) == 4
    for sample in judged.samples:
      assert_scores(sample.scores, reference(form, judged, sample))
      silent += sample.scores is None
  assert silent == 3


def test_votes_add_up_probabilities(form, plain):
  (judged,) = judge(form, plain).judge(EXAMPLES[:1], 4)
  parsed = [s.scores for s in judged.samples]
  assert sum(voting.sum_scores(parsed, 3)) == pytest.approx(
    voting.num_parsed(parsed)
  )
  assert voting.num_parsed(parsed) < 4


def test_numbers_of_two_digits_are_verdicts_of_their_own(form, plain):
  """More texts than go through at once, too."""
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
  (found,) = plain.rate([judged])
  for sample in found.samples:
    assert len(sample.scores) == 12
    assert_scores(sample.scores, reference(form, judged, sample))


def test_of_a_text_that_is_too_long_the_end_is_read(form):
  made = verdicts(form, max_new_tokens=8)
  (judged,) = judge(form, made, order='fixed').judge(EXAMPLES[:1], 4)
  for sample in judged.samples:
    assert_scores(sample.scores, reference(form, judged, sample, size=8))


def test_scores_do_not_depend_on_what_is_beside(form, plain):
  made = judge(form, plain)
  together = list(made.judge(EXAMPLES, 3))
  for one, judged in zip(EXAMPLES, together, strict=True):
    assert list(made.judge([one], 3)) == [judged]


def laid_out():
  table = rules.decode_rules(rules.RULES, 'resident')
  return rules.make_layout(mesh.make_mesh(2, 2, 2), table)


@pytest.mark.parametrize('kind', ['int8', 'bfloat16', 'mesh'])
def test_weights_of_decoding(form, kind):
  model, params, atol = MODEL, PARAMS, 2e-5
  if kind == 'bfloat16':
    model, atol = (
      tiny.gemma(compute=ComputeConfig(dtype='bfloat16'), **SIZE),
      0.02,
    )
  if kind == 'mesh':
    model = tiny.gemma(laid_out(), **SIZE)
  if kind == 'int8':
    params = quantization.quantize(PARAMS)
  weights, _ = decode_weights.place(model, tiny.params(model), kind == 'int8')
  made = verdicts(form, model, weights, prompts=4)
  (judged,) = judge(form, made, order='fixed').judge(EXAMPLES[:1], 1)
  (sample,) = judged.samples
  assert_scores(sample.scores, reference(form, judged, sample, params), atol)


def test_faults_stand_in_their_places_and_the_others_go_on(form, plain):
  long = examples.from_row({'query': 'q', 'responses': ['x' * 900, 'y']}, 7)
  items = [
    EXAMPLES[0],
    long,
    ExampleError('f', 'bad'),
    EXAMPLES[1],
    EXAMPLES[2],
  ]
  made = judge(form, plain, too_long='refuse')
  found = list(made.judge(items, 2))
  assert [type(x) for x in found] == [
    JudgedExample,
    ExampleError,
    ExampleError,
    JudgedExample,
    JudgedExample,
  ]
  assert found[1].id == '7' and names(found[1].reason, 64)
  assert found[2] == items[2]
  assert [x.example for x in (found[0], *found[3:])] == EXAMPLES


def test_greedy_and_streaming(form, plain):
  engine, read = Eager(), []

  def stream():
    for i in range(60):
      read.append(i)
      yield dataclasses.replace(EXAMPLES[1], id=str(i))

  found = judge(form, plain, engine).judge(stream(), 0)
  first = list(itertools.islice(found, 3))
  assert [x.example.id for x in first] == ['0', '1', '2']
  assert len(read) <= 6
  assert all(len(x.samples) == 1 for x in first)
  assert {r.temperature for r in engine.requests} == {0.0}


@pytest.mark.parametrize(
  'changes, error, words_',
  [
    ({'reads': 'scores'}, ValueError, ['reads', 'scores', 'best']),
    (
      {'template': 'critique'},
      UserError,
      ['config.prompt.template', 'critique'],
    ),
  ],
)
def test_judges_without_a_verdict_are_refused(
  form, plain, changes, error, words_
):
  asked = dataclasses.replace(settings_of(form), **changes)
  inner = Judge(Writer(), 'weights', load_tokenizer(), asked)
  with pytest.raises(error, match=naming(*words_)):
    TokenProbabilityJudge(inner, plain)


def test_uneven_numbers_of_prompts_are_refused(form):
  model = tiny.gemma(laid_out(), **SIZE)
  with pytest.raises(UserError, match=naming(3, 4)):
    verdicts(form, model, weights=(), prompts=3)
