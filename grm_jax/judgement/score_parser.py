"""From what a GRM wrote to its scores: integers, or None."""

import dataclasses
import re

_NOUNS = 'response|assistant|answer|candidate|reply|model|output|completion'
_SCORE_WORDS = frozenset(['score', 'scores', 'rating', 'ratings'])
_LABEL_WORDS = _SCORE_WORDS.union(
  ['and', 'final', 'overall', 'for', 'of', 'is', 'the', 'responses'],
  _NOUNS.split('|'),
)

# The text is read once, token by token, and a token that fails goes back over
# one run of blanks at most, so that any text takes time linear in its length.
# The order matters. No possessive quantifiers: Python before 3.11.5 gets them
# wrong.
_TOKEN = re.compile(
  rf"""
  (?P<box> \\{{1,2}}boxed\s*\{{ )
| (?P<open> [\[{{] )
| (?P<close> [\]}}] )
  # A label's number, not a score: "Response 2", "B:", "2 =".
| (?P<index> (?:{_NOUNS})\s*\#?(?:[0-9]{{1,2}}|[a-h])\b
           | (?:[0-9]{{1,2}}|[a-h])(?=[\s*)]*[:=]) )
| (?P<number> [0-9]+(?:\.[0-9]*)? )
| (?P<over> /\s*[0-9]+(?:\.[0-9]*)? )
| (?P<word> [^\W\d_]+ )
| (?P<noise> (?:
      [\s,;:=&$*"'`()~|\u200b\ufeff\u2018\u2019\u201c\u201d]
    | \.(?![0-9])
    | \\\\(?!boxed)
    | \\[ ,;:!&${{}}()\[\]]
    | \\(?:text(?:bf|it|rm|tt)?|math(?:bf|it|rm|sf|tt)|bf|left|right|q?quad)
    ){{1,200}} )
| (?P<dash> [-\u2013\u2014\u2022>\#]+ )
| (?P<other> \\[a-z]* | . )
  """,
  re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

# Where something can begin when nothing is open: prose in between is skipped.
_START = re.compile(
  r'[\\\[{]|(?<![^\W\d_])(?:score|rating)s?(?![^\W\d_])', re.IGNORECASE
)

# No list is nested deeper; of what is, the innermost groups are kept.
_DEEPEST = 32

# Full-width forms, ideographic comma and full stop, lenticular brackets.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
  0x3001: ',',
  0x3002: '.',
  0x3010: '[',
  0x3011: ']',
}


def parse_scores(
  text: str, num_responses: int, low: int = 1, high: int = 10
) -> tuple[int, ...] | None:
  r"""The scores that a generation ends in.

  The rule: a box is `\boxed{...}` with its closing brace. What stands in it
  is a list if it has nothing but numbers, separators (spaces, commas,
  semicolons, "and", &, |), quotes, markup (brackets, braces, $, *, \text,
  \mathbf, \left, spaces of LaTeX) and label words ("Response 1:", "Score:"); a
  label's number must be the place of the score that follows. A number is
  digits, maybe with zeros behind a point (8.0; 8.5 spoils the list) and maybe
  over `high` (8/10 of 10; 8/5 spoils it); one outside of low..high, a sign or
  anything else spoils it too. A run is several boxes of one number each with
  nothing between them but separators, dashes, markup, "/10" and label words,
  numbered as above. The scores are those of the last box that is a list of
  exactly n numbers, or the last whole run of exactly n boxes, whichever is
  later. Only if there is neither, they are those of the last list in square
  brackets, [2, 4] or [[2, 4]], that has exactly n numbers by the same rule;
  for n = 1 it must be [[7]] or follow a word such as "Score:", since [1] is
  more likely a citation. Full-width characters count as their plain forms. A
  box that is never closed is none: its last number may have been cut.

  Args:
    text: anything; no text raises, and the time is linear in its length.
    num_responses: n, at least 1.
    low, high: the legal scores; 0 and 1 for a single response in training.

  Returns:
    n integers in the order of the prompt, or None: a parse failure.

  Raises:
    ValueError: n below 1.
  """
  if num_responses < 1:
    raise ValueError(f'scores of {num_responses} responses: at least 1')
  reader = _ScoreReader(num_responses, low, high)
  text = text.translate(_PLAIN)
  position = 0
  while position < len(text):
    if reader.idle():
      start = _START.search(text, position)
      if start is None:
        break
      position = start.start()
    token = _TOKEN.match(text, position)
    reader.read(token)
    position = token.end()
  return reader.scores()


def _integer(number):
  """Of '8', '8.' or '8.0'; None if it is none, or too long to be a score."""
  whole, _, fraction = number.partition('.')
  # Python refuses to convert thousands of digits.
  if len(whole) > 9 or fraction.strip('0'):
    return None
  return int(whole)


