"""Parses the scores in a generation: integers, or None."""

import dataclasses
import re

_NOUNS = 'response|assistant|answer|candidate|reply|model|output|completion'
_SCORE_WORDS = frozenset(['score', 'scores', 'rating', 'ratings'])
# After these, a list needs a colon to be the scores: "the ratings of [1, 5]".
_PREPOSITIONS = frozenset(['for', 'of'])
_VERBS = frozenset(['is', 'are'])
_LABEL_WORDS = _SCORE_WORDS.union(
  ['and', 'final', 'overall', 'the', 'responses'],
  _PREPOSITIONS,
  _VERBS,
  _NOUNS.split('|'),
)
# After a preposition they say of which responses: "Scores for both: [3, 4]".
_WHICH = frozenset(
  ['a', 'all', 'b', 'both', 'each', 'every', 'four', 'individual', 'these']
  + ['those', 'three', 'two']
  + ['answers', 'assistants', 'candidates', 'completions', 'models', 'outputs']
  + ['replies']
)

# Commands of LaTeX for the font of a text.
_FONTS = (
  'text(?:bf|it|rm|tt|sf|sc|sl|up|md|normal)?|'
  'math(?:bf|it|rm|sf|tt|cal|normal)|operatorname|mbox'
)

_BRACED_LABEL = r'\{\s*(?:[0-9]{1,2}|[a-h])\s*\}(?=\s*(?:[:=]|\\colon))'

# The text is read once, token by token. A token that fails backtracks over at
# most one run of blanks, so parsing any text takes linear time. The order of
# the alternatives matters. There are no possessive quantifiers, because Python
# before 3.11.5 handles them incorrectly.
_TOKEN = re.compile(
  rf"""
  (?P<box> \\{{1,2}}boxed\s*\{{ )
| (?P<open> [\[{{] )
| (?P<close> [\]}}] )
  # A label's number, not a score: "Response 2", "B:", "2 =".
| (?P<index> (?:{_NOUNS})(?:[\s~]|\\[ ,;:])*\\?\#?(?:[0-9]{{1,2}}|[a-h])\b
           | (?:[0-9]{{1,2}}|[a-h])(?=[\s*)]*[:=])
           # In its own braces: "\text{{B}}: 8".
           | \\{{1,2}}(?:{_FONTS}){_BRACED_LABEL} )
| (?P<number> [0-9]+(?:\.[0-9]*)? )
| (?P<over> /\s*[0-9]+(?:\.[0-9]*)? )
| (?P<word> [^\W\d_]+ )
| (?P<noise> (?:
      ```[a-z]{{0,12}}
    | [\s,;:=&$*"'`()~|\0\u200b\ufeff\u2018\u2019\u201c\u201d]
    | \.(?![0-9])
    | _(?![^\W_])
    | \\{{1,2}}(?:{_FONTS}|bf|left|right|q?quad|colon)(?![a-z]|{_BRACED_LABEL})
    | \\\\(?!boxed)
    | \\[ ,;:!&${{}}()\[\]]
    ){{1,200}} )
| (?P<dash> [-\u2013\u2014\u2022>\#]+ )
| (?P<other> \\[a-z]* | . )
  """,
  re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

# A remark between a label and its colon: "Scores ([1, 10]): [8, 9]".
_REMARK = re.compile(
  r'[\s*_"\'`]{0,9}(?:\([^(){}\\\n]{1,60}\)|\bout of [0-9]{1,4})'
  r'(?=[\s*_"\'`]{0,9}[:=])',
  re.IGNORECASE,
)

# Possible beginning of a group or a label when no group is open. The prose in
# between is skipped.
_START = re.compile(
  r'[\\\[{]|(?<![^\W\d_])(?:score|rating)s?(?![^\W\d_])', re.IGNORECASE
)

# What precedes a label that begins a line: "**The final scores".
_LINE_BEGIN = re.compile(
  r'(?:\A|\n)(?:[\s*_#>+"\'`(•-]|[0-9]{1,2}[.)]'
  r'|(?<![^\W\d_])(?:and|final|overall|the)(?![^\W\d_])){0,20}\Z',
  re.IGNORECASE,
)
_MAX_LINE_BEGIN = 40  # characters
# A part of another word: "sub-scores", "z_score".
_JOINED = re.compile(r'[^\W_][-\u2010\u2011_]\Z')

# Thoughts of a reasoning model.
_THINK_TAG = re.compile(
  r'<\s{0,3}(/?)\s{0,3}(?:think|thinking|thoughts?|reasoning)'
  r'(?:\s[^<>]{0,200})?\s{0,3}>',
  re.IGNORECASE,
)

# Maximum nesting depth. Beyond it the outermost groups are dropped.
_MAX_DEPTH = 32

# ASCII forms of full-width characters, the ideographic comma and full stop, and
# lenticular brackets.
_TO_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
  0x3001: ',',
  0x3002: '.',
  0x3010: '[',
  0x3011: ']',
}


