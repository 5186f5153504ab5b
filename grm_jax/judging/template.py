r"""Prompt templates: plain text with named slots, and loops over parts.

  {{each turn}} ... {{role}} ... {{text}} ... {{end}}
  {{each response}} ... {{number}} of {{num_responses}} ... {{text}} ... {{end}}
  {{num_responses}} {{reference}} {{principles}} {{hint}} ...

What fills a slot is data: it is put in once and never read as a template. What
looks in it like one of the template's own marks (`[End of Response 2]`
anywhere, `[user]` or a heading where a line begins, however spaced or
capitalised) gets a backslash in front, so that no text can end its slot or
open another.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

from etils import epath

_DIRECTORY = pathlib.Path(__file__).parent / 'templates'
_TAG = re.compile(r'\{\{\s*([a-z_]+(?: [a-z_]+)?)\s*\}\}')
_LOOPS = {
  'turn': ('role', 'text'),
  'response': ('number', 'num_responses', 'text'),
}
# What a slot inside a mark may hold, for recognising marks in data.
_HELD = {
  'role': r'(?:system|user|assistant|model)',
  'number': r'[\w.-]{1,20}',
  'num_responses': r'[\w.-]{1,20}',
}


@dataclasses.dataclass(frozen=True)
class Slot:
  """A place that is filled with the value of this name."""

  name: str


@dataclasses.dataclass(frozen=True)
class Loop:
  """Pieces that are written once for every turn or response."""

  over: str
  body: tuple[str | Slot, ...]


@dataclasses.dataclass(frozen=True)
class Template:
  """A template that was read.

  Attributes:
    name: for messages.
    pieces: in order.
    marks: finds what looks like the template's marks in data.
  """

  name: str
  pieces: tuple[str | Slot | Loop, ...]
  marks: re.Pattern[str] | None

  def slots(self) -> set[str]:
    """Names of the slots outside of loops."""
    return {piece.name for piece in self.pieces if isinstance(piece, Slot)}

  def loops(self) -> set[str]:
    """What its loops are over."""
    return {piece.over for piece in self.pieces if isinstance(piece, Loop)}

  def fill(
    self,
    values: Mapping[str, str],
    loops: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
  ) -> str:
    """The text with every slot filled.

    Args:
      values: of the slots; as they are, since some are rendered texts
        themselves. Pass data through `guard` first.
      loops: the items of each loop; their values are data and are guarded.

    Raises:
      ValueError: a slot without a value.
    """
    out = []
    for piece in self.pieces:
      if isinstance(piece, Loop):
        items = (loops or {}).get(piece.over, ())
        out += [self._fill_item(piece, item) for item in items]
      else:
        out.append(self._text(piece, values))
    return ''.join(out)

  def guard(self, text: str) -> str:
    """`text` with a backslash before all that looks like a mark."""
    return text if self.marks is None else self.marks.sub(r'\\\g<0>', text)

  def _fill_item(self, loop, item):
    guarded = {name: self.guard(value) for name, value in item.items()}
    return ''.join(self._text(piece, guarded) for piece in loop.body)

  def _text(self, piece, values):
    if isinstance(piece, str):
      return piece
    if piece.name not in values:
      raise ValueError(
        f'template {self.name} has a slot {{{{{piece.name}}}}}, which is not '
        f'filled here; there are {", ".join(sorted(values))}'
      )
    return values[piece.name]


@functools.cache
def load(name: str) -> Template:
  """The template of this name in templates/, or of this path.

  Raises:
    ValueError: there is none, or it is malformed.
  """
  path = _DIRECTORY / f'{name}.txt'
  if not path.is_file():
    path = epath.Path(name)
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    known = ', '.join(sorted(p.stem for p in _DIRECTORY.glob('*.txt')))
    raise ValueError(
      f'config.prompt.template: {name!r} is neither a readable UTF-8 file '
      f'({error}) nor one of {known}'
    ) from None
  return parse(text, name)


def parse(text: str, name: str = 'template') -> Template:
  """Reads a template.

  Raises:
    ValueError: a loop that is unknown, nested, not ended or not begun, or a
      slot that its loop does not have.
  """
  pieces, loop, end = [], None, 0
  for tag in _TAG.finditer(text):
    into = pieces if loop is None else loop[1]
    into.append(text[end : tag.start()])
    end = tag.end()
    words = tag.group(1).split(' ')
    if words[0] == 'each' and len(words) == 2:
      loop = _open(name, words[1], loop)
      # A loop that stands on lines of its own leaves no empty lines.
      end += text[end:].startswith('\n')
    elif words == ['end']:
      pieces.append(_close(name, loop))
      loop = None
      end += text[end:].startswith('\n')
    else:
      into.append(_slot(name, tag.group(1), loop))
  if loop is not None:
    raise ValueError(
      f'template {name}: {{{{each {loop[0]}}}}} has no {{{{end}}}}'
    )
  pieces.append(text[end:])
  pieces = tuple(piece for piece in pieces if piece != '')
  return Template(name, pieces, _marks(pieces))


def _open(name, over, loop):
  if loop is not None:
    raise ValueError(f'template {name}: a loop inside the {loop[0]} loop')
  if over not in _LOOPS:
    raise ValueError(
      f'template {name}: {{{{each {over}}}}}; loops are over '
      f'{" and ".join(_LOOPS)}'
    )
  return over, []


def _close(name, loop):
  if loop is None:
    raise ValueError(f'template {name}: {{{{end}}}} without a loop')
  return Loop(loop[0], tuple(piece for piece in loop[1] if piece != ''))


def _slot(name, slot, loop):
  if ' ' in slot or (loop is not None and slot not in _LOOPS[loop[0]]):
    where = 'a template' if loop is None else f'the {loop[0]} loop'
    raise ValueError(f'template {name}: {where} has no slot {{{{{slot}}}}}')
  return Slot(slot)


def _marks(pieces):
  """Finds what looks like a line of the loops or a heading."""
  lines = []
  for piece in pieces:
    if isinstance(piece, Loop):
      lines += _lines(piece.body)
    elif isinstance(piece, str):
      lines += [[x] for x in piece.split('\n') if x.startswith(('#', '['))]
  patterns = {_flexible(line) for line in lines}
  patterns = '|'.join(sorted(patterns - {''}))
  return re.compile(patterns, re.IGNORECASE) if patterns else None


def _lines(body):
  """The lines of a loop, each a list of texts and slots."""
  lines = [[]]
  for piece in body:
    first, *rest = piece.split('\n') if isinstance(piece, str) else [piece]
    lines[-1].append(first)
    lines += [[part] for part in rest]
  return lines


def _flexible(line):
  """A pattern of the line, however spaced; '' if it has no text of its own."""
  words = []
  for piece in line:
    if isinstance(piece, str):
      words += map(re.escape, re.findall(r'\w+|[^\w\s]', piece))
    elif piece.name in _HELD:
      words.append(_HELD[piece.name])
    else:
      break  # a text: what comes before it is the mark
  if not any(word not in _HELD.values() for word in words):
    return ''
  pattern = r'[^\S\n]*'.join(words)
  # Other line breaks than \n are breaks to a reader as well. Long marks are
  # marks wherever they stand; `[user]` in the middle of a line may be code.
  begin = r'(?:(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])|\A)[^\S\n]*'
  long = words[0] == r'\[' and len(words) > 3
  return pattern if long else begin + pattern
