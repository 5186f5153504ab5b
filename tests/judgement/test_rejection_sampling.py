"""Rejection sampling against tables written by hand."""

import dataclasses
import itertools

import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import correctness, rejection_sampling
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import (
  FilterConfig,
  FilterSample,
  outcome,
  select,
)
from tests.messages import naming

FORMAT = PromptFormat('practice', 'practice_single')
CORRECT, INCORRECT, FAILURE, TRUNCATED = correctness.OUTCOMES


def example(name='e', n=2, best=0, suite='', **fields):
  tags = {'suite': suite} if suite else {}
  responses = tuple(f'r{i}' for i in range(n))
  return JudgingExample(
    name, (Turn('user', 'q'),), responses, best, tags=tags, **fields
  )


def single(label):
  return example('s', 1, None, rewards=(label,))


def sample(text, order=(0, 1), **fields):
  return FilterSample('e', order, text, **fields)


@pytest.mark.parametrize(
  'text, order, best, expected',
  [
    (r'Scores: \boxed{8, 3}', (0, 1), 0, CORRECT),
    (r'Scores: \boxed{8, 3}', (0, 1), 1, INCORRECT),
    # The prompt lists the second response first.
    (r'Scores: \boxed{8, 3}', (1, 0), 1, CORRECT),
    (r'Scores: \boxed{8, 3}', (1, 0), 0, INCORRECT),
    (r'Scores: \boxed{8, 8}', (0, 1), 0, INCORRECT),
    (r'Scores: \boxed{8, 8}', (0, 1), 1, INCORRECT),
    # The prompt lists c, a, b. Restoring the order the wrong way fails here.
    (r'\boxed{9, 2, 5}', (2, 0, 1), 2, CORRECT),
    (r'\boxed{9, 2, 5}', (2, 0, 1), 0, INCORRECT),
    (r'\boxed{9, 2, 5}', (2, 0, 1), 1, INCORRECT),
    (r'\boxed{5, 9, 2}', (2, 0, 1), 0, CORRECT),
    (r'\boxed{5, 9, 9}', (2, 0, 1), 0, INCORRECT),
    (r'\boxed{8}', (0, 1), 0, FAILURE),
    (r'\boxed{8, 3, 2}', (0, 1), 0, FAILURE),
    (r'\boxed{1, 0}', (0, 1), 0, FAILURE),  # scores of two responses begin at 1
    (r'\boxed{11, 3}', (0, 1), 0, FAILURE),
    ('The first is better.', (0, 1), 0, FAILURE),
    ('', (0, 1), 0, FAILURE),
  ],
)
def test_outcome(text, order, best, expected):
  this = example(n=len(order), best=best)
  assert outcome(sample(text, order), this, FORMAT) == expected
  assert outcome(sample(text, order, hinted=True), this, FORMAT) == expected
  truncated = sample(text, order, truncated=True)
  assert outcome(truncated, this, FORMAT) == TRUNCATED


def test_outcome_is_the_same_in_every_order():
  scores = (2, 9, 5)
  for order in itertools.permutations(range(3)):
    text = rf'\boxed{{{", ".join(str(scores[i]) for i in order)}}}'
    outcomes = [
      outcome(sample(text, order), example(n=3, best=best), FORMAT)
      for best in range(3)
    ]
    assert outcomes == [INCORRECT, CORRECT, INCORRECT]


def test_judgement_of_a_sample():
  judgement = sample(r'\boxed{8, 3}', (1, 0)).judgement(FORMAT)
  assert judgement.scores == (3, 8) and judgement.order == (1, 0)
  assert judgement.text == r'\boxed{8, 3}' and not judgement.truncated
  truncated = sample(r'\boxed{8, 3}', truncated=True)
  assert truncated.judgement(FORMAT).scores is None
  read = dataclasses.replace(FORMAT, truncated='read')
  assert truncated.judgement(read).scores == (8, 3)
  assert truncated.judgement(read).truncated
  assert sample('neither').judgement(FORMAT).scores is None


