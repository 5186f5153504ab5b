r"""Parses scores as the example code of the released DeepSeek-GRM models does.

Its rules, from the model cards of BBQGOD/DeepSeek-GRM-16B and -27B: the content
of the last `\boxed{...}` or `[...]` is split at commas; parts that Python reads
as a float are the scores, the others are dropped; scores are clipped to 1..10.

Compared with score_parser.py, it accepts 8.5 and 11, and fails on [[2, 4]], on
a bracket after the box, and on one box per score. It is for comparisons with
published numbers.
"""

import math
import re

_OPENING = re.compile(r'\\{1,2}boxed\{|\[')
_CLOSING = re.compile(r'[\]}]')


def parse_scores(
  text: str, num_responses: int, low: int = 1, high: int = 10
) -> tuple[float, ...] | None:
  """Returns the scores at the end of a generation.

  Args:
    text: any text; parsing takes linear time.
    num_responses: C, at least 1.
    low: lowest score.
    high: highest score.

  Returns:
    [C] numbers in the order of the prompt, ints where they are whole; None if
    the last group does not have exactly C.
  """
  # What precedes a closing mark, up to the previous one, holds one group.
  for part in reversed(_CLOSING.split(text)[:-1]):
    opening = _OPENING.search(part)
    if opening and opening.end() < len(part):
      numbers = [_number(x) for x in part[opening.end() :].split(',')]
      scores = [min(max(x, low), high) for x in numbers if x is not None]
      return tuple(scores) if len(scores) == num_responses else None
  return None


def _number(text: str) -> float | None:
  """Returns the float in a text, an int if it is whole; None for NaN."""
  try:
    value = float(text)
  except ValueError:
    return None
  if math.isnan(value):
    return None
  return int(value) if value.is_integer() else value
