r"""Score parsing of realistic generations, arbitrary texts and long texts.

Comments in the table name texts that common extraction code gets wrong. It
searches for `\boxed{(.*?)}` or for the last [...] and converts the parts
between commas with float().
"""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grm_jax.judgement.score_parser import parse_scores
from tests.messages import naming

CRITIQUE = """Specific Criteria:
1. Accuracy (Weight: 40%): the facts hold.
2. Instruction following (Weight: 30%): asked for {3} reasons, [in order].
3. Clarity (Weight: 30%).

Analysis:
Response 1 names 3 reasons; its claim [2] is right. Accuracy: \\boxed{9},
depth \\boxed{7/10}. Response 2 stops at f(x) = {1, 2} and `a[0]`.
"""

PAIRS = [
  # The form that the template requests.
  ('Scores: \\boxed{8, 9}', (8, 9)),
  (CRITIQUE + '\nScores: \\boxed{8, 3}', (8, 3)),
  ('Scores: \\boxed{8, 9}\n<end_of_turn>', (8, 9)),
  ('The first is better.\n\n**Scores:** $\\boxed{8, 9}$.', (8, 9)),
  ('$$\n\\boxed{10, 1}\n$$', (10, 1)),
  ('\\[ \\boxed{ 8 , 9 } \\]', (8, 9)),
  ('Scores: \\boxed{8,9.}', (8, 9)),
  ('Scores: \\boxed{8;9}', (8, 9)),
  ('Scores: \\boxed{8 and 9}', (8, 9)),
  ('Scores: \\boxed{8 & 9}', (8, 9)),
  ('Scores: \\boxed {8, 9}', (8, 9)),
  ('Scores: \\\\boxed{8, 9}', (8, 9)),
  ('Scores:\\\\\\boxed{8, 9}', (8, 9)),
  ('Scores: \\boxed{08, 09}', (8, 9)),
  ('Scores: \\boxed{"8", "9"}', (8, 9)),
  # Brackets after the box: the last [...] does not have the scores.
  ('Scores: \\boxed{8, 9} [see above]', (8, 9)),
  ('Scores: \\boxed{8, 9} [1, 2]', (8, 9)),
  ('Scores: \\boxed{8, 9}\n\n[1] Smith, 2019. [2] Li, 2020.', (8, 9)),
  # Common code gets one number from [[2, 4]] and none from the others.
  ('Final Scores: [[2, 4]]', (2, 4)),
  ('Final Scores: [2, 4]', (2, 4)),
  ('Final Scores: [[2], [4]]', (2, 4)),
  ('As [1] says, ...\nFinal Scores: **[[2, 4]]**', (2, 4)),
  ('Scores: 【2，4】', (2, 4)),
  ('Final Scores: [[2, 4]] [end of judgement]', (2, 4)),
  ('Scores: [3, 3] at first, then scores: [2, 4]', (2, 4)),
  ('Scores: [3, 3 at first, then the scores are [2, 4]', (2, 4)),
  ('"scores": [2, 4]', (2, 4)),
  ('_Scores_: [2, 4]', (2, 4)),
  ('__Final Scores:__ [2, 4]', (2, 4)),
  ('sum_of_scores_: [2, 4]', None),
  ('Scores: [2_4]', None),
  ('**Final Ratings** = [2, 4]', (2, 4)),
  ('Scores for the responses: [2, 4]', (2, 4)),
  ('Scores (out of 10): [8, 9]', (8, 9)),
  ('**Scores (1-10):** [8, 9]', (8, 9)),
  ('Scores out of 10: [8, 9]', (8, 9)),
  ('Ratings for both: [3, 4]', (3, 4)),
  ('Scores for each of the two answers: [3, 4]', (3, 4)),
  ('Scores for both (out of 10): [3, 4]', (3, 4)),
  ('Scores for both [3, 4]', None),
  ('Scores for the papers: [3, 4]', None),
  ('The scores (Table 2) of [3, 4]', None),
  ('Ratings of papers (Smith): [3, 4]', None),
  # A list without a label is a citation or code.
  ('[3, 3] at first, then [2, 4]', None),
  ('Response 1 returns [1, 2] and Response 2 returns [2, 1].', None),
  ('As sources [4] and [1, 5] say.\nScores: 9, 4', None),
  ('Both cite [1, 5].', None),
  ('The ratings of [1, 5] are low.', None),
  ('Scores: [9, 4], as in [1, 5]', (9, 4)),
  ('See [1, 2], [3, 4].\nScores: [9, 4]\n[1, 5] Smith.', (9, 4)),
  ('Scores: [8/10, 9/10]', (8, 9)),
  # Boxes have priority over brackets.
  ('Scores: \\boxed{8, 9}, that is [2, 4]', (8, 9)),
  ('Scores: \\boxed{the second}: [2, 4]', (2, 4)),
  # A box for each response.
  ('\\boxed{8}, \\boxed{9}', (8, 9)),
  ('\\boxed{8} and \\boxed{9}', (8, 9)),
  ('\\\\boxed{8}, \\\\boxed{9}', (8, 9)),
  ('$\\boxed{8}$, $\\boxed{9}$', (8, 9)),
  ('\\boxed{8}/10, \\boxed{9}/10', (8, 9)),
  ('Response 1: \\boxed{8}\nResponse 2: \\boxed{9}', (8, 9)),
  ('- **Response 1**: \\boxed{8}\n- **Response 2**: \\boxed{9}', (8, 9)),
  ('1. \\boxed{8}\n2. \\boxed{9}', (8, 9)),
  ('Assistant A: \\boxed{8}, Assistant B: \\boxed{9}', (8, 9)),
  ('| Response 1 | \\boxed{8} |\n| Response 2 | \\boxed{9} |', (8, 9)),
  (
    '\\text{Response 1: }\\boxed{8} \\quad \\text{Response 2: }\\boxed{9}',
    (8, 9),
  ),
  (
    'The score for Response 1 is \\boxed{8}, and the score for Response 2 is '
    '\\boxed{9}.',
    (8, 9),
  ),
  ('\\boxed{\\boxed{8}, \\boxed{9}}', (8, 9)),
  # Not a run: three boxes, prose between boxes, labels out of order.
  ('\\boxed{8}, \\boxed{9}, \\boxed{7}', None),
  ('Response 1: \\boxed{8} It is short.\nResponse 2: \\boxed{9}', None),
  ('Response 2: \\boxed{8}, Response 1: \\boxed{9}', None),
  ('Response 1: \\boxed{8}, Response 1: \\boxed{9}', None),
  ('\\boxed{8}/10, \\boxed{9}/5', (8, 9)),
  ('\\boxed{8}/5, \\boxed{9}/5', None),
  ('\\boxed{8}, \\boxed{x}, \\boxed{9}', None),
  ('\\boxed{8}, \\boxed{2, \\boxed{9}', None),
  ('\\boxed{8} 7 \\boxed{9}', None),
  ('\\boxed{8}, \\boxed{\\boxed{9}}', None),
  ('\\boxed{8}, \\boxed{9}, \\boxed{3, 4}', (3, 4)),
  # Scores with /10.
  ('Scores: \\boxed{8/10, 9/10}', (8, 9)),
  ('Scores: \\boxed{8 / 10, 9/10.0}', (8, 9)),
  ('Scores: \\boxed{8/9}', None),
  ('Scores: \\boxed{4/5, 5/5}', None),
  ('Scores: \\boxed{80/100, 90/100}', None),
  # Markup.
  ('Scores: \\boxed{\\text{8, 9}}', (8, 9)),
  ('Scores: \\boxed{\\text{8}, \\text{9}}', (8, 9)),
  ('Scores: \\boxed{8 \\text{ and } 9}', (8, 9)),
  ('Scores: \\boxed{\\mathbf{8, 9}}', (8, 9)),
  ('Scores: \\boxed{[8, 9]}', (8, 9)),
  ('Scores: \\boxed{[[8, 9]]}', (8, 9)),
  ('Scores: \\boxed{(8,9)}', (8, 9)),
  ('Scores: \\boxed{\\{8, 9\\}}', (8, 9)),
  ('Scores: \\boxed{\\left[8, 9\\right]}', (8, 9)),
  ('Scores: \\boxed{8,\\ 9}', (8, 9)),
  ('Scores: \\boxed{8,\\,9}', (8, 9)),
  ('Scores: \\boxed{8 \\\\ 9}', (8, 9)),
  ('Scores: \\boxed{**8**, **9**}', (8, 9)),
  ('Scores: \\boxed{[8, 9}', (8, 9)),
  ('Scores: \\boxed{8, 9]}', (8, 9)),
  ('Scores: \\boxed{8], 9}', (8, 9)),
  ('Scores: \\boxed{[8, 9}, not [1, 2]', (8, 9)),
  ('Scores: \\boxed{[x 8, 9}', None),
  # Labels in the box.
  ('\\boxed{Response 1: 8, Response 2: 9}', (8, 9)),
  ('\\boxed{\\text{Response 1: 8/10, Response 2: 9/10}}', (8, 9)),
  ('\\boxed{A: 8, B: 9}', (8, 9)),
  ('\\boxed{**1**: 8, **2**: 9}', (8, 9)),
  ('\\boxed{Response  1 gets 8, Response  2 gets 9}', None),
  ('\\boxed{Scores: 8, 9}', (8, 9)),
  ('\\boxed{Response  1 Score = 8, Response  2 Score = 9}', (8, 9)),
  ('\\boxed{Response 2: 8, Response 1: 9}', None),
  # Labels in their own braces or brackets.
  ('\\boxed{\\text{Response 1: } 8, \\text{Response 2: } 7}', (8, 7)),
  ('\\boxed{\\text{Response 1}: 8, \\text{Response 2}: 7}', (8, 7)),
  ('\\boxed{\\text{A: } 8, \\text{B: } 7}', (8, 7)),
  ('\\boxed{\\mathrm{A}: 8, \\mathrm{B}: 7}', (8, 7)),
  ('\\boxed{\\textbf{1}: 8, \\textbf{2}: 7}', (8, 7)),
  ('\\boxed{\\textsf{Response A} = 8, \\textsf{Response B} = 7}', (8, 7)),
  ('\\boxed{\\text{Response 1}\\colon 8, \\text{Response 2}\\colon 7}', (8, 7)),
  ('\\boxed{\\mathbf{Response~1}: 8; \\mathbf{Response~2}: 7}', (8, 7)),
  ('\\boxed{\\mathrm{Response\\ 1}: 8, \\mathrm{Response\\ 2}: 7}', (8, 7)),
  ('\\boxed{\\text{Response \\#1: } 8, \\text{Response \\#2: } 7}', (8, 7)),
  ('\\\\boxed{\\\\text{Response 1: } 8, \\\\text{Response 2: } 7}', (8, 7)),
  (
    '\\boxed{\\text{Response 1: } \\mathbf{8}, \\text{Response 2: } 7/10}',
    (8, 7),
  ),
  ('\\boxed{{Response 1: 8}, {Response 2: 7}}', (8, 7)),
  ('\\boxed{[Response 1: 8], [Response 2: 7]}', (8, 7)),
  ('Scores: [[Response 1: 8], [Response 2: 7]]', (8, 7)),
  ('\\boxed{\\text{Response 1: } 8}, \\boxed{\\text{Response 2: } 7}', (8, 7)),
  ('\\boxed{Response 1: 8}\n\\boxed{Response 2: 7}', (8, 7)),
  ('\\boxed{\\text{Response 2: } 8, \\text{Response 1: } 7}', None),
  ('\\boxed{\\text{Response 1: } 8, \\text{Response 1: } 7}', None),
  ('\\boxed{[Response 2: 8], [Response 1: 7]}', None),
  ('\\boxed{Response 2: 8}, \\boxed{Response 1: 7}', None),
  # Thoughts.
  ('<think>First I thought \\boxed{2, 9}', None),
  ('<think>\\boxed{2, 9}</think>\nScores: \\boxed{8, 3}', (8, 3)),
  ('<think>\\boxed{2, 9}</think>\nI cannot judge this.', None),
  ('\\boxed{2, 9}</think>\nI cannot judge this.', None),
  ('\\boxed{2, 9}</think>\nScores: \\boxed{8, 3}', (8, 3)),
  ('<THINKING >\\boxed{2, 9}', None),
  ('<thinking>\\boxed{2, 9}</thinking> \\boxed{8, 3}', (8, 3)),
  ('＜think＞\\boxed{2, 9}', None),
  ('<think>a<think>b</think>\\boxed{2, 9}</think> \\boxed{8, 3}', (8, 3)),
  ('<think>a<think>b</think>\\boxed{2, 9}', None),
  ('\\boxed{8, 3} <think>or \\boxed{2, 9}', (8, 3)),
  ('\\boxed{8}, <think>\\boxed{2}</think> \\boxed{9}', (8, 9)),
  ('I think <b>\\boxed{8, 3}</b>', (8, 3)),
  # Full-width.
  ('Scores: \\boxed{８，９}', (8, 9)),
  ('Scores: \\boxed{8、9}', (8, 9)),
  ('评分：\\boxed{8，9}。', (8, 9)),
  ('评分：\\boxed{8，9。}', (8, 9)),
  # The last list with the right number of scores.
  ('\\boxed{3, 4} are sub-scores. Scores: \\boxed{8, 9}', (8, 9)),
  ('Scores: \\boxed{8, 9}. The difference is \\boxed{1}.', (8, 9)),
  ('Scores: \\boxed{8, 9}. The best: \\boxed{\\text{Response 2}}', (8, 9)),
  ('\\boxed{3}, \\boxed{4} at first; in all \\boxed{8, 9}', (8, 9)),
  ('\\boxed{3, 4} at first. \\boxed{8}, \\boxed{9}', (8, 9)),
  ('\\boxed{3, 4} at first, then \\boxed{8, 11}', (3, 4)),
  ('\\boxed{3, 4} at first, then \\boxed{8, 9', (3, 4)),
  # Not integers, out of range, or not two scores.
  ('Scores: \\boxed{8.0, 9.00}', (8, 9)),
  ('Scores: \\boxed{8.5, 9}', None),
  ('Scores: \\boxed{.5, 9}', None),
  ('Scores: \\boxed{-3, 9}', None),
  ('Scores: \\boxed{\u22123, 9}', None),
  ('Scores: \\boxed{+3, 9}', None),
  ('Scores: \\boxed{0, 9}', None),
  ('Scores: \\boxed{11, 9}', None),
  ('Scores: \\boxed{100, 9}', None),
  ('Scores: \\boxed{eight, nine}', None),
  ('Scores: \\boxed{8a, 9}', None),
  ('Scores: \\boxed{8^2, 9}', None),
  ('Scores: \\boxed{80\\%, 90\\%}', None),
  ('Scores: \\boxed{\\frac{8}{10}, 9}', None),
  ('Scores: \\boxed{8-9}', None),
  ('Scores: \\boxed{8:9}', None),
  ('Scores: \\boxed{8}', None),
  ('Scores: \\boxed{8, 9, 7}', None),
  ('Scores: \\boxed{}', None),
  ('Scores: \\boxed{8, 9', None),
  ('Scores: \\boxed8, 9', None),
  ('Scores: 8, 9', None),
  ('Response 1: 8/10\nResponse 2: 9/10', None),
  ('Scores: [8.5, 9]', None),
  ('[Start of Response 1] 8, 9 [End of Response 1]', None),
  (CRITIQUE, None),
  ('I cannot judge this.', None),
  ('', None),
]

