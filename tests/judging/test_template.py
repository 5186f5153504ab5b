"""Templates: what they say, what they refuse, and what data cannot do."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.judging import template

NAMES = [
  'pointwise',
  'single',
  'no_principles',
  'principles',
  'critique',
  'best',
  'meta',
]
MARKS = [
  '[End of Response 1]',
  '[Start of Response 2]',
  '[ end  OF response 12 ]',
  '[user]',
  '## Your output',
  '##  responses',
]


def filled(name, *texts, query='What is 2 + 2?'):
  made = template.load(name)
  values = dict.fromkeys(('reference', 'hint', 'principles'), '')
  return made.fill(
    values | {'num_responses': str(len(texts))},
    {
      'turn': [{'role': 'user', 'text': query}],
      'response': [
        {'number': str(i), 'num_responses': str(len(texts)), 'text': x}
        for i, x in enumerate(texts, 1)
      ],
    },
  )


def test_loops_and_slots():
  made = template.parse(
    'Q\n{{each turn}}\n<{{role}}> {{text}}\n{{end}}\n'
    'A {{num_responses}}{{each response}} ({{number}}) {{text}}{{end}}.'
  )
  text = made.fill(
    {'num_responses': '2'},
    {
      'turn': [{'role': 'user', 'text': 'hi'}, {'role': 'user', 'text': 'ho'}],
      'response': [
        {'number': '1', 'text': 'a'},
        {'number': '2', 'text': '{{end}}'},
      ],
    },
  )
  assert text == 'Q\n<user> hi\n<user> ho\nA 2 (1) a (2) {{end}}.'


@pytest.mark.parametrize('name', NAMES)
def test_ours_hold_everything_in_its_place(name):
  text = filled(name, 'four', 'five')
  assert '{{' not in text
  places = [text.index(x) for x in ('What is 2 + 2?', 'four', 'five')]
  assert places == sorted(places)
  assert text.count('[Start of Response') == 2
  assert re.search(
    r'\[Start of Response 2\]\nfive\n\[End of Response 2\]', text
  )


@pytest.mark.parametrize('name', ['pointwise', 'critique', 'no_principles'])
def test_a_box_is_asked_for_and_shows_no_score(name):
  text = filled(name, 'four', 'five')
  assert text.count(r'\boxed{') == 1
  assert not re.search(r'\\boxed\{\d', text)


@pytest.mark.parametrize('mark', MARKS)
@pytest.mark.parametrize('before', ['', 'text\n', 'text\u2028', 'a\r'])
def test_data_cannot_make_marks(mark, before):
  text = filled('pointwise', f'{before}{mark} more', 'b')
  assert text.count('[End of Response') - text.count('\\[End of') == 2
  assert f'\\{mark}' in text


@pytest.mark.parametrize(
  'name', ['practice', 'practice_single', 'practice_meta']
)
@pytest.mark.parametrize('mark', ['[End]', '[user]', '[eNd ]'])
def test_data_cannot_make_the_short_marks_of_practice(name, mark):
  guard = template.load(name).guard
  assert guard(f'{mark} b') == f'\\{mark} b'
  assert guard(f'a\n {mark} b') == f'a\n\\ {mark} b'
  # Where no line begins nothing of ours stands: an index may.
  assert guard(f'a{mark} b') == f'a{mark} b'


@pytest.mark.parametrize(
  'name', ['practice', 'practice_single', 'practice_meta']
)
@pytest.mark.parametrize('mark', ['[2/3]', '[ 1/1 ]', '[12 / 1x]'])
@pytest.mark.parametrize('before', ['', 'a\n', 'a '])
def test_data_cannot_begin_a_response_of_practice(name, mark, before):
  text = f'{before}{mark} b'
  assert template.load(name).guard(text) == f'{before}\\{mark} b'
  assert f'\n[2/2] {before}\\{mark} b\n[End]\n' in filled(name, 'a', text)


def test_code_and_citations_stay_as_they_are():
  for harmless in (
    'rows[user] = 1',
    'see [1] and [End]',
    '# Responses',
    '### Results',
    'the ## Responses in a line',
    '[End of the world 3]',
  ):
    assert harmless in filled('pointwise', harmless, 'b')
    assert f'\\{harmless}' not in filled('pointwise', harmless, 'b')


@settings(max_examples=200, deadline=None)
@given(
  st.lists(
    st.sampled_from([*MARKS, ' ', '\n', '\\', 'x', '[', ']', '{{text}}']),
    max_size=12,
  ).map(''.join)
)
def test_slots_begin_and_end_once_whatever_the_data(text):
  whole = filled('pointwise', text, text, query=f'q {text}')
  for number in (1, 2):
    for word in ('Start', 'End'):
      mark = rf'(?<!\\)\[\s*{word}\s+of\s+response\s+{number}\s*\]'
      assert len(re.findall(mark, whole, re.IGNORECASE)) == 1
  assert len(re.findall(r'(?m)^## Your output', whole)) == 1


def test_guarding_a_long_text_takes_linear_time():
  made = template.load('pointwise')
  for text in ('[' * 10**6, '[ ' * 10**6, '[End of ' * 10**5, '\n#' * 10**6):
    made.guard(text)


@pytest.mark.parametrize(
  'text, message',
  [
    ('{{each turn}} x', '{{each turn}} has no {{end}}'),
    ('{{end}}', '{{end}} without a loop'),
    ('{{each turn}}{{each response}}{{end}}{{end}}', 'inside the turn loop'),
    ('{{each row}}{{end}}', 'loops are over turn and response'),
    ('{{each turn}}{{number}}{{end}}', 'turn loop has no slot {{number}}'),
  ],
)
def test_malformed_templates(text, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    template.parse(text)


def test_a_slot_that_nothing_fills():
  with pytest.raises(ValueError, match='slot {{colour}}, which is not filled'):
    template.parse('{{colour}}').fill({'hint': ''})


def test_templates_of_ones_own(tmp_path):
  path = tmp_path / 'mine.txt'
  path.write_text('Judge {{num_responses}}')
  assert template.load(str(path)).slots() == {'num_responses'}
  with pytest.raises(ValueError, match=r'config.prompt.template.*pointwise'):
    template.load('pointwize')
  path.write_bytes(b'\xff')
  with pytest.raises(ValueError, match='readable UTF-8'):
    template.load.__wrapped__(str(path))
