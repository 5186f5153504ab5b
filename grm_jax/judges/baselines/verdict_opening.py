"""Finds where an LLM-as-a-judge generation states its verdict."""

import bisect
import dataclasses
import re
from collections.abc import Sequence

from grm_jax.judgement import score_parser

# Candidates for the start of a verdict. These patterns may match too much,
# because score_parser decides. It reads boxes before lists in brackets, and
# brackets inside a box are mostly markup; replacing brackets by commas leaves
# boxes only.
_BRACKETS_TO_COMMAS = str.maketrans(dict.fromkeys('[]［］【】', ','))
_BOX = re.compile(r'[\\＼]\w{5}\s*[{｛]')
# The parser may need the word before a list in brackets ('Score: [2]').
_LIST = re.compile(r'[\[［【]|(?<![^\W\d_])[^\W\d_]')
_BRACKETS = re.compile(r'[\[［【](?:[\s*"\'`$(]*[\[［【])*')


@dataclasses.dataclass(frozen=True)
class Opening:
  """The position of a verdict in a text.

  Attributes:
    text: everything before the verdict's number; ends in a brace or bracket.
    closing: what ends the verdict after its number: '}', ']' or ']]'.
  """

  text: str
  closing: str


def find_opening(text: str, n: int) -> Opening | None:
  r"""Returns the opening of the verdict that the score parser reads.

  The parser is score_parser.parse_scores(text, 1, 1, n). The opening leaves
  out what stands between it and the number, such as LaTeX's \text. The
  function takes the time of the parser times the logarithm of the length.

  Args:
    text: a generation.
    n: verdicts are 1 to n.

  Returns:
    The opening, or None if the text has no verdict.
  """
  whole_text, text = text, score_parser.blank_thoughts(text)
  without_lists = text.translate(_BRACKETS_TO_COMMAS)
  boxes = list(_BOX.finditer(without_lists))
  box_starts = [box.start() for box in boxes]
  last = _last_parsed(without_lists, box_starts, n)
  if last is not None:
    return Opening(whole_text[: boxes[last].end()], '}')
  list_starts = [match.start() for match in _LIST.finditer(text)]
  last = _last_parsed(text, list_starts, n)
  if last is not None:
    brackets = _BRACKETS.search(text, list_starts[last])
    assert brackets is not None  # a list that parses has brackets
    depth = sum(x in '[［【' for x in brackets[0])
    return Opening(whole_text[: brackets.end()], ']' * depth)
  # Rarely, a box parses with its brackets but not with commas in their place.
  last = _last_parsed(text, box_starts, n)
  return None if last is None else Opening(whole_text[: boxes[last].end()], '}')


def _last_parsed(text: str, starts: Sequence[int], n: int) -> int | None:
  """Returns the index of the last start from which the text has a verdict."""

  def has_no_verdict(start):
    """Returns whether no scores can be parsed from `start` on."""
    return score_parser.parse_scores(text[start:], 1, 1, n) is None

  # A verdict that a start reaches is reached by all starts before it.
  count = bisect.bisect_left(starts, True, key=has_no_verdict)
  return count - 1 if count else None