SINGLES = [
  ('**\\boxed{7}**', (7,)),
  (CRITIQUE + 'Score: \\boxed{6}', (6,)),
  ('Score: \\boxed{7/10}', (7,)),
  ('Score: \\boxed{7}/10', (7,)),
  ('Score: $\\boxed{7}$ [1]', (7,)),
  ('Score: \\boxed{\\text{Score: } 7}', (7,)),
  ('\\boxed{6} for style. Overall \\boxed{7}', (7,)),
  ('\\boxed{6}, \\boxed{7}', (7,)),
  ('\\boxed{\\boxed{7}}', (7,)),
  ('\\boxed{7} but not \\boxed{8.5}', (7,)),
  ('Score: \\boxed{7, 8}', None),
  ('Score: \\boxed{11}', None),
  ('Score: \\boxed{seven}', None),
  ('Best: \\boxed{Response 2}', None),
  # A single number in brackets may be a citation.
  ('As was shown in [1], it holds.', None),
  ('Score: 7. See [1].', None),
  ('The score, as in work such as [1], is low.', None),
  ('The underscore: [1]', None),
  ('The score of 7 [1]', None),
  ('\\boxed{Score} [1]', None),
  ('[Score] [1]', None),
  ('Score: [7]', (7,)),
  ('**Final score:** [7/10]', (7,)),
  ('Rating: [[7]], see [1]', (7,)),
  ('[[7]]', (7,)),
  ('[[a], 7]', None),
  ('\\boxed{\\text{Response 1: } 7}', (7,)),
  ('\\boxed{\\text{Response 2: } 7}', None),
  ('Score: \\boxed{seven} [1]', None),
  ('<think>Score: [7]', None),
]


