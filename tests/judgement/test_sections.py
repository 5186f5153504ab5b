"""Principles and critique of a generation."""

import pytest

from grm_jax.judgement.sections import split


@pytest.mark.parametrize(
  'text, principles, critique',
  [
    (
      'Specific Criteria:\n1. Truth (100%)\n\nAnalysis:\nBoth lie.\n\n'
      'Scores: \\boxed{1, 1}',
      '1. Truth (100%)',
      'Both lie.',
    ),
    # Markdown, another case, text on the line of the heading.
    (
      '**Specific criteria:** truth\n## ANALYSIS:\nfine\n### Scores: 3',
      'truth',
      'fine',
    ),
    # A score heading inside the critique.
    (
      'Analysis:\nScores: later.\nMore.\nScores: 4',
      '',
      'Scores: later.\nMore.',
    ),
    ('no headings at all', '', 'no headings at all'),
    ('It is good.\nScore: 7', '', 'It is good.'),
    # Truncated before the scores, or before the analysis.
    ('Specific Criteria:\n1. A\nAnalysis:\nhalf', '1. A', 'half'),
    ('Specific Criteria:\n1. A', '', 'Specific Criteria:\n1. A'),
    # Principles without a heading.
    ('1. A\n\nAnalysis: b\nScores: 1', '1. A', 'b'),
    ('', '', ''),
  ],
)
def test_split(text, principles, critique):
  assert split(text) == (principles, critique)