@pytest.mark.parametrize(
  'text, label, expected',
  [
    (r'Scores: \boxed{1}', 1.0, CORRECT),
    (r'Scores: \boxed{0}', 0.0, CORRECT),
    (r'Scores: \boxed{0}', 1.0, INCORRECT),
    (r'Scores: \boxed{1}', 0.0, INCORRECT),
    (r'Scores: \boxed{10}', 1.0, FAILURE),
    (r'Scores: \boxed{1, 1}', 1.0, FAILURE),
    ('yes', 1.0, FAILURE),
  ],
)
def test_outcome_of_a_single_response(text, label, expected):
  assert outcome(sample(text, (0,)), single(label), FORMAT) == expected
  truncated = sample(text, (0,), truncated=True)
  assert outcome(truncated, single(label), FORMAT) == TRUNCATED


@pytest.mark.parametrize('order', [(), (0,), (0, 0), (1, 2), (0, 1, 2)])
def test_order_must_be_a_permutation(order):
  for truncated in (False, True):
    wrong = sample(r'\boxed{8, 3}', order, truncated=truncated)
    with pytest.raises(ValueError, match=naming('order', 2)):
      outcome(wrong, example(), FORMAT)


def test_example_without_label():
  with pytest.raises(UserError, match='best'):
    outcome(sample(r'\boxed{8, 3}'), example(best=None), FORMAT)


@pytest.mark.parametrize(
  'outcomes, expected',
  [
    ([CORRECT], True),
    ([CORRECT] * 3, True),
    ([CORRECT, CORRECT, INCORRECT], False),
    ([CORRECT, FAILURE], False),
    ([CORRECT, TRUNCATED], False),
    ([INCORRECT], False),
    ([], False),  # no evidence that it is
  ],
)
def test_is_too_easy(outcomes, expected):
  assert rejection_sampling.is_too_easy(outcomes) is expected


# Sample name (u: unhinted, h: hinted) -> its outcome.
MIXED = {
  'u+': CORRECT,
  'u-': INCORRECT,
  'u?': FAILURE,
  'u/': TRUNCATED,
  'h+': CORRECT,
  'h-': INCORRECT,
  'h?': FAILURE,
  'h/': TRUNCATED,
}
EASY = {'u1': CORRECT, 'u2': CORRECT, 'h1': CORRECT, 'h2': INCORRECT}
HINTED = {'h1': CORRECT, 'h2': INCORRECT}


def selected_names(outcomes, **rules):
  samples = [sample(name, hinted=name[0] == 'h') for name in outcomes]
  selected = select(samples, list(outcomes.values()), FilterConfig(**rules))
  return ' '.join(x.text for x in selected)


@pytest.mark.parametrize(
  'reject, unhinted, hinted, mixed, easy, only_hinted',
  [
    (True, True, True, 'u+ h+', 'u1 u2 h1', 'h1'),
    (True, True, False, 'u+', 'u1 u2', ''),
    (True, False, True, 'h+', 'h1', 'h1'),
    (True, False, False, '', '', ''),
    (False, True, True, 'u+ u- h+ h-', 'u1 u2 h1 h2', 'h1 h2'),
    (False, True, False, 'u+ u-', 'u1 u2', ''),
    (False, False, True, 'h+ h-', 'h1 h2', 'h1 h2'),
    (False, False, False, '', '', ''),
  ],
)
def test_select(reject, unhinted, hinted, mixed, easy, only_hinted):
  rules = {'reject': reject, 'unhinted': unhinted, 'hinted': hinted}
  for too_easy in (True, False):
    assert selected_names(MIXED, too_easy=too_easy, **rules) == mixed
    assert selected_names(HINTED, too_easy=too_easy, **rules) == only_hinted
    # Without rejection, easy examples stay.
    expected = '' if too_easy and reject else easy
    assert selected_names(EASY, too_easy=too_easy, **rules) == expected
  assert selected_names({}, **rules) == ''


