"""Judgements that state a label."""

import pytest

from grm_jax.data import label_only_judgements
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.prompt_format import PromptFormat

PROMPT_FORMAT = PromptFormat('pointwise', 'single')


def example(*responses, **known):
  return JudgingExample('a', (Turn('user', 'q'),), responses, **known)


@pytest.mark.parametrize(
  'labelled, order, lines, scores',
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
def test_the_label_is_stated_in_the_order_shown(labelled, order, lines, scores):
  text = label_only_judgements.write(labelled, order)
  assert text.startswith('Specific Criteria:\n1. ')
  lines_after_heading = text[text.index('\nAnalysis:\n') :].split('\n')
  assert lines_after_heading[2 : 2 + len(lines)] == lines
  assert PROMPT_FORMAT.parse_scores(text, range(len(order))) == scores


@pytest.mark.parametrize(
  'unlabelled',
  [
    example('x', 'y'),
    example('x', 'y', rewards=(1.0, 0.0)),
    example('x'),
    example('x', rewards=(0.5,)),
  ],
)
def test_an_example_without_a_label(unlabelled):
  with pytest.raises(UserError, match="'a'"):
    label_only_judgements.write(
      unlabelled, tuple(range(len(unlabelled.responses)))
    )
