"""Scores as the example code of the released DeepSeek-GRM reads them."""

import time

import pytest

from grm_jax.judgement.model_card_parser import parse_scores
from grm_jax.judgement.prompt_format import PromptFormat


@pytest.mark.parametrize(
  'text, scores',
  [
    (r'Scores: \boxed{8, 9}', (8, 9)),
    (r'Scores: \\boxed{ 8.5 ,9.0 }.', (8.5, 9)),
    (r'\boxed{1, 2} then \boxed{3, 4}', (3, 4)),
    ('Final Scores: [2, 4]', (2, 4)),
    (r'\boxed{0, 11}', (1, 10)),  # clipped
    (r'\boxed{-3, 1e9}', (1, 10)),
    (r'\boxed{8, nine, 9}', (8, 9)),  # what is not a number is dropped
    ('[8, 9}', (8, 9)),
    # What the strict parser reads, and this one does not.
    ('[[2, 4]]', None),
    (r'\boxed{8, 9} [see above]', None),
    (r'\boxed{8}, \boxed{9}', None),
    (r'\boxed{8/10, 9/10}', None),
    (r'\boxed{\text{8, 9}}', None),
    (r'\boxed{}', None),
    (r'\boxed{nan, 3}', None),
    ('no scores', None),
    ('', None),
  ],
)
def test_scores(text, scores):
  assert parse_scores(text, 2) == scores


def test_whole_scores_are_integers():
  assert [type(x) for x in parse_scores('[8.0, 8.5]', 2)] == [int, float]


@pytest.mark.parametrize('pattern', ['[', ']', '\\', '\\boxed{', '[1,', ' '])
def test_it_takes_linear_time(pattern):
  start = time.monotonic()
  parse_scores(pattern * (1_000_000 // len(pattern)), 2)
  assert time.monotonic() - start < 20  # quadratic: hours


def test_extraction_is_a_setting_of_the_prompt_format():
  strict = PromptFormat('pointwise')
  model_card = PromptFormat('pointwise', extraction='model_card')
  text = r'\boxed{8.5, 3}'
  assert strict.parse_scores(text, (1, 0)) is None
  assert model_card.parse_scores(text, (1, 0)) == (3, 8.5)
  for one in (strict, model_card):
    assert one.extractions_differ(text, (0, 1))
    assert not one.extractions_differ(r'\boxed{8, 3}', (0, 1))
    assert not one.extractions_differ('nothing', (0, 1))


def test_truncated_generations():
  text = r'\boxed{8, 3} and more'
  fail, read = (
    PromptFormat('pointwise', truncated=x) for x in ('fail', 'read')
  )
  assert fail.parse_scores(text, (0, 1), truncated=True) is None
  assert read.parse_scores(text, (0, 1), truncated=True) == (8, 3)
  assert fail.parse_scores(text, (0, 1)) == (8, 3)
