"""The template of an example, and the parser of its generations."""

import pytest

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_builder import Hint
from grm_jax.judgement.prompt_format import PromptFormat
from tests.messages import names, naming

PRACTICE = PromptFormat('practice', 'practice_single')
QUERY = '{% for turn in query %}{{ turn.text }}{% endfor %}'
RESPONSES = '{% for response in responses %}{{ response }}{% endfor %}'


def example(*responses, **fields):
  query = (Turn('user', 'What is 2 + 3?'),)
  return JudgingExample('a', query, responses, **fields)


def chat(text):
  """Returns one token per character, after a beginning-of-sequence token."""
  return [1, *map(ord, text)]


def text_of(tokens):
  return ''.join(map(chr, tokens[1:]))


@pytest.mark.parametrize(
  'prompt_format, count, name',
  [
    (PRACTICE, 1, 'practice_single'),
    (PRACTICE, 2, 'practice'),
    (PRACTICE, 5, 'practice'),
    (PromptFormat('practice'), 1, 'practice'),
  ],
)
def test_template_depends_on_the_number_of_responses(
  prompt_format, count, name
):
  assert prompt_format.template_for(count).name == name


def test_tokens_are_those_of_the_rendered_text():
  for responses, order in ((('5',), (0,)), (('5', '6', '7'), (2, 0, 1))):
    one = example(*responses)
    tokens = PRACTICE.tokenize(one, order, chat, limit=2000).tokens
    assert text_of(tokens) == PRACTICE.render(one, order)
  assert '[1/3] 7\n[End]' in text_of(tokens)


@pytest.mark.parametrize(
  'responses, fields, words',
  [
    (('5', '6'), {'best': 1}, 'Response 1 is known to be the best'),
    (('5',), {'rewards': (1.0,)}, '1'),
  ],
)
def test_hint_is_added_only_on_request(responses, fields, words):
  one = example(*responses, **fields)
  order = tuple(reversed(range(len(responses))))
  plain, hinted = (
    text_of(PRACTICE.tokenize(one, order, chat, limit=2000, hint=hint).tokens)
    for hint in (None, Hint())
  )
  assert plain == PRACTICE.render(one, order)
  assert 'known' not in plain
  assert len(hinted) > len(plain) and words in hinted[len(plain) - 1 :]


def test_too_long_examples_are_shortened_or_refused():
  long = example('x' * 3000, '6')
  tokens = PRACTICE.tokenize(long, (0, 1), chat, limit=1500).tokens
  assert 1400 < len(tokens) <= 1500
  strict = PromptFormat('practice', too_long='refuse')
  with pytest.raises(UserError, match=naming('config.prompt.too_long', 1500)):
    strict.tokenize(long, (0, 1), chat, limit=1500)


@pytest.mark.parametrize(
  'prompt_format, text, count, scores',
  [
    (PRACTICE, r'Scores: \boxed{10, 1}', 2, (10, 1)),
    (PRACTICE, r'Scores: \boxed{10, 1}', 3, None),
    (PRACTICE, r'Scores: \boxed{0, 1}', 2, None),
    (PRACTICE, r'Scores: \boxed{1}', 1, (1,)),
    (PRACTICE, r'Scores: \boxed{0}', 1, (0,)),
    (PRACTICE, r'Scores: \boxed{7}', 1, None),
    # Without a template for it, a single response is scored from 1 to 10.
    (PromptFormat('practice'), r'Scores: \boxed{7}', 1, (7,)),
    (PromptFormat('practice'), r'Scores: \boxed{0}', 1, None),
    (PromptFormat('best', reads='best'), r'Best: \boxed{2}', 3, (0, 1, 0)),
    (PromptFormat('best', reads='best'), r'Best: \boxed{1}', 3, (1, 0, 0)),
    (PromptFormat('best', reads='best'), r'Best: \boxed{4}', 3, None),
    (PromptFormat('best', reads='best'), 'the second one', 3, None),
    (PromptFormat('critic', reads='critique'), r'Good. \boxed{2}', 1, ()),
  ],
)
def test_parse_scores(prompt_format, text, count, scores):
  assert prompt_format.parse_scores(text, range(count)) == scores


@pytest.mark.parametrize(
  'prompt_format, text, scores',
  [
    (PRACTICE, r'Scores: \boxed{9, 2, 5}', (2, 5, 9)),
    (PromptFormat('best', reads='best'), r'Best: \boxed{3}', (0, 1, 0)),
  ],
)
def test_scores_are_in_the_examples_own_order(prompt_format, text, scores):
  assert prompt_format.parse_scores(text, (2, 0, 1)) == scores


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'too_long': 'cut'}, ('config.prompt.too_long', 'cut', 'shorten')),
    ({'reads': 'votes'}, ('config.prompt.reads', 'votes', 'scores', 'best')),
  ],
)
def test_unknown_settings(fields, words):
  with pytest.raises(UserError, match=naming(*words)):
    PromptFormat('practice', **fields)


@pytest.mark.parametrize(
  'prompt_format', [PromptFormat('absent'), PromptFormat('practice', 'absent')]
)
def test_check_finds_a_missing_template(prompt_format):
  with pytest.raises(UserError, match='absent'):
    prompt_format.check()
  PRACTICE.check()


@pytest.mark.parametrize(
  'text, words',
  [
    (QUERY + RESPONSES, None),
    (QUERY + RESPONSES + '{{ scores }}', 'scores'),
    (QUERY, 'responses'),
    (RESPONSES, 'query'),
  ],
)
def test_check_finds_an_invalid_template(tmp_path, text, words):
  path = tmp_path / 'custom.txt'
  path.write_text(text)
  for prompt_format in (
    PromptFormat(str(path)),
    PromptFormat('pointwise', single=str(path)),
  ):
    if words is None:
      prompt_format.check()
      continue
    with pytest.raises(UserError) as error:
      prompt_format.check()
    problem, variables = str(error.value).split(';')
    assert names(problem, 'custom.txt', words)
    assert names(variables, 'reference')