def parse_scores(
  text: str, num_responses: int, low: int = 1, high: int = 10
) -> tuple[int, ...] | None:
  r"""Returns the scores at the end of a generation.

  The scores are taken from the first of these that exists:

  1. the last box that is a list of exactly C numbers, or the last complete run
     of exactly C boxes, whichever is later in the text;
  2. the last list in square brackets of exactly C numbers that follows a label
     such as "Scores:", "Scores (out of 10):" or "Ratings for both:", or has
     double brackets, [[2, 4]]. A label without a colon, "is" or "are" must
     begin its line. Any other list is more likely a citation or code.

  A box is `\boxed{...}` with its closing brace; the last number of an unclosed
  box may be cut off.

  A list consists of numbers, separators (spaces, commas, semicolons, "and", &,
  |), quotes, markup (brackets, braces, $, *, \text, \mathbf, \left, spaces of
  LaTeX) and labels ("Response 1:", "Score:"). The number in a label must be the
  position of the score that follows, in its list or in its run of boxes. Labels
  and scores can have their own braces. A number is written in digits, with
  optional zeros after the point (8.0) and optionally "/high" after it (8/10 if
  `high` is 10). Anything else makes the group not a list: 8.5, 8/5, a sign, a
  number outside of low..high.

  A run consists of boxes with one number each. Between them there can be
  separators, dashes, markup, "/high" and labels, numbered as above. Of a longer
  run, the last C boxes count if a sentence, a paragraph or a label such as
  "Final Scores:" begins with them.

  Full-width characters count as their ASCII forms. Text inside <think> tags is
  ignored, also if the tag is not closed.

  Args:
    text: any text; parsing takes linear time.
    num_responses: C, at least 1.
    low: lowest score; 0 for a single response in training.
    high: highest score; 1 for a single response in training.

  Returns:
    [C] integers in the order of the prompt, or None: a parse failure.

  Raises:
    ValueError: num_responses is below 1.
  """
  if num_responses < 1:
    raise ValueError(f'num_responses is {num_responses}; it must be at least 1')
  reader = _ScoreReader(num_responses, low, high)
  text = blank_thoughts(text).translate(_TO_ASCII)
  position = 0
  while position < len(text):
    if reader.is_idle():
      start = _START.search(text, position)
      if start is None:
        break
      position = start.start()
    remark = reader.is_after_label() and _REMARK.match(text, position)
    if remark:
      position = remark.end()
    token = _TOKEN.match(text, position)
    assert token is not None  # the last alternative matches any character
    reader.read(token)
    position = token.end()
  return reader.scores()


def blank_thoughts(text: str) -> str:
  """Replaces everything in <think> tags by NUL, at the same length.

  The text before a closing tag without an opening one is a thought too, because
  the opening tag can be at the end of the prompt.
  """
  visible: list[tuple[int, int]] = []  # (begin, end)
  depth, begin = 0, 0
  for tag in _THINK_TAG.finditer(text.translate(_TO_ASCII)):
    if not tag[1]:
      if not depth:
        visible.append((begin, tag.start()))
      depth += 1
    else:
      if not depth:
        visible.clear()
      depth = max(0, depth - 1)
    begin = tag.end()
  if not depth:
    visible.append((begin, len(text)))
  parts, end = [], 0
  for begin, next_end in visible:
    parts += ['\0' * (begin - end), text[begin:next_end]]
    end = next_end
  return ''.join([*parts, '\0' * (len(text) - end)])


