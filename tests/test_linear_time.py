"""Functions that read users' texts take linear time.

Each reads a megabyte of runs of every white-space and control character and of
the first characters of all marks. With a quadratic step, one text would take
minutes to hours; the bound is far above what a linear function needs on a slow
machine. tests/judgement/test_score_parser.py has more texts for that parser.
"""

import contextlib
import pathlib
import time

import pytest

from grm_jax.data import example_sources
from grm_jax.data.datasets import checked_math, preferences, prometheus
from grm_jax.data.synthetic import answer_check, task_format
from grm_jax.errors import UserError
from grm_jax.evaluation import html
from grm_jax.io import terminal
from grm_jax.judgement import (
  example,
  guard,
  row_values,
  score_parser,
  sections,
  template,
)
from grm_jax.judgement.preference_rows import SourceRow
from grm_jax.judges.baselines import verdict_opening
from grm_jax.serving import openrlhf
from grm_jax.tokenizer import chat_format
from tests.judges.fake import load_tokenizer

SIZE = 1_000_000
MAX_SECONDS = 30

BLANKS = [
  *map(chr, range(0x21)),
  *'\x7f\x85\xa0\xad\u1680\u2000\u2028\u2029\u202f\u3000',
  *'\u200b\u200d\u200e\u2060\ufeff\ud800',
]
SIGNS = [*'[](){}<>#*_-~`|\\/.,:;\'"+=$^&%!?@19aSs', '【', '＃', '\u0301', 'é']
UNITS = [
  *BLANKS,
  *SIGNS,
  *('\r\n', '# ', '#\n', '\n##', '[ ', '[\n', '[_', '\n> ', '\n- ', '\n\u200b'),
  *('[1', '[1/', '[1-', '[Start of ', '[user', '\n[user ', '[End', '<<', '>>'),
  *('\nFor your ', '\n## Reference ', '[Start of Response 1]', '[Response '),
  *(
    '<think>',
    '</think>',
    '<|im_end|>',
    '</s>',
    '<end_of_turn>',
    '<｜',
    ' </s> ',
  ),
  *(
    '\\boxed{',
    '\\text{',
    'Scores: ',
    'Analysis ',
    '\nAnalysis',
    '###',
    '###a: ',
  ),
  *('\n<extra_id_1>', '. ', '. A', '1, ', '-1'),
]
PREFIXES = ['', '[', '##', '[Start of', '\nAnalysis', '<<']

BUILT_IN = [
  template.load(x.stem)
  for x in pathlib.Path(template.__file__).parent.glob('templates/*.txt')
  if x.stem not in template.SECTIONS
]
GUARD = guard.Guard(
  frozenset().union(
    *(x.delimiters for x in BUILT_IN),
    *(template.load_section(x).delimiters for x in template.SECTIONS),
  )
)
TASK = task_format.Task('word_sorting', ('b', 'a'), 'a')


def row(**fields):
  return SourceRow('f', 1, fields)


def gsm8k(text):
  solution = {'solution': text, 'is_correct': True}
  models = dict.fromkeys(checked_math.MODELS, solution)
  return list(checked_math.gsm8k(row(question=text, **models)))


def helpsteer2(text):
  fields = {'prompt': text, 'response_1': text, 'response_2': 'b'}
  return list(preferences.helpsteer2(row(**fields, preference_strength=1)))


def prometheus_row(text):
  parts = [f'###{x}:\n{text}\n' for x in prometheus._SECTIONS.values()]
  fields = {'instruction': '\n'.join(parts), 'gpt4_score': [3]}
  return list(prometheus._rated_response(row(**fields, gpt4_feedback=[text])))


def reward_request(text):
  request = openrlhf.RewardRequest(query=[f'p{text}'], prompts=['p'])
  return openrlhf.parse(request, 8, 8)


def own_row(text):
  fields = {'query': f'q{text}', 'responses': [text], 'reference': text}
  return example_sources.split_of(example.from_row(fields, 1))


FUNCTIONS = {
  'guard': GUARD.escape,
  'scores': lambda text: score_parser.parse_scores(text, 2),
  'sections': sections.split,
  'reward request': reward_request,
  'row': own_row,
  'gsm8k': gsm8k,
  'helpsteer2': helpsteer2,
  'prometheus': prometheus_row,
  'integer': row_values.integer,
  'number': row_values.finite_number,
  'answer': lambda text: answer_check.check_answer(TASK, text, 'a, b'),
  'question': lambda text: task_format.parse('gcd', text),
  'html': html.escape,
  'terminal': terminal.short,
}


def seconds(function, text):
  begin = time.process_time()
  with contextlib.suppress(UserError, ValueError):  # a text that is refused
    function(text)
  return time.process_time() - begin


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_megabyte_of_every_unit(name):
  for unit in UNITS:
    text = unit * (SIZE // len(unit))
    assert seconds(FUNCTIONS[name], text) < MAX_SECONDS, ascii(unit)


@pytest.mark.parametrize('name', ['guard', 'sections', 'prometheus'])
@pytest.mark.parametrize('prefix', PREFIXES)
def test_a_run_after_the_beginning_of_a_mark(name, prefix):
  for unit in [*BLANKS[8:16], *'\x85\u2028\u200b #*_-.1[', '\n##', '[1-']:
    text = prefix + unit * (SIZE // len(unit))
    assert seconds(FUNCTIONS[name], text) < MAX_SECONDS, ascii(unit)


def test_texts_of_a_chat():
  tokenizer = load_tokenizer()
  for unit in [*'\t\n\r\x0b\x0c\x85\u2028\u3000\u200b<#[a1 ', '<eos>', '▁']:
    text = unit * (SIZE // len(unit))
    taken = seconds(
      lambda x: chat_format.render_user(tokenizer, x), f'x{text}x'
    )
    assert taken < MAX_SECONDS, ascii(unit)


def test_opening_of_a_verdict():
  # It parses suffixes of the text, so that its time is n log n.
  for unit in ['\\boxed{', '[', 'Score: ', ' ', '\x85', 'a', '<think>']:
    text = unit * (SIZE // 10 // len(unit))
    taken = seconds(lambda x: verdict_opening.find_opening(x, 2), text)
    assert taken < MAX_SECONDS, ascii(unit)
