"""Openings of verdicts, compared with the score parser."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grm_jax.judgement.score_parser import parse_scores
from grm_jax.judges.baselines.verdict_opening import Opening, find_opening

BOX = 'Best: \\boxed{'
# (text, text before the number, closing), for verdicts 1 to 3.
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
  # These are not verdicts: out of range, a word, two numbers, cut off.
  ('Best: \\boxed{2} of \\boxed{4}', BOX, '}'),
  ('Best: \\boxed{2}, \\boxed{so}', BOX, '}'),
  ('Best: \\boxed{2} \\boxed{1, 3}', BOX, '}'),
  ('Best: \\boxed{2} \\text{1} \\boxed{3', BOX, '}'),
  # Boxes come before lists.
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
def test_an_opening_exists_if_a_verdict_parses(text):
  opening = find_opening(text, 3)
  assert (opening is None) == (parse_scores(text, 1, 1, 3) is None)
  if opening is not None:
    assert text.startswith(opening.text) and opening.text[-1] in '{[｛【'


@pytest.mark.parametrize('part', ['\\boxed{', '[', 'score ', ' ', '\\boxed{4}'])
def test_find_opening_is_fast(part):
  # A scan from each position would take longer. Other processes do not count.
  begin = time.process_time()
  text = '\\boxed{2} [[2]] ' + part * 4000
  find_opening(text, 3)
  find_opening(part * 4000, 3)
  assert time.process_time() - begin < 30
