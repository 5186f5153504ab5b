"""Splits a generation into principles and critique, without its scores."""

import re
from collections.abc import Sequence
from typing import NamedTuple

# A heading stands at the beginning of a line, with or without Markdown.
_HEADING = re.compile(
  r'^[ \t#*_]*(specific criteria|analysis|scores?)[ \t*_]*:[ \t*_]*',
  re.IGNORECASE | re.MULTILINE,
)


class Sections(NamedTuple):
  """Texts of the sections without their headings; '' for a missing one."""

  principles: str
  critique: str


def split(text: str) -> Sections:
  """Returns the sections of a generation for one of the built-in templates.

  A text without an analysis heading is all critique. The text after the score
  heading belongs to neither section.
  """
  headings = list(_HEADING.finditer(text))
  names = [heading[1].lower() for heading in headings]
  if 'analysis' not in names:
    return Sections('', _until_scores(text, 0, headings))
  analysis = headings[names.index('analysis')]
  earlier = [x for x in headings if x.end() <= analysis.start()]
  begin = earlier[0].end() if earlier else 0
  return Sections(
    text[begin : analysis.start()].strip(),
    _until_scores(text, analysis.end(), headings),
  )


def _until_scores(
  text: str, begin: int, headings: Sequence[re.Match[str]]
) -> str:
  """Returns the text up to the last score heading; others can be prose."""
  ends = [
    heading.start()
    for heading in headings
    if heading[1].lower().startswith('score') and heading.start() >= begin
  ]
  return text[begin : ends[-1] if ends else len(text)].strip()