def _place(label):
  """Of a label's number, from 1: 'Response 2' and 'B' are 2."""
  last = label[-1].lower()
  if last.isalpha():
    return ord(last) - ord('a') + 1
  return int(re.search(r'[0-9]+$', label)[0])


@dataclasses.dataclass(slots=True)
class _Bracket:
  """What an open brace or bracket began.

  Attributes:
    kind: 'box', '{' or '['.
    begin: where in the text.
    first: numbers that had been read before it.
    linked: whether it goes on with a run of boxes.
    labelled: whether it follows a word such as "Score".
    clean: whether all of it can stand in a list.
    doubled: whether brackets stand in these brackets.
  """

  kind: str
  begin: int
  first: int
  linked: bool
  labelled: bool
  clean: bool = True
  doubled: bool = False


class _ScoreReader:
  """The state of one pass over a text.

  The numbers of all open groups are in one list, a group's being those from
  its `first` on: so that closing one of many nested groups copies nothing.
  """

  def __init__(self, n, low, high):
    self.n, self.low, self.high = n, low, high
    self.groups: list[_Bracket] = []
    self.braces = 0  # Groups that a } can close.
    self.numbers: list[int] = []
    self.run: list[int] = []  # Of boxes of one number each.
    self.run_end = 0
    self.linked = False  # Nothing since the run's end that breaks it.
    self.labelled = False
    self.boxed: tuple[int, ...] | None = None
    self.listed: tuple[int, ...] | None = None

  def idle(self):
    return not (self.groups or self.linked or self.labelled)

  def scores(self):
    self._end_run()
    return self.listed if self.boxed is None else self.boxed

  def read(self, token):
    kind = token.lastgroup
    if kind == 'noise':
      return
    text = token[0]
    if kind == 'number':
      self._number(_integer(text))
    elif kind == 'index':
      self._index(_place(text))
    elif kind == 'box' or kind == 'open':
      self._open('box' if kind == 'box' else text, token.start())
    elif kind == 'close':
      self._close(text, token.end())
    elif kind == 'word' and text.lower() in _LABEL_WORDS:
      self.labelled = self.labelled or text.lower() in _SCORE_WORDS
    elif kind == 'dash':
      self._spoil()
    elif kind != 'over' or _integer(text[1:].strip()) != self.high:
      self._spoil()
      self.linked = self.labelled = False

  def _spoil(self):
    if self.groups:
      self.groups[-1].clean = False

  def _number(self, value):
    self.linked = self.linked and value == len(self.run) + 1
    self.labelled = False
    if value is None or not self.low <= value <= self.high:
      self._spoil()
    elif self.groups:
      self.numbers.append(value)

  def _index(self, place):
    self.linked = self.linked and place == len(self.run) + 1
    first = self.groups[-1].first if self.groups else 0
    if place != len(self.numbers) - first + 1:
      self._spoil()

  def _open(self, kind, begin):
    if len(self.groups) == _DEEPEST:
      self.braces -= self.groups.pop(0).kind != '['
    self.groups.append(
      _Bracket(kind, begin, len(self.numbers), self.linked, self.labelled)
    )
    if kind != '[':
      self.braces += 1
    if kind == 'box':
      self.linked = self.labelled = False

  def _close(self, mark, end):
    """Ends the group that a mark closes; a mark without one is nothing."""
    if mark == ']':
      if not self.groups or self.groups[-1].kind != '[':
        return
      group = self.groups.pop()
    else:
      if not self.braces:
        return
      self.braces -= 1
      group, clean = self.groups.pop(), True
      while group.kind == '[':  # Never closed: it does not count.
        group, clean = self.groups.pop(), clean and group.clean
      group.clean = group.clean and clean
    if self.groups:
      self.groups[-1].clean = self.groups[-1].clean and group.clean
    if group.kind == 'box':
      self._end_box(group, end)
    elif group.kind == '[':
      self._end_list(group)
    if not self.groups:
      self.numbers.clear()

  def _end_box(self, group, end):
    count = len(self.numbers) - group.first if group.clean else 0
    # A box around the run's own boxes neither ends it nor goes on with it.
    if group.begin >= self.run_end:
      if count != 1 or not group.linked:
        self._end_run()
      if count == 1:
        self.run.append(self.numbers[-1])
      self.run_end, self.linked = end, count == 1
    if count == self.n:
      self.boxed = tuple(self.numbers[-self.n :])
    self.labelled = False

  def _end_run(self):
    if len(self.run) == self.n:
      self.boxed = tuple(self.run)
    self.run = []

  def _end_list(self, group):
    count = len(self.numbers) - group.first if group.clean else 0
    sure = self.n > 1 or group.labelled or group.doubled
    if count == self.n and sure:
      self.listed = tuple(self.numbers[-self.n :])
    if self.groups and self.groups[-1].kind == '[':
      self.groups[-1].doubled = True
    self.labelled = False
