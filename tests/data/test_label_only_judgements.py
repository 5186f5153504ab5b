"""Known verdicts in the form of judgements."""

import pytest

from grm_jax.data import label_only_judgements
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_format import PromptFormat

FORMS = PromptFormat('pointwise', 'single')


def example(*responses, **known):
  return JudgingExample('a', (Turn('user', 'q'),), responses, **known)


@pytest.mark.parametrize(
  'one, order, lines, scores',
  [
    (
      example('x', 'y', 'z', best=2),
      (1, 2, 0),
      ['Response 1: worse.', 'Response 2: best.', 'Response 3: worse.'],
      (4, 8, 4),
    ),
    (example('x', 'y', best=0), (0, 1), ['Response 1: best.'], (8, 4)),
    (example('x', rewards=(1.0,)), (0,), ['Response 1: right.'], (1,)),
    (example('x', rewards=(0.0,)), (0,), ['Response 1: wrong.'], (0,)),
  ],
)
def test_what_is_known_is_said_of_what_is_shown(one, order, lines, scores):
  text = label_only_judgements.write(one, order)
  assert text.startswith('Specific Criteria:\n1. ')
  said = text[text.index('\nAnalysis:\n') :].split('\n')
  assert said[2 : 2 + len(lines)] == lines
  assert FORMS.read(text, len(order)) == scores


@pytest.mark.parametrize(
  'one',
  [
    example('x', 'y'),
    example('x', 'y', rewards=(1.0, 0.0)),
    example('x'),
    example('x', rewards=(0.5,)),
  ],
)
def test_what_is_not_known_is_not_said(one):
  with pytest.raises(UserError, match="'a'"):
    label_only_judgements.write(one, tuple(range(len(one.responses))))