@pytest.mark.parametrize('text, expected', PAIRS)
def test_two_responses(text, expected):
  assert parse_scores(text, 2) == expected


@pytest.mark.parametrize('text, expected', SINGLES)
def test_single_response(text, expected):
  assert parse_scores(text, 1) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    ('Scores: \\boxed{1}', (1,)),
    ('Scores: \\boxed{0}', (0,)),
    ('Scores: \\boxed{0.0}', (0,)),
    ('Scores: \\boxed{1/1}', (1,)),
    ('Scores: \\boxed{1/10}', None),
    ('Scores: \\boxed{2}', None),
    ('x = \\boxed{42}, so it is right: \\boxed{1}', (1,)),
    ('x = \\boxed{1}, so it is right.', (1,)),
  ],
)
def test_scores_of_zero_or_one(text, expected):
  assert parse_scores(text, 1, low=0, high=1) == expected


def test_many_responses():
  text = f'\\boxed{{{", ".join("3" for _ in range(32))}}}'
  assert parse_scores(text, 32) == (3,) * 32
  assert parse_scores(text, 31) is None
  assert parse_scores(text, 33) is None


def test_scores_up_to_a_hundred():
  assert parse_scores('\\boxed{80/100, 100}', 2, 0, 100) == (80, 100)


def test_very_long_numbers():
  # int() refuses more than 4300 digits.
  assert parse_scores(f'\\boxed{{{"1" * 5000}}}', 1) is None
  assert parse_scores(f'\\boxed{{8/{"1" * 5000}}}', 1) is None
  assert parse_scores(f'\\boxed{{8.{"0" * 5000}}}', 1) == (8,)


