"""The parts of a judgement, for people to look at. Scores are not read here."""

import re
from typing import NamedTuple

# A heading stands alone at the begin of a line, however it is decorated.
_HEADING = re.compile(
  r'^[ \t#*_]*(specific criteria|analysis|scores?)[ \t*_]*:[ \t*_]*',
  re.IGNORECASE | re.MULTILINE,
)


class Sections(NamedTuple):
  """Texts without their headings; '' where one is missing."""

  principles: str
  critique: str


def split(text: str) -> Sections:
  """Principles and critique of a judgement by one of our templates.

  A text without the heading of an analysis is all critique. What follows the
  heading of the scores belongs to neither.
  """
  found = list(_HEADING.finditer(text))
  names = [match[1].lower() for match in found]
  if 'analysis' not in names:
    return Sections('', _upto_scores(text, 0, found))
  analysis = found[names.index('analysis')]
  before = [x for x in found if x.end() <= analysis.start()]
  begin = before[0].end() if before else 0
  return Sections(
    text[begin : analysis.start()].strip(),
    _upto_scores(text, analysis.end(), found),
  )


def _upto_scores(text, begin, found) -> str:
  """The text up to the last heading of scores, which may be announced."""
  ends = [
    match.start()
    for match in found
    if match[1].lower().startswith('score') and match.start() >= begin
  ]
  return text[begin : ends[-1] if ends else len(text)].strip()