def _to_integer(number: str) -> int | None:
  """Returns the value of '8', '8.' or '8.0'; None for 8.5 or a long number."""
  whole, _, fraction = number.partition('.')
  # Python refuses to convert thousands of digits.
  if len(whole) > 9 or fraction.strip('0'):
    return None
  return int(whole)


def _label_position(label: str) -> int:
  """Returns the position from 1 in a label: 2 for 'Response 2' and 'B'."""
  last = re.search(r'([0-9]+|[a-zA-Z])[\s}]*$', label)
  assert last is not None  # the token pattern ends in a letter or digits
  if last[1].isalpha():
    return ord(last[1].lower()) - ord('a') + 1
  return int(last[1])


@dataclasses.dataclass(slots=True)
class _Group:
  """An open box, brace or bracket.

  Attributes:
    kind: 'box', '{' or '['.
    begin: position of its first character in the text.
    first: index of its first number in the reader's list of numbers.
    continues_run: whether only separators lie between it and the last box of
      the current run.
    labelled: whether it follows a word such as "Score".
    is_list: whether its content so far can be a list.
    fits_labels: whether its labels count its numbers.
    fits_run: whether its labels count the boxes of the current run.
    doubled: whether it directly contains another pair of square brackets.
  """

  kind: str
  begin: int
  first: int
  continues_run: bool
  labelled: bool
  is_list: bool = True
  fits_labels: bool = True
  fits_run: bool = True
  doubled: bool = False