def test_number_of_responses_must_be_positive():
  with pytest.raises(ValueError, match=naming(0)):
    parse_scores('\\boxed{}', 0)


def test_unclosed_groups_do_not_hide_a_box():
  opened = 'if (x) { a[i { \\boxed{ \\boxed{ 3, [ '
  for times in 1, 10, 100:
    assert parse_scores(opened * times + '\\boxed{[8, 9]}', 2) == (8, 9)
    closed = '} ] }' * times
    assert parse_scores(closed + '\\boxed{[8, 9]}' + closed, 2) == (8, 9)


@pytest.mark.parametrize('depth', [10, 100])
@pytest.mark.parametrize('opened, closed', ['{}', '[]', ('\\boxed{', '}')])
def test_deep_nesting(opened, closed, depth):
  text = opened * depth + '8, 9' + closed * (depth + 10)
  assert parse_scores(text, 2) == (None if opened == '{' else (8, 9))
  assert parse_scores(text + '\\boxed{3, 4}', 2) == (3, 4)
  text = opened * depth + '[' * depth + '}' * depth
  assert parse_scores(text + '\\boxed{3, 4}', 2) == (3, 4)


def are_valid(scores, n, low, high):
  return scores is None or (
    type(scores) is tuple
    and len(scores) == n
    and all(type(score) is int and low <= score <= high for score in scores)
  )


