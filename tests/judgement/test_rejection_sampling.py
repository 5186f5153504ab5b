"""What is fine-tuned on, and why not the rest: tables made by hand."""

import itertools

import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import rejection_sampling
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import (
  FilterConfig,
  FilterSample,
  keep,
  verdict,
)
from tests.messages import naming

FORMS = PromptFormat('practice', 'practice_single')
CORRECT, INCORRECT, FAILURE, CUT = rejection_sampling.VERDICTS


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
    # The response of the first place is the second one.
    (r'Scores: \boxed{8, 3}', (1, 0), 1, CORRECT),
    (r'Scores: \boxed{8, 3}', (1, 0), 0, INCORRECT),
    (r'Scores: \boxed{8, 8}', (0, 1), 0, INCORRECT),
    (r'Scores: \boxed{8, 8}', (0, 1), 1, INCORRECT),
    # Shown: c, a, b. Rotated the other way, or not back at all, it is wrong.
    (r'\boxed{9, 2, 5}', (2, 0, 1), 2, CORRECT),
    (r'\boxed{9, 2, 5}', (2, 0, 1), 0, INCORRECT),
    (r'\boxed{9, 2, 5}', (2, 0, 1), 1, INCORRECT),
    (r'\boxed{5, 9, 2}', (2, 0, 1), 0, CORRECT),
    (r'\boxed{5, 9, 9}', (2, 0, 1), 0, INCORRECT),
    (r'\boxed{8}', (0, 1), 0, FAILURE),
    (r'\boxed{8, 3, 2}', (0, 1), 0, FAILURE),
    (r'\boxed{1, 0}', (0, 1), 0, FAILURE),  # 0 is no score of two responses
    (r'\boxed{11, 3}', (0, 1), 0, FAILURE),
    ('The first is better.', (0, 1), 0, FAILURE),
    ('', (0, 1), 0, FAILURE),
  ],
)
def test_verdict(text, order, best, expected):
  this = example(n=len(order), best=best)
  assert verdict(sample(text, order), this, FORMS) == expected
  # However it was asked for.
  assert verdict(sample(text, order, hinted=True), this, FORMS) == expected
  # What was cut off is not read.
  assert verdict(sample(text, order, truncated=True), this, FORMS) == CUT


def test_the_verdict_does_not_depend_on_the_order():
  own = (2, 9, 5)
  for order in itertools.permutations(range(3)):
    shown = ', '.join(str(own[i]) for i in order)
    text = rf'\boxed{{{shown}}}'
    found = [
      verdict(sample(text, order), example(n=3, best=best), FORMS)
      for best in range(3)
    ]
    assert found == [INCORRECT, CORRECT, INCORRECT]


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
def test_verdict_of_a_single_response(text, label, expected):
  assert verdict(sample(text, (0,)), single(label), FORMS) == expected
  cut = sample(text, (0,), truncated=True)
  assert verdict(cut, single(label), FORMS) == CUT


@pytest.mark.parametrize('order', [(), (0,), (0, 0), (1, 2), (0, 1, 2)])
def test_an_order_of_another_example(order):
  for truncated in (False, True):
    wrong = sample(r'\boxed{8, 3}', order, truncated=truncated)
    with pytest.raises(ValueError, match=naming('order', 2)):
      verdict(wrong, example(), FORMS)


def test_an_example_that_does_not_say_what_is_right():
  with pytest.raises(UserError, match='best'):
    verdict(sample(r'\boxed{8, 3}'), example(best=None), FORMS)


@pytest.mark.parametrize(
  'verdicts, expected',
  [
    ([CORRECT], True),
    ([CORRECT] * 3, True),
    ([CORRECT, CORRECT, INCORRECT], False),
    ([CORRECT, FAILURE], False),
    ([CORRECT, CUT], False),
    ([INCORRECT], False),
    ([], False),  # nothing shows that it is
  ],
)
def test_too_easy(verdicts, expected):
  assert rejection_sampling.too_easy(verdicts) is expected


# By name: who asked (u for unhinted, h for hinted), and the verdict.
MIXED = {'u+': CORRECT, 'u-': INCORRECT, 'u?': FAILURE, 'u/': CUT} | {
  'h+': CORRECT,
  'h-': INCORRECT,
  'h?': FAILURE,
  'h/': CUT,
}
EASY = {'u1': CORRECT, 'u2': CORRECT, 'h1': CORRECT, 'h2': INCORRECT}
HINTED = {'h1': CORRECT, 'h2': INCORRECT}