class _ScoreReader:
  """State of one pass over a text.

  The numbers of all open groups are in one list; those of a group begin at its
  `first`. Closing one of many nested groups therefore copies nothing.
  """

  def __init__(self, num_responses: int, low: int, high: int) -> None:
    self._n, self._low, self._high = num_responses, low, high
    self._groups: list[_Group] = []
    self._num_braces = 0  # open groups that a } can close
    self._numbers: list[int] = []
    self._run: list[int] = []  # the numbers of the current run of boxes
    self._run_end = 0
    self._breaks: set[int] = set()  # indices in the run where a part begins
    self._is_break = False  # whether the next box of the run begins a part
    self._label_end = 0  # position after the last label
    self._continues_run = False  # no token since the run's end interrupts it
    self._labelled = False
    self._needs_colon = False  # before the label applies again
    self._boxed: tuple[int, ...] | None = None
    self._bracketed: tuple[int, ...] | None = None

  def is_idle(self) -> bool:
    """Returns whether prose can be skipped."""
    return not (
      self._groups or self._continues_run or self._labelled or self._needs_colon
    )

  def is_after_label(self) -> bool:
    """Returns whether a label such as "Scores for both" came last."""
    return (self._labelled or self._needs_colon) and not self._groups

  def scores(self) -> tuple[int, ...] | None:
    """Returns the scores at the end of the text."""
    self._end_run()
    return self._bracketed if self._boxed is None else self._boxed

  def read(self, token: re.Match[str]) -> None:
    """Updates the state with the next token."""
    kind, text = token.lastgroup, token[0]
    if kind == 'noise':
      self._read_noise(text)
      return
    if kind == 'number':
      self._read_number(_to_integer(text))
    elif kind == 'index':
      self._read_label(_label_position(text))
    elif kind == 'box' or kind == 'open':
      self._open('box' if kind == 'box' else text, token.start())
    elif kind == 'close':
      self._close(text, token.end())
    elif kind == 'word' and text.lower() in _LABEL_WORDS:
      self._read_label_word(text.lower(), token)
    elif kind == 'word' and self._needs_colon and text.lower() in _WHICH:
      self._mark_not_a_list()
      self._continues_run = False
    elif kind == 'dash':
      self._mark_not_a_list()
    elif kind != 'over' or _to_integer(text[1:].strip()) != self._high:
      self._mark_not_a_list()
      self._continues_run = False
      self._end_label()

  def _read_noise(self, text: str) -> None:
    has_colon = ':' in text or '=' in text
    if '.' in text or text.count('\n') > 1:
      self._is_break = True
    if self._needs_colon and has_colon:
      self._labelled, self._needs_colon = True, False
    elif '.' in text and not has_colon:
      self._end_label()  # a sentence ends

  def _read_label_word(self, word: str, token: re.Match[str]) -> None:
    start, text = token.start(), token.string
    if word in _SCORE_WORDS:
      before = text[max(0, start - _MAX_LINE_BEGIN) : start]
      if _JOINED.search(before):
        self._end_label()
        return
      is_first = start <= _MAX_LINE_BEGIN or '\n' in before
      self._labelled = is_first and bool(_LINE_BEGIN.search(before))
      self._needs_colon = not self._labelled
      self._is_break, self._label_end = True, token.end()
    elif self._needs_colon and word in _VERBS:
      self._labelled, self._needs_colon = True, False
    elif word in _PREPOSITIONS and self._labelled:
      self._labelled, self._needs_colon = False, True

  def _end_label(self) -> None:
    self._labelled = self._needs_colon = False

  def _mark_not_a_list(self) -> None:
    if self._groups:
      self._groups[-1].is_list = False

  def _read_number(self, value: int | None) -> None:
    # Between the boxes of a run a bare number can only be the next label.
    self._continues_run = self._continues_run and value == len(self._run) + 1
    self._end_label()
    if value is None or not self._low <= value <= self._high:
      self._mark_not_a_list()
    elif self._groups:
      self._numbers.append(value)

  def _read_label(self, position: int) -> None:
    self._is_break = False  # a numbered label continues a run
    self._continues_run = self._continues_run and position == len(self._run) + 1
    for group in self._groups:
      count = len(self._numbers) - group.first
      group.fits_labels = group.fits_labels and position == count + 1
      group.fits_run = group.fits_run and position == len(self._run) + 1

  def _open(self, kind: str, begin: int) -> None:
    if len(self._groups) == _MAX_DEPTH:
      self._num_braces -= self._groups.pop(0).kind != '['
    self._groups.append(
      _Group(
        kind,
        begin,
        len(self._numbers),
        self._continues_run,
        # Directly after the word it is an index in code.
        self._labelled and begin > self._label_end,
      )
    )
    if kind != '[':
      self._num_braces += 1
    if kind == 'box':
      self._continues_run = False
      self._end_label()

  def _close(self, mark: str, end: int) -> None:
    """Ends the group that a mark closes; an unmatched mark is ignored."""
    group = self._pop_group(mark)
    if group is None:
      return
    if self._groups:
      outer = self._groups[-1]
      outer.is_list = outer.is_list and group.is_list
    if group.kind == 'box':
      self._end_box(group, end)
    elif group.kind == '[':
      self._end_bracket(group)
    if not self._groups:
      self._numbers.clear()

  def _pop_group(self, mark: str) -> _Group | None:
    if mark == ']':
      if not self._groups or self._groups[-1].kind != '[':
        return None
      return self._groups.pop()
    if not self._num_braces:
      return None
    self._num_braces -= 1
    group, is_list = self._groups.pop(), True
    while group.kind == '[':  # a bracket that is never closed
      is_list = is_list and group.is_list
      group = self._groups.pop()
    group.is_list = group.is_list and is_list
    return group

  def _end_box(self, group: _Group, end: int) -> None:
    count = len(self._numbers) - group.first if group.is_list else 0
    is_single = count == 1 and (group.fits_labels or group.fits_run)
    # A box around the boxes of the run neither ends nor continues it.
    if group.begin >= self._run_end:
      if not is_single or not group.continues_run:
        self._end_run()
      if is_single:
        if self._is_break:
          self._breaks.add(len(self._run))
        self._run.append(self._numbers[-1])
      self._is_break = False
      self._run_end, self._continues_run = end, is_single
    if count == self._n and group.fits_labels:
      self._boxed = tuple(self._numbers[-self._n :])
    self._labelled = False
    # "Scores: \\boxed{unclear}: [2, 4]"
    self._needs_colon = group.labelled and not group.is_list

  def _end_run(self) -> None:
    first = len(self._run) - self._n
    if first == 0 or first in self._breaks:
      self._boxed = tuple(self._run[first:])
    self._run, self._breaks = [], set()

  def _end_bracket(self, group: _Group) -> None:
    count = len(self._numbers) - group.first if group.is_list else 0
    is_verdict = group.fits_labels and (group.labelled or group.doubled)
    if count == self._n and is_verdict:
      self._bracketed = tuple(self._numbers[-self._n :])
    if self._groups and self._groups[-1].kind == '[':
      self._groups[-1].doubled = True
    self._end_label()
