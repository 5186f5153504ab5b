"""Text that a terminal, a log file or an error message can show."""

import logging


def printable(text: str) -> str:
  """Returns a text with control characters escaped, in one line.

  Ids, paths and keys come from files and requests. Without this, an escape
  sequence in one of them would change the reader's terminal, and a line break
  would forge a line of the log.
  """
  if text.isprintable():
    return text
  return ''.join(
    x if x.isprintable() else x.encode('unicode_escape').decode() for x in text
  )


def short(text: str, max_chars: int = 300) -> str:
  """Returns a printable text; the middle of a long one is left out."""
  text = printable(text)
  if len(text) <= max_chars:
    return text
  tail = max_chars // 3
  return f'{text[: max_chars - tail - 5]} ... {text[-tail:]}'


class EscapeFilter(logging.Filter):
  """Escapes control characters in the values of log messages."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Changes the values of a record; returns True to log it."""
    if isinstance(record.args, tuple):
      record.args = tuple(
        printable(str(x)) if isinstance(x, str | Exception) else x
        for x in record.args
      )
    return True
