"""The teacher: parseable judgements, right scores, rates of mistakes."""

import collections
import re

import pytest

from grm_jax.data.synthetic import (
  distractors,
  task_format,
  teacher,
  worked_steps,
)
from grm_jax.data.synthetic import examples as practice
from grm_jax.data.synthetic.task_format import Task
from grm_jax.judgement import correctness, response_order, template
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.score_parser import parse_scores
from grm_jax.tokenizer import sentencepiece_codec
from tests.messages import naming

EXAMPLES = practice.examples('train', 1400)
PAIRS = [example for example in EXAMPLES if len(example.responses) > 1]


def sum_task(text):
  return Task('chain_sum', tuple(text.split()))


def parse(text, n):
  return parse_scores(text, n, *((0, 1) if n == 1 else (1, 10)))


def make_example(family, query, *responses):
  return JudgingExample(
    'x', (Turn('user', query),), responses, 0, tags={'family': family}
  )


def scores(example, order=None, **options):
  """Returns the teacher's scores in the example's own order."""
  n = len(example.responses)
  order = range(n) if order is None else order
  text = teacher.write(example, order=order, **options)
  return response_order.restore(parse(text, n), order)


VERDICT = re.compile(
  r'^\[(\d)/\d\] (\S.*\S), (right|wrong: [a-z0-9 ]+)\.$',
  re.MULTILINE,
)


@pytest.mark.parametrize('rate', [0.0, 0.5, 1.0])
def test_scores_parse(rate):
  for example in EXAMPLES:
    n = len(example.responses)
    text = teacher.write(example, error_rate=rate, seed=5)
    (boxed,) = re.findall(r'^Scores: \\boxed{(.*)}$', text, re.MULTILINE)
    assert parse(text, n) == tuple(map(int, boxed.split(', ')))


def test_judgements_without_mistakes_are_correct():
  for example in EXAMPLES:
    actual = scores(example)
    assert correctness.is_correct(actual, example)
    if example.best is not None:
      assert actual[example.best] == 9
      others = [s for i, s in enumerate(actual) if i != example.best]
      assert set(others) <= {1, 2, 3, 4}
    else:
      assert actual == example.rewards


def test_judgements_follow_the_order_shown():
  for example in PAIRS[:300]:
    n = len(example.responses)
    for order in response_order.orders('random', n, 2, 0, example.id):
      for rate in (0.0, 1.0):
        text = teacher.write(example, error_rate=rate, order=order)
        actual = response_order.restore(parse(text, n), order)
        assert rate or actual == scores(example)
        if worked_steps.NO_STEPS in text:
          continue
        # [1/n] is the response shown first.
        lines = VERDICT.findall(text)
        assert [int(k) for k, _, _ in lines] == list(range(1, n + 1))
        for (_, pairs, verdict), index in zip(lines, order, strict=True):
          task = task_format.parse(
            example.tags['family'], example.query[0].text
          )
          answer = task_format.answer_in(example.responses[index])
          items = task_format.split_answer(task, answer)
          compared = [x.split(' vs ')[0] for x in pairs.split(', ')]
          assert [*items, 'end'][: len(compared)] == compared
          assert (verdict == 'right') == (actual[index] == 9)


@pytest.mark.parametrize('rate', [0.2, 0.5])
def test_the_error_rate_is_that_of_wrong_judgements(rate):
  counts = collections.Counter()
  for example in EXAMPLES:
    for seed in (0, 1):
      actual = scores(example, error_rate=rate, seed=seed)
      counts[correctness.is_correct(actual, example)] += 1
  wrong = counts[False] / counts.total()
  # A trusted response can be right, and not every slip changes the verdict.
  assert 0.65 * rate < wrong < 1.05 * rate


def test_a_mistake_does_not_always_change_the_verdict():
  right = [correctness.is_correct(scores(e, error_rate=1.0), e) for e in PAIRS]
  assert 0.05 < sum(right) / len(right) < 0.4


def test_rates_of_mistake_kinds():
  kinds = collections.Counter()
  for example in EXAMPLES:
    n = len(example.responses)
    options = dict(error_rate=1.0, order=tuple(reversed(range(n))))
    text = teacher.write(example, **options)
    actual = scores(example, **options)
    first = task_format.answer_in(example.responses[-1])
    highest = 1 if n == 1 else 9
    if f'Work: trust [1/{n}], so {first}.' in text:
      kinds['trust'] += 1
      # The response shown first, here the last one, gets the best score.
      assert actual[-1] == max(actual) == highest
    elif 'Work: none, so all.' in text:
      kinds['lenient'] += 1
      assert actual == (highest,) * n
      tags = re.findall(r'^\[(.*)\] right\.$', text, re.MULTILINE)
      assert tags == [f'{k}/{n}' for k in range(1, n + 1)]
    else:
      kinds['slip'] += 1
  shares = [kinds[x] / kinds.total() for x in ('lenient', 'trust', 'slip')]
  assert shares == pytest.approx([3 / 9, 5 / 9, 1 / 9], abs=0.04)


