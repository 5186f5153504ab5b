"""HTML of a page that needs no other file, no network and no scripts.

Every function escapes the texts that it is given; nobody else writes markup.
"""

import base64
import html
import importlib.resources
import string
from collections.abc import Iterable, Sequence

_TEMPLATE = 'report.html.template'
_MOST = 20_000  # Characters of one text.
# Control characters as their pictures: HTML has none but line feed and tab.
_PICTURES = {i: 0x2400 + i for i in range(32) if chr(i) not in '\n\t'}
_PICTURES[0x7F] = 0x2421


def page(title: str, parts: Iterable[str]) -> bytes:
  """The whole page; `parts` are results of the functions below."""
  source = importlib.resources.files('grm_jax.evaluation') / _TEMPLATE
  template = string.Template(source.read_text('utf-8'))
  whole = template.substitute(title=escape(title), body='\n'.join(parts))
  # UTF-8 has no lone surrogates: they appear as escapes.
  return whole.encode('utf-8', 'backslashreplace')


def escape(text: str) -> str:
  """The text for any place in HTML, quoted attributes included."""
  return html.escape(text.translate(_PICTURES), quote=True)


def heading(level: int, text: str) -> str:
  return f'<h{level}>{escape(text)}</h{level}>'


def note(text: str) -> str:
  """A small paragraph."""
  return f'<p class="note">{escape(text)}</p>'


def table(rows: Sequence[Sequence[str]], caption: str, name: str = '') -> str:
  """A table; the first row is its head.

  Args:
    name: 'texts' if cells are to be wrapped and start at the left.
  """
  head, *body = rows
  return '\n'.join(
    [
      f'<div class="wide"><table class="{escape(name)}">',
      f'<caption>{escape(caption)}</caption>',
      f'<thead>{_row(head, "th")}</thead>',
      '<tbody>',
      *(_row(row, 'td') for row in body),
      '</tbody></table></div>',
    ]
  )


def image(png: bytes, description: str) -> str:
  """A picture that is part of the page."""
  data = base64.b64encode(png).decode('ascii')
  return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def folded(
  name: str, summary: str, texts: Iterable[tuple[str, str]], opened: bool
) -> str:
  """Texts under headings, which a reader can fold.

  Args:
    name: the class of the summary: 'right', 'wrong', 'failure' or ''.
    summary: what is seen of it when folded.
    texts: (heading, text).
  """
  return '\n'.join(
    [
      '<details open>' if opened else '<details>',
      f'<summary class="{escape(name)}">{escape(summary)}</summary>',
      *(heading(4, title) + _verbatim(text) for title, text in texts),
      '</details>',
    ]
  )


def _verbatim(text: str) -> str:
  left_out = len(text) - _MOST
  if left_out > 0:
    text = f'{text[:_MOST]}\n[{left_out:,} more characters]'
  # A parser drops one line feed after <pre>.
  return f'<pre dir="auto">\n{escape(text)}</pre>'


def _row(cells: Iterable[str], element: str) -> str:
  inner = ''.join(f'<{element}>{escape(x)}</{element}>' for x in cells)
  return f'<tr>{inner}</tr>'
