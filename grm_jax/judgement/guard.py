r"""Escapes what looks like a delimiter of a prompt template in users' texts.

A delimiter is a tuple of tokens: words and single other characters in folded
form (see `fold`), INDEX for a number or a letter, ROLE for the name of a role.
Which spellings match depends on how much of the delimiter is literal:

- A heading begins a line, after quote, list and emphasis signs. A single word
  (`## Responses`) needs at least the template's number of `#`; with two or more
  words (`## Reference answer`) one `#` is enough.
- A bracket with two or more words (`[Start of Response 1]`) is matched
  anywhere, up to its last word: `[Start of Response #2`, `[start-of response]`.
- A shorter bracket with a number (`[1/2]`) is matched anywhere, and one without
  (`[user]`) where a line begins. Inside a line it can be code.
- A sentence of three or more words is matched by its words up to a colon, and
  any other delimiter by all of its characters, where a line begins.

Matching takes linear time: a pattern begins with `[` or at the beginning of a
line, and its gaps contain neither `[` nor `#`, so no part of a text is read
again from another beginning. Gaps and what follows them have no common
character, or the overlap is bounded.
"""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

Delimiter = tuple[str, ...]
# These cannot be tokens, which are folded.
INDEX, ROLE = 'INDEX', 'ROLE'

_LINE_BREAKS = frozenset('\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029')
# Categories of characters that are invisible, or accents on another one.
_DROPPED = frozenset(['Cc', 'Cf', 'Cn', 'Co', 'Cs', 'Me', 'Mn'])
_LOOKALIKES = str.maketrans(
  # Brackets, number signs, blank letters; Cyrillic and Greek letters.
  '【〔〖〘〚⟦⁅❲「『〈⟨⸢⟬⦋⌈⎡】〕〗〙〛⟧⁆❳」』〉⟩⸣⟭⦌⌉⎤♯⌗\u2800⁄∕аеорсухіѕԁјһԛԝοανε',
  '[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]## //aeopcyxisdjhqwoave',
  '\u115f\u1160',  # letters of Hangul that are drawn as nothing
)


class _Folding(dict[int, str]):
  """Folded form by code point, computed when it is first needed."""

  def __missing__(self, code: int) -> str:
    character = chr(code)
    if character in _LINE_BREAKS:
      folded = '\n'
    elif character.isspace():
      folded = ' '
    else:
      letters = unicodedata.normalize('NFKD', character).casefold()
      folded = ''.join(
        x for x in letters if unicodedata.category(x) not in _DROPPED
      ).translate(_LOOKALIKES)
    self[code] = folded
    return folded


_FOLDING = _Folding()


def fold(text: str) -> str:
  r"""Returns a text as a reader sees it, for comparisons.

  Letters lose case, width, accents and invisible characters. Brackets of all
  shapes become square ones, line breaks \n and other white space a space.
  """
  return text.translate(_FOLDING)


def tokens(text: str) -> list[str]:
  """Returns the folded words and other characters of a line of a template."""
  return re.findall(r'\w+|[^\w\s]', fold(text))


class Guard:
  """Escapes delimiters in texts."""

  def __init__(self, delimiters: Collection[Delimiter]):
    """The delimiters are those of a template and of the parts inside it."""
    anywhere = {_pattern(x) for x in delimiters if _is_anywhere(x)}
    at_begin = {_pattern(x) for x in delimiters if not _is_anywhere(x)}
    self._pattern = re.compile(
      r'(?:\A|\n)[ >*~+|"\'(\[`_•“”‘«»–—-]*?(?:\d{1,2}[.)] *)?'
      rf'({_any_of(at_begin)})|({_any_of(anywhere)})'
    )

  def escape(self, text: str) -> str:
    r"""Returns the text with a backslash before each delimiter."""
    matches = self._pattern.finditer(fold(text))
    starts = [x.start(x.lastindex or 0) for x in matches]
    if not starts:
      return text
    # Folding changes lengths: ends[i] is the end of character i when folded.
    ends = list(itertools.accumulate(len(_FOLDING[ord(x)]) for x in text))
    positions = [bisect.bisect_right(ends, start) for start in starts]
    begins = [0, *positions]
    parts = (text[a:b] for a, b in zip(begins, [*positions, None], strict=True))
    return '\\'.join(parts)


def _any_of(patterns: Iterable[str]) -> str:
  return '|'.join(sorted(patterns)) or '(?!)'


_LABELS = {
  # A letter directly after a word is a part of it.
  INDEX: r'(?:\d|(?<![^\W\d_])[^\W\d_])[\w.-]{0,19}',
  ROLE: r'(?:system|user|assistant|model)',
}
_HASH = r'(?:\# ?)?'
# Between other characters, as in `[1/2]`: `[#1/#2]`, but not `[and/or]`.
_EXACT = {
  **_LABELS,
  INDEX: rf'{_HASH}(?:\d[\w.-]{{0,19}}|(?<![^\W\d_])[^\W\d_](?![^\W\d_]))',
}
_GAP = r'(?:[^\w\[\]#]|_)*'  # between words
_LETTER_GAP = r'[- \n]{0,3}'  # in a word, as in `Resp-\nonse`
_BLANKS = r'[ \n]*'  # between characters


def _words(delimiter: Delimiter) -> list[str]:
  """Returns the literal words."""
  return [x for x in delimiter if x not in _LABELS and re.match(r'\w', x)]


def _is_anywhere(delimiter: Delimiter) -> bool:
  if delimiter[0] != '[':
    return False
  return len(_words(delimiter)) > 1 or len(delimiter) > 3


def _pattern(delimiter: Delimiter) -> str:
  """Returns the regular expression of a delimiter in a folded text."""
  words = _words(delimiter)
  if delimiter[0] == '#':
    num_hashes = 1 if len(words) > 1 else delimiter.count('#')
    hashes = rf'(?:\# {{0,3}}){{{num_hashes},}}'
    return hashes + _GAP + _joined(delimiter) + _end(words)
  if delimiter[0] == '[' and len(words) > 1:
    last = max(i for i, x in enumerate(delimiter) if x == words[-1])
    return rf'\[{_GAP}{_HASH}{_joined(delimiter[: last + 1])}'
  if delimiter[0] == '[' and words or delimiter == ('[', ROLE, ']'):
    number = rf'{_HASH}(?:\d{{1,3}}{_GAP})?'
    return rf'\[{_GAP}{_joined(delimiter)}{_GAP}{number}\]'
  if len(words) > 2 and delimiter[0] != '[':
    end = delimiter.index(':') if ':' in delimiter else len(delimiter)
    return _joined(delimiter[: end or None])
  exact = (_EXACT.get(x) or re.escape(x) for x in delimiter)
  return _BLANKS.join(exact)


def _end(words: Sequence[str]) -> str:
  # `## Conversational AI` is not the heading `## Conversation`.
  return r's?(?![^\W\d_])' if len(words) == 1 else ''


def _joined(delimiter: Delimiter) -> str:
  """Returns the pattern of words and labels with any gaps between them."""
  parts = [
    _LABELS[x] if x in _LABELS else _LETTER_GAP.join(x)
    for x in delimiter
    if x in _LABELS or re.match(r'\w', x)
  ]
  return f'{_GAP}{_HASH}'.join(parts)