def test_mistakes_at_a_low_rate_are_a_subset():
  for example in EXAMPLES[:300]:
    few = teacher.write(example, error_rate=0.2)
    if few != teacher.write(example):
      assert few == teacher.write(example, error_rate=0.7)


def test_a_judgement_is_a_function_of_seed_and_id():
  example = PAIRS[3]
  assert teacher.write(example, error_rate=0.5) == teacher.write(
    example, error_rate=0.5
  )
  texts = {teacher.write(example, seed=seed) for seed in range(30)}
  assert 10 < len(texts) <= 30
  # The wording differs, the scores do not.
  assert len({text.splitlines()[-1] for text in texts}) == 1


def test_principle_weights_sum_to_100_and_descend():
  for example in EXAMPLES:
    text = teacher.write(example, error_rate=0.3)
    weights = [int(w) for w in re.findall(r'\((\d+)%\)', text)]
    assert len(weights) == 2
    assert sum(weights) == 100
    assert weights == sorted(weights, reverse=True)
    names = re.findall(r'^\d\. (.*) \(', text, re.MULTILINE)
    assert len(set(names)) == len(weights)


def test_no_control_strings():
  loaded = template.load('pointwise')
  control = [
    piece for piece in sentencepiece_codec.RESERVED_PIECES if len(piece) > 1
  ]
  for example in EXAMPLES:
    text = teacher.write(example, error_rate=0.3)
    texts = [text, example.query[0].text, *example.responses]
    for part in texts:
      assert not any(piece in part for piece in control)
      assert part.isascii()
    assert all(loaded.guard(part) == part for part in texts)


def test_judgements_are_short():
  for example in EXAMPLES:
    text = teacher.write(example, error_rate=0.3)
    n = len(example.responses)
    analysis = text.split('Analysis:\n')[1].split('\n\n')[0]
    assert len(analysis) < 100 + 56 * n
    assert len(text) < 200 + 56 * n


WHOLE = r"""Specific Criteria:
1. Correct result (80%)
2. Each step holds (20%)

Analysis:
Work: 48 mod 18 = 12, 18 mod 12 = 6, 12 mod 6 = 0, so 6.
[1/3] 3 vs 6 no, wrong: too low.
[2/3] 6 vs 6 yes, right.
[3/3] 7 vs 6 no, wrong: off by 1.

Scores: \boxed{3, 9, 4}"""


def test_a_complete_judgement():
  example = make_example(
    'gcd',
    'What is the greatest common divisor of 18 and 48?',
    '3',
    '6',
    '7',
  )
  text = teacher.write(example, seed=2)
  assert text == WHOLE


def test_responses_are_checked_against_a_slip():
  example = make_example(
    'spell_backward', 'Spell backward: t a p', 'p a t', 'p t'
  )
  texts = [teacher.write(example, error_rate=1.0, seed=i) for i in range(200)]
  analyses = {text.split('Analysis:\n')[1] for text in texts}
  (analysis,) = (x for x in analyses if 'so p t.' in x)
  assert analysis.splitlines() == [
    'Work: 1 t 2 a 3 p, 2 p 1 t, so p t.',
    '[1/2] p vs p yes, a vs t no, wrong: out of place.',
    '[2/2] p vs p yes, t vs t yes, end vs end yes, right.',
    '',
    r'Scores: \boxed{4, 9}',
  ]


