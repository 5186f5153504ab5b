"""Builds a self-contained HTML page: no other files, network or scripts.

Every function escapes its texts. No other module writes markup.
"""

import base64
import html
import importlib.resources
import string
from collections.abc import Iterable, Sequence

_TEMPLATE = 'report.html.template'
_MAX_CHARACTERS = 20_000  # of one text
# HTML allows no control characters except line feed and tab. The others are
# shown as Unicode control pictures.
_CONTROL_PICTURES = {i: 0x2400 + i for i in range(32) if chr(i) not in '\n\t'}
_CONTROL_PICTURES[0x7F] = 0x2421


def page(title: str, parts: Iterable[str]) -> bytes:
  """Returns the page as UTF-8; `parts` come from the functions below."""
  source = importlib.resources.files('grm_jax.evaluation') / _TEMPLATE
  template = string.Template(source.read_text('utf-8'))
  document = template.substitute(title=escape(title), body='\n'.join(parts))
  # UTF-8 cannot encode unpaired surrogates; they appear as escapes.
  return document.encode('utf-8', 'backslashreplace')


def escape(text: str) -> str:
  """Escapes a text for HTML, including quoted attributes."""
  return html.escape(text.translate(_CONTROL_PICTURES), quote=True)


def heading(level: int, text: str) -> str:
  """Returns a heading <h1> to <h6>."""
  return f'<h{level}>{escape(text)}</h{level}>'


def note(text: str) -> str:
  """Returns a paragraph in small print."""
  return f'<p class="note">{escape(text)}</p>'


def table(rows: Sequence[Sequence[str]], caption: str, name: str = '') -> str:
  """Returns a table.

  Args:
    rows: cells; the first row is the header.
    caption: text above the table.
    name: CSS class; 'texts' left-aligns and wraps the cells.
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
  """Returns an image with its data inline."""
  data = base64.b64encode(png).decode('ascii')
  return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def details(
  name: str, summary: str, texts: Iterable[tuple[str, str]], is_open: bool
) -> str:
  """Returns a section that readers can open and close.

  Args:
    name: CSS class of the summary: 'right', 'wrong', 'failure' or ''.
    summary: the line that is always visible.
    texts: (heading, text) of each part.
    is_open: whether the section is open at first.
  """
  return '\n'.join(
    [
      '<details open>' if is_open else '<details>',
      f'<summary class="{escape(name)}">{escape(summary)}</summary>',
      *(heading(4, title) + _preformatted(text) for title, text in texts),
      '</details>',
    ]
  )


def _preformatted(text: str) -> str:
  num_omitted = len(text) - _MAX_CHARACTERS
  if num_omitted > 0:
    text = f'{text[:_MAX_CHARACTERS]}\n[{num_omitted:,} more characters]'
  # HTML parsers drop one line feed after <pre>.
  return f'<pre dir="auto">\n{escape(text)}</pre>'


def _row(cells: Iterable[str], element: str) -> str:
  inner = ''.join(f'<{element}>{escape(x)}</{element}>' for x in cells)
  return f'<tr>{inner}</tr>'
