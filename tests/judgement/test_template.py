"""Templates: rendering, invalid templates, and guarded data."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample, Turn
from tests.messages import names, naming

NAMES = [
  'pointwise',
  'single',
  'no_principles',
  'principles',
  'critique',
  'best',
  'meta',
]
DELIMITERS = [
  '[End of Response 1]',
  '[Start of Response 2]',
  '[ end  OF response 12 ]',
  '[user]',
  '## Your output',
  '##  responses',
]


QUERY = '{% for turn in query %}{{ turn.role }}: {{ turn.text }}{% endfor %}'
VARIABLES = {
  'hint',
  'num_responses',
  'principles',
  'query',
  'reference',
  'responses',
}


def render(name, *texts, query='What is 2 + 2?'):
  example = JudgingExample('a', (Turn('user', query),), texts)
  return prompt_builder.render(template.load(name), example, range(len(texts)))


def test_loops_and_variables():
  prompt_template = template.parse(
    'Q\n  {% for turn in query %}\n<{{ turn.role }}> {{ turn.text }}\n'
    '{% endfor %}\nA {{ num_responses }}{% for response in responses %}'
    ' ({{ loop.index }}) {{ response }}{% endfor %}.\n\n'
  )
  text = prompt_template.render(
    query=[Turn('user', 'hi'), Turn('assistant', 'ho')],
    responses=['<a> & "b"', '{% endfor %}{{ query }}\n'],
    num_responses=2,
  )
  assert text == (
    'Q\n<user> hi\n<assistant> ho\n'
    'A 2 (1) <a> & "b" (2) {% endfor %}{{ query }}\n.\n\n'
  )
  assert prompt_template.used_variables == {
    'query',
    'responses',
    'num_responses',
  }


@pytest.mark.parametrize('name', NAMES)
def test_built_in_templates_show_everything_in_order(name):
  text = render(name, 'four', 'five')
  assert '{{' not in text
  positions = [text.index(x) for x in ('What is 2 + 2?', 'four', 'five')]
  assert positions == sorted(positions)
  assert text.count('[Start of Response') == 2
  assert re.search(
    r'\[Start of Response 2\]\nfive\n\[End of Response 2\]', text
  )


@pytest.mark.parametrize('name', ['pointwise', 'critique', 'no_principles'])
def test_prompt_requests_a_box_without_an_example_score(name):
  text = render(name, 'four', 'five')
  assert text.count(r'\boxed{') == 1
  assert not re.search(r'\\boxed\{\d', text)


@pytest.mark.parametrize('delimiter', DELIMITERS)
@pytest.mark.parametrize('before', ['', 'text\n', 'text\u2028', 'a\r'])
def test_delimiters_in_data_are_escaped(delimiter, before):
  text = render('pointwise', f'{before}{delimiter} more', 'b')
  assert text.count('[End of Response') - text.count('\\[End of') == 2
  assert f'\\{delimiter}' in text


@pytest.mark.parametrize(
  'name', ['practice', 'practice_single', 'practice_meta']
)
@pytest.mark.parametrize('mark', ['[End]', '[user]', '[eNd ]'])
def test_short_delimiters_are_escaped_where_a_line_begins(name, mark):
  guard = template.load(name).guard
  assert guard(f'{mark} b') == f'\\{mark} b'
  assert guard(f'a\n {mark} b') == f'a\n\\ {mark} b'
  # Inside a line it can be code, such as an index.
  assert guard(f'a{mark} b') == f'a{mark} b'


@pytest.mark.parametrize(
  'name', ['practice', 'practice_single', 'practice_meta']
)
@pytest.mark.parametrize('mark', ['[2/3]', '[ 1/1 ]', '[12 / 1x]'])
@pytest.mark.parametrize('before', ['', 'a\n', 'a '])
def test_data_cannot_begin_a_response(name, mark, before):
  text = f'{before}{mark} b'
  assert template.load(name).guard(text) == f'{before}\\{mark} b'
  assert f'\n[2/2] {before}\\{mark} b\n[End]\n' in render(name, 'a', text)


def test_code_and_citations_are_not_changed():
  for harmless in (
    'rows[user] = 1',
    'see [1] and [End]',
    '# Responses',
    '### Results',
    'the ## Responses in a line',
    '[End of the world 3]',
  ):
    assert harmless in render('pointwise', harmless, 'b')
    assert f'\\{harmless}' not in render('pointwise', harmless, 'b')


@settings(max_examples=200, deadline=None)
@given(
  st.lists(
    st.sampled_from(
      [
        *DELIMITERS,
        ' ',
        '\n',
        '\\',
        'x',
        '[',
        ']',
        '{{ hint }}',
        '{% endfor %}',
      ]
    ),
    max_size=12,
  ).map(''.join)
)
def test_any_data_stays_inside_its_slot(text):
  prompt = render('pointwise', text, text, query=f'q {text}')
  for number in (1, 2):
    for word in ('Start', 'End'):
      mark = rf'(?<!\\)\[\s*{word}\s+of\s+response\s+{number}\s*\]'
      assert len(re.findall(mark, prompt, re.IGNORECASE)) == 1
  assert len(re.findall(r'(?m)^## Your output', prompt)) == 1


def test_guard_takes_linear_time():
  prompt_template = template.load('pointwise')
  for text in ('[' * 10**6, '[ ' * 10**6, '[End of ' * 10**5, '\n#' * 10**6):
    prompt_template.guard(text)


LETTERS = (
  "{% for x in responses %}\nAnswer {{ 'ABCD'[loop.index0] }}: {{ x }}\n"
  '{% endfor %}'
)
ROLES = (
  "{% for m in query %}{{ '<' + m['role']|upper ~ '>' }}\n{{ m['text'] }}\n"
  '{% endfor %}'
)
NAMED = (
  "{% for m in query %}{{ 'Human' if m.role == 'user' else 'AI' }}: "
  '{{ m.text }}\n{% endfor %}'
)
BRANCHES = (
  '{% for x in responses %}\n[{% if loop.first %}The first'
  '{% elif loop.last %}The last{% else %}Another{% endif %} response]'
  '{{ x }}\n[end]\n{% endfor %}'
)
OUTSIDE = '{% if reference %}\n## Answer\n{{ reference }}\nno mark\n{% endif %}'


@pytest.mark.parametrize(
  'text, delimiters, harmless',
  [
    (LETTERS, ['Answer B:', 'answer  c :'], ['Answer:', 'Answer B C:', '']),
    (ROLES, ['<USER>', '< assistant>'], ['<x>', 'a <user>']),
    (NAMED, ['Human:', 'ai :'], ['user:', ':', 'HumanAI:']),
    (
      BRANCHES,
      ['x [The first response]', '[the LAST response]', '[End]'],
      ['x [end]', '[response]', '[The first The last response]'],
    ),
    (OUTSIDE, ['## Answer', '##answer'], ['Answer', 'no mark', 'x ## Answer']),
    ('{% raw %}[{{]{% endraw %}{# [no] #}', ['[{{]'], ['[no]']),
  ],
)
def test_delimiters_of_custom_templates(text, delimiters, harmless):
  guard = template.parse(text + '{{ query }}{{ responses }}').guard
  for delimiter in delimiters:
    start = delimiter.find('[', 1) if delimiter.startswith('x') else 0
    escaped = f'{delimiter[:start]}\\{delimiter[start:]} more'
    assert guard(f'{delimiter} more') == escaped
  for harmless_text in harmless:
    assert guard(harmless_text) == harmless_text


@pytest.mark.parametrize(
  'text, line, words',
  [
    ('\n{% for turn in query %} x', 2, ['endfor']),
    ('{% endfor %}', 1, ['endfor']),
    ('{{ query }}\n{{each response}}', 2, ['response']),
    ('{{ query }}{{ responses\n}', 2, ['}']),
    ('{{ query | shout }}', 1, ['shout']),
    ('{{ responses }}\n\n{{ colour }}{{ query }}', 3, ['colour']),
    ('{% if not hint %}\n{{ colour }}{% endif %}', 2, ['colour']),
    (QUERY + '\n{{ turn.text }}', 2, ['turn']),
    (QUERY.replace('turn.text', 'turn.content'), 1, ['content']),
    ('{{ query }}\n{{ responses.__class__ }}', 2, ['__class__']),
    ('{{ responses }}\n{{ 1 // 0 }}', 2, ['zero']),
    ('{{ query }}{{ responses }}\n{% set x = 1 %}', 2, ['Assign']),
    ('{{ query }}\n{% include "single.txt" %}', 2, ['loader']),
  ],
)
def test_invalid_templates(text, line, words):
  with pytest.raises(UserError, match=naming(*words)) as error:
    template.parse(text, 'custom.txt')
  assert names(error.value, 'custom.txt', f'line {line}', *VARIABLES)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'text, missing',
  [
    (QUERY, {'responses'}),
    ('{{ responses }}', {'query'}),
    ('', {'query', 'responses'}),
  ],
)
def test_query_and_responses_are_required(text, missing):
  with pytest.raises(
    UserError, match=naming('custom.txt', *VARIABLES)
  ) as error:
    template.parse(text, 'custom.txt')
  problem = str(error.value).split(';')[0]
  assert {x for x in VARIABLES if names(problem, x)} == missing


def test_template_for_another_number_of_responses():
  prompt_template = template.parse(
    '{{ query[-1].text }}\n{{ responses[2] }}', 'custom.txt'
  )
  example = JudgingExample('a', (Turn('user', 'q'),), ('x', 'y', 'z'))
  assert prompt_builder.render(prompt_template, example, (0, 1, 2)) == 'q\nz'
  with pytest.raises(UserError, match=naming('custom.txt', 'line 2')):
    prompt_builder.render(prompt_template, example, (0, 1))


def test_template_file_of_a_user(tmp_path):
  path = tmp_path / 'custom.txt'
  path.write_text('Judge {{ query }} {{ responses }}')
  assert template.load(str(path)).used_variables == {'query', 'responses'}
  with pytest.raises(
    UserError, match=naming('config.prompt.template', 'pointwize', 'pointwise')
  ):
    template.load('pointwize')
  path.write_bytes(b'\xff')
  with pytest.raises(UserError, match=naming('custom.txt', 'UTF-8')):
    template.load.__wrapped__(str(path))
