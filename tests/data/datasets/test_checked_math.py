"""Adapters of math datasets with checked answers."""

import pytest

from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import checked_math
from grm_jax.judgement.example import Turn
from grm_jax.judgement.preference_rows import SourceRow
from tests.data.datasets import rows
from tests.evaluation.suites.published import without
from tests.messages import names


@pytest.mark.parametrize(
  'labels, right, wrong',
  [
    ('1000', {'s0'}, {'s1', 's2', 's3'}),
    ('0110', {'s1', 's2'}, {'s0', 's3'}),
    ('1011', {'s0', 's2', 's3'}, {'s1'}),
  ],
)
def test_gsm8k_comparison_has_one_right_and_all_wrong_solutions(
  labels, right, wrong
):
  example = rows.adapt(checked_math.gsm8k, rows.gsm8k(labels))[0]
  n = len(wrong) + 1
  assert len(example.responses) == n
  assert example.responses[example.best] in right
  assert set(example.responses) - right == wrong
  assert example.rewards[example.best] == 1
  assert sorted(example.rewards) == [0] * (n - 1) + [1]
  assert example.reference == ''
  assert example.id.endswith('/list')


def test_gsm8k_right_solutions_and_positions_are_balanced():
  examples = [
    rows.adapt(checked_math.gsm8k, rows.gsm8k('0110', f'q{i}'))[0]
    for i in range(300)
  ]
  best = [example.responses[example.best] for example in examples]
  assert 110 < best.count('s1') < 190
  for position in range(3):
    assert 65 < sum(e.best == position for e in examples) < 135


def test_gsm8k_single_responses_of_mixed_questions():
  pairs = [
    rows.adapt(checked_math.gsm8k, rows.gsm8k('0110', f'q{i}'))
    for i in range(300)
  ]
  labels = []
  for several, single in pairs:
    (text,), (label,) = single.responses, single.rewards
    assert label == float(text in ('s1', 's2'))
    assert single.best is None
    # Not the right solution of the comparison, because there is another.
    if label:
      assert text != several.responses[several.best]
    labels.append(label)
  assert 110 < sum(labels) < 190


@pytest.mark.parametrize(
  'labels, label, low, high',
  [('1111', 1, 300, 300), ('0000', 0, 65, 135)],
)
def test_gsm8k_one_sided_questions_yield_single_responses_only(
  labels, label, low, high
):
  examples = [
    rows.adapt_to_one(checked_math.gsm8k, rows.gsm8k(labels, f'q{i}'))
    for i in range(300)
  ]
  singles = [x for x in examples if not isinstance(x, SkippedRow)]
  assert low <= len(singles) <= high
  for single in singles:
    assert len(single.responses) == 1
    assert single.rewards == (label,)
  assert len({x for x in examples if isinstance(x, SkippedRow)}) <= 1


@pytest.mark.parametrize(
  'labels, expected',
  [
    ('1000', [('s0', 's1'), ('s0', 's2'), ('s0', 's3')]),
    ('0110', [('s1', 's0'), ('s1', 's3'), ('s2', 's0'), ('s2', 's3')]),
    ('1011', [('s0', 's1'), ('s2', 's1'), ('s3', 's1')]),
  ],
)
def test_gsm8k_pairs_have_each_wrong_solution_once(labels, expected):
  examples = rows.adapt(checked_math.gsm8k_pairs, rows.gsm8k(labels))
  pairs = [(x.responses[x.best], x.responses[1 - x.best]) for x in examples]
  assert set(pairs) <= set(expected)
  wrong = [bad for _, bad in pairs]
  assert sorted(wrong) == sorted({bad for _, bad in expected})
  # As many different right solutions as possible.
  assert len({good for good, _ in pairs}) == min(labels.count('1'), len(wrong))
  for x in examples:
    assert x.rewards[x.best] == 1 and x.rewards[1 - x.best] == 0
  assert len({x.id for x in examples}) == len(examples)


def test_gsm8k_one_sided_questions_yield_no_pairs():
  right, wrong = (
    rows.adapt_to_one(checked_math.gsm8k_pairs, rows.gsm8k(labels))
    for labels in ('1111', '0000')
  )
  assert isinstance(right, SkippedRow) and isinstance(wrong, SkippedRow)
  assert right != wrong


def test_gsm8k_pairs_have_the_right_solution_in_both_positions():
  examples = [
    rows.adapt(checked_math.gsm8k_pairs, rows.gsm8k('0111', f'q{i}'))[0]
    for i in range(300)
  ]
  assert 110 < sum(x.best for x in examples) < 190