def kept(made, **rules):
  samples = [sample(name, hinted=name[0] == 'h') for name in made]
  found = keep(samples, list(made.values()), FilterConfig(**rules))
  return ' '.join(x.text for x in found)


@pytest.mark.parametrize(
  'reject, unhinted, hinted, mixed, easy, alone',
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
def test_keep(reject, unhinted, hinted, mixed, easy, alone):
  rules = {'reject': reject, 'unhinted': unhinted, 'hinted': hinted}
  for too_easy in (True, False):
    assert kept(MIXED, too_easy=too_easy, **rules) == mixed
    assert kept(HINTED, too_easy=too_easy, **rules) == alone
    # Without rejection nothing is dropped for being right.
    dropped = too_easy and reject
    assert kept(EASY, too_easy=too_easy, **rules) == ('' if dropped else easy)
  assert kept({}, **rules) == ''


@pytest.mark.parametrize(
  'most, expected',
  [(0, 'u+ h+'), (1, 'u+'), (2, 'u+ h+'), (3, 'u+ h+')],
)
def test_most_of_an_example(most, expected):
  # It counts what is kept: what comes before and is wrong takes no place.
  made = {'u-': INCORRECT} | MIXED
  assert kept(made, max_per_example=most) == expected


def test_equal_texts_are_kept_once_in_the_order_of_the_first():
  rows = [
    sample('a'),
    sample('b'),
    sample('a'),
    sample('a', (1, 0)),  # after another prompt
    sample('a', hinted=True),
    sample('c', hinted=True),
    sample('b', hinted=True),
  ]
  found = keep(rows, [CORRECT] * 7, FilterConfig(too_easy=False))
  assert found == [rows[0], rows[1], rows[3], rows[5]]
  assert keep(
    rows, [CORRECT] * 7, FilterConfig(too_easy=False, max_per_example=2)
  ) == [rows[0], rows[1]]
  # A hinted text is not lost with an equal one that is not allowed.
  alone = keep(
    rows, [CORRECT] * 7, FilterConfig(too_easy=False, unhinted=False)
  )
  assert alone == [rows[4], rows[5], rows[6]]


def test_a_verdict_for_each_sample():
  with pytest.raises(ValueError):
    keep([sample('a')], [], FilterConfig())


def test_a_negative_limit_is_no_rule():
  with pytest.raises(
    ValueError, match=naming('config.filter.max_per_example', -1)
  ):
    FilterConfig(max_per_example=-1)


def test_the_counts():
  """Source A has one example of every way to go, B a plain one."""
  verdicts = {
    'easy': (('u', CORRECT), ('u', CORRECT)),
    'some': (('u', CORRECT), ('u', INCORRECT)),
    'rescued': (('u', INCORRECT), ('u', FAILURE), ('h', CORRECT)),
    'lost': (('u', CUT), ('u', INCORRECT), ('h', INCORRECT), ('h', FAILURE)),
    'unasked': (),
    'hinted': (('h', CORRECT), ('h', CUT)),  # by another model
    'plain': (('u', INCORRECT), ('u', CORRECT), ('u', CORRECT)),
  }
  examples = {
    name: example(name, suite='B' if name == 'plain' else 'A')
    for name in verdicts
  }
  examples['nowhere'] = example('nowhere')
  samples = {
    name: [sample(str(i), hinted=k == 'h') for i, (k, _) in enumerate(own)]
    for name, own in verdicts.items()
    if own
  }
  found = {name: [v for _, v in own] for name, own in verdicts.items() if own}
  kept_ = {
    name: keep(samples[name], found[name], FilterConfig()) for name in samples
  }
  table = rejection_sampling.table(examples, samples, found, kept_)
  none = dict.fromkeys(
    (
      f'{x}_{v}'
      for x in ('unhinted', 'hinted')
      for v in rejection_sampling.VERDICTS
    ),
    0,
  )
  assert list(table) == ['A', 'B', 'all']
  assert table['A'] == {
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
  assert table['B'] == none | {
    'examples': 1,
    'too_easy': 0,
    'never_right': 0,
    'rescued': 0,
    'examples_kept': 1,
    'generations_kept': 2,
    'unhinted_correct': 2,
    'unhinted_incorrect': 1,
  }
  assert table['all'] == none | {
    'examples': 1,
    'too_easy': 0,
    'never_right': 0,
    'rescued': 0,
    'examples_kept': 0,
    'generations_kept': 0,
  }