ANYTHING = st.text(st.characters(exclude_categories=[]))
LETTERS = st.text(st.characters(categories=['L']), min_size=1)
TOKENS = st.lists(
  st.sampled_from(
    ['\\boxed{', '\\boxed{8}', '\\boxed{8, 9}', '\\text{', '\\left', '\\,']
    + ['\\\\', ' ', '\n', '\x00', '\ud800', '８', '，', '[[', ']]', '/10']
    + ['8.5', '8.0', '10', '11', 'and', 'Response', 'Score:', 'A:', '1:']
    + list('{}[]()0189/,;.:-\\$*x')
  ),
  max_size=60,
).map(''.join)


@settings(deadline=None, max_examples=500)
@given(ANYTHING | TOKENS, st.integers(1, 5), st.sampled_from([(1, 10), (0, 1)]))
@example('\ud800\\boxed{8, 9}', 2, (1, 10))
def test_any_text_has_valid_scores_or_none(text, n, scale):
  assert are_valid(parse_scores(text, n, *scale), n, *scale)


@settings(deadline=None, max_examples=300)
@given(TOKENS | ANYTHING, st.integers(1, 4), LETTERS)
def test_last_box_has_priority(text, n, tail):
  scores = tuple(range(1, n + 1))
  box = f' x \\boxed{{{", ".join(map(str, scores))}}}'
  assert parse_scores(text + box, n) == scores
  assert parse_scores(text + box + ' ' + tail, n) == scores