@pytest.mark.parametrize(
  'max_per_example, expected',
  [(0, 'u+ h+'), (1, 'u+'), (2, 'u+ h+'), (3, 'u+ h+')],
)
def test_max_per_example_counts_selected_samples(max_per_example, expected):
  outcomes = {'u-': INCORRECT} | MIXED
  assert selected_names(outcomes, max_per_example=max_per_example) == expected


def test_equal_texts_are_selected_once():
  samples = [
    sample('a'),
    sample('b'),
    sample('a'),
    sample('a', (1, 0)),  # the same text after another prompt
    sample('a', hinted=True),
    sample('c', hinted=True),
    sample('b', hinted=True),
  ]

  def selected(**rules):
    config = FilterConfig(too_easy=False, **rules)
    return select(samples, [CORRECT] * 7, config)

  assert selected() == [samples[0], samples[1], samples[3], samples[5]]
  assert selected(max_per_example=2) == [samples[0], samples[1]]
  # An equal unhinted text that is not allowed does not hide a hinted one.
  assert selected(unhinted=False) == [samples[4], samples[5], samples[6]]


def test_every_sample_needs_an_outcome():
  with pytest.raises(ValueError):
    select([sample('a')], [], FilterConfig())


def test_count_by_source():
  """Source A has an example of every kind, B an ordinary one."""
  outcomes_by_kind = {
    'easy': (('u', CORRECT), ('u', CORRECT)),
    'some': (('u', CORRECT), ('u', INCORRECT)),
    'rescued': (('u', INCORRECT), ('u', FAILURE), ('h', CORRECT)),
    'lost': (
      ('u', TRUNCATED),
      ('u', INCORRECT),
      ('h', INCORRECT),
      ('h', FAILURE),
    ),
    'unsampled': (),
    'hinted': (('h', CORRECT), ('h', TRUNCATED)),  # a file of another model
    'ordinary': (('u', INCORRECT), ('u', CORRECT), ('u', CORRECT)),
  }
  examples = {
    id: example(id, suite='B' if id == 'ordinary' else 'A')
    for id in outcomes_by_kind
  }
  examples['no suite'] = example('no suite')
  samples = {
    id: [sample(str(i), hinted=k == 'h') for i, (k, _) in enumerate(pairs)]
    for id, pairs in outcomes_by_kind.items()
    if pairs
  }
  outcomes = {
    id: [x for _, x in pairs] for id, pairs in outcomes_by_kind.items() if pairs
  }
  selected = {
    id: select(samples[id], outcomes[id], FilterConfig()) for id in samples
  }
  counts = rejection_sampling.count_by_source(
    examples, samples, outcomes, selected
  )
  zeros = dict.fromkeys(
    (f'{x}_{y}' for x in ('unhinted', 'hinted') for y in correctness.OUTCOMES),
    0,
  )
  assert list(counts) == ['A', 'B', 'all']
  assert counts['A'] == {
    'examples': 6,
    'too_easy': 1,
    'never_right': 2,
    'rescued': 1,
    'examples_kept': 3,
    'generations_kept': 3,
    'unhinted_correct': 3,
    'unhinted_incorrect': 3,
    'unhinted_parse_failure': 1,
    'unhinted_truncated': 1,
    'hinted_correct': 2,
    'hinted_incorrect': 1,
    'hinted_parse_failure': 1,
    'hinted_truncated': 1,
  }
  assert counts['B'] == zeros | {
    'examples': 1,
    'too_easy': 0,
    'never_right': 0,
    'rescued': 0,
    'examples_kept': 1,
    'generations_kept': 2,
    'unhinted_correct': 2,
    'unhinted_incorrect': 1,
  }
  assert counts['all'] == zeros | {
    'examples': 1,
    'too_easy': 0,
    'never_right': 0,
    'rescued': 0,
    'examples_kept': 0,
    'generations_kept': 0,
  }