def test_gsm8k_equal_solutions_count_once():
  row = rows.gsm8k('1000', texts=('r', 'w', 'w', '2 = <<1+1=2>>w'))
  assert sorted(rows.adapt(checked_math.gsm8k, row)[0].responses) == [
    '2 = w',
    'r',
    'w',
  ]
  row = rows.gsm8k('1100', texts=('r', 'w', 'w', 'w'))
  assert names(rows.error_of(checked_math.gsm8k, row), 'answer')


@pytest.mark.parametrize(
  'solution, cleaned',
  [
    ('a 48/2 = <<48/2=24>>24\nb $<<9*2=18>>18.\nA: 18',
     'a 48/2 = 24\nb $18.\nA: 18'),
    # Truncated: no answer, and an annotation without an end.
    ('it is <<4/12=0.33>>0.33 and <<3/440=0.0068', 'it is 0.33 and'),
    ('1 < 2 and 3 << 4 >> 1', '1 < 2 and 3  1'),
  ],
)  # fmt: skip
def test_gsm8k_calculator_annotations_are_removed(solution, cleaned):
  row = rows.gsm8k('1000', texts=(solution, 'w', 'x', 'y'))
  example = rows.adapt(checked_math.gsm8k, row)[0]
  assert example.responses[example.best] == cleaned


def test_gsm8k_bad_rows():
  row = rows.gsm8k('1000')
  row['6b_finetuning'] = {'is_correct': 'true', 'solution': 's'}
  message = rows.error_of(checked_math.gsm8k, row)
  assert names(message, '6b_finetuning', 'is_correct', "'true'")
  message = rows.error_of(checked_math.gsm8k, without(row, '175b_verification'))
  assert names(message, '6b_finetuning', 'is_correct')
  row = without(rows.gsm8k('1000'), '175b_verification')
  assert names(rows.error_of(checked_math.gsm8k, row), '175b_verification')


def test_ids_depend_on_the_content_only():
  row = rows.gsm8k('1000')
  first = rows.adapt(checked_math.gsm8k, row)
  second = list(checked_math.gsm8k(SourceRow('elsewhere', 99, row)))
  assert first == second
  others = rows.adapt(checked_math.gsm8k, rows.gsm8k('1000', 'How much?'))
  assert not {x.id for x in first} & {x.id for x in others}


def test_math_yields_a_pair_and_a_single_response():
  row = rows.MATH | {
    'answers': rows.math_answers(True, False, False, True, False)
  }
  pair, single = rows.adapt(checked_math.math, row)
  assert len(pair.responses) == 2
  assert pair.responses[pair.best].startswith('True')
  assert pair.responses[1 - pair.best].startswith('False')
  assert pair.rewards[pair.best] == 1
  assert single.rewards == (float(single.responses[0].startswith('True')),)
  assert pair.query == single.query == (Turn('user', 'What is $1+1$?'),)
  assert pair.tags == {'suite': 'math', 'subset': 'Algebra'}
  assert pair.reference == ''


def test_math_skips_one_sided_problems():
  right, wrong = (
    rows.adapt_to_one(
      checked_math.math,
      rows.MATH | {'answers': rows.math_answers(label, label)},
    )
    for label in (True, False)
  )
  assert isinstance(right, SkippedRow) and isinstance(wrong, SkippedRow)
  assert right != wrong


def test_answers_of_math_are_checked():
  texts = [r'so \boxed{4}', r'$1+1=2$, so \boxed{2.0}.', '1 and 1 are 3']
  row = rows.MATH | {'answers': [{'text': text} for text in texts]}
  pair, single = rows.adapt(checked_math.math, row)
  assert pair.responses[pair.best] == texts[1]
  assert pair.responses[1 - pair.best] in (texts[0], texts[2])
  assert single.rewards == (float(single.responses == (texts[1],)),)
  # A label in the row counts, whatever the answer is.
  row['answers'][2]['is_correct'] = True
  row['answers'] = row['answers'][::2]
  pair, _ = rows.adapt(checked_math.math, row)
  assert pair.responses[pair.best] == texts[2]


def test_math_rows_whose_answers_cannot_be_checked():
  row = rows.MATH | {'answers': [{'text': '2'}]}
  message = rows.error_of(checked_math.math, without(row, 'solution'))
  assert names(message, 'solution')
  row['solution'] = 'It is 2.'
  assert isinstance(rows.adapt_to_one(checked_math.math, row), SkippedRow)


def test_math_rows_need_answers():
  message = rows.error_of(checked_math.math, rows.MATH)
  assert names(message, 'answers', *rows.MATH)