def runs_of_boxes(scores):
  boxes = [f'\\boxed{{{score}}}' for score in scores]
  yield ', '.join(boxes)
  yield '\n'.join(boxes)
  yield ' and '.join(f'${box}$' for box in boxes)
  yield '\n'.join(f'Response {i}: {b}' for i, b in enumerate(boxes, 1))
  yield '; '.join(f'**{b}**/10' for b in boxes)


def forms_of(scores):
  """Yields every supported form of a list of scores."""
  plain = ', '.join(map(str, scores))
  yield f'\\boxed{{{plain}}}'
  yield f'$\\boxed{{{plain}}}$'
  yield f'**\\boxed{{{plain}.}}**'
  yield f'\\boxed{{\\text{{{plain}}}}}'
  yield f'\\boxed{{[{plain}]}}'
  yield f'\\boxed{{({plain})}}'
  yield f'\\boxed{{{",".join(f" {s}.0" for s in scores)}}}'
  yield f'\\boxed{{{plain.replace(", ", chr(92) + " ")}}}'
  yield f'\\boxed{{{", ".join(f"{s}/10" for s in scores)}}}'
  labelled = (f'Response {i}: {s}' for i, s in enumerate(scores, 1))
  yield f'\\boxed{{{"; ".join(labelled)}}}'
  full = {ord(str(d)): chr(0xFF10 + d) for d in range(10)}
  yield f'\\boxed{{{plain.translate(full).replace(", ", "，")}}}'
  yield f'[[{plain}]]'
  yield from runs_of_boxes(scores)


PROSE = """
Both responses answer, but the first is wrong in 2 places. \\( \\) ** [1] (30%)
{x} f(x)=3/4 \\frac{1}{2} a[0] \\boxed{wrong} 12:30 - it's [see] \u201c10\u201d
"""
WORDS = st.lists(st.sampled_from(PROSE.split()), max_size=30).map(' '.join)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=6), WORDS, WORDS)
def test_every_form_is_parsed_within_prose(scores, before, after):
  n = len(scores)
  for form in forms_of(scores):
    text = f'{before} Thus: {form} in all. {after}'
    if n > 1 or 'boxed' in form:
      assert parse_scores(text, n) == tuple(scores), text
    if n > 2:
      assert parse_scores(text, n - 1) is None, text


# One megabyte of each.
LONG = [
  ('', '[', ''),
  ('', '[', ']'),
  ('', '\\boxed{', ''),
  ('', '\\boxed{', '}'),
  ('', '\\boxed{8, 9}', ''),
  ('', '\\boxed{8},', ''),
  ('', '\\boxed ', ''),
  ('', '\\', ''),
  ('', '1', ''),
  ('', 'Response 1: \\boxed{8}\n', ''),
  ('\\boxed{', '{', ''),
  ('\\boxed{', '{', '}'),
  ('\\boxed{', '1', ''),
  ('\\boxed{', '1', '.'),
  ('\\boxed{', '8,', '}'),
  ('\\boxed{', '[8', ']'),
  ('\\boxed{', 'response ', ''),
  ('\\boxed{1', ' ', ' '),
  ('\\boxed{response', ' ', '\n'),
  ('\\boxed{', '\ud800', '８'),
  ('', '<think>', ''),
  ('', '<think>', '</think>'),
  ('', '</think>', ''),
  ('', '<', '>'),
  ('\\boxed{', '\\text{Response 1: } 8,', ''),
  ('\\boxed{', '{Response 1', '}'),
  ('\\boxed{', 'Response~\\ ', ''),
  ('\\boxed{\\text{', ' ', '1'),
  ('Scores for ', 'of ', ':'),
  *(('', x, '') for x in '\t\v\f\r\x85\u2028\u200b\0'),
  *(('\\boxed{Response', x, '') for x in '\t\v\f\r\x85\u2028\u200b\0'),
]