# Task, claimed answer, steps.
STEPS = [
  (
    sum_task('23 + 19 - 7'),
    [
      ('35', '23 + 19 = 42, 42 - 7 = 35, so 35.'),
      ('49', '23 + 19 = 42, 42 - 7 = 49, so 49.'),
    ],
  ),
  (sum_task('4 - -6'), [('10', '4 - -6 = 10, so 10.')]),
  (
    Task('number_format', ('9.11', '9.90', '10.05'), 'largest'),
    [
      ('10.05', 'largest, so 10.05.'),
      ('9.90', 'largest, so 9.90.'),
    ],
  ),
  (
    Task('number_format', ('9.11', '9.90'), 'smallest'),
    [('9.11', 'smallest, so 9.11.')],
  ),
  (
    Task('number_sorting', ('40', '7', '12'), 'smallest'),
    [
      ('7, 12, 40', 'smallest first, 40, 7 40, so 7, 12, 40.'),
      ('12, 40', 'smallest first, 40, 7 40, so 12, 40.'),
    ],
  ),
  (
    Task('number_sorting', ('40', '7', '12'), 'largest'),
    [('40, 12, 7', 'largest first, 40, 40 7, so 40, 12, 7.')],
  ),
  (
    Task('number_filtering', ('9', '2', '7'), 'above 5'),
    [
      ('9, 7', '9 above 5 yes, 2 above 5 no, 7 above 5 yes, so 9, 7.'),
      ('2', '9 above 5 no, 2 above 5 yes, 7 above 5 no, so 2.'),
    ],
  ),
  (
    Task('letter_counting', tuple('there'), 'e'),
    [
      ('2', 't, h, e 1, r, e 2, so 2.'),
      # A slip occurs as late as possible.
      ('1', 't, h, e 1, r, e, so 1.'),
      ('0', 't, h, e, r, e, so 0.'),
      ('3', 't, h, e 1, r 2, e 3, so 3.'),
      ('4', 't, h 1, e 2, r 3, e 4, so 4.'),
    ],
  ),
  (
    Task('spell_backward', tuple('tap')),
    [
      ('p a t', '1 t 2 a 3 p, 3 p 2 a 1 t, so p a t.'),
      # Letters are numbered as if the claimed answer were right.
      ('p t', '1 t 2 a 3 p, 2 p 1 t, so p t.'),
      ('t a p', '1 t 2 a 3 p, 3 t 2 a 1 p, so t a p.'),
    ],
  ),
  (
    Task('word_sorting', ('plum', 'fig'), 'z'),
    [('plum, fig', 'z first, plum, so plum, fig.')],
  ),
  (
    Task('word_sorting', ('plum', 'fig', 'pear'), 'a'),
    [('fig, pear, plum', 'a first, plum, fig plum, so fig, pear, plum.')],
  ),
  (
    Task('gcd', ('18', '48')),
    [
      ('6', '48 mod 18 = 12, 18 mod 12 = 6, 12 mod 6 = 0, so 6.'),
      ('3', '48 mod 18 = 12, 18 mod 12 = 3, 12 mod 3 = 0, so 3.'),
    ],
  ),
  (
    Task('gcd', ('12', '48')),
    [('12', '48 mod 12 = 0, so 12.'), ('6', '48 mod 12 = 0, so 6.')],
  ),
  (
    Task('gcd', ('12', '18', '4')),
    [('2', '18 mod 12 = 6, 12 mod 6 = 0, 6 mod 4 = 2, 4 mod 2 = 0, so 2.')],
  ),
]


@pytest.mark.parametrize(
  'task, claimed, line',
  [(task, claimed, line) for task, rows in STEPS for claimed, line in rows],
)
def test_steps(task, claimed, line):
  assert worked_steps.steps(task, claimed) == f'Work: {line}'


def test_steps_lead_to_every_distractor():
  for example in EXAMPLES[:350]:
    task = task_format.parse(example.tags['family'], example.query[0].text)
    right = task_format.solve(task)
    lines = {
      worked_steps.steps(task, x.answer)
      for x in distractors.make_distractors(task, right)
    }
    assert len(lines) == len(distractors.make_distractors(task, right))
    assert worked_steps.steps(task, right) not in lines


# Family, query, (response, score); the first response is the best.
SCORES = [
  (
    'chain_sum',
    'What is 23 + 19 - 7?',
    [('35', 9), ('36', 4), ('32', 3), ('53', 3), ('a lot', 1)],
  ),
  ('chain_sum', 'What is 23 + 19 - 7?', [(' 35\n', 9), ('34', 4)]),
  (
    'number_format',
    'Which number is the largest: 9.11, 9.90?',
    [('9.90', 9), ('9.11', 3), ('9.09', 1)],
  ),
  (
    'word_sorting',
    'Sort the words, a first: d, c, b, a',
    [
      ('a, b, c, d', 9),
      ('b, a, c, d', 3),
      ('a, c, b, d', 4),
      ('b, c, a, d', 3),
      ('d, c, b, a', 3),
      ('a, b, c', 2),
    ],
  ),
  (
    'spell_backward',
    'Spell backward: s p a c e',
    [
      ('e c a p s', 9),
      ('s e c a p', 3),
      ('e c a p p s', 4),
      ('e c a p s s', 2),
    ],
  ),
]


@pytest.mark.parametrize('family, query, rows', SCORES)
def test_scores(family, query, rows):
  example = make_example(family, query, *(response for response, _ in rows))
  assert scores(example) == tuple(score for _, score in rows)


@pytest.mark.parametrize(
  'family, query, order, message',
  [
    ('', 'What is 1 + 1?', None, "''"),
    ('gcd', 'Why?', None, naming('gcd', 'Why?')),
    ('chain_sum', 'What is 1 + 1?', (0, 0), naming('order', '(0, 0)')),
  ],
)
def test_invalid_queries_and_orders(family, query, order, message):
  with pytest.raises(ValueError, match=message):
    teacher.write(make_example(family, query, '2', '3'), order=order)