@pytest.mark.parametrize('start, unit, end', LONG)
def test_time_is_linear_in_the_length(start, unit, end):
  middle = unit * (10**6 // len(unit) // (2 if end else 1))
  text = start + middle + end * (500_000 if end else 0)
  # Time of this process only. With backtracking it would be hours.
  begin = time.process_time()
  assert are_valid(parse_scores(text, 2), 2, 1, 10)
  assert time.process_time() - begin < 60


@pytest.mark.parametrize(
  'text, n, expected',
  [
    ('Scores: [8, 9]\n\nBoth papers support this score. [1, 2]', 2, (8, 9)),
    ('Scores: [8, 9]\n\nThe code reads `scores[1, 2]`.', 2, (8, 9)),
    ('Score: [7]\nIt reads scores[1] wrongly.', 1, (7,)),
    ('It has the best score [1, 2].', 2, None),
    ('score.\n\n[1, 2] J. Doe, Title', 2, None),
    ('I explain the ratings.\n[1, 2]', 2, None),
    ('The IMDb rating [2] is wrong. ', 1, None),
    ('Scores ([1, 10]):  8, 9', 2, None),
    ('the prompt asks for ratings [1, 10]', 2, None),
    ('Scores: [8, 9]\n\nSub-scores: [1, 2]', 2, (8, 9)),
    ('Response 1 sub-scores: [3, 4]\nResponse 2 sub-scores: [5, 6]', 2, None),
    ('sub_scores: [3, 4]', 2, None),
    ('z-scores: [1, 2]', 2, None),
    ('Partial scores [3, 4]', 2, None),
    (
      'Scores: \\boxed{8}, \\boxed{9}\n\nFinal Scores: \\boxed{7}, \\boxed{9}',
      2,
      (7, 9),
    ),
    ('\\boxed{8}, \\boxed{9}\n\n\\boxed{7}, \\boxed{9}', 2, (7, 9)),
    ('Weight: \\boxed{5}\n\nScores: \\boxed{8}, \\boxed{9}', 2, (8, 9)),
    (
      'My scores: \\boxed{8}, \\boxed{9}. Overall: \\boxed{8}, \\boxed{9}',
      2,
      (8, 9),
    ),
    ('<think foo="1">\\boxed{2, 9}', 2, None),
    ('Scores: <think>x</think> [8, 9]', 2, (8, 9)),
    ('\\boxed{8},<think>x</think> \\boxed{9}', 2, (8, 9)),
    ('Scores:\n```json\n[8, 9]\n```', 2, (8, 9)),
    ('## Scores\n\n[8, 9]', 2, (8, 9)),
    ('**Final scores** [8, 9]', 2, (8, 9)),
    ('The scores are [8, 9].', 2, (8, 9)),
    ('So the final scores are [8, 9]', 2, (8, 9)),
    ('- Scores [8, 9]', 2, (8, 9)),
    ('1. Scores: [8, 9]', 2, (8, 9)),
    (
      'Answer 1: \\boxed{8}\n\nAnswer 2: \\boxed{9}\n\nAnswer 3: \\boxed{7}',
      2,
      None,
    ),
    (
      'Score of Response 1: \\boxed{8}\nScore of Response 2: \\boxed{9}',
      2,
      (8, 9),
    ),
    ('Scores ([1, 10]): [8, 9]', 2, (8, 9)),
    ('(Scores: [8, 9])', 2, (8, 9)),
  ],
)
def test_labels_begin_lines_and_runs_begin_parts(text, n, expected):
  assert parse_scores(text, n) == expected
